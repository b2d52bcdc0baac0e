"""Jobs before they are jobs: whose arguments are whose, how many nodes, what a bill says, what is refused."""

from __future__ import annotations

import functools
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from llama31 import config
from llama31.command import entry
from llama31.config import Job
from llama31.plan import shapes
from llama31.slurm import jobs
from tests.conftest import ROOT, Command
from tests.processes import LIMIT_S

SMALL = ["name=x", "model=tiny", "schedule=demo", "data=demo", "tokenizer=demo"]
BILL = re.compile(r"^# bill: --nodes=(\d+) (.*)\n#\s+(.*)$", re.MULTILINE)
SCRIPTS = {name: (jobs.SCRIPTS / f"{name}.sh").read_text() for name in jobs.SCHEMAS}


STAGE = ["data=demo", "init_from=y", "gates.baseline=z"]  # what a stage of long context has to be told
ALIGN = ["data.sources.x.input=x.jsonl", "init_from=y"]  # and a recipe of post-training
ROOTS = {"pretrain": STAGE[:1], "long_context": STAGE, "anneal": STAGE[:2], "sft": ALIGN, "reward": ALIGN, "dpo": ALIGN}


@functools.cache
def trained(root: str, *overrides: str) -> Any:
    return entry.compose(jobs.SCHEMAS[root], root, ["name=x", "tokenizer=demo", *ROOTS[root], *overrides])


def pretrain(*overrides: str) -> config.Pretrain:
    return trained("pretrain", *overrides)


# --- scripts ---


def expected_bill(recipe: str, nodes: int, overrides: list[str], mfu: float) -> str:
    """What the comment of a script has to say, computed from the config that it names."""
    if recipe in (*ROOTS, "probe"):  # an arm of a probe is a run of pretrain
        run = trained(recipe if recipe in ROOTS else "pretrain", *overrides)
        return jobs.bill(run, nodes * (run.cluster.processes_per_node or 1), mfu)
    if recipe == "judge":
        return "0 GPUs"
    model = pretrain(overrides[0], "schedule=8b").model
    if recipe == "convert":
        return jobs.conversion_price(model, mb_per_s=200)
    if recipe == "average":
        return jobs.conversion_price(model, 200, inputs=int(overrides[1].removeprefix("inputs=")))
    tokens = int(overrides[1].removeprefix("tokens="))
    forward = shapes.flops_per_token(model, 8192) / 3
    return jobs.price(8 * nodes, tokens, tokens * forward, mfu)


@pytest.mark.parametrize("recipe", jobs.SCHEMAS)
def test_bills_are_those_of_the_code(recipe: str) -> None:
    bills = BILL.findall(SCRIPTS[recipe])
    assert bills
    for nodes, overrides, said in bills:
        share = re.search(r"at (\d+)% of", said)
        assert said == expected_bill(recipe, int(nodes), overrides.split(), int(share[1]) / 100 if share else 1)


@pytest.mark.parametrize("recipe", ROOTS)
def test_layouts_of_the_bills_are_possible(recipe: str) -> None:
    for nodes, overrides, _ in BILL.findall(SCRIPTS[recipe]):
        run = trained(recipe, *overrides.split())
        assert jobs.world_size(run, Job(nodes=int(nodes))) == 8 * int(nodes)
        given = [f"submit.recipe={recipe}", "name=x", "tokenizer=demo", *ROOTS[recipe], *overrides.split()]
        (step,) = jobs.steps(Job(recipe=recipe, nodes=int(nodes)), jobs.split(given)[1])
        assert step.run == run


def test_work_is_that_of_the_stages() -> None:
    """By hand: rows of 4,096 tokens for 60 steps, of 8,192 from there on. The two layouts share the whole."""
    run = pretrain("model=405b", "schedule=405b")
    tokens, flops = jobs.work(run)
    first = 60 * 4_194_304
    short, long = (shapes.flops_per_token(run.model, length) for length in (4096, 8192))
    assert flops == pytest.approx(first * short + (tokens - first) * long, rel=1e-12)
    early = jobs.work(pretrain("model=405b", "schedule=405b", "stop_after_steps=342161"))
    late = jobs.work(pretrain("model=405b", "schedule=405b", "parallel=405b_16k"))
    assert early[0] + late[0] == tokens and early[1] + late[1] == pytest.approx(flops, rel=1e-12)


