"""A layout at work: all that the time and the memory of a step follow from. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from llama31.config import Model

RECOMPUTED = (
    "attention",
    "norms",
    "swiglu",
    "mlp",
    "half",
    "full",
)  # half: every second product and what lies between, torchtitan's


@dataclass(frozen=True)
class StepJob:
    """Model, layout and batch of one step on devices of one kind, with the stack that runs it."""

    model: Model
    device: str
    stack: str
    gpus: int
    fp8: bool
    sequence_length: int
    micro_batch: int  # rows
    micro_batches: float  # of a step and replica
    tp: int
    pp: int
    cp: int
    vpp: int
    dp: int
    number_bytes: int = 2  # of weights and activations: BF16, or 4 of FP32
    fsdp: bool = False  # weights are sharded over dp x cp, and gathered layer by layer
    reduce_each: bool = False  # gradients are reduced after every micro-batch (ZeRO-2), not once
    recompute: frozenset[str] = frozenset()  # of RECOMPUTED
    eager: bool = False  # elementwise operations are kernels of their own
    tp_async: bool = False  # overlap of tensor-parallel messages asked for on top of what the stack does

    @property
    def tokens(self) -> float:
        """Tokens of a micro-batch on a rank."""
        return self.micro_batch * self.sequence_length / self.cp

    @property
    def step_tokens(self) -> float:
        """Tokens of a step on all GPUs."""
        return self.dp * self.micro_batches * self.micro_batch * self.sequence_length

    @property
    def shards(self) -> int:
        """Ranks over which optimizer states are shared out."""
        return self.dp * self.cp


def widths(model: Model, tp: int) -> tuple[float, float, float]:
    """Columns of Q, of K and V together, and of the SwiGLU on a rank of `tp`."""
    queries = model.heads * model.head_dim / tp
    keys = 2 * max(model.kv_heads / tp, 1) * model.head_dim
    return queries, keys, model.ffn_hidden_size / tp


def layer_parameters(model: Model, tp: int) -> float:
    """Weights of the products of a layer on a rank of `tp`."""
    queries, keys, ffn = widths(model, tp)
    return model.hidden_size * (2 * queries + keys + 3 * ffn)


def split(model: Model, pp: int, vpp: int) -> tuple[float, float]:
    """Layers of a middle stage and of the last. Where they do not divide, embedding and loss count as one each."""
    chunks = pp * vpp
    if pp == 1 or model.layers % chunks == 0:
        return model.layers / pp, model.layers / pp
    if (model.layers + 2) % chunks == 0:
        whole = (model.layers + 2) / pp
        return whole, whole - 1
    whole = math.ceil(model.layers / chunks) * vpp
    return float(whole), max(0.0, float(whole - 1))
