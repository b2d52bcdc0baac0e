"""What of ZeRO-1's messages a step waits for: gradients sent while the backward pass goes on, weights behind it.

The rule by which parameters are put into buckets is here, and `engine/stage1.py` follows it. The times are computed
from a step's length: passes of a chunk take equally long, a backward pass twice as long as a forward pass, and the
matrices of a layer share it by their size; a link carries one message after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llama31.config import Model, Parallel
from llama31.plan import layout, passes, shapes

BACKWARD = 2 / 3  # of a micro-batch's time: two products for the forward pass's one


def buckets(sizes: Sequence[int], bucket_bytes: int) -> list[list[int]]:
    """Numbers of parameters (elements each, in the order of the backward pass) by bucket.

    Whole parameters, until the FP32 gradients of a bucket have at least `bucket_bytes`; the last may have less.
    """
    result: list[list[int]] = []
    filled = bucket_bytes
    for number, size in enumerate(sizes):
        if filled >= bucket_bytes:
            result.append([])
            filled = 0
        result[-1].append(number)
        filled += 4 * size
    return result


@dataclass(frozen=True)
class Exposure:
    """Seconds of messages of one step on the slowest stage, and what of them nothing hides."""

    reduce_s: float
    gather_s: float
    exposed_reduce_s: float
    exposed_gather_s: float

    def share(self, step_s: float) -> float:
        """What the step waits for, as a share of it."""
        return (self.exposed_reduce_s + self.exposed_gather_s) / step_s

    def share_without_overlap(self, step_s: float) -> float:
        """The same where all is sent when all is computed."""
        return (self.reduce_s + self.gather_s) / step_s


@dataclass(frozen=True)
class _Pass:
    """What a rank has of one matrix: elements, and when one of its passes through it begins and ends."""

    elements: int
    begin_s: float
    end_s: float


def exposure(model: Model, parallel: Parallel, micro_batches: int, step_s: float, bytes_per_s: float) -> Exposure:
    """Of the messages of a step of `step_s` seconds over links of `bytes_per_s` a process, what is not hidden.

    `micro_batches` per replica and step. Raises ValueError where `parallel.dp` is not given.
    """
    if parallel.dp is None:
        raise ValueError("parallel.dp=null: messages depend on the number of replicas; give parallel.dp")
    replicas = parallel.dp * parallel.cp
    moved = (replicas - 1) / replicas / bytes_per_s  # seconds a byte of a ring's message takes
    every = []
    for stage in range(parallel.pp):
        forward, backward = _passes(model, parallel, micro_batches, stage, step_s)
        parts = buckets([one.elements for one in backward], parallel.bucket_bytes)
        sizes = [sum(backward[i].elements for i in part) for part in parts]
        ends = _sent([4 * size * moved for size in sizes], [backward[part[-1]].end_s for part in parts])
        late = max(0.0, ends[-1] - step_s) if ends else 0.0
        arrived = _sent([2 * size * moved for size in reversed(sizes)], [0.0] * len(sizes))
        of_bucket = [len(parts) - 1 - n for n, part in enumerate(parts) for _ in part][::-1]
        waits = [arrived[bucket] - one.begin_s for bucket, one in zip(of_bucket, forward, strict=True)]
        total = sum(sizes) * moved
        every.append(Exposure(4 * total, 2 * total, late, max(0.0, *waits) if waits else 0.0))
    return Exposure(
        max(one.reduce_s for one in every),
        max(one.gather_s for one in every),
        max(one.exposed_reduce_s for one in every),
        max(one.exposed_gather_s for one in every),
    )


def _sent(lengths: Sequence[float], ready: Sequence[float]) -> list[float]:
    """When messages of these lengths have been sent, one after another, none before it is ready."""
    free, ends = 0.0, []
    for length, begin in zip(lengths, ready, strict=True):
        free = max(free, begin) + length
        ends.append(free)
    return ends


def _passes(
    model: Model, parallel: Parallel, micro_batches: int, stage: int, step_s: float
) -> tuple[list[_Pass], list[_Pass]]:
    """A stage's matrices as the first micro-batch reads them, and as the last one completes their gradients.

    Times count from the beginning of a step. A later stage begins a pass of a chunk later and ends one earlier.
    """
    group = min(parallel.microbatch_group or parallel.pp, micro_batches) if parallel.vpp > 1 else micro_batches
    last_group = micro_batches % group or group
    busy_s = step_s / (1 + layout.bubble(parallel, micro_batches))
    chunk_s = busy_s / (micro_batches * parallel.vpp)
    forward_s, backward_s = chunk_s * (1 - BACKWARD), chunk_s * BACKWARD
    forward: list[_Pass] = []
    backward: list[_Pass] = []
    for chunk in range(parallel.vpp):
        matrices = _matrices(model, parallel, stage, chunk)
        begin = stage * forward_s + chunk * group * forward_s
        forward += _spread(matrices, begin, forward_s)
        end = step_s - stage * backward_s - chunk * last_group * backward_s
        backward = [*_spread(matrices[::-1], end - backward_s, backward_s), *backward]
    return forward, backward


def _spread(matrices: Sequence[int], begin: float, length: float) -> list[_Pass]:
    """Matrices one after another within a pass of a chunk, by their size."""
    whole, at, result = max(1, sum(matrices)), begin, []
    for elements in matrices:
        took = length * elements / whole
        result.append(_Pass(elements, at, at + took))
        at += took
    return result


def _matrices(model: Model, parallel: Parallel, stage: int, chunk: int) -> list[int]:
    """Elements of a rank's matrices in a chunk, as the forward pass reads them."""
    position, chunks = chunk * parallel.pp + stage, parallel.pp * parallel.vpp
    layers, first, last = passes.chunk_layers(model, parallel, stage, chunk), position == 0, position == chunks - 1
    keys = model.hidden_size * model.head_dim * (model.heads + 2 * model.kv_heads)
    layer = [keys, model.hidden_size**2, 2 * model.hidden_size * model.ffn_hidden_size]
    layer.append(shapes.mlp_parameters(model) - layer[-1])
    end = model.vocab_size * model.hidden_size
    whole = [*[end] * first, *layer * layers, *[end] * last]
    return [elements // parallel.tp for elements in whole]
