"""Global tensors of which each process holds rectangular blocks, saved on one layout and loaded on any other.

Each rank writes the blocks that it holds into a file of its own, one after another, and syncs it. What is where stands
in one table (`index`), which the first rank puts together from numbers that all give it: before anything is written, to
see that every tensor is filled, and with the places in the files when all is. Blocks are archives of torch's, so a
folder can be read by every tool of torch's distributed checkpoint (DCP), whose own table is written beside (`dcp`).
DCP's planner, writer and reader are not used: the planner has Python objects per block pickled to one rank, the writer
keeps every tensor of a file alive until it is closed, and the reader loads a whole block where a few rows are wanted.
Ours maps files, so that a conversion needs the memory of one tensor.
"""

from __future__ import annotations

import errno
import logging
import math
import mmap
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.distributed.checkpoint.utils import _create_file_view

from llama31.checkpoint import dcp
from llama31.checkpoint.checksum import Entry, Written
from llama31.checkpoint.index import NAME, Index, Part, Placed, Shape, Stored, Table, pack
from llama31.parallel.collectives import Ranks, gathered, on_all_ranks, rank_of, size_of

log = logging.getLogger(__name__)

ALIGNMENT = 64  # torch aligns data within its archive to 64 bytes; archives are padded so that this holds in the file
MOST_FILES = 256  # in one folder: those of more ranks lie in folders of so many


@dataclass
class Block:
    """A rectangle of a global tensor: `tensor` starts at `offset`.

    A callable defers the reading until the block is written; `shape` and `dtype` then say what it will return.
    """

    offset: Shape
    tensor: torch.Tensor | Callable[[], torch.Tensor]
    shape: Shape = ()
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if isinstance(self.tensor, torch.Tensor):
            self.shape, self.dtype = tuple(self.tensor.shape), self.tensor.dtype

    def resolve(self) -> torch.Tensor:
        """The tensor itself, made now if it was deferred."""
        if isinstance(self.tensor, torch.Tensor):
            return self.tensor.detach()
        made = self.tensor()
        assert tuple(made.shape) == self.shape and made.dtype == self.dtype, (made.shape, made.dtype, self)
        return made


@dataclass
class Shard:
    """The blocks that this process holds of the global tensor `name` of shape `shape`."""

    name: str
    shape: Shape
    blocks: list[Block]


def save(shards: Iterable[Shard], folder: Path | str, ranks: Ranks = None) -> dict[str, Entry]:
    """Write the shards of all `ranks` to `folder`; collective. A block that several hold is found at the first of them.

    Returns size and checksum of the files of all ranks, by name, on the first of them; elsewhere nothing. All are on
    the disk then, their folders' entries apart.
    Raises on every rank what went wrong on any: ValueError (a tensor not filled by its blocks), OSError (disk full).
    """
    folder, first, size = Path(folder), rank_of(ranks) == 0, size_of(ranks)
    blocks: list[Block] = []
    parts = gathered(ranks, lambda: _part(shards, blocks))
    table = on_all_ranks(ranks, lambda: _agreed(parts, folder) if first else None)
    placed = gathered(ranks, lambda: _write(folder / file_name(rank_of(ranks), size), blocks))
    return on_all_ranks(ranks, lambda: {} if table is None else _finish(folder, table, placed))


def file_name(rank: int, size: int) -> str:
    """Where a rank of `size` writes, relative to the folder; named as DCP names files."""
    name = f"__{rank}_0.distcp"
    return name if size <= MOST_FILES else f"{rank // MOST_FILES:03d}/{name}"


def _part(shards: Iterable[Shard], blocks: list[Block]) -> Part:
    """What this rank will write, in numbers; `blocks` become those of which something is to be written, in order."""
    tensors: dict[str, Shape] = {}
    rows = []
    for shard in shards:
        if shard.name in tensors:
            raise ValueError(f"{shard.name} is given twice: a name needs one shard with all its blocks")
        for block in shard.blocks:
            if math.prod(block.shape) or not math.prod(shard.shape):
                rows.append((len(tensors), dcp.name_of(block.dtype), tuple(block.offset), tuple(block.shape)))
                blocks.append(block)
        tensors[shard.name] = tuple(shard.shape)
    return pack(tensors, rows)