def test_price_in_words() -> None:
    said = jobs.price(100, 15_600_000_000_000, 1e15 * 3600 * 5000, mfu=0.5, peak_tflops=1000)
    assert said == "100 GPUs, 15.6T tokens, 100 h, 10,000 GPU-h at 50% of 1000 TFLOPS"


def test_every_recipe_has_its_script() -> None:
    choices = next(field for name, _, field in entry.usage.keys(Job) if name == "recipe").metadata["choices"]
    assert set(choices) == set(jobs.SCHEMAS)
    for name, text in SCRIPTS.items():
        module = name if (ROOT / f"recipes/{name}.py").exists() else f"pretrain --config-name {name}"
        assert jobs.SCHEMAS[name] is config.Pretrain or module == name
        assert f'/slurm/launch.sh" {module} "$@"' in text and f"#SBATCH --job-name={name}\n" in text


# --- arguments ---


def test_split() -> None:
    own, others = jobs.split(["recipe=pretrain", "dry_run=true", "submit.nodes=2", "model=8b", "--config-dir", "my"])
    assert own == ["submit.recipe=pretrain", "submit.dry_run=true", "submit.nodes=2"]
    assert others == ["model=8b", "--config-dir", "my"]
    assert jobs.split(["typo=1"]) == (["typo=1"], [])


def test_short_names_hide_no_key_of_a_recipe() -> None:
    for schema in jobs.SCHEMAS.values():
        names = {name.split(".")[0] for name, _, _ in entry.usage.keys(schema)}
        assert not names & {*jobs.SHORT, "submit"}


def chain(job: Job, *arguments: str) -> list[jobs.Step]:
    return jobs.steps(job, arguments)


def test_chain_gives_each_recipe_its_own() -> None:
    job = Job(
        chain=["pretrain", "convert"],
        gpus_per_node=4,
        time="2-0",
        account="team",
        options="--exclude=n3 --comment='a b'",
    )
    words = [
        "--config-dir",
        str(ROOT / "conf"),
        *SMALL,
        "convert:direction=to_hf",
        "convert:hf=a:b",
        "convert:checkpoint=c",
    ]
    first, second = chain(job, *words, "parallel.tp=4")
    assert first.arguments == [*words[:2], *SMALL, "parallel.tp=4"]
    assert second.arguments == [*words[:2], "direction=to_hf", "hf=a:b", "checkpoint=c"] and second.run.hf == "a:b"
    assert jobs.command(first, job) == [
        "sbatch", "--parsable", "--job-name=x", "--nodes=1", "--gpus-per-node=4", "--account=team", "--time=2-0",
        "--output=runs/x/logs/%j.out", "--exclude=n3", "--comment=a b",
        str(ROOT / "slurm/pretrain.sh"), *first.arguments,
    ]  # fmt: skip
    after = jobs.command(second, job, "17")
    assert "--dependency=afterok:17" in after and "--kill-on-invalid-dep=yes" in after
    assert "--nodes=1" in after and not any("gpus" in word for word in after)


CHAIN = ["pretrain", "evaluate", "long_context.1", "long_context.2", "anneal", "average", "evaluate.last", "convert"]
WORDS = [
    *SMALL,
    "evaluate,evaluate.last:data=demo",
    "evaluate,evaluate.last:tokenizer=demo",
    "evaluate:output=before.json",
    *(f"long_context,anneal:{text}" for text in ["model=tiny", "schedule=demo", "data=demo", "tokenizer=demo"]),
    "long_context.1:name=long-1",
    "long_context.1:schedule.sequence_length=512",
    "long_context.2:name=long-2",
    "long_context.2:schedule.sequence_length=1024",
    "long_context.2:gates.recall=0.9",
    "anneal:name=anneal",
    "convert:direction=to_hf",
    "convert:hf=hf/x",
]


