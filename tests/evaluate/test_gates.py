"""When the gates of a long-context stage open, from planted scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llama31 import config
from llama31.evaluate import gates

pytestmark = pytest.mark.torch

BEFORE = {"tasks": {"arc": {"score": 0.50, "ci95": 0.02, "count": 100}}, "short": {"loss": 2.0, "loss_ci95": 0.1}}


def scored(arc: float = 0.5, loss: float = 2.0, shares: tuple[float, ...] = (1.0, 1.0)) -> dict[str, Any]:
    return {
        "tasks": {"arc": {"score": arc, "ci95": 0.02, "count": 100}},
        "short": {"loss": loss, "loss_ci95": 0.1},
        "needle": {"lengths": [8192, 16384][: len(shares)], "found": list(shares)},
    }


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        (scored(), None),
        (scored(arc=0.481), None),
        (scored(arc=0.479), "arc is at 0.4790, before it was 0.5000 +-0.0200"),
        (scored(loss=2.099), None),
        (scored(loss=2.101), "the short-context loss is 2.1010, before it was 2.0000 +-0.1000"),
        (scored(loss=float("nan")), "the short-context loss is nan"),
        (scored(shares=(1.0, 0.99)), "99.00% of the needles are found in 16384 tokens"),
    ],
)
def test_gates_open_when_all_is_back_and_found(scores: dict[str, Any], said: str | None) -> None:
    reasons = gates.closed(scores, BEFORE)
    assert reasons == [] if said is None else len(reasons) == 1 and said in reasons[0]


def test_all_reasons_are_told() -> None:
    assert len(gates.closed(scored(0.1, 9.0, (0.0, 0.0)), BEFORE)) == 4
    assert gates.closed(scored(shares=(0.9,)), BEFORE, recall=0.9) == []


def test_baseline_of_an_evaluation_or_a_run(tmp_path: Path) -> None:
    wanted = config.Gates(tasks={"arc": config.Task(path="x")}, short_length=64)
    arc = {"acc": {"score": 0.4}, "acc_norm": BEFORE["tasks"]["arc"], "acc_bytes": {"score": 0.3}}
    files = {
        "evaluated.json": {"tasks": {"arc": arc, "other": arc}, "total": BEFORE["short"]},
        "gates.json": {"baseline": {**BEFORE, "tasks": {**BEFORE["tasks"], "other": {}}}, "examinations": []},
    }
    for name, record in files.items():
        (tmp_path / name).write_text(json.dumps(record))
        assert gates._baseline(tmp_path / name, wanted) == BEFORE
    (tmp_path / "less.json").write_text(json.dumps({"tasks": {}}))
    with pytest.raises(ValueError, match="it lacks task arc, the short-context loss; evaluate the model before"):
        gates._baseline(tmp_path / "less.json", wanted)
