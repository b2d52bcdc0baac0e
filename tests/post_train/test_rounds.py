"""The plan of the rounds: what feeds what, what is done, what a restart repeats; without running any of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from llama31 import config
from llama31.command import entry
from llama31.command.entry import compose
from llama31.post_train import rounds
from tests.conftest import Command

MODEL = '"model=tiny","tokenizer=demo","schedule.total_tokens=1e9"'


def planned(folder: Path | str = "runs/r", *overrides: str) -> config.PostTrain:
    sets = [f"{stage}.set=[{MODEL}]" for stage in ("reward", "sft", "dpo")]
    given = ["name=r", f"folder={folder}", "pretrained=runs/base", "preferences=p-{round}.jsonl", *sets]
    return compose(config.PostTrain, "post_train", [*given, "prompts=q.jsonl", "judge_prompts=j.jsonl", *overrides])


def stages(*overrides: str, folder: Path | str = "runs/r") -> dict[str, rounds.RoundStage]:
    found = rounds.stages(planned(folder, *overrides))
    assert len({stage.name for stage in found}) == len(found)
    return {stage.name: stage for stage in found}


def argument(stage: rounds.RoundStage, key: str) -> str:
    values = [text.partition("=")[2] for text in stage.arguments if text.startswith(f"{key}=")]
    return values[-1]


def inputs_of(stage: rounds.RoundStage) -> list[str]:
    return [text.partition("=")[2] for text in stage.arguments if re.match(r"data\.sources\.\w+\.input=", text)]


def test_six_rounds_in_their_order() -> None:
    names = list(stages())
    one = ["reward", "sample", "sft", "dpo", "previous", "answers", "judge"]
    assert names == [f"round-{number:02d}/{stage}" for number in range(1, 7) for stage in one]


def test_what_feeds_what() -> None:
    found = stages()
    assert argument(found["round-01/sample"], "policy") == "runs/base"
    assert argument(found["round-02/sample"], "policy") == "runs/r/round-01/best"
    assert argument(found["round-02/sample"], "reward") == "runs/r/round-02/reward"
    # the report: reward models and SFT begin with the pre-trained model; DPO with the round's SFT
    assert {argument(found[f"round-03/{stage}"], "init_from") for stage in ("reward", "sft")} == {"runs/base"}
    assert argument(found["round-03/dpo"], "init_from") == "runs/r/round-03/sft"
    # reward models learn from all preferences so far, DPO from the newest and what was sampled
    assert inputs_of(found["round-03/reward"]) == ["p-01.jsonl", "p-02.jsonl", "p-03.jsonl"]
    assert inputs_of(found["round-03/dpo"]) == ["p-03.jsonl", "runs/r/round-03/sample/pairs.jsonl"]
    assert inputs_of(found["round-03/sft"]) == ["runs/r/round-03/sample/best.jsonl"]
    assert argument(found["round-03/judge"], "previous") == "runs/r/round-02/best-answers"
    assert argument(found["round-01/judge"], "previous") == "runs/r/round-00/answers"
    earlier = json.loads(argument(found["round-03/judge"], "earlier"))
    assert earlier == [f"runs/r/round-0{k}/judge/judge.json" for k in (1, 2)]
    # the answers of the model before are ranked anew, not drawn anew: rewards of two models cannot be compared
    assert argument(found["round-02/previous"], "part") == "rank"
    assert argument(found["round-02/previous"], "reward") == argument(found["round-02/answers"], "reward")
    assert not any(text.startswith("part=") for text in found["round-01/previous"].arguments)
    assert argument(found["round-01/judge"], "reward") == "runs/r/round-01/reward"


SYNTHESIS = (
    "synthesize.facts.task=factuality",
    'synthesize.facts.set=["input=snippets-{round}.jsonl","server.urls=[http://n1:8000/v1]"]',
    "synthesize.rules.task=steerability",
    'synthesize.rules.set=["input=prompts.jsonl","server.urls=[http://n1:8000/v1]"]',
    "synthesize.rules.preferences=true",
)


def test_synthesis_feeds_the_round_it_stands_in(tmp_path: Path) -> None:
    found = stages(*SYNTHESIS, folder=tmp_path)
    facts = found["round-02/synthesize-facts"]
    assert argument(facts, "input") == "snippets-02.jsonl" and argument(facts, "task") == "factuality"
    assert facts.after == ("round-01/judge",) and "round-02/synthesize-facts" in found["round-02/sft"].after
    here = tmp_path / "round-02"
    assert set(inputs_of(found["round-02/sft"])) == {
        str(here / "sample/best.jsonl"), str(here / "synthesize-facts/dialogs.jsonl"),
        str(here / "synthesize-rules/dialogs.jsonl"),
    }  # fmt: skip
    assert str(here / "synthesize-rules/preferences.jsonl") in inputs_of(found["round-02/dpo"])
    assert not any("synthesize-facts" in path for path in inputs_of(found["round-02/dpo"]))
    assert not facts.done()
    (here / "synthesize-facts").mkdir(parents=True)
    (here / "synthesize-facts/summary.json").write_text("{}")
    assert facts.done()


def test_filters_stand_between_all_dialogs_and_sft(tmp_path: Path) -> None:
    found = stages(*SYNTHESIS, "filter.enabled=true", 'filter.set=["rules.enabled=true"]', folder=tmp_path)
    here, one = tmp_path / "round-01", found["round-01/filter"]
    given = [
        here / "sample/best.jsonl",
        here / "synthesize-facts/dialogs.jsonl",
        here / "synthesize-rules/dialogs.jsonl",
    ]
    assert argument(one, "input") == ",".join(map(str, given)) and argument(one, "rules.enabled") == "true"
    assert set(one.after) == {f"round-01/{name}" for name in ("sample", "synthesize-facts", "synthesize-rules")}
    assert inputs_of(found["round-01/sft"]) == [str(here / "filter/kept.jsonl")]
    assert found["round-01/sft"].after == ("round-01/filter",) and not one.done()


def test_every_stage_comes_after_what_it_needs() -> None:
    seen: set[str] = set()
    for name, stage in stages('sft.variants.a.set=["seed=1"]', 'sft.variants.b.set=["seed=2"]').items():
        assert set(stage.after) <= seen, name
        made = {
            text for text in stage.arguments if "runs/r/round-" in text and not text.startswith(("folder=", "target="))
        }
        for text in made:
            for needed in re.findall(r"runs/r/(round-\d\d/[a-z-]+)", text):
                known = seen | {needed} if needed.endswith(("best", "best-answers", "00/answers")) else seen
                assert needed in known, (name, text)
        seen.add(name)


def test_variants_are_trained_and_averaged() -> None:
    found = stages(
        'sft.variants.low.set=["schedule.peak_lr=5e-6"]', "sft.variants.new.set=[]", "sft_from=best", "rounds=1",
        "policy=runs/chat", "dialogs=d-{round}.jsonl", "pairs=false",
    )  # fmt: skip
    low, average = found["round-01/sft-low"], found["round-01/sft"]
    assert low.arguments[-1] == "schedule.peak_lr=5e-6" and argument(low, "init_from") == "runs/chat"
    assert inputs_of(low) == ["runs/r/round-01/sample/best.jsonl", "d-01.jsonl"]
    assert average.recipe == "average" and average.after == ("round-01/sft-low", "round-01/sft-new")
    assert json.loads(argument(average, "inputs")) == ["runs/r/round-01/sft-low", "runs/r/round-01/sft-new"]
    assert argument(average, "target") == "runs/r/round-01/sft" == argument(found["round-01/dpo"], "init_from")
    assert inputs_of(found["round-01/dpo"]) == ["p-01.jsonl"]
    assert "runs/r/round-01/sft-low" in argument(found["round-01/judge"], "runs")


def test_the_judge_asks_as_it_is_told() -> None:
    sample = 'sample.set=["sampling.answers=30","server.urls=[http://a:1]","filters.min_tokens=9"]'
    found = stages(sample, 'judge.set=["sampling.temperature=0.7"]', "rounds=1")
    assert argument(found["round-01/sample"], "sampling.answers") == "30"
    for stage in (found["round-01/answers"], found["round-01/previous"]):
        assert argument(stage, "sampling.answers") == "1" and argument(stage, "sampling.temperature") == "0.7"
        assert argument(stage, "server.urls") == "[http://a:1]" and "filters.min_tokens=9" not in stage.arguments


def test_servers_of_one_model_are_refused() -> None:
    """Policy, previous model and the round's own would all be what the server serves, and win against themselves."""
    run = planned("runs/r", 'sample.set=["server.urls=[http://node1:8000/v1]"]')
    with pytest.raises(ValueError, match=r"server.urls=http://node1:8000/v1: round-01/sample and the others"):
        rounds.chain(run, [stage for stage in rounds.stages(run) if stage.recipe in ("sample", "judge")])


