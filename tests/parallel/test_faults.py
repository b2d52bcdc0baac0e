"""Runs that something happens to: each is caught, named, handled as configured, and leads to the curve it should."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llama31.checkpoint import listing, shards
from llama31.resilience import watchdog
from llama31.runs import metrics
from tests.parallel.launch import torchrun

pytestmark = [pytest.mark.torch, pytest.mark.parallel]

EVERY_4 = {"checkpoint.every_tokens": 1024, "preflight.enabled": False}
SPIKES = {"guard.window_steps": 8, "guard.loss_zscore": 50.0, "guard.norm_zscore": 1e9}
BACK = {"guard.on_loss_spike": "rollback", "guard.skip_before_steps": 1, "guard.skip_after_steps": 1}
HASH = {"guard.hash_every_steps": 1}
LOSS = {"gates.every_tokens": 1024, "gates.short_length": 16, "gates.short_tokens": 256}
NEEDLES = {"gates.needle.kind": "tokens", "gates.needle.lengths": [32], "gates.needle.inserted": 4}
PLAN: dict[str, dict[str, Any]] = {
    "whole": {"overrides": EVERY_4 | {"preflight.enabled": True}},
    "without-5": {"overrides": EVERY_4, "decisions": [[5, 6]]},
    "without-5-to-7": {"overrides": EVERY_4, "decisions": [[5, 8]]},
    "nan": {"overrides": EVERY_4 | {"stop_after_steps": 9}, "fault": ["nan", 5]},
    "nan-goes-on": {"folder": "nan", "overrides": EVERY_4, "fault": ["nan", 5]},
    "nan-stop": {"overrides": EVERY_4 | {"guard.on_nonfinite": "stop"}, "fault": ["nan", 5]},
    "spike": {"overrides": EVERY_4 | SPIKES | BACK, "fault": ["spike", 6]},
    "spike-bf16": {"overrides": EVERY_4 | SPIKES | BACK | {"precision.params": "bf16"}, "fault": ["spike", 6]},
    "without-5-to-7-bf16": {"overrides": EVERY_4 | {"precision.params": "bf16"}, "decisions": [[5, 8]]},
    "spike-continue": {"overrides": EVERY_4 | SPIKES, "fault": ["spike", 6]},
    "spike-early": {"overrides": SPIKES | BACK | {"preflight.enabled": False}, "fault": ["spike", 6]},
    "flip": {"overrides": EVERY_4 | HASH, "fault": ["flip", 6]},
    "flip-stop": {"overrides": EVERY_4 | HASH | {"guard.on_divergence": "stop"}, "fault": ["flip", 6]},
    "term": {"overrides": EVERY_4, "fault": ["term", 5]},
    "term-goes-on": {"folder": "term", "overrides": EVERY_4},
    "stop": {"overrides": EVERY_4, "fault": ["stop", 2]},
    "stop-goes-on": {"folder": "stop", "overrides": EVERY_4},
    "damaged": {"overrides": EVERY_4 | {"stop_after_steps": 9}},
    "damaged-goes-on": {"folder": "damaged", "overrides": EVERY_4, "damage": "step-00000009"},
    "open": {"overrides": EVERY_4 | LOSS},
    "open-already": {"folder": "open", "overrides": EVERY_4 | LOSS},
    "shut": {"overrides": EVERY_4 | LOSS | NEEDLES},
    "averaged": {"overrides": EVERY_4 | {"optimizer.ema_decay": 0.9}},
    "averaged-begun": {
        "folder": "averaged-2",
        "overrides": EVERY_4 | {"optimizer.ema_decay": 0.9, "stop_after_steps": 5},
    },
    "averaged-goes-on": {"folder": "averaged-2", "overrides": EVERY_4 | {"optimizer.ema_decay": 0.9}},
    "claim": {"overrides": EVERY_4, "fault": ["claim", 5]},
    "slow": {"overrides": EVERY_4 | {"guard.ranks_every_steps": 4}, "fault": ["slow", 3]},
}


@pytest.fixture(scope="module")
def ran(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, str]]]:
    """All runs on two processes, data parallel."""
    root = tmp_path_factory.mktemp("faults")
    plan = [
        {"name": name, "data": str(data), **record, "folder": str(root / record.get("folder", name))}
        for name, record in PLAN.items()
    ]
    (root / "plan.json").write_text(json.dumps(plan))
    torchrun(2, "tests.parallel.faults", str(root / "plan.json"), str(root / "out.json"))
    return root, json.loads((root / "out.json").read_text())


Ran = tuple[Path, dict[str, dict[str, str]]]


def curve(folder: Path) -> dict[int, tuple[float, float]]:
    """Loss and gradient norm by step."""
    return {x["step"]: (x["loss"], x["grad_norm"]) for x in metrics.read(folder) if x["kind"] == "train"}


def events(folder: Path) -> list[dict[str, Any]]:
    return [line for line in metrics.read(folder) if line["kind"] == "event"]


def decisions(folder: Path) -> list[tuple[int, int]]:
    lines = [json.loads(line) for line in (folder / "decisions.jsonl").read_text().splitlines()]
    return [(line["from_step"], line["to_step"]) for line in lines]


def test_nan_is_skipped_and_stays_skipped(ran: Ran) -> None:
    root, _ = ran
    (event,) = events(root / "nan")
    assert (event["event"], event["verdict"], event["step"]) == ("nonfinite", "skip", 5)
    assert "step 6: loss nan" in event["reason"]
    assert decisions(root / "nan") == [(5, 6)]
    assert curve(root / "nan") == curve(root / "without-5") != curve(root / "whole")
    assert len(curve(root / "nan")) == 12 and len(metrics.attempts(root / "nan")) == 2


def test_nan_stops_where_that_is_asked_for(ran: Ran) -> None:
    root, results = ran
    assert "step 6: loss nan" in results["nan-stop"]["error"] and "step-00000004" in results["nan-stop"]["error"]
    (attempt,) = metrics.attempts(root / "nan-stop")
    assert attempt.end is not None and (attempt.end["outcome"], attempt.end["step"]) == ("failed", 5)
    assert list(curve(root / "nan-stop")) == [1, 2, 3, 4, 5]
    assert json.loads((root / "nan-stop/outcome.json").read_text()) == attempt.end


@pytest.mark.parametrize("precision", ["", "-bf16"])
def test_spike_rolls_back_and_leaves_out_its_range(ran: Ran, precision: str) -> None:
    root, _ = ran
    folder = root / f"spike{precision}"
    (event,) = events(folder)
    assert (event["event"], event["verdict"], event["step"]) == ("loss_spike", "rollback", 6)
    (back,) = [line for line in metrics.read(folder) if line["kind"] == "rollback"]
    assert back["to_step"] == 4 and back["path"].endswith("step-00000004")
    assert decisions(folder) == [(5, 8)]
    assert curve(folder) == curve(root / f"without-5-to-7{precision}")
    assert len(curve(folder)) == 12


def test_spike_that_is_let_pass_is_told(ran: Ran) -> None:
    root, _ = ran
    (event,) = events(root / "spike-continue")
    assert (event["event"], event["verdict"]) == ("loss_spike", "continue")
    spiked, whole = curve(root / "spike-continue"), curve(root / "whole")
    assert spiked[7][0] == pytest.approx(50 * whole[7][0]) and spiked[6] == whole[6]


def test_rollback_without_a_checkpoint_says_so(ran: Ran) -> None:
    assert "there is no checkpoint of at most 5 steps to roll back to" in ran[1]["spike-early"]["error"]


def test_replica_that_diverges_is_named_and_healed(ran: Ran) -> None:
    root, results = ran
    (event,) = events(root / "flip")
    assert (event["event"], event["verdict"]) == ("divergence", "rollback")
    assert "parameters differ between replicas" in event["reason"]
    assert curve(root / "flip") == curve(root / "whole")
    assert "parameters differ between replicas" in results["flip-stop"]["error"]


@pytest.mark.parametrize(("name", "step", "cause"), [("term", 6, "SIGTERM"), ("stop", 3, "stop was created")])
def test_request_to_stop_saves_at_one_step_and_goes_on_bit_equal(ran: Ran, name: str, step: int, cause: str) -> None:
    root, _ = ran
    first, second = metrics.attempts(root / name)
    assert first.end is not None and second.end is not None
    assert (first.end["outcome"], first.end["step"]) == ("stopped", step)
    assert cause in first.end["cause"] or name == "term"  # rank 0 knows only that rank 1 asked
    assert second.info["from_step"] == step and second.end["outcome"] == "finished"
    assert second.info["weights_from"].endswith(f"step-{step:08d}")
    assert curve(root / name) == curve(root / "whole")
    assert listing.newest(root / name / "checkpoints") == root / name / "checkpoints/step-00000012-a0001"


def test_run_goes_on_from_the_newest_intact_checkpoint(ran: Ran) -> None:
    root, _ = ran
    _, second = metrics.attempts(root / "damaged")
    assert second.info["from_step"] == 8 and second.info["weights_from"].endswith("step-00000008")
    assert curve(root / "damaged") == curve(root / "whole")


def test_gates_open_for_the_right_reason_and_end_the_run(ran: Ran) -> None:
    """A stage of long context: the loss on short rows falls at once; needles are never found by such a model."""
    root, results = ran
    assert results["open"]["checkpoint"].endswith("step-00000004")
    first, second = metrics.attempts(root / "open")
    assert first.end is not None and second.end is not None
    assert (first.end["outcome"], second.end["outcome"], second.info["from_step"]) == ("finished", "finished", 4)
    assert [event["event"] for event in events(root / "open")] == ["gates_open"] and list(curve(root / "open")) == [
        1,
        2,
        3,
        4,
    ]
    record = json.loads((root / "open/gates.json").read_text())
    assert record["examinations"][0]["scores"]["short"]["loss"] < record["baseline"]["short"]["loss"]
    assert "of the needles are found in 32 tokens" in results["shut"]["error"]
    assert [event["event"] for event in events(root / "shut")] == ["gates_shut"] * 3
    assert curve(root / "shut") == curve(root / "whole")  # being asked changes nothing
    assert json.loads((root / "shut/outcome.json").read_text())["outcome"] == "failed"


def test_average_of_the_masters_goes_on_bit_equal(ran: Ran) -> None:
    root, _ = ran
    assert curve(root / "averaged") == curve(root / "whole")
    result = [shards.Reader(listing.resolve(root / name) / "optimizer") for name in ("averaged", "averaged-2")]
    names = [name for name in result[0].names() if name.startswith("ema.")]
    assert names and all(torch.equal(result[0].read(name), result[1].read(name)) for name in names)
    master = names[0].replace("ema.", "fp32.")
    assert not torch.equal(result[0].read(names[0]), result[0].read(master))


def test_older_attempt_makes_way(ran: Ran) -> None:
    root, results = ran
    assert "attempt 7 of this run has begun" in results["claim"]["error"]
    first, newer = metrics.attempts(root / "claim")
    assert first.end is not None and first.end["outcome"] == "superseded"
    assert newer.number == 7 and not (root / "claim/outcome.json").exists()
    assert {path.name for path in (root / "claim/checkpoints").glob("*step-*")} <= {"step-00000004"}


def test_slow_rank_is_named(ran: Ran) -> None:
    root, _ = ran
    slow = [event for event in events(root / "slow") if event["event"] == "slow_rank"]
    (named,) = [event for event in slow if event["phase"] == "forward_backward_s"]  # the others take what they take
    assert (named["rank"], named["step"]) == (1, 4) and "forward_backward_s is " in named["reason"]
    assert curve(root / "slow") == curve(root / "whole")


def test_preflight_was_written(ran: Ran) -> None:
    root, _ = ran
    record = json.loads((root / "whole/attempts/0000/preflight.json").read_text())
    assert record["problems"] == [] and [node["ranks"] for node in record["nodes"]] == [[0, 1]]


def test_hung_rank_is_named_and_ends_the_attempt(data: Path, tmp_path: Path) -> None:
    keys = EVERY_4 | {"guard.heartbeat_s": 5.0}
    plan = [
        {"name": "hang", "folder": str(tmp_path / "hang"), "data": str(data), "overrides": keys, "fault": ["hang", 5]}
    ]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    arguments = str(tmp_path / "plan.json"), str(tmp_path / "out.json")
    printed = torchrun(2, "tests.parallel.faults", *arguments, check=False)
    record = watchdog.read(tmp_path / "hang/attempts/0000/stalled")
    assert [one.rank for one in record] == [0, 1] and {one.step for one in record} == {5}
    (suspect,) = json.loads((tmp_path / "hang/attempts/0000/stalled/blame.json").read_text())["suspects"]
    assert suspect["rank"] == 1 and "faults.py" in suspect["why"] and "rank 1 on" in printed
    assert not (tmp_path / "hang/outcome.json").exists()  # it died, which a restart may heal
