"""Chains of jobs: what a file and the command line make of them, what a stage takes from others, what is refused."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from llama31 import config
from llama31.command import entry, written
from llama31.config import Chain, ChainStage, Common, Job
from llama31.slurm import bills, chains, jobs, submission
from llama31.slurm.jobs import Step
from tests.conftest import ROOT, Command

SMALL = ["name={name}", "model=tiny", "schedule=demo", "data=demo", "tokenizer=demo"]
TRAINS = ["model=tiny", "schedule=demo", "data=demo", "tokenizer=demo"]
NAMED = ["name=first", "pretrained=runs/405b", "tokenizer=tokenizer.model"]  # what the 405B's chain has to be given


def stage(recipe: str, *overrides: str, label: str | None = None, **more: Any) -> ChainStage:
    return ChainStage(recipe=recipe, label=label, overrides=list(overrides), **more)


def steps(chain: Chain, *arguments: str, job: Job | None = None, files: bool | None = False) -> dict[str, Step]:
    """The steps by their names; all have a node of one process."""
    job = job or Job(gpus_per_node=1)
    _, stages, issues = chains.stages(chain, arguments)
    made, _ = chains.steps(stages, lambda _, run: jobs.world_size(run, job), issues, files)
    return {step.name: step for step in made}


def problems(chain: Chain, *arguments: str, **more: Any) -> list[str]:
    with pytest.raises(config.ConfigError) as caught:
        steps(chain, *arguments, **more)
    return [str(issue) for issue in caught.value.issues]


LONG = Chain(
    common=[Common(["long_context", "anneal"], TRAINS), Common(["evaluate"], ["data=demo", "tokenizer=demo"])],
    stages=[
        stage("pretrain", *SMALL),
        stage("evaluate", "output={name}-before.json"),
        stage("long_context", "name=long-1", "schedule.sequence_length=512", label="long-1"),
        stage("long_context", "name=long-2", "schedule.sequence_length=1024", "gates.recall=0.9", label="long-2"),
        stage("anneal", "name=anneal"),
        stage("average"),
        stage("evaluate", label="last"),
        stage("convert", "direction=to_hf", "hf=hf/{name}"),
    ],
)


def test_a_chain_names_a_recipe_several_times_and_hands_on() -> None:
    """Each stage has its own arguments, and what it was not given from those before it, visibly."""
    chain = steps(LONG, "name=x")
    assert list(chain) == ["pretrain", "evaluate", "long-1", "long-2", "anneal", "average", "last", "convert"]
    assert [step.after for step in chain.values()] == [(), *((name,) for name in list(chain)[:-1])]
    assert chain["pretrain"].arguments == ("name=x", *SMALL[1:]) and chain["evaluate"].run.checkpoint == "runs/x"
    first, second = chain["long-1"], chain["long-2"]
    assert first.recipe == "long_context" and first.arguments[:4] == tuple(TRAINS)
    assert (first.run.schedule.sequence_length, second.run.schedule.sequence_length) == (512, 1024)
    assert (first.run.gates.recall, second.run.gates.recall) == (1.0, 0.9)
    assert first.arguments[-2:] == ("init_from=runs/x", "gates.baseline=x-before.json")
    assert second.arguments[-2:] == ("init_from=runs/long-1", "gates.baseline=runs/long-1/gates.json")
    assert chain["anneal"].run.init_from == "runs/long-2" and chain["anneal"].run.schedule.decay == "cosine"
    average = chain["average"].run
    assert (average.run, average.last, average.target) == ("runs/anneal", None, "runs/anneal-average")
    assert chain["last"].run.checkpoint == chain["convert"].run.checkpoint == "runs/anneal-average"
    command = jobs.command(second, Job(), after="7", comment="here/long-2")
    options = {"--job-name=long-2", "--dependency=afterok:7", "--kill-on-invalid-dep=yes", "--comment=here/long-2"}
    assert options <= set(command)
    script = command.index(str(ROOT / "slurm/long_context.sh"))
    assert tuple(command[script + 1 :]) == second.arguments
    convert = jobs.command(chain["convert"], Job(), "17")
    assert "--nodes=1" in convert and not any("gpus" in word for word in convert)


def test_what_is_given_is_not_taken_from_the_chain(tmp_path: Path) -> None:
    """In a stage, on the command line, or in a root file of the user's own."""
    (tmp_path / "mine.yaml").write_text(
        "defaults: [long_context, override model: tiny, override schedule: demo, override data: demo, "
        "override tokenizer: demo, _self_]\nname: mine\ninit_from: elsewhere\nseed: 7\ngates: {every_tokens: null}\n"
    )
    average = stage("average", "inputs=[p,q]")
    chain = Chain(stages=[stage("pretrain", *SMALL), stage("long_context", config_name="mine"), average])
    given = ["name=x", "--config-dir", str(tmp_path)]
    (said,) = problems(chain, *given)  # the average of what the user names takes nothing
    assert said.startswith("average: target: is required")
    _, long, average_of = steps(chain, *given, "stages.average.target=t").values()
    assert (long.run.name, long.run.init_from, long.run.seed) == ("mine", "elsewhere", 7)
    assert long.arguments == ("--config-dir", str(tmp_path), "--config-name", "mine")
    assert (average_of.run.inputs, average_of.run.run) == (["p", "q"], None)
    again = steps(chain, *given, "stages.average.target=t", "stages.long_context.init_from=y")
    assert again["long_context"].run.init_from == "y"