def test_chain_names_a_recipe_several_times_and_hands_on() -> None:
    """Each part has its own arguments, and what it was not told from those before it, visibly."""
    found = {step.part: step for step in chain(Job(chain=CHAIN, gpus_per_node=1), *WORDS)}
    assert list(found) == CHAIN and [step.recipe for step in found.values()][2:4] == ["long_context"] * 2
    assert found["pretrain"].arguments == SMALL
    assert found["evaluate"].run.checkpoint == "runs/x"
    first, second = (found[f"long_context.{number}"] for number in (1, 2))
    assert (first.run.schedule.sequence_length, second.run.schedule.sequence_length) == (512, 1024)
    assert (first.run.gates.recall, second.run.gates.recall) == (1.0, 0.9)
    assert first.arguments[-2:] == ["init_from=runs/x", "gates.baseline=before.json"]
    assert second.arguments[-2:] == ["init_from=runs/long-1", "gates.baseline=runs/long-1/gates.json"]
    assert found["anneal"].run.init_from == "runs/long-2" and found["anneal"].run.schedule.decay == "cosine"
    average = found["average"].run
    assert (average.run, average.last, average.target) == ("runs/anneal", None, "runs/anneal-average")
    assert found["evaluate.last"].run.checkpoint == found["convert"].run.checkpoint == "runs/anneal-average"
    command = jobs.command(second, Job(), after="7")
    assert {"--job-name=long-2", "--dependency=afterok:7", "--kill-on-invalid-dep=yes"} <= set(command)
    script = command.index(str(ROOT / "slurm/long_context.sh"))
    assert command[script + 1 :] == second.arguments


def test_what_is_given_is_not_taken_from_the_chain(tmp_path: Path) -> None:
    """On the command line, or in a root file of the user's own, which `--config-name` chooses."""
    (tmp_path / "mine.yaml").write_text(
        "defaults: [long_context, override model: tiny, override schedule: demo, override data: demo, "
        "override tokenizer: demo, _self_]\nname: mine\ninit_from: elsewhere\nseed: 7\ngates: {every_tokens: null}\n"
    )
    words = [*SMALL, "--config-dir", str(tmp_path), "long_context.a:--config-name=mine", "average:inputs=[p,q]"]
    job = Job(chain=["pretrain", "long_context.a", "average"], gpus_per_node=1)
    with pytest.raises(SystemExit):  # a target for the average of what the user names
        chain(job, *words)
    _, stage, average = chain(job, *words, "average:target=t")
    assert (stage.run.name, stage.run.init_from, stage.run.seed) == ("mine", "elsewhere", 7)
    assert stage.arguments == ["--config-dir", str(tmp_path), "--config-name=mine"]
    assert (average.run.inputs, average.run.run) == (["p", "q"], None)
    assert chain(job, *words, "average:target=t", "long_context:init_from=x")[1].arguments[-1] == "init_from=x"


