"""Which layers a pipeline stage has, and of how many of them it keeps activations at once. Arithmetic alone, no torch.

A pass is one micro-batch through one chunk of a stage. Megatron-Core's schedules (1F1B, interleaved) say in which order
passes go forward and backward; between the two a pass is in flight, and its layers' activations are kept.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

from llama31.config import Model, Parallel


def chunk_layers(model: Model, parallel: Parallel, stage: int, chunk: int) -> int:
    """Layers of a chunk of a stage: none where the embedding or the loss that counts as one is all there is."""
    slots = model.layers + parallel.embedding_as_layer + parallel.loss_as_layer
    chunks = parallel.pp * parallel.vpp
    position = chunk * parallel.pp + stage
    ends = (position == 0) * parallel.embedding_as_layer + (position == chunks - 1) * parallel.loss_as_layer
    return math.ceil(slots / chunks) - ends


def stage_layers(model: Model, parallel: Parallel, stage: int) -> int:
    """Layers of a stage, of all its chunks."""
    return sum(chunk_layers(model, parallel, stage, chunk) for chunk in range(parallel.vpp))


def in_flight(parallel: Parallel, micro_batches: int, stage: int = 0) -> int:
    """Passes through a chunk, of all chunks of a stage, whose backward pass has not come when they are most.

    `micro_batches` are those of a step and replica; of Megatron-Core's schedules (1F1B, interleaved).
    """
    after = parallel.pp - 1 - stage
    if parallel.vpp == 1:
        return min(after + 1, micro_batches)
    group = parallel.microbatch_group or parallel.pp
    return min(2 * after + (parallel.vpp - 1) * group + 1, micro_batches * parallel.vpp)


class LayersInFlight(NamedTuple):
    """Layers of a stage whose activations are kept, counted with their micro-batches, when they are most."""

    backward: int  # as a backward pass through a chunk with layers begins
    loss: int  # as the head works on a micro-batch, on the last stage; elsewhere 0


def layers_in_flight(model: Model, parallel: Parallel, micro_batches: int, stage: int) -> LayersInFlight:
    """Follows the passes of a stage in the order of the schedule until it repeats itself."""
    size = [chunk_layers(model, parallel, stage, chunk) for chunk in range(parallel.vpp)]
    warm_up = in_flight(parallel, micro_batches, stage) - 1
    total = micro_batches * parallel.vpp
    group = (parallel.microbatch_group or parallel.pp) if parallel.vpp > 1 else 1
    last = parallel.vpp - 1 if stage == parallel.pp - 1 else None
    order = list(itertools.islice(_chunks(parallel.vpp, micro_batches, group), warm_up + 2 * group * parallel.vpp + 2))
    kept = most = at_loss = 0
    for number, chunk in enumerate(order):
        kept += size[chunk]
        if chunk == last:
            at_loss = max(at_loss, kept)
        if number >= warm_up:
            backward = parallel.vpp - 1 - order[number - warm_up]
            most = max(most, kept if size[backward] else 0)
            kept -= size[backward]
    if len(order) == total:  # the cool-down
        for chunk in order[total - warm_up :]:
            backward = parallel.vpp - 1 - chunk
            most = max(most, kept if size[backward] else 0)
            kept -= size[backward]
    return LayersInFlight(most, at_loss)


def _chunks(vpp: int, micro_batches: int, group: int) -> Iterator[int]:
    """The chunk of each forward pass: a group of micro-batches through each chunk in turn, then the next group."""
    for begin in range(0, micro_batches, group):
        for chunk in range(vpp):
            yield from itertools.repeat(chunk, min(group, micro_batches - begin))
