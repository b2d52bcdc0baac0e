"""Bytes kept for the backward pass, written out; what autograd is seen to keep is compared in tests/model."""

from __future__ import annotations

import pytest

from llama31 import config
from llama31.command import entry
from llama31.plan import memory, passes
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
    assert passes.in_flight(run.parallel, 16) == min(143, 16 * 8)
    assert passes.in_flight(run.parallel, 32) == 143
    gigabytes = memory.overlap_bytes(run.model, run.parallel, 32) * 8192 / 1e9
    assert gigabytes == pytest.approx(4.8, abs=0.01)
    assert [passes.in_flight(config.Parallel(pp=4), 8, stage) for stage in range(4)] == [4, 3, 2, 1]


# --- against a GPU ---

SLICE = config.Model(name="8 layers of 8b", layers=8, hidden_size=4096, ffn_hidden_size=14336, heads=32, kv_heads=8)


@pytest.mark.parametrize(("fp8", "measured_gb"), [("none", 59.0), ("tensorwise", 61.9)])
def test_a_measured_h100(fp8: str, measured_gb: float) -> None:
    """docs/benchmarks.md: rows of 4,096, 8 a step, micro-batch 1; torch.cuda.max_memory_allocated.

    Measured before the head summed its gradient in `main_grad`: it made one in FP32, beside a product in BF16 of that
    size, and of 2^27 logits at once FP32 log-probabilities and a BF16 gradient.
    """
    work = memory.Workload(4096, micro_batches=8, replicas=1)
    now = memory.of_stage(SLICE, config.Parallel(), config.Precision(fp8=fp8), work, 0)
    of_head = SLICE.vocab_size * SLICE.hidden_size
    changed = (4 + 2) * of_head + (4 + 2) * 2**27 - 2 * memory.LOGITS["cuda"]
    assert (now.allocated + changed) / 1e9 == pytest.approx(measured_gb, rel=0.005)
    assert now.weights + now.gradients + now.states == pytest.approx(18 * 2.7956e9, rel=1e-4)