def test_who_asks_servers_needs_no_layout() -> None:
    """`slurm/sample.sh` hands the same arguments to the one who asks and to those who rank."""
    given = ["folder=f", "prompts=p.jsonl", "policy=x", "reward=y", "parallel.tp=8"]
    asks = [*given, "part=draw", "server.urls=[http://node1:8000/v1]"]
    assert entry.load(config.Sample, "sample", asks, lambda run: 1).parallel.tp == 8
    for others in ([*given, "part=draw"], [*given, "part=rank"]):
        with pytest.raises(SystemExit):
            entry.load(config.Sample, "sample", others, lambda run: 1)


def test_commands_are_those_that_a_user_types(quick: Command, tmp_path: Path) -> None:
    sets = [f"{stage}.set=[{MODEL}]" for stage in ("reward", "sft", "dpo")]
    words = ["name=r", f"folder={tmp_path}", "pretrained=runs/base", "preferences=p.jsonl", "prompts=q.jsonl"]
    words += ["judge_prompts=j.jsonl", "rounds=2", "sft.processes=2", "dry_run=true", *sets]
    printed = quick("-m", "recipes.post_train", *words, check=True).stdout.splitlines()
    headings, lines = printed[::2], printed[1::2]
    assert headings[0] == "# round-01/reward" and len(lines) == 14 and not list(tmp_path.glob("round*"))
    assert all(
        line.startswith(("python -m recipes.", "torchrun --standalone --nproc-per-node 2 -m ")) for line in lines
    )
    more = [f'sft.set=[{MODEL},"seed=x"]', f'dpo.set=[{MODEL},"beta=0"]']
    wrong = quick("-m", "recipes.post_train", *words, *more)
    assert wrong.returncode == 2 and wrong.stderr.splitlines()[:3] == [
        "python -m recipes.post_train: 2 problems in the configuration",
        "  round-01/sft, round-02/sft: seed=x: wrong type; give a whole number",
        "  round-01/dpo, round-02/dpo: beta=0.0: out of range; give a number above 0",
    ]


