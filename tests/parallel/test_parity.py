"""Every layout computes what one process computes, and one process what plain torch computes."""

from __future__ import annotations

import json

import pytest

from tests.parallel.cases import CASES, LEARNING_RATES, OPTIMIZER, Case, batches, model
from tests.parallel.launch import forked

pytestmark = [pytest.mark.torch, pytest.mark.parallel]

# Relative bounds. FP32 differs by the order of sums alone; BF16 rounds each partial sum of a split product.
BOUNDS = {"fp32": {"losses": 1e-5, "norms": 1e-5, "evaluated": 1e-5}}
BOUNDS["bf16"] = {"losses": 1e-3, "norms": 6e-2, "evaluated": 2e-3}

Result = dict[str, list[float]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """What every case computed; one set of processes per world size serves all its cases."""
    folder = tmp_path_factory.mktemp("parity")
    forked(sorted({case.processes for case in CASES}), "tests.parallel.worker", str(folder))
    result: dict[str, Result] = {}
    for output in folder.iterdir():
        result |= json.loads(output.read_text())
    return result


@pytest.mark.parametrize("case", [case for case in CASES if case.name != case.reference], ids=lambda case: case.name)
def test_layout_equals_one_process(case: Case, results: dict[str, Result]) -> None:
    assert "error" not in results[case.name], results[case.name]["error"]
    for what, bound in BOUNDS[case.params].items():
        assert results[case.name][what] == pytest.approx(results[case.reference][what], rel=bound), what


def test_clipping_took_part(results: dict[str, Result]) -> None:
    assert max(results["one"]["norms"]) > OPTIMIZER.clip_norm


@pytest.mark.parametrize("name", ["one", "one-tied", "one-kv4"])
def test_one_process_equals_plain_torch(name: str, results: dict[str, Result]) -> None:
    from llama31 import config
    from llama31.model import llama
    from llama31.parallel import mesh
    from tests import plain_trainer

    case = next(case for case in CASES if case.name == name)
    parallel, shape = case.parallel(), model(case.tied, case.kv_heads)
    grid = mesh.create(parallel)
    chunks = llama.build(shape, config.Precision(params="fp32"), parallel, grid, seed=3)
    weights = {shard.name: shard.parameter.detach().clone() for shard in llama.shards(chunks, shape, grid)}
    losses, norms = plain_trainer.train(weights, shape, batches(), LEARNING_RATES, OPTIMIZER)
    assert results[name]["losses"] == pytest.approx(losses, rel=1e-5)
    assert results[name]["norms"] == pytest.approx(norms, rel=1e-5)


def test_bf16_follows_fp32(results: dict[str, Result]) -> None:
    assert results["one-bf16"]["losses"] == pytest.approx(results["one"]["losses"], rel=5e-3)
    assert results["one-bf16"]["losses"] != results["one"]["losses"]
