"""Every layout, context parallelism and interleaving included, scores given tokens as one process does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from llama31.parallel import mesh
from tests.convert.test_convert import weights_of, write_hf
from tests.model.test_model import logits_of
from tests.parallel.launch import forked
from tests.parallel.scoring import LAYOUTS, PROCESSES, SHAPE, Built

pytestmark = [pytest.mark.torch, pytest.mark.parallel]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in Hugging Face format, small enough that losses stay moderate."""
    weights = {name: 0.15 * tensor for name, tensor in weights_of(SHAPE).items()}
    top = tmp_path_factory.mktemp("scoring")
    write_hf(top / "other", SHAPE, {name: 0.9 * tensor + 0.005 for name, tensor in weights.items()})
    return write_hf(top / "hf", SHAPE, weights)


@pytest.fixture(scope="module")
def alone(folder: Path) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """What one process finds, and the tokens that it would write after every other prompt."""
    built = Built(str(folder))
    logits = [logits_of(built.chunks[0], torch.from_numpy(p.tokens)[None])[0, -1] for p in built.prompts()[::2]]
    hits = [int(row.argmax()) for row in logits]
    yield hits, built.everything(hits)
    mesh.close()


@pytest.fixture(scope="module")
def results(folder: Path, alone: tuple[list[int], dict[str, Any]]) -> dict[str, Any]:
    """What every layout found, in one set of processes."""
    output = folder.parent / "results.json"
    forked(PROCESSES, "tests.parallel.scoring", str(folder), json.dumps(alone[0]), str(output))
    actual: dict[str, Any] = json.loads(output.read_text())
    for name, result in actual.items():
        assert "error" not in result, f"{name}: {result['error']}"
    return actual


@pytest.mark.parametrize("name", LAYOUTS)
def test_scores_equal_those_of_one_process(
    name: str, results: dict[str, Any], alone: tuple[list[int], dict[str, Any]]
) -> None:
    result, expected = results[name], alone[1]
    for (losses, right), (wanted, also) in zip(result["answers"], expected["answers"], strict=True):
        assert losses == pytest.approx(wanted, abs=1e-4) and right == also
    assert result["recall"] == expected["recall"]
    assert all(result["recall"][::2]) and sum(result["recall"]) < 0.7 * len(result["recall"])
    assert result["perplexity"].keys() == expected["perplexity"].keys()
    for key in ("loss", "loss_ci95"):
        assert result["perplexity"]["total"][key] == pytest.approx(expected["perplexity"]["total"][key], rel=1e-4)
    bins = [
        [(one["from"], one["tokens"]) for one in record["perplexity"]["positions"]["a"]]
        for record in (result, expected)
    ]
    assert bins[0] == bins[1]
    compared, wanted = (found["divergence"]["sources"]["a"] for found in (result, expected))
    assert compared["tokens"] == wanted["tokens"] and wanted["kl"] > 1e-3 and 0 < wanted["same"] < 1
    assert all(compared[key] == pytest.approx(wanted[key], rel=1e-3) for key in wanted)