# --- what is done ---


class Pretender:
    """Leaves what a stage's recipe would leave, and remembers which stages were started; fails at `fails_at`."""

    def __init__(self, fails_at: str = "") -> None:
        self.started: list[str] = []
        self.fails_at = fails_at

    def __call__(self, stage: rounds.RoundStage) -> int:
        self.started.append(stage.name)
        if stage.name == self.fails_at:
            return 3
        key = "target" if stage.recipe == "average" else "folder"
        folder = Path(argument(stage, key))
        folder.mkdir(parents=True, exist_ok=True)
        ranked = {"ranked_by": self.ranked(stage, folder)} if stage.recipe == "sample" else {}
        told: dict[str, tuple[str, Any]] = {
            "sample": ("summary.json", ranked),
            "judge": ("judge.json", {}),
            "average": ("checkpoints/step-1/checkpoint.json", {}),
        }
        name, content = told.get(stage.recipe, ("outcome.json", {"outcome": "finished"}))
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
        if stage.recipe == "judge":
            for link, target in (("best", "dpo"), ("best-answers", "answers")):
                (folder.parent / link).symlink_to(target)
        return 0

    @staticmethod
    def ranked(stage: rounds.RoundStage, folder: Path) -> list[str]:
        """As recipes.sample tells it: by the reward models before, and by this one."""
        summary = folder / "summary.json"
        before = json.loads(summary.read_text())["ranked_by"] if summary.is_file() else []
        return [*before, f"{argument(stage, 'reward')}/checkpoints/step-1"]


def executed(run: config.PostTrain, pretender: Pretender) -> list[str]:
    rounds.execute(run, rounds.stages(run), lambda text: None, pretender)
    return pretender.started


def test_a_restart_goes_on_where_it_stopped(tmp_path: Path) -> None:
    run = planned(tmp_path, "rounds=2", 'dpo.variants.a.set=["seed=1"]', 'dpo.variants.b.set=["seed=2"]')
    names = [stage.name for stage in rounds.stages(run)]
    for stop in ("round-01/sft", "round-01/dpo", "round-02/previous"):
        pretender = Pretender(stop)
        with pytest.raises(config.RunError, match=f"{stop} ended with 3; .* goes on from there"):
            executed(run, pretender)
        assert pretender.started[-1] == stop
    assert executed(run, Pretender()) == names[names.index("round-02/previous") :]
    assert executed(run, Pretender()) == []


def test_a_command_that_leaves_nothing_has_failed(tmp_path: Path) -> None:
    with pytest.raises(config.RunError, match="round-01/reward ended before it was done"):
        rounds.execute(planned(tmp_path), rounds.stages(planned(tmp_path)), lambda text: None, lambda stage: 0)


def test_what_another_command_made_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    run = planned(tmp_path, "rounds=1")
    with pytest.raises(config.RunError):
        executed(run, Pretender("round-01/sample"))
    other = planned(tmp_path, "rounds=1", f'reward.set=[{MODEL},"seed=9"]')
    with pytest.raises(ValueError, match="round-01/reward was made by another command, without seed=9"):
        executed(other, Pretender())


def test_one_stage_alone(tmp_path: Path) -> None:
    assert executed(planned(tmp_path, "only=[round-01/reward]"), Pretender()) == ["round-01/reward"]
    with pytest.raises(ValueError, match="no such stage; dry_run=true lists them, the first is round-01/reward"):
        rounds.stages(planned(tmp_path, "only=[round-01/rewards]"))
