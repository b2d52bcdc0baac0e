"""Parameter counts against the published totals, FLOPs against sums written out."""

from __future__ import annotations

import functools

import pytest

from llama31 import config
from llama31.command import entry
from llama31.plan import shapes


@functools.cache
def model(name: str) -> config.Model:
    overrides = ["name=x", f"model={name}", "schedule=demo", "data=demo", "tokenizer=demo"]
    return entry.compose(config.Pretrain, "pretrain", overrides).model


@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("tiny", 10_490_112),
        ("16m", 16_258_304),
        ("1b", 1_235_814_400),
        ("3b", 3_212_749_824),
        ("8b", 8_030_261_248),
        ("70b", 70_553_706_496),
        ("405b", 405_853_388_800),
    ],
)
def test_totals(name: str, total: int) -> None:
    assert shapes.parameters(model(name)) == total
    assert model(name).name == name


@pytest.mark.parametrize(
    ("name", "layer", "rest"),
    [
        ("8b", 218_112_000, 6_979_588_096),
        ("70b", 855_654_400, 68_452_360_192),
        ("405b", 3_187_703_808, 401_650_696_192),
    ],
)
def test_layer_and_non_embedding(name: str, layer: int, rest: int) -> None:
    assert shapes.parameters_per_layer(model(name)) == layer
    assert shapes.non_embedding(model(name)) == rest


def test_head_width() -> None:
    assert {name: model(name).head_dim for name in ("1b", "3b", "8b", "70b", "405b")} == {
        "1b": 64,
        "3b": 128,
        "8b": 128,
        "70b": 128,
        "405b": 128,
    }


def test_flops_written_out() -> None:
    """Two layers of width 8: each matrix twice per pass, three passes; attention over half of the row."""
    small = config.Model(
        name="x", layers=2, hidden_size=8, ffn_hidden_size=12, heads=2, kv_heads=1, vocab_size=10, tied_embeddings=True
    )
    matrices = 2 * (8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 12) + 10 * 8
    scores_and_values = 2 * (2 * 16 * 8 + 2 * 16 * 8) / 2  # two layers; QK' and AV of 16 positions; half is masked
    assert shapes.flops_per_token(small, 16) == 3 * (2 * matrices + scores_and_values)


def test_flops_of_the_report() -> None:
    """6 x 405e9 x 15.6e12 is the report's 3.8e25, without attention and the embedding."""
    total = shapes.flops_per_token(model("405b"), 0) * 15.6e12
    assert total == pytest.approx(3.8e25, rel=0.01)


def test_bytes() -> None:
    tiny = model("tiny")
    assert shapes.weight_bytes(tiny) == 2 * 10_490_112
    assert shapes.weight_bytes(tiny, "fp32") == 4 * 10_490_112
    assert shapes.checkpoint_bytes(tiny) == 14 * 10_490_112
