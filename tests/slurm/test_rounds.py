"""A round of post-training as jobs of a real Slurm cluster: submitted, interrupted, submitted again, done."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks import small_rounds
from llama31 import config
from llama31.command import entry, inputs
from llama31.judging import judge
from llama31.runs import metrics
from llama31.sampling import drawing
from tests.slurm.conftest import Slurm

pytestmark = pytest.mark.slurm

# Steps are few and answers are noise: what they are worth, tests/post_train/test_small_round.py counts.
TINY = small_rounds.TaskScale(
    texts=400, dialogs=0, preferences=24, prompts=8, judged=4, answers=4, rounds=1, layers=2, hidden_size=32,
    pretrain_tokens=16_384, reward_tokens=2048, sft_tokens=1024, dpo_tokens=2048, processes=1,
)  # fmt: skip
STAGES = ("reward", "sample", "sft-low", "sft-high", "sft", "dpo", "previous", "answers", "judge")
LATER = ("sft", "dpo", "answers", "judge")  # than sft-low


def base(folder: Path) -> None:
    """Task, tokenizer and pre-trained model, made in this process: another would have to import torch."""
    small_rounds.write_task(folder, TINY)
    small_rounds.write_config(folder, TINY.layers, TINY.hidden_size)
    schemas = {"pack": config.Pack, "pretrain": config.Pretrain}
    for name, arguments, _ in small_rounds.before(folder, TINY)[:2]:
        run = entry.load(schemas[name], name, arguments, lambda given: 1)
        inputs.check(run)
        importlib.import_module(f"recipes.{name}").main(run)


def words(folder: Path) -> list[str]:
    """Arguments of recipes.post_train: the reward model on two nodes, one process on each."""
    given = small_rounds.post_train(folder, TINY)
    more = {stage: ["cluster.processes_per_node=1"] for stage in ("reward", "sample", "sft", "dpo")}
    more["reward"] += ["parallel.dp=2"]
    more["sample"] += ["filters.finished=false", "filters.repeated_share=1", "sampling.temperature=0.4"]
    for stage, further in more.items():
        listed = ",".join(json.dumps(text) for text in further)
        given = [re.sub(rf"^{stage}\.set=\[", rf"{stage}.set=[{listed},", word) for word in given]
    return [*given, f"pretrained={folder / 'base'}", "submit=true"]


def submit(slurm: Slurm, given: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Jobs that recipes.post_train submitted, by stage, and what else it said."""
    printed = slurm.run(sys.executable, "-m", "recipes.post_train", *given).splitlines()
    found = [re.fullmatch(r"round-01/(\S+): job (\d+)", line) for line in printed]
    return dict(one.groups() for one in found if one), [line for line, one in zip(printed, found) if not one]


def test_a_chain_goes_on_where_it_was_interrupted(slurm: Slurm, tmp_path: Path) -> None:
    base(tmp_path)
    given, here, earlier = words(tmp_path), tmp_path / "rounds/round-01", len(slurm.jobs())
    first, _ = submit(slurm, given)
    assert tuple(first) == STAGES

    again, said = submit(slurm, given)
    queued = [re.fullmatch(r"# round-01/(\S+): queued as job (\d+) \(\w+\)", line) for line in said]
    assert not again and dict(one.groups() for one in queued if one) == first

    def runs() -> bool:
        return slurm.job(first["sft-low"])["JobState"] != "PENDING"

    slurm.logs = [here / name / f"logs/{number}.out" for name, number in first.items()]
    slurm.until(runs, "first variant of SFT")
    slurm.run("scancel", first["sft-low"])
    again, said = submit(slurm, given)
    assert set(again) == {"sft-low", *LATER}, said
    assert {"# round-01/reward: done", "# round-01/sample: done"} <= set(said)
    jobs = {**first, **again}
    slurm.logs = [here / name / f"logs/{number}.out" for name, number in jobs.items()]
    for name in STAGES:
        assert slurm.end(jobs[name]) == "COMPLETED", (name, slurm.logs)
    assert {slurm.job(first[name])["JobState"] for name in again} == {"CANCELLED"}
    assert {slurm.job(number)["Restarts"] for number in jobs.values()} == {"0"}

    kept = [len(metrics.attempts(here / name)) for name in ("reward", "sft-high", "dpo")]
    drawn = drawing.read_lines(here / "sample" / drawing.CANDIDATES)
    assert kept == [1, 1, 1] and len(drawn) == TINY.prompts * TINY.answers
    assert (here / "judge" / judge.PAGE).stat().st_size > 5000 and (here / "best").is_dir()
    told = json.loads((here / "judge" / judge.NAME).read_text())
    assert told["win_rate"]["count"] == TINY.judged and told["heldout"].keys() >= {"reward", "dpo"}
    again, said = submit(slurm, given)
    assert not again and said[-len(STAGES) :] == [f"# round-01/{name}: done" for name in STAGES]
    assert len(slurm.jobs()) == earlier + len(STAGES) + 1 + len(LATER)
