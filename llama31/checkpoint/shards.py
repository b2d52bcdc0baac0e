"""Global tensors of which each process holds rectangular blocks, saved on one layout and loaded on any other.

Saving goes through torch's distributed checkpoint (DCP): it agrees on a plan, writes a replica once and keeps one
table of names, so the files stay readable by every DCP tool. Two of its habits are replaced. Its writer keeps every
tensor of a file alive until the file is closed, which would hold a whole model in memory; and its reader loads a
whole saved block even where a few rows are wanted. Ours writes block after block and maps files instead of reading
them, so that a conversion needs the memory of one tensor.
"""

from __future__ import annotations

import contextlib
import errno
import math
import mmap
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint import save as dcp_save
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.checkpoint.utils import _create_file_view
from torch.futures import Future

from llama31.checkpoint.checksum import Entry, Written, of_file
from llama31.parallel.collectives import Ranks, on_all_ranks

ALIGNMENT = 64  # torch aligns data within its archive to 64 bytes; archives are padded so that this holds in the file
METADATA = ".metadata"  # DCP's table of names
Shape = tuple[int, ...]


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
    """The blocks that this process holds of the global tensor `name` of shape `shape`.

    The three dunder methods are torch's `_Checkpointable` protocol: they let DCP plan with any object.
    """

    name: str
    shape: Shape
    blocks: list[Block]

    def __create_write_items__(self, fqn: str, object: Any) -> list[WriteItem]:
        return [
            WriteItem(
                index=MetadataIndex(fqn, block.offset),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=ChunkStorageMetadata(torch.Size(block.offset), torch.Size(block.shape)),
                    properties=TensorProperties(dtype=block.dtype),
                    size=torch.Size(self.shape),
                ),
            )
            for block in self.blocks
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [ChunkStorageMetadata(torch.Size(block.offset), torch.Size(block.shape)) for block in self.blocks]

    def __get_tensor_shard__(self, index: MetadataIndex) -> torch.Tensor:
        return next(block for block in self.blocks if block.offset == tuple(index.offset or ())).resolve()


def save(shards: Iterable[Shard], folder: Path | str, process_group: Ranks = None) -> dict[str, Entry]:
    """Write the shards of all ranks of `process_group` to `folder`; a block held by several ranks is written once.

    Returns size and checksum of the files that this rank wrote, by name.
    Raises on every rank what went wrong on any: ValueError (a tensor not filled by its blocks), OSError (disk full).
    """
    state: dict[str, Any] = {}
    for shard in shards:
        if shard.name in state:
            raise ValueError(f"{shard.name} is given twice: a name needs one shard with all its blocks")
        state[shard.name] = shard
    writer = _Writer(folder)
    with contextlib.ExitStack() as stack:
        if not dist.is_initialized():  # converting alone is no accident
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        try:
            dcp_save(
                state, storage_writer=writer, planner=_Planner(Path(folder)), process_group=cast(Any, process_group)
            )
        except CheckpointException as failure:
            # Derived from BaseException, it would pass every `except Exception`: give the cause instead.
            rank, (cause, _) = next(iter(failure.failures.items()))
            cause.add_note(f"(on rank {rank}, while saving {folder})")
            raise cause from None
    return writer.written


def load(shards: Iterable[Shard], folder: Path | str, process_group: Ranks = None) -> None:
    """Fill the blocks from `folder`, whatever layout saved it, converting to the blocks' dtypes.

    A generator is resumed when the shard that it yielded is filled, so that it can use and drop one at a time; one
    collective in all, however many shards each rank has. Raises ValueError on every rank of `process_group` where a
    name is missing or has another shape.
    """
    on_all_ranks(process_group, lambda: _load(shards, Reader(folder)))