def _agreed(parts: Sequence[Part], folder: Path) -> Table:
    """The table of all, before a byte is written. OSError for a disk too small."""
    table = Table(parts)
    check_space(folder, table.bytes)
    names = (file_name(rank, len(parts)) for rank in np.flatnonzero(table.counts).tolist())
    for path in sorted({folder, *((folder / name).parent for name in names)}):
        path.mkdir(parents=True, exist_ok=True)
    return table


def _write(path: Path, blocks: Sequence[Block]) -> Placed | None:
    """This rank's file, on the disk when this returns, holding one block at a time in memory."""
    if not blocks:
        return None
    with open(path, "wb") as raw:
        file = Written(raw)
        places = [_write_block(file, block.resolve()) for block in blocks]
        raw.flush()
        os.fsync(raw.fileno())
    return Placed(np.array(places, np.int64), file.entry())


def _finish(folder: Path, table: Table, placed: Sequence[Placed | None]) -> dict[str, Entry]:
    """The tables of names, when all have written."""
    names = [file_name(rank, len(placed)) for rank in range(len(placed))]
    entries = {NAME: table.write(folder, placed, names)}
    if len(table.rows) <= dcp.MOST_BLOCKS:
        entries[dcp.METADATA] = dcp.write(folder)
    else:
        log.info("%s: %s blocks, so %s is left out; %s", folder, f"{len(table.rows):,}", dcp.METADATA, dcp.REMEDY)
    return entries | {name: one.entry for name, one in zip(names, placed, strict=True) if one is not None}


def load(shards: Iterable[Shard], folder: Path | str, ranks: Ranks = None) -> int:
    """Fill the blocks from `folder`, whatever layout saved it, converting to the blocks' dtypes.

    A generator is resumed when the shard that it yielded is filled, so that it can use and drop one at a time; one
    collective in all, however many shards each rank has. Returns the bytes that this rank read. Raises ValueError on
    every rank where a name is missing or has another shape.
    """
    return on_all_ranks(ranks, lambda: _load(shards, Reader(folder)))


def _load(shards: Iterable[Shard], reader: Reader) -> int:
    if isinstance(shards, Sequence):
        reader.check({shard.name: shard.shape for shard in shards})  # all problems at once
    for shard in shards:
        reader.check({shard.name: shard.shape})
        for block in shard.blocks:
            reader.fill(shard.name, block.offset, block.resolve())
    return reader.bytes_read


def names(folder: Path | str) -> dict[str, tuple[Shape, torch.dtype]]:
    """Shape and number format of every tensor saved in `folder`."""
    return Reader(folder).names()


def read(folder: Path | str, name: str) -> torch.Tensor:
    """One whole tensor. To read several, keep a `Reader`."""
    return Reader(folder).read(name)


