"""Going back to a checkpoint without leaving the process is as good as a restart from it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.parallel.launch import torchrun
from tests.parallel.restoring import CASES

pytestmark = [pytest.mark.torch, pytest.mark.parallel]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("restored")
    torchrun(2, "tests.parallel.restoring", str(folder), str(folder / "out.json"))
    result: dict[str, Any] = json.loads((folder / "out.json").read_text())
    return result


@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_a_live_restore_is_bit_equal(name: str, results: dict[str, Any]) -> None:
    result = results[name]
    assert "error" not in result, result["error"]
    assert result["again"] == result["straight"], "the steps after the save are those of before"
    within = 1e-3 if name.endswith("fp8") else 1e-5  # in a step scales change between micro-batches, evaluating never
    assert result["evaluated"][0][0] == pytest.approx(result["straight"][0][0], rel=within)
    assert result["straight"][1][0] != result["straight"][0][0] and result["updates"] == [[2]]


@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_weights_are_read_once_by_all_that_hold_them(name: str, results: dict[str, Any]) -> None:
    """They are what the masters round to, so a resume reads none; a rank that cannot read tells all the others."""
    case, read = next(case for case in CASES if case.name == name), results[name]["read"]
    assert read["differ"] == [[], []] and read["said"] == ["a disk of rank 1"] * 2
    copies = 2 if {"dp", "cp"} & case.layout.keys() else 1
    numbers = sum(read["held"]) / copies
    tables = 20_000  # of names and blocks, on each rank: a tenth of this small model
    assert 0.9 * numbers < sum(read["weights"]) < numbers + 2 * tables
    assert max(read["weights"]) < 0.6 * numbers + tables
    width = 4 if case.params == "fp32" else 2
    assert sum(read["optimizer"]) < 12 / width * numbers + 4 * tables


def test_scales_of_fp8_go_from_any_layout_to_any(results: dict[str, Any]) -> None:
    """Tensor, pipeline, data and context parallel: each goes on from another one's histories, bit for bit."""
    crossed = results["crossed"]
    assert len(crossed) == 4 and {found["from"] for found in crossed.values()} == crossed.keys()
    for name, found in crossed.items():
        assert not found["wrong"] and found["complete"] and found["layers"] == 8, (name, found)
        assert found["scales"] == "learned"
        assert found["loss"] == pytest.approx(results[found["from"]]["straight"][0][0], rel=1e-3), name
