"""Bytes kept for the backward pass, written out; what autograd is seen to keep is compared in tests/model."""

from __future__ import annotations

import pytest

from llama31 import config
from llama31.command import entry
from llama31.plan import memory
from tests.plan.test_shapes import model


@pytest.mark.parametrize(
    ("recompute", "saved"),
    [([], 0), (["norms"], 16_384), (["swiglu"], 28_672), (["mlp"], 86_016), (["full"], 131_208)],
)
def test_8b(recompute: list[str], saved: int) -> None:
    """Numbers of docs/training.md."""
    assert sum(memory.layer_bytes(model("8b"), config.Parallel()).values()) == 139_400
    assert memory.recomputed_bytes(model("8b"), config.Parallel(recompute=recompute)) == saved


def test_tensor_parallelism_shards_norms_with_sequence_parallelism_alone() -> None:
    whole, parts = config.Parallel(tp=2, sequence_parallel=False), config.Parallel(tp=2)
    with_norms = [memory.layer_bytes(model("8b"), layout)["norms"] for layout in (whole, parts)]
    assert with_norms[0] == 2 * with_norms[1]
    assert memory.layer_bytes(model("8b"), whole)["mlp"] == 3 * 14_336


def test_outputs_in_flight_of_the_report() -> None:
    """405B on 16 stages of 8 chunks, groups of 16: warm-up of 30 + 112 passes on the first stage, and one."""
    overrides = ["name=x", "model=405b", "schedule=405b", "parallel=405b_16k", "data=demo", "tokenizer=demo"]
    run = entry.compose(config.Pretrain, "pretrain", overrides)
    assert memory.in_flight(run.parallel, 16) == min(143, 16 * 8)
    assert memory.in_flight(run.parallel, 32) == 143
    gigabytes = memory.overlap_bytes(run.model, run.parallel, 32) * 8192 / 1e9
    assert gigabytes == pytest.approx(4.8, abs=0.01)
    assert [memory.in_flight(config.Parallel(pp=4), 8, stage) for stage in range(4)] == [4, 3, 2, 1]