def test_what_is_taken_goes_into_an_empty_section_and_replaces_nothing() -> None:
    plain = {"gates": None, "init_from": "???", "run": "given"}
    written.extend(plain, lambda given: {} if given != {"run"} else {"gates.baseline": "a", "init_from": "b"})
    assert plain == {"gates": {"baseline": "a"}, "init_from": "b", "run": "given"}


def test_the_command_line_reaches_a_stage_or_all_of_a_recipe() -> None:
    given = ["stages.long-2.seed=3", "stages.long_context.parallel.micro_batch=1", "stages.evaluate.tokens=7"]
    _, stages, issues = chains.stages(LONG, ["name=x", *given, "--config-dir", "my"])
    reached = {stage.name: stage.arguments for stage in stages}
    assert not issues and all(arguments[:2] == ("--config-dir", "my") for arguments in reached.values())
    assert reached["long-1"][-2:] == ("schedule.sequence_length=512", "parallel.micro_batch=1")
    assert reached["long-2"][-2:] == ("seed=3", "parallel.micro_batch=1")  # after its own
    assert reached["evaluate"][-1] == "tokens=7" and "tokens=7" not in reached["last"]  # the one called so alone


def test_variables_stand_in_values_and_in_each_other() -> None:
    chain = Chain(
        variables={"hf": "hf/{name}", "name": "small"},
        stages=[stage("pretrain", *SMALL), stage("convert", "direction=to_hf", "hf={hf}-{{x}}")],
    )
    assert chains.stages(chain, [])[0] == "small" and steps(chain)["convert"].run.hf == "hf/small-{x}"
    assert steps(chain, "name=a", "hf={name}")["convert"].run.hf == "{name}-{x}"  # as it was typed
    chain.variables["hf"] = "{hf}"
    assert problems(chain) == ["hf: is required by this chain; give hf=VALUE"]


def test_a_stage_may_follow_others_than_the_one_before() -> None:
    """It takes from those that it follows, and waits for them alone."""
    chain = Chain(
        common=[Common([], []), Common(["pretrain", "anneal"], TRAINS)],
        stages=[
            stage("pretrain", "name={name}"),
            stage("anneal", "name=a", label="a"),
            stage("anneal", "name=b", label="b", after=["pretrain"]),
            stage("average", "inputs=[runs/a,runs/b]", "target=t", after=["a", "b"]),
        ],
    )
    made = steps(chain, "name=x")
    assert [step.after for step in made.values()] == [(), ("pretrain",), ("pretrain",), ("a", "b")]
    assert made["a"].run.init_from == made["b"].run.init_from == "runs/x"


# --- the 405B's ---


def long_405b(*arguments: str) -> dict[str, Step]:
    chain = entry.compose(config.Submit, "submit", ["chain=405b_long_context"]).chain
    return steps(chain, *arguments, job=Job())