def _load(shards: Iterable[Shard], reader: Reader) -> None:
    if isinstance(shards, Sequence):
        reader.check({shard.name: shard.shape for shard in shards})  # all problems at once
    for shard in shards:
        reader.check({shard.name: shard.shape})
        for block in shard.blocks:
            reader.fill(shard.name, block.offset, block.resolve())


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
            metadata = FileSystemReader(self.folder).read_metadata()
        except OSError as error:
            raise ValueError(f"{self.folder}: no saved tensors ({error}); give a folder written by a save") from error
        self._tensors = cast(dict[str, TensorStorageMetadata], metadata.state_dict_metadata)
        self._places: dict[MetadataIndex, _StorageInfo] = metadata.storage_data
        self._maps: dict[str, mmap.mmap] = {}

    def names(self) -> dict[str, tuple[Shape, torch.dtype]]:
        """Shape and number format of every tensor."""
        return {name: (tuple(entry.size), entry.properties.dtype) for name, entry in self._tensors.items()}

    def check(self, shapes: dict[str, Shape]) -> None:
        """Raise one ValueError that names every tensor missing or of another shape."""
        problems = []
        for name, shape in shapes.items():
            if name not in self._tensors:
                problems.append(f"{name} {list(shape)} is missing")
            elif tuple(self._tensors[name].size) != tuple(shape):
                problems.append(f"{name} has shape {list(self._tensors[name].size)}, the model needs {list(shape)}")
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
        height = entry.size[0] - first if rows is None else rows
        shape, offset = (height, *entry.size[1:]), (first, *[0] * (len(entry.size) - 1))
        for chunk in entry.chunks:
            top, bottom = chunk.offsets[0], chunk.offsets[0] + chunk.sizes[0]
            if tuple(chunk.sizes[1:]) == shape[1:] and top <= first and first + height <= bottom:
                return self._map(name, chunk).narrow(0, first - top, height)
        whole = torch.empty(shape, dtype=entry.properties.dtype)
        self.fill(name, offset, whole)
        return whole

    def fill(self, name: str, offset: Shape, target: torch.Tensor) -> None:
        """Copy into `target` what lies at `offset` of tensor `name`; any strides, device and dtype."""
        with torch.no_grad():
            for chunk in self._tensors[name].chunks:
                start = [max(a, b) for a, b in zip(offset, chunk.offsets)]
                stop = [min(a + n, b + m) for a, n, b, m in zip(offset, target.shape, chunk.offsets, chunk.sizes)]
                if all(a < b for a, b in zip(start, stop)):
                    to = tuple(slice(a - o, b - o) for a, b, o in zip(start, stop, offset))
                    source = tuple(slice(a - o, b - o) for a, b, o in zip(start, stop, chunk.offsets))
                    target[to].copy_(self._map(name, chunk)[source])

    def _map(self, name: str, chunk: ChunkStorageMetadata) -> torch.Tensor:
        """A saved block as a view of its file."""
        place, dtype = self._places[MetadataIndex(name, chunk.offsets)], self._tensors[name].properties.dtype
        count = math.prod(chunk.sizes)
        if count == 0:
            return torch.empty(tuple(chunk.sizes), dtype=dtype)
        start = place.offset + self._data_offset(place)
        memory = self._maps[place.relative_path]
        return torch.frombuffer(memory, dtype=dtype, count=count, offset=start).view(tuple(chunk.sizes))

    def _data_offset(self, place: _StorageInfo) -> int:
        """Where the numbers begin within the archive that torch.save wrote at `place`."""
        path = self.folder / place.relative_path
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if place.offset + place.length > size:
                raise ValueError(f"{path}: truncated at {size} bytes; delete this checkpoint and use an older one")
            if place.relative_path not in self._maps:
                # Copy-on-write keeps torch from warning about a read-only buffer; nobody writes.
                self._maps[place.relative_path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            open_archive: Any = torch._C.PyTorchFileReader  # torch's stubs lack the method used here
            return int(open_archive(_create_file_view(file, place.offset, place.length)).get_record_offset("data/0"))


class _Planner(DefaultSavePlanner):
    """DCP's plan over `Shard` objects, with the checks that it leaves out."""

    def __init__(self, folder: Path):
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.folder = folder

    def lookup_object(self, index: MetadataIndex) -> torch.Tensor:
        return cast(Shard, self.state_dict[index.fqn]).__get_tensor_shard__(index)

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        """Raises ValueError for a tensor that its blocks do not fill or that ranks see differently, OSError for a
        disk too small, before a byte is written.
        """
        plans, metadata = super().create_global_plan(all_plans)
        tensors = cast(dict[str, TensorStorageMetadata], metadata.state_dict_metadata)
        for item in (item for plan in plans for item in plan.items):
            entry, data = tensors[item.index.fqn], cast(TensorWriteData, item.tensor_data)
            if (entry.size, entry.properties.dtype) != (data.size, data.properties.dtype):
                raise ValueError(f"{item.index.fqn}: ranks disagree on its shape or dtype; give all the same")
        needed = 0
        for name, entry in tensors.items():
            held, whole = sum(math.prod(chunk.sizes) for chunk in entry.chunks), math.prod(entry.size)
            if held != whole:
                raise ValueError(f"{name}: blocks hold {held} of {whole} elements; every part needs a rank that saves")
            needed += whole * entry.properties.dtype.itemsize
        check_space(self.folder, needed)
        return plans, metadata


def check_space(folder: Path, needed_bytes: int) -> None:
    """Raise OSError (ENOSPC) if the disk of `folder` (or of the parents that exist) has less than `needed_bytes`."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        message = f"{needed_bytes / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free"
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {message}", str(folder))


class _Writer(FileSystemWriter):
    """DCP's writer, one file per rank, holding one block at a time."""

    def __init__(self, folder: Path | str):
        super().__init__(folder, single_file_per_rank=True, sync_files=True)
        self.written: dict[str, Entry] = {}

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        results: list[WriteResult] = []
        if plan.items:
            file_name = f"{cast(Any, plan.storage_data).prefix}0.distcp"
            with open(Path(self.path) / file_name, "wb") as raw:
                file = Written(raw)
                for item in plan.items:
                    results.append(_write_block(file, file_name, item, cast(torch.Tensor, planner.resolve_data(item))))
                raw.flush()
                os.fsync(raw.fileno())
            self.written[file_name] = file.entry()
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On the coordinator, after all have written: the table of names."""
        super().finish(metadata, results)
        self.written[METADATA] = of_file(Path(self.path) / METADATA)


def _write_block(file: Written, file_name: str, item: WriteItem, tensor: torch.Tensor) -> WriteResult:
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
    length = file.size - offset
    return WriteResult(index=item.index, size_in_bytes=length, storage_data=_StorageInfo(file_name, offset, length))


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory behind a storage of its own size: torch.save writes whole storages."""
    if tensor.numel() == 0:
        return torch.empty_like(tensor)
    return torch.frombuffer(tensor.view(-1).view(torch.uint8).numpy(), dtype=tensor.dtype).view(tensor.shape)
