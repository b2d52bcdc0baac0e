"""The state of a model and its optimizer as shards of global tensors: what a checkpoint saves and loads.

ZeRO gives each data x context parallel rank a flat range of every parameter. Each rank saves and loads exactly its own
range, as views of the live memory and without asking the others: nothing is gathered, copied or read twice. A range of
a matrix is no rectangle, but at most three: the end of one row, whole rows, the beginning of another.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from llama31 import config
from llama31.checkpoint import index, manifest, publish, shards
from llama31.checkpoint.index import Shape
from llama31.checkpoint.shards import Block, Shard
from llama31.engine import partition
from llama31.engine.ema import Ema
from llama31.engine.partition import MASTER, MOMENTS, WEIGHT
from llama31.engine.pipeline import Engine
from llama31.model import llama
from llama31.model.llama import Llama, ParameterShard
from llama31.parallel.collectives import gathered, on_first_rank
from llama31.parallel.mesh import Grid
from llama31.quantise import delayed

log = logging.getLogger(__name__)

KEYS = (MASTER, *MOMENTS)


def load_weights(
    folder: Path, chunks: list[Llama], shape: config.Model, grid: Grid, without: tuple[str, ...] = ()
) -> int:
    """Fill the chunks with a checkpoint's weights, whatever layout it was saved on; `without` these tensors.

    Collective. Returns the bytes that this rank read: replicas share the reading (`fill`). ValueError on every rank
    where a tensor is missing or of another shape.
    """
    check_weights(folder, chunks, shape, grid, without)
    return fill(chunks, shape, grid, lambda wanted: publish.load_weights(folder, wanted), without)


def check_weights(
    folder: Path, chunks: list[Llama], shape: config.Model, grid: Grid, without: tuple[str, ...] = ()
) -> None:
    """ValueError on every rank where a checkpoint's weights are not those of the chunks, by name and shape. None is
    read: where masters follow, the weights come from them.
    """
    parts = llama.shards(chunks, shape, grid)
    publish.check_weights(folder, {part.name: part.shape for part in parts if part.name not in without})


def fill(
    chunks: list[Llama],
    shape: config.Model,
    grid: Grid,
    read: Callable[[list[Shard]], int],
    without: tuple[str, ...] = (),
) -> int:
    """Fill the weights of the chunks, each read by one of the ranks that hold it and sent to the others. Collective.

    Data x context parallel ranks hold the same: each `read`s some of its parameters, equal in bytes, in place. `read`
    is collective over all ranks, or raises on all of them: whoever failed, nobody waits for what it would have sent.
    Returns what this rank's `read` returned, the bytes read.
    """
    parts = [part for part in llama.shards(chunks, shape, grid) if part.name not in without]
    ranks, sizes = dist.get_process_group_ranks(grid.dp_cp_group), [part.parameter.data.nbytes for part in parts]
    shares = manifest.shared_out(dict(enumerate(sizes)), len(ranks))
    done = read([_live(parts[number]) for number in sorted(shares[ranks.index(grid.rank)])])
    if len(ranks) > 1:
        owners = {number: ranks[place] for place, share in enumerate(shares) for number in share}
        for number, part in enumerate(parts):
            whole = part.parameter.data.view(-1).view(torch.uint8)  # whatever the format, as it is
            dist.broadcast(whole, owners[number], group=grid.dp_cp_group)
    return done


def _live(part: ParameterShard) -> Shard:
    """A weight that this rank computes with, as a shard to be filled in place."""
    return Shard(part.name, part.shape, [Block(offset, block) for offset, block in part.blocks(part.parameter.data)])


def weights(engine: Engine) -> list[Shard]:
    """The part of the weights that this rank writes: views of live memory."""
    return [_own(engine, shard, WEIGHT, shard.name) for shard in engine.shards if not _is_copy(shard, engine.grid)]


def optimizer(engine: Engine, average: Ema | None = None) -> list[Shard]:
    """The part of masters, Adam moments and moving average that this rank writes, FP32: views of live memory.

    Beside them a copy of what FP8's delayed scaling keeps, which passes change while a checkpoint is being written.
    """
    kept = [
        _own(engine, shard, key, f"{key}.{shard.name}")
        for shard in engine.shards
        if not _is_copy(shard, engine.grid)
        for key in KEYS
    ]
    return [*kept, *(average.shards() if average is not None else []), *_scales(engine)]


def _scales(engine: Engine) -> list[Shard]:
    """FP8's histories, on the first rank of a pipeline stage: all of its ranks hold the same."""
    grid = engine.grid
    if grid.tp_rank > 0 or dist.get_rank(grid.dp_cp_group) > 0:
        return []
    return [
        Shard(delayed.PREFIX + name, delayed.SHAPE, [Block((0, 0), history.packed())])
        for name, history in engine.forward.fp8.named.items()
    ]