def test_chain_of_the_405b_and_its_bill() -> None:
    """Its stages are those whose bills the scripts state, and their sum is the total."""
    chain = long_405b(*NAMED, "stages.long-3.seed=7")
    names = [f"first-long-{number}" for number in range(1, 7)]
    assert [step.run.name for step in chain.values() if hasattr(step.run, "name")] == [*names, "first-annealed"]
    assert chain["long-1"].run.init_from == chain["evaluate"].run.checkpoint == "runs/405b"
    assert chain["long-6"].run.gates.baseline == "runs/first-long-5/gates.json" and chain["long-3"].run.seed == 7
    assert chain["convert"].run.checkpoint == "runs/first-annealed-average"
    job = Job(mfu=0.38)
    *lines, total = bills.table(list(chain.values()), job).splitlines()
    stated = "".join((ROOT / f"slurm/{name}.sh").read_text() for name in ("long_context", "anneal"))
    costs = {name: re.search(r"tokens, .* GPU-h at 38% of 989 TFLOPS$", line) for name, line in zip(chain, lines[1:])}
    for name, cost in costs.items():
        assert (cost is not None) == (name not in ("average", "convert"))
        assert name in ("average", "convert", "evaluate") or (cost is not None and cost[0] in stated), name
    rows = {name: line.split() for name, line in zip(chain, lines[1:])}
    assert rows["long-6"][1:7] == ["long-6", "long_context", "runs/first-long-6", "2,048", "16,384", "7-00:00:00"]
    assert lines[9].endswith("812 GB read 10 times and written, 12 h")  # the ten that the annealing keeps
    hours = [float(re.sub(",", "", cost[0].split(" GPU-h")[0].split()[-1])) for cost in costs.values() if cost]
    said = re.fullmatch(r"# total of 10 jobs: ([\d,]+) GPU-h, ([\d,]+) node-h, \d+ h one after the other", total)
    assert said is not None and int(said[1].replace(",", "")) == pytest.approx(sum(hours), abs=4)


def test_a_bill_that_is_not_known_is_not_counted() -> None:
    chain = [jobs.single("convert", ["direction=to_hf", "hf=h", "checkpoint=c"], Job())]
    *_, line, total = bills.table(chain, Job(time="1:00")).splitlines()
    assert re.search(r"convert +convert +- +1 +0 +1:00 +not known before it runs$", line)
    assert total.startswith("# total of 0 of 1 jobs: 0 GPU-h")


# --- what is refused ---


def test_all_problems_of_all_stages_are_named_at_once() -> None:
    """And none that only follows from another."""
    chain = entry.compose(config.Submit, "submit", ["chain=405b_long_context"]).chain
    chain.stages[3].overrides.append("parallel.tp=3")  # long-3
    chain.stages[6].label = "long-5"
    chain.stages[6].overrides.append("shedule.peak_lr=1")
    chain.stages[7].recipe = "aneal"
    said = problems(chain, *NAMED, job=Job(), files=True)
    wanted = [
        "chain.stages[6].label=long-5: stage 5 is called so too; give each a label of its own, such as long-5-7",
        "chain.stages[7].recipe=aneal: no such recipe; did you mean anneal? give one of pretrain",
        "long-3: parallel.tp=3: does not divide this model",
        "long-5: shedule.peak_lr=1: no such key; did you mean schedule.peak_lr",
    ]
    for text, start in zip(said, wanted):
        assert text.startswith(start), said
    files = said[len(wanted) :]
    assert all("there is no" in text for text in files) and not [text for text in files if chains.WRONG in text]
    assert [text for text in files if text.startswith("evaluate, long-1, long-2, long-4, long-5: tokenizer.path=")]
    assert [text for text in files if text.startswith("long-1: init_from=runs/405b: there is no such folder")]
    with pytest.raises(config.ConfigError, match=r"\n  ?long-3: nearest layout that works with|\nlong-3: nearest"):
        steps(chain, *NAMED, job=Job())