class Reader:
    """The tensors of one folder, by global name. Files are mapped: what is not touched is not read."""

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        try:
            self._index = Index(self.folder / NAME) if (self.folder / NAME).exists() else dcp.Pickled(self.folder)
        except OSError as error:
            raise ValueError(f"{self.folder}: no saved tensors ({error}); give a folder written by a save") from error
        self._tensors = self._index.tensors
        self._maps: dict[str, mmap.mmap] = {}
        self._numbers = 0

    @property
    def bytes_read(self) -> int:
        """Of the table of names, and of blocks: what was copied or given out as a view."""
        return self._index.bytes_read + self._numbers

    def names(self) -> dict[str, tuple[Shape, torch.dtype]]:
        """Shape and number format of every tensor."""
        return {name: (tensor.shape, dcp.dtype_of(tensor)) for name, tensor in self._tensors.items()}

    def check(self, shapes: Mapping[str, Shape]) -> None:
        """Raise one ValueError that names every tensor missing or of another shape."""
        problems = []
        for name, shape in shapes.items():
            if name not in self._tensors:
                problems.append(f"{name} {list(shape)} is missing")
            elif self._tensors[name].shape != tuple(shape):
                problems.append(f"{name} has shape {list(self._tensors[name].shape)}, the model needs {list(shape)}")
        if problems:
            shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
            raise ValueError(f"{self.folder}: {shown}. Use the model= that this checkpoint was saved with")

    def read(self, name: str, first: int = 0, rows: int | None = None) -> torch.Tensor:
        """Rows `first` to `first + rows` (all by default). Treat as read-only: it is a view of the file if it can be.

        A tensor saved in one block costs no memory at all; others are put together.
        """
        if name not in self._tensors:
            raise ValueError(f"{self.folder}: {name} is missing; it holds {', '.join(sorted(self._tensors)[:4])}, ...")
        entry = self._tensors[name]
        height = entry.shape[0] - first if rows is None else rows
        shape, offset = (height, *entry.shape[1:]), (first, *[0] * (len(entry.shape) - 1))
        found = list(self._index.blocks(name, offset, shape))
        for block in found:
            top, bottom = block.offset[0], block.offset[0] + block.shape[0]
            if block.shape[1:] == shape[1:] and top <= first and first + height <= bottom:
                view = self._map(name, block).narrow(0, first - top, height)
                self._numbers += view.nbytes
                return view
        whole = torch.empty(shape, dtype=dcp.dtype_of(entry))
        self._fill(name, offset, whole, found)
        return whole

    def fill(self, name: str, offset: Shape, target: torch.Tensor) -> None:
        """Copy into `target` what lies at `offset` of tensor `name`; any strides, device and dtype."""
        self._fill(name, offset, target, self._index.blocks(name, offset, tuple(target.shape)))

    def _fill(self, name: str, offset: Shape, target: torch.Tensor, found: Iterable[Stored]) -> None:
        with torch.no_grad():
            for block in found:
                start = [max(a, b) for a, b in zip(offset, block.offset)]
                stop = [min(a + n, b + m) for a, n, b, m in zip(offset, target.shape, block.offset, block.shape)]
                to = tuple(slice(a - o, b - o) for a, b, o in zip(start, stop, offset))
                source = self._map(name, block)[
                    tuple(slice(a - o, b - o) for a, b, o in zip(start, stop, block.offset))
                ]
                target[to].copy_(source)
                self._numbers += source.nbytes

    def _map(self, name: str, block: Stored) -> torch.Tensor:
        """A saved block as a view of its file."""
        start = block.position + self._data_offset(block)
        count, dtype = math.prod(block.shape), dcp.dtype_of(self._tensors[name])
        return torch.frombuffer(self._maps[block.file], dtype=dtype, count=count, offset=start).view(block.shape)

    def _data_offset(self, block: Stored) -> int:
        """Where the numbers begin within the archive that torch.save wrote as `block`."""
        path = self.folder / block.file
        if not path.exists():
            raise ValueError(f"{path} is missing; delete this checkpoint and use an older one")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if block.position + block.length > size:
                raise ValueError(f"{path}: truncated at {size} bytes; delete this checkpoint and use an older one")
            if block.file not in self._maps:
                # Copy-on-write keeps torch from warning about a read-only buffer; nobody writes.
                self._maps[block.file] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            open_archive: Any = torch._C.PyTorchFileReader  # torch's stubs lack the method used here
            return int(open_archive(_create_file_view(file, block.position, block.length)).get_record_offset("data/0"))


def check_space(folder: Path, needed_bytes: int) -> None:
    """Raise OSError (ENOSPC) if the disk of `folder` (or of the parents that exist) has less than `needed_bytes`."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        message = f"{needed_bytes / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free"
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {message}", str(folder))


def _write_block(file: Written, tensor: torch.Tensor) -> tuple[int, int]:
    """Append a block to a file. Returns where it begins and how long it is."""
    file.write(b"\0" * (-file.size % ALIGNMENT))
    offset = file.size
    tensor = tensor.cpu().contiguous()
    if tensor.untyped_storage().nbytes() != tensor.nbytes:
        tensor = _alone(tensor)
    try:
        torch.save(tensor, cast(Any, file))
    except RuntimeError:
        if file.error is None:
            raise
        raise file.error from None
    return offset, file.size - offset


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory behind a storage of its own size: torch.save writes whole storages."""
    if tensor.numel() == 0:
        return torch.empty_like(tensor)
    return torch.frombuffer(tensor.view(-1).view(torch.uint8).numpy(), dtype=tensor.dtype).view(tensor.shape)
