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
from llama31.slurm import bills, jobs
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
        return str(bills.training(run, nodes * (run.cluster.processes_per_node or 1), mfu))
    if recipe == "judge":
        return "0 GPUs"
    model = pretrain(overrides[0], "schedule=8b").model
    if recipe == "convert":
        return str(bills.conversion(model, mb_per_s=200, fp8="fp8=true" in overrides))
    if recipe == "average":
        return str(bills.conversion(model, 200, inputs=int(overrides[1].removeprefix("inputs="))))
    tokens = int(overrides[1].removeprefix("tokens="))
    forward = shapes.flops_per_token(model, 8192) / 3
    return str(bills.computing(8 * nodes, tokens, tokens * forward, mfu))


@pytest.mark.parametrize("recipe", jobs.SCHEMAS)
def test_bills_are_those_of_the_code(recipe: str) -> None:
    bills = BILL.findall(SCRIPTS[recipe])
    assert bills
    for nodes, overrides, said in bills:
        share = re.search(r"at (\d+)% of", said)
        assert said == expected_bill(recipe, int(nodes), overrides.split(), int(share[1]) / 100 if share else 1)


def test_servers_fit_their_nodes() -> None:
    """The report's: the 405B in FP8 on one node of 80 GB GPUs, in BF16 on two; room is left for keys and values."""
    for nodes, overrides, said in BILL.findall((jobs.SCRIPTS / "serve.sh").read_text()):
        model, *fp8 = overrides.split()
        bill = bills.serving(pretrain(model, "schedule=8b").model, 8 * int(nodes), fp8=fp8 == ["fp8=true"])
        assert said == str(bill) and int(said.split()[-4]) < 70


@pytest.mark.parametrize("recipe", ROOTS)
def test_layouts_of_the_bills_are_possible(recipe: str) -> None:
    for nodes, overrides, _ in BILL.findall(SCRIPTS[recipe]):
        run = trained(recipe, *overrides.split())
        assert jobs.world_size(run, Job(nodes=int(nodes))) == 8 * int(nodes)
        given = [f"submit.recipe={recipe}", "name=x", "tokenizer=demo", *ROOTS[recipe], *overrides.split()]
        assert jobs.single(recipe, jobs.split(given)[1], Job(nodes=int(nodes))).run == run


def test_work_is_that_of_the_stages() -> None:
    """By hand: rows of 4,096 tokens for 60 steps, of 8,192 from there on. The two layouts share the whole."""
    run = pretrain("model=405b", "schedule=405b")
    tokens, flops = bills.work(run)
    first = 60 * 4_194_304
    short, long = (shapes.flops_per_token(run.model, length) for length in (4096, 8192))
    assert flops == pytest.approx(first * short + (tokens - first) * long, rel=1e-12)
    early = bills.work(pretrain("model=405b", "schedule=405b", "stop_after_steps=342161"))
    late = bills.work(pretrain("model=405b", "schedule=405b", "parallel=405b_16k"))
    assert early[0] + late[0] == tokens and early[1] + late[1] == pytest.approx(flops, rel=1e-12)


def test_price_in_words() -> None:
    bill = bills.computing(100, 15_600_000_000_000, 1e15 * 3600 * 5000, mfu=0.5, peak_tflops=1000)
    assert str(bill) == "100 GPUs, 15.6T tokens, 100 h, 10,000 GPU-h at 50% of 1000 TFLOPS"


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
    assert own == ["submit.recipe=pretrain", "submit.dry_run=true", "submit.nodes=2", "--config-dir", "my"]
    assert others == ["model=8b", "--config-dir", "my"]
    own, others = jobs.split(["--config-dir=my", "chain=mine", "name=x", "stages.convert.hf=y"])
    assert own == ["--config-dir=my", "chain=mine"] and others == ["--config-dir=my", "name=x", "stages.convert.hf=y"]
    assert jobs.split(["chain=mine", "--cfg"])[0] == ["chain=mine", "--cfg"]
    assert jobs.split(["recipe=pretrain", "--cfg"])[1] == ["--cfg"]  # prints the recipe's
    assert jobs.split(["typo=1"]) == (["typo=1"], [])


def test_short_names_hide_no_key_of_a_recipe() -> None:
    for schema in jobs.SCHEMAS.values():
        names = {name.split(".")[0] for name, _, _ in entry.usage.keys(schema)}
        assert not names & {*jobs.SHORT, "submit", "chain", "stages"}


def test_command_of_a_recipe() -> None:
    job = Job(gpus_per_node=4, time="2-0", account="team", options="--exclude=n3 --comment='a b'")
    words = ["--config-dir", str(ROOT / "conf"), *SMALL, "parallel.tp=4"]
    assert jobs.command(jobs.single("pretrain", words, job), job) == [
        "sbatch", "--parsable", "--job-name=x", "--nodes=1", "--gpus-per-node=4", "--account=team", "--time=2-0",
        "--output=runs/x/logs/%j.out", "--exclude=n3", "--comment=a b", str(ROOT / "slurm/pretrain.sh"), *words,
    ]  # fmt: skip


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


def test_impossible_layout_is_refused(quick: Command) -> None:
    result = quick("-m", "recipes.submit", "recipe=pretrain", *SMALL, "submit.nodes=1", "parallel.tp=16")
    assert result.returncode == 2 and result.stdout == ""
    assert "does not divide" in result.stderr and "nearest layout that works with 8 process(es)" in result.stderr
    result = quick("-m", "recipes.submit", "recipe=pretrain", *SMALL, "parallel.dp=8", "seed=x")
    assert "1 problem in" in result.stderr  # 8 processes, though another key is wrong


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