@pytest.mark.parametrize(
    ("stages", "arguments", "said"),
    [
        ([], [], "chain.stages: there are none; give a list of {recipe: R, overrides: [KEY=VALUE]}"),
        ([stage("")], [], "chain.stages[0].recipe=: no such recipe; give one of pretrain, long_context"),
        ([stage("pretrain", *SMALL)] * 2, [], "chain.stages[1].label=pretrain: stage 0 is called so too; give each a"),
        ([stage("pretrain", *SMALL, label="a.b")], [], "chain.stages[0].label=a.b: no label; give letters, digits"),
        ([stage("pretrain", *SMALL, after=["b"])], [], "chain.stages[0].after=b: no stage before this one; leave it"),
        (
            [stage("pretrain", *SMALL)],
            ["stages.pretrian.seed=3"],
            "stages.pretrian.seed=3: there is no such stage; did",
        ),
        ([stage("pretrain", *SMALL)], ["parallel.tp=2"], "parallel.tp=2: reaches no stage; give stages.LABEL.parallel"),
        ([stage("pretrain", *SMALL)], ["--config-name=x"], "--config-name=x: reaches no stage; give stages.LABEL.KEY"),
        ([stage("pretrain", *SMALL)], ["seed=2"], "seed=2: no variable of this chain; give one of name; a stage is re"),
        ([stage("convert")], [], "convert: direction: is required"),
        ([stage("pretrain", *SMALL)], ["name="], "name: is required by this chain; give name=VALUE"),
        ([stage("pretrain", "x={y}", *SMALL)], [], "y: is required by this chain; give y=VALUE"),
        (
            [stage("pretrain", *SMALL), stage("pretrain", *SMALL, label="again")],
            [],
            "again: folder=runs/n: pretrain would train there too; give each a name=",
        ),
    ],
)
def test_impossible_chains(stages: list[ChainStage], arguments: list[str], said: str) -> None:
    text = problems(Chain(stages=stages), "name=n", *arguments)
    assert any(one.startswith(said) for one in text), text


def test_overrides_for_a_recipe_that_the_chain_has_not() -> None:
    _, _, issues = chains.stages(Chain(common=[Common(["sft"], [])], stages=[stage("pretrain", *SMALL)]), ["name=x"])
    (said,) = map(str, issues)
    assert said == "chain.common[0].recipes=sft: no recipe of this chain; give one of pretrain"


def test_files_that_an_earlier_stage_makes_need_not_be_there() -> None:
    chain = entry.compose(config.Submit, "submit", ["chain=405b_long_context"]).chain
    absent = {str(issue).split("=")[0] for issue in chains.missing(list(steps(chain, *NAMED, job=Job()).values()))}
    everyone = "evaluate, long-1, long-2, long-3, long-4, long-5, long-6, anneal"
    assert {"evaluate: checkpoint", "long-1: init_from", f"{everyone}: data.folder"} < absent
    assert not [text for text in absent if re.search("baseline|convert|average|long-[2-6]: init_from", text)]


# --- the command ---


def test_a_chain_of_the_users_own_in_a_dry_run(quick: Command, tmp_path: Path) -> None:
    """Three lines beside the user's other files."""
    folder = tmp_path / "my/chain"
    folder.mkdir(parents=True)
    text = f"stages:\n- {{recipe: pretrain, overrides: {SMALL!s}}}\n- {{recipe: convert, overrides: [hf=h]}}\n"
    (folder / "mine.yaml").write_text(text)
    words = ["-m", "recipes.submit", "--config-dir", str(tmp_path / "my"), "chain=mine", "dry_run=true"]
    result = quick(*words, cwd=tmp_path)
    assert result.returncode == 2 and result.stdout == ""
    _, *problems, _ = result.stderr.splitlines()
    assert problems[:2] == [
        "  name: is required by this chain; give name=VALUE",
        "  convert: direction: is required (which way to convert); give direction=...",
    ]
    assert all(re.match("  pretrain: (tokenizer.path|data.folder)=.*: there is no ", text) for text in problems[2:])
    words += ["name=x", "stages.convert.direction=to_hf"]
    result = quick(*words, cwd=tmp_path, check=True, env={"PATH": "/usr/bin:/bin"})
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["#", "job", "recipe", "run", "folder", "nodes", "GPUs", "limit", "bill"]
    assert lines[1].startswith("# pretrain  pretrain  runs/x") and "410K tokens" in lines[1]
    assert lines[3].startswith("# total of 2 jobs: ") and "folder: runs/x" not in result.stdout
    assert any(line.startswith("# not there yet: pretrain: tokenizer.path=data/demo") for line in lines)
    assert f"--comment={tmp_path.resolve()}/runs/chains/x/convert --dependency=afterok:PRETRAIN_JOB_ID" in lines[-1]
    assert not (tmp_path / "runs").exists()
    result = quick(*words, "submit.configs=true", cwd=tmp_path, check=True)
    assert "# convert\ndirection: to_hf\n" in result.stdout and "folder: runs/x\n" in result.stdout