def load_optimizer(folder: Path, engine: Engine, updates: int) -> int:
    """Masters, moments and the number of updates, from any layout; weights follow from the masters. Collective.

    Returns the bytes of masters, moments and tables that this rank read.
    FP8's scales too, where all that are needed are there; otherwise the first batch teaches them. Works at any moment
    between two steps: nothing of what was trained since, and no gradient, is left.
    """
    parts = [_own(engine, shard, key, f"{key}.{shard.name}") for shard in engine.shards for key in KEYS]
    read = publish.load_optimizer(folder, parts)
    engine.reducer.finish_load(updates)
    _load_scales(folder, engine)
    return read


def _load_scales(folder: Path, engine: Engine) -> None:
    state, known = engine.forward.fp8, shards.names(folder / "optimizer")
    held = {name.removeprefix(delayed.PREFIX) for name in known if name.startswith(delayed.PREFIX)}
    of_ranks = gathered(None, lambda: (bool(state.named), state.named.keys() - held))
    keeps, missing = on_first_rank(
        lambda: (any(keeps for keeps, _ in of_ranks), sorted({name for _, part in of_ranks for name in part}))
    )
    if not keeps:
        if held and engine.grid.rank == 0:
            log.warning("%s holds scales of FP8's delayed scaling, for which precision.fp8 has no use", folder)
        return
    if missing:
        state.forget()
        if engine.grid.rank == 0:
            log.warning("%s holds no FP8 scales of %s: the first batch teaches all", folder, publish.some(missing))
        return
    state.scales = "learned"

    def wanted() -> Iterator[Shard]:
        for name, history in state.named.items():
            packed = history.packed()
            yield Shard(delayed.PREFIX + name, delayed.SHAPE, [Block((0, 0), packed)])
            history.fill(packed)

    publish.load_optimizer(folder, wanted())


def _is_copy(shard: ParameterShard, grid: Grid) -> bool:
    """Whether another rank writes this one: norms are alike on all tensor-parallel ranks, tied ends on two stages."""
    return shard.replica or (len(shard.shape) == 1 and grid.tp_rank > 0)


def _own(engine: Engine, shard: ParameterShard, key: str, name: str) -> Shard:
    """This rank's fragment of one tensor; no blocks where it has none."""
    fragment = engine.reducer.fragment(shard.parameter, key)
    if fragment is None:
        return Shard(name, shard.shape, [])
    start, flat = fragment
    local = (shard.rows, *partition.shape_of(shard.parameter)[1:])
    return Shard(name, shard.shape, list(cut(shard.offsets, local, start, flat)))


def cut(offsets: tuple[Shape, ...], local: Shape, start: int, flat: Tensor) -> Iterator[Block]:
    """The flat range `flat`, from element `start` of a tensor of shape `local`, as rectangles of the global tensor.

    The tensor consists of one block per offset, equal in rows, as `ParameterShard` has them (`index.rectangles`).
    Views, no copies.
    """
    for offset, shape, begin in index.rectangles(offsets, local, start, flat.numel()):
        yield Block(offset, flat.narrow(0, begin - start, math.prod(shape)).view(shape))
