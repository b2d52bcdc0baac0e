"""Bytes that a rank keeps between the forward and the backward pass, by cause. Arithmetic alone, no torch.

Per layer and token of a micro-batch as a rank sees it, [b, s / cp]. Counted are the formats of `precision.params`: FP8
keeps what products read in one byte instead. Tested against what autograd is seen to keep.
"""

from __future__ import annotations

from collections.abc import Sequence

from llama31.config import Model, Parallel
from llama31.plan.shapes import BYTES

SUM_BYTES = 4  # of an FP32 number per token, or per token and head


def layer_bytes(
    model: Model, parallel: Parallel, params: str = "bf16", recompute: Sequence[str] = ()
) -> dict[str, float]:
    """Bytes per layer and token with `recompute`, a value of `parallel.recompute`; with fused rotary embedding.

    residual: the layer's input and the sum after attention; norms: their outputs, which products read, and scales;
    attention: Q, K, V, output and the sums of its softmax; mlp: what fc1 and the activation give.
    """
    size, tp = BYTES[params], parallel.tp
    sharded = tp if parallel.sequence_parallel else 1
    hidden = model.hidden_size * size / sharded
    if "full" in recompute:
        return {"residual": hidden, "norms": 0.0, "attention": 0.0, "mlp": 0.0}
    heads, kv_heads = model.heads / tp, max(model.kv_heads / tp, 1)
    ffn = model.ffn_hidden_size * size / tp
    return {
        "residual": 2 * hidden,
        "norms": 2 * SUM_BYTES / sharded + (0 if "norms" in recompute else 2 * hidden),
        "attention": 2 * (heads + kv_heads) * model.head_dim * size + heads * SUM_BYTES,
        "mlp": 0.0 if "mlp" in recompute else ffn * (2 if "swiglu" in recompute else 3),
    }


def recomputed_bytes(model: Model, parallel: Parallel, params: str = "bf16") -> float:
    """Bytes per layer and token that `parallel.recompute` saves."""
    whole, rest = (layer_bytes(model, parallel, params, parts) for parts in ((), parallel.recompute))
    return sum(whole.values()) - sum(rest.values())


def in_flight(parallel: Parallel, micro_batches: int, stage: int = 0) -> int:
    """Passes through a chunk, of all chunks of a stage, whose backward pass has not come when they are most.

    `micro_batches` are those of a step and replica; of Megatron-Core's schedules (1F1B, interleaved).
    """
    after = parallel.pp - 1 - stage
    if parallel.vpp == 1:
        return min(after + 1, micro_batches)
    group = parallel.microbatch_group or parallel.pp
    return min(2 * after + (parallel.vpp - 1) * group + 1, micro_batches * parallel.vpp)


def sent_bytes(model: Model, parallel: Parallel, params: str = "bf16") -> float:
    """Bytes per token of what a chunk sends to the next stage: states [s / cp, b, h], sharded as the residual is."""
    return model.hidden_size * BYTES[params] / (parallel.tp if parallel.sequence_parallel else 1)


def overlap_bytes(model: Model, parallel: Parallel, micro_batches: int, params: str = "bf16", stage: int = 0) -> float:
    """Bytes per token that `parallel.overlap_p2p` adds on a stage: at most, since the last chunk sends nothing.

    Every output lives until its backward pass, instead of the one that is being sent, and one more is received ahead.
    """
    return in_flight(parallel, micro_batches, stage) * sent_bytes(model, parallel, params)