def test_names_of_chains_are_listed(quick: Command) -> None:
    result = quick("-m", "recipes.submit", "--help", check=True)
    assert "  chain=      405b_long_context" in result.stdout and "chain.variables" in result.stdout
    result = quick("-m", "recipes.submit", "chain=405b_long_context", "--cfg", check=True)
    assert "    label: long-6\n" in result.stdout and "    - checkpoint={pretrained}\n" in result.stdout
    result = quick("-m", "recipes.submit", "chain=405b_long", "name=x")
    assert "chain=405b_long: no such choice; did you mean 405b_long_context? give one of 405b" in result.stderr
    result = quick("-m", "recipes.submit", "chain=405b_long_context", "recipe=pretrain")
    assert "submit.recipe=pretrain: a chain names its recipes itself; give one of recipe= and chain=" in result.stderr


# --- what is done ---


def test_a_stage_is_done_when_it_left_something_since_it_was_submitted(tmp_path: Path) -> None:
    run = config.Evaluate(checkpoint="c", output=str(tmp_path / "before.json"))
    step = Step("evaluate", "evaluate", ("checkpoint=c",), run)
    chain = submission.Submission("name=x", tmp_path / "runs/chains/x", [step], Job())
    (tmp_path / "before.json").write_text("{}")
    assert not submission.is_done(chain, step)  # left by nobody knows whom
    submission.note(chain.folder, step, ["python"], "17")
    begun = submission.record_file(chain.folder, "evaluate").stat().st_mtime
    os.utime(tmp_path / "before.json", (begun - 1, begun - 1))
    assert not submission.is_done(chain, step)  # left before
    os.utime(tmp_path / "before.json", (begun + 1, begun + 1))
    assert submission.is_done(chain, step)
    moved = ("server.urls=[http://n2:8000/v1]", "reward.urls=[http://n2:8001]")
    elsewhere = Step("evaluate", "evaluate", ("checkpoint=c", *moved), run)
    assert submission.is_done(chain, elsewhere)  # servers have moved
    other = Step("evaluate", "evaluate", ("checkpoint=d",), run)
    with pytest.raises(ValueError, match="name=x: evaluate was made by another command, without checkpoint=d; give"):
        submission.is_done(chain, other)


@pytest.mark.parametrize(
    ("run", "files"),
    [
        (config.Average(run="r", target="t"), ["t/checkpoints/step-1/checkpoint.json"]),
        (config.Average(inputs=["a", "b"], target="t"), ["t/config.json"]),
        (config.Convert(direction="to_hf", hf="h", checkpoint="c"), ["h/config.json"]),
        (config.Convert(direction="to_meta", hf="h", checkpoint="c"), ["h/params.json"]),
        (config.Convert(direction="from_hf", hf="h", checkpoint="c"), ["c/checkpoint.json"]),
        (config.Score(input="i", reward="r", output="o"), ["o"]),
    ],
)
def test_what_shows_that_a_recipe_is_done(
    run: Any, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    step = Step("x", "x", (), run)
    chain = submission.Submission("name=x", Path("here"), [step], Job())
    submission.note(chain.folder, step, [])
    assert not submission.is_done(chain, step)
    for name in files:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("{}")
    assert submission.is_done(chain, step)


def test_a_run_is_done_when_it_has_finished(tmp_path: Path) -> None:
    step = Step("x", "pretrain", (), config.Pretrain(name="x", folder=str(tmp_path / "x")))
    chain = submission.Submission("name=x", tmp_path, [step], Job())
    submission.note(chain.folder, step, [])
    (tmp_path / "x").mkdir()
    for outcome, done in (("failed", False), ("stopped", False), ("finished", True)):
        (tmp_path / "x/outcome.json").write_text(f'{{"outcome": "{outcome}"}}')
        assert submission.is_done(chain, step) is done