@pytest.mark.parametrize(
    ("job", "arguments", "said"),
    [
        ({}, [], "submit.recipe=null: give recipe=R"),
        ({"chain": ["pretrain", "bake"]}, SMALL, "submit.chain=pretrain,bake"),
        ({"chain": ["pretrain", "pretrain"]}, SMALL, "pretrain,pretrain: give recipe=R or submit.chain=[R,...], of"),
        ({"chain": ["pretrain.1", "pretrain.1"]}, SMALL, "submit.chain=pretrain.1,pretrain.1"),
        ({"chain": ["pretrain.1", "pretrain."]}, SMALL, "submit.chain=pretrain.1,pretrain."),
        ({"chain": ["pretrain.1"]}, [*SMALL, "pretrain.2:seed=3"], "pretrain.2:seed=3: pretrain.2 is not a part"),
        (
            {"chain": ["pretrain.1", "pretrain.2"]},
            [*SMALL, *(f"pretrain.2:{text}" for text in SMALL)],
            "folder=runs/x: pretrain.1 and pretrain.2 would both train there; give each a name=",
        ),
        ({"recipe": "pretrain", "chain": ["convert"]}, SMALL, "submit.chain=convert"),
        ({"recipe": "pretrain"}, [*SMALL, "convert:hf=x"], "convert:hf=x: convert is not a part"),
    ],
)
def test_impossible_chains(job: dict[str, Any], arguments: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        chain(Job(**job), *arguments)


@pytest.mark.parametrize(
    ("overrides", "job", "nodes", "processes"),
    [
        ([], {}, 1, 8),  # one per GPU
        ([], {"gpus_per_node": 0}, 1, 1),
        (["cluster.processes_per_node=2"], {"nodes": 3}, 3, 2),
        (["parallel.tp=8", "parallel.pp=2"], {}, 2, 8),
        (["parallel.dp=5", "cluster.processes_per_node=4"], {}, 2, 4),
    ],
)
def test_nodes_follow_the_layout(overrides: list[str], job: dict[str, Any], nodes: int, processes: int) -> None:
    run, asked = pretrain("model=tiny", "schedule=demo", *overrides), Job(**job)
    assert (jobs.nodes(run, asked), jobs.processes_per_node(run, asked)) == (nodes, processes)


# --- the command ---


def test_dry_run_prints_all_and_submits_nothing(quick: Command) -> None:
    result = quick("-m", "recipes.submit", "recipe=pretrain", "dry_run=true", *SMALL, check=True)
    assert "sbatch --parsable --job-name=x --nodes=1 --gpus-per-node=8" in result.stdout
    assert "# pretrain: 8 GPUs, 410K tokens," in result.stdout
    assert "folder: runs/x\n" in result.stdout and "zero: 1\n" in result.stdout
    assert not (ROOT / "runs/x").exists()


def test_chain_in_a_dry_run_is_checked_as_a_whole(quick: Command) -> None:
    words = ["submit.chain=[pretrain,convert]", "submit.dry_run=true", *SMALL, "convert:hf=x"]
    result = quick("-m", "recipes.submit", *words)
    assert result.returncode == 2 and result.stdout == ""
    assert "python -m recipes.convert: 1 problem" in result.stderr and "direction: is required" in result.stderr


def test_impossible_layout_is_refused(quick: Command) -> None:
    result = quick("-m", "recipes.submit", "recipe=pretrain", *SMALL, "submit.nodes=1", "parallel.tp=16")
    assert result.returncode == 2 and result.stdout == ""
    assert "does not divide" in result.stderr and "nearest layout that works with 8 process(es)" in result.stderr


def test_a_typo_of_either_side_is_named(quick: Command) -> None:
    result = quick("-m", "recipes.submit", "recipe=pretrain", "submit.node=3", *SMALL)
    assert result.returncode == 2 and "did you mean submit.nodes?" in result.stderr
    result = quick("-m", "recipes.submit", "recipe=pretrain", "modle=8b", *SMALL)
    assert result.returncode == 2 and "did you mean model" in result.stderr
    result = quick("-m", "recipes.submit")
    assert result.returncode == 1 and result.stderr.startswith("python -m recipes.submit: submit.recipe=null")


def test_what_counts_as_progress(tmp_path: Path) -> None:
    """A job that dies comes back while it leaves something new: a checkpoint, or answers and scores."""
    (tmp_path / "logs").mkdir()
    function = re.search(r"^fruitless\(\) \{.*?^\}", (ROOT / "slurm/launch.sh").read_text(), re.MULTILINE | re.DOTALL)
    assert function is not None
    environment = {**os.environ, "RUN_FOLDER": str(tmp_path), "MAX_FRUITLESS": "2"}

    def gives_up() -> bool:
        words = ["bash", "-uc", f"{function[0]}\nfruitless"]
        return subprocess.run(words, env=environment, timeout=LIMIT_S, check=False).returncode == 0

    found = []
    for new in ("nothing", "nothing", "candidates.jsonl", "scores.jsonl", "checkpoints/step-00000001", "nothing"):
        path = tmp_path / new
        path.parent.mkdir(exist_ok=True)
        path.write_text("1\n")
        found.append(gives_up())
    assert found == [False, True, False, False, False, True]
