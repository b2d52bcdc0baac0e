"""KL and agreement against plain torch; what a badly quantised model shows that its losses hide."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from llama31.convert import checkpoints, fp8, hf, pretrained
from llama31.data.batches import HeldoutText
from llama31.engine.pipeline import Forward
from llama31.evaluate import scorecard
from llama31.judging import divergence
from llama31.model import llama
from llama31.parallel import mesh
from llama31.parallel.mesh import Grid
from tests.convert.test_convert import settings, write_hf
from tests.evaluate.test_evaluate import SHAPE, Planted
from tests.model.test_model import FP32, ONE, logits_of

pytestmark = pytest.mark.torch

DEEP = replace(SHAPE, layers=4)
QUANTISE = fp8.quantise  # as it is, where a test puts another in its place


@pytest.fixture(scope="module")
def grid() -> Iterator[Grid]:
    yield mesh.create(ONE)
    mesh.close()


def compare(this: Forward, other: Forward) -> dict[str, Any]:
    return divergence.compare(this, other, cast(HeldoutText, Planted()), 2)


def test_divergences_are_those_of_plain_torch(grid: Grid) -> None:
    """Of every token that counts, with its document's interval; the vocabulary's padding is no word."""
    this, other = (Forward(llama.build(SHAPE, FP32, ONE, grid, seed=seed), grid) for seed in (6, 7))
    found, planted = compare(this, other), Planted()
    assert list(found["sources"]) == ["a", "b"]
    every = []
    for name, figures in found["sources"].items():
        rows = planted.rows(name, np.arange(planted.count(name)))
        batch = divergence.MicroBatch.from_rows(rows, grid.device)
        q, p = (torch.log_softmax(logits_of(one.chunks[0], batch.tokens, batch.documents), -1) for one in (this, other))
        kept = torch.from_numpy(rows.loss_mask > 0)
        kl, same = (p.exp() * (p - q)).sum(-1)[kept].detach().numpy(), (p.argmax(-1) == q.argmax(-1))[kept].numpy()
        assert figures["tokens"] == kl.size and figures["kl"] == pytest.approx(kl.mean(), rel=1e-4)
        assert figures["kl_p99"] == pytest.approx(np.quantile(kl, 0.99), rel=1e-4)
        assert figures["kl_max"] == pytest.approx(kl.max(), rel=1e-4) and figures["same"] == pytest.approx(same.mean())
        every.append(kl)
    assert found["total"]["kl"] == pytest.approx(np.concatenate(every).mean(), rel=1e-4)
    assert all(chunk.training for chunk in (*this.chunks, *other.chunks))
    itself = compare(this, this)["total"]
    assert itself["kl"] == itself["kl_max"] == 0 and itself["same"] == 1
    printed = scorecard.text({"checkpoint": "x", "against": {"checkpoint": "y", **found}})
    assert "against y" in printed and "same likeliest" in printed


def test_what_cannot_be_compared_is_named() -> None:
    with pytest.raises(ValueError, match="against: it predicts 80 tokens, checkpoint 96"):
        divergence.check(replace(SHAPE, vocab_size=80), replace(SHAPE, vocab_size=96), 8)
    with pytest.raises(ValueError, match="against: it predicts no tokens"):
        divergence.check(replace(SHAPE, head="reward"), SHAPE, 8)
    with pytest.raises(ValueError, match="sequence_length=64: against has 32 positions"):
        divergence.check(replace(SHAPE, max_positions=32), SHAPE, 64)


def per_tensor(weight: torch.Tensor, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """What rows are to avoid: one scale for the whole, which a single outlier decides."""
    scale = weight.float().abs().max() / fp8.LARGEST
    yield name, (weight.float() / scale).to(fp8.E4M3)
    yield name + fp8.SCALE, scale.expand(weight.shape[0], 1).contiguous()


def wrong_row(weight: torch.Tensor, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Scales that belong to the row before."""
    (_, values), (_, scale) = QUANTISE(weight, name)
    yield name, values
    yield name + fp8.SCALE, scale.roll(1, 0)


def test_bad_quantisation_is_seen(grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an outlier row in the weights, as trained models have: rows of their own scale cost least, by far."""
    torch.manual_seed(3)
    weights = {name: 0.3 * torch.randn(shape) for name, shape in checkpoints.hf_shapes(DEEP).items()}
    for name in fp8.quantised(DEEP):
        weights[name][5] *= 1e5 if "gate" in name else 0 if "up" in name else 1  # what the outlier gates is zero
    write_hf(tmp_path / "plain", DEEP, {name: tensor.bfloat16() for name, tensor in weights.items()})
    checkpoints.run(settings("from_hf", tmp_path / "plain", tmp_path / "run"))
    cost = {}
    models = {"row": QUANTISE, "tensor": per_tensor, "wrong": wrong_row}

    def loaded(folder: Path) -> Forward:
        found = pretrained.find(str(folder))
        chunks = llama.build(found.shape, FP32, ONE, grid)
        found.load(chunks, grid)
        return Forward(chunks, grid)

    plain = loaded(tmp_path / "plain")
    for name, quantise in models.items():
        monkeypatch.setattr(fp8, "quantise", quantise)
        checkpoints.run(settings("to_hf", tmp_path / name, tmp_path / "run", fp8=True))
        assert hf.is_quantised(tmp_path / name)
        cost[name] = compare(loaded(tmp_path / name), plain)["total"]
    assert cost["row"]["kl"] < 0.001 and cost["row"]["same"] > 0.85
    for bad in ("tensor", "wrong"):
        assert cost[bad]["kl"] > 10 * cost["row"]["kl"] and cost[bad]["same"] < cost["row"]["same"]
