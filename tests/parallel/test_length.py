"""Context parallelism on long rows: numbers of one process, a fair share of its memory, through changes of length."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llama31 import config
from llama31.plan import memory
from llama31.runs import metrics
from tests.parallel.launch import forked, torchrun
from tests.parallel.length import DOCUMENTS, LAYOUTS, LENGTH, PROCESSES, SHAPE

pytestmark = [pytest.mark.torch, pytest.mark.parallel]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank saw."""
    output = tmp_path_factory.mktemp("length") / "out.json"
    forked(PROCESSES, "tests.parallel.length", str(output))
    result: list[dict[str, Any]] = json.loads(output.read_text())
    errors = [rank["error"] for rank in result if "error" in rank]
    assert not errors, errors[0]
    return result


@pytest.mark.parametrize("rows", DOCUMENTS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("way", ["a call for each document", "two calls for all"])
def test_loss_and_all_gradients_equal_one_process(
    way: str, layout: str, rows: str, ranks: list[dict[str, Any]]
) -> None:
    for rank in ranks:
        result = rank["parity" if way == "a call for each document" else "packed"][f"{layout}/{rows}"]
        loss, expected = result["losses"]
        assert loss == pytest.approx(expected, rel=1e-5)
        assert len(result["gradients"]) == 3 + 6 * SHAPE.layers, "every parameter"
        assert {name: off for name, off in result["gradients"].items() if not off < 1e-5} == {}


def test_activations_of_a_rank_fall_with_cp(ranks: list[dict[str, Any]]) -> None:
    """K and V of other ranks are not kept, or CP 4 would keep 0.3 of what one process keeps here."""
    for rank in ranks:
        kept = rank["bytes"]
        assert kept["cp2"] == pytest.approx(kept["alone"] / 2, rel=0.01)
        assert kept["cp4"] == pytest.approx(kept["alone"] / 4, rel=0.01)


def test_recomputation_saves_what_the_plan_says(ranks: list[dict[str, Any]]) -> None:
    """Under tensor and sequence parallelism: norms are sharded over tokens, the activation over its width."""
    layout = config.Parallel(**LAYOUTS["tp2-cp2-norms-swiglu"])
    places = SHAPE.layers * 2 * LENGTH / layout.cp  # two rows
    for rank in ranks:
        saved = rank["bytes"]["tp2-cp2"] - rank["bytes"]["tp2-cp2-norms-swiglu"]
        assert saved == places * memory.recomputed_bytes(SHAPE, layout, "fp32")


@pytest.mark.parametrize("rows", ["odd", "trees", "gaps"])
@pytest.mark.parametrize("cp", ["2", "4"])
def test_overlap_changes_no_bit(cp: str, rows: str, ranks: list[dict[str, Any]]) -> None:
    """And the two calls of a GPU compute what a call for each document does."""
    asked = ("waiting first, bit for bit", "gathered beforehand", "two calls")
    for rank in ranks:
        assert rank["equal"][f"{cp}/{rows}"] == dict.fromkeys(asked, True)


def test_nothing_travels_for_documents_that_no_chunk_edge_cuts(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["gathers"]["inside-chunks"] == 0
        assert rank["gathers"]["odd"] == 2 * SHAPE.layers, "each layer once forward and once backward"


# 2 steps each of 512, 1,024 and 2,048 tokens to a row.
RAMP = {"ramp": [[8192, 4096, 1024], [16384, 4096, 2048]], "schedule.total_tokens": 24576}
LONG = RAMP | {"schedule.batch_tokens": 4096, "schedule.sequence_length": 512, "schedule.warmup_tokens": 4096}


def stage(folder: Path, data: Path, **overrides: Any) -> dict[str, Any]:
    keys = {key.replace("__", "."): value for key, value in overrides.items()}
    return {"name": str(overrides), "folder": str(folder), "data": str(data), "overrides": LONG | keys}


def trained(processes: int, plan: list[dict[str, Any]], folder: Path) -> dict[int, tuple[int, float, float]]:
    """Row length, loss and gradient norm of every step of the runs of `plan`, which share a folder."""
    (folder / "plan.json").write_text(json.dumps(plan))
    torchrun(processes, "tests.parallel.training", str(folder / "plan.json"), str(folder / "out.json"))
    for name, result in json.loads((folder / "out.json").read_text()).items():
        assert "error" not in result, (name, result["error"])
    lines = [line for line in metrics.read(folder / "run") if line["kind"] == "train"]
    return {line["step"]: (line["sequence_length"], line["loss"], line["grad_norm"]) for line in lines}


def test_stages_of_512_1024_2048_with_cp_1_2_2(data: Path, tmp_path: Path) -> None:
    """Each checkpoint is resumed on the next layout with the longer row; one process trains straight through."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    expected = trained(1, [stage(one / "run", data)], one)
    stages = [
        stage(two / "run", data, stop_after_steps=2),
        stage(two / "run", data, stop_after_steps=2, parallel__cp=2),
        stage(two / "run", data, parallel__cp=2),
    ]
    result = trained(2, stages, two)
    assert [result[number][0] for number in range(1, 7)] == [512, 512, 1024, 1024, 2048, 2048]
    assert [attempt.info["from_step"] for attempt in metrics.attempts(two / "run")] == [0, 2, 4]
    for number, values in expected.items():
        assert result[number] == pytest.approx(values, rel=1e-5), number
    assert expected[6][1] < expected[1][1] - 0.02, "it learns, so equality is no accident of a model that stands still"
