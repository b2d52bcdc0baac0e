"""The state of a model and its optimizer as shards of global tensors: what a checkpoint saves and loads.

ZeRO's fragments are arbitrary flat ranges and no rectangles, so each parameter's masters and moments are assembled
over the data x context parallel ranks, which then share out the writing: every block has one writer, and no rank keeps
more than its share.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from llama31 import checkpoint, config, model
from llama31.engine import Engine
from llama31.mesh import Grid
from llama31.model import Llama, ParameterShard
from llama31.shards import Block, Shard
from llama31.zero import MOMENTS

KEYS = ("fp32", *MOMENTS)


def load_weights(folder: Path, chunks: list[Llama], shape: config.Model, grid: Grid) -> None:
    """Fill the chunks with a checkpoint's weights, whatever layout it was saved on."""
    checkpoint.load_weights(folder, live(chunks, shape, grid))


def live(chunks: list[Llama], shape: config.Model, grid: Grid) -> list[Shard]:
    """The weights that this rank computes with, as shards to be filled in place."""
    return [_as_shard(shard, shard.name, shard.parameter.data) for shard in model.shards(chunks, shape, grid)]


def weights(engine: Engine) -> list[Shard]:
    """The weights that this rank writes. Collective."""
    found = []
    for shard, writes in _shared_out(engine):
        with engine.reducer.gathered([shard.parameter]):
            if writes:
                found.append(_as_shard(shard, shard.name, _kept(engine, shard.parameter.data)))
    return found


def _kept(engine: Engine, weight: Tensor) -> Tensor:
    """ZeRO-3 takes a gathered weight away again; elsewhere the weight itself is written."""
    return weight.clone() if engine.forward.called != list(engine.chunks) else weight


def optimizer(engine: Engine) -> list[Shard]:
    """The FP32 masters and Adam moments that this rank writes. Collective."""
    found = []
    for shard, writes in _shared_out(engine):
        for key in KEYS:
            whole = engine.reducer.full(shard.parameter, key)
            if writes:
                found.append(_as_shard(shard, f"{key}.{shard.name}", whole))
    return found


def load_optimizer(folder: Path, engine: Engine, updates: int) -> None:
    """Masters, moments and the number of updates, from any layout; weights follow from the masters."""
    checkpoint.load_optimizer(folder, _filled(engine))
    engine.reducer.finish_load(updates)


def _filled(engine: Engine) -> Iterator[Shard]:
    """Shards to be filled, one parameter at a time: what was filled goes to ZeRO before the next is made."""
    for shard in engine.shards:
        local = getattr(shard.parameter, "ds_shape", shard.parameter.shape)
        wholes = {key: torch.empty(local, dtype=torch.float32, device=engine.grid.device) for key in KEYS}
        for key, whole in wholes.items():
            yield _as_shard(shard, f"{key}.{shard.name}", whole)
        for key, whole in wholes.items():
            engine.reducer.set_full(shard.parameter, key, whole)


def _as_shard(shard: ParameterShard, name: str, tensor: Tensor) -> Shard:
    return Shard(name, shard.shape, [Block(offset, block) for offset, block in shard.blocks(tensor)])


def _shared_out(engine: Engine) -> Iterator[tuple[ParameterShard, bool]]:
    """Every parameter, and whether this rank is the one of its replicas that writes it: the least loaded so far."""
    grid = engine.grid
    me, load = dist.get_rank(grid.dp_cp_group), [0] * (grid.dp * grid.cp)
    for shard in engine.shards:
        writer = load.index(min(load))
        load[writer] += getattr(shard.parameter, "ds_numel", shard.parameter.numel())
        copy = shard.replica or (len(shard.shape) == 1 and grid.tp_rank > 0)
        yield shard, writer == me and not copy
