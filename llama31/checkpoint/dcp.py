"""The table of names of torch's distributed checkpoint (DCP), `.metadata`, beside ours (`index`).

Its tools read a folder by it, and so do we where there is no index, in folders saved before there was one. It is a
pickle with three Python objects per block, which every reader makes anew, so it is written up to `MOST_BLOCKS`. Beyond,

    python -m llama31.checkpoint.dcp FOLDER

makes it for a folder of tensors (`weights` or `optimizer` of a checkpoint) when a tool of DCP's is to read it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.storage import WriteResult

from llama31.checkpoint.checksum import Entry, of_file
from llama31.checkpoint.index import NAME, Index, Shape, Stored, Tensor

METADATA = ".metadata"
MOST_BLOCKS = 20_000  # of which writing takes a second of Python, beside training on the first rank

REMEDY = "python -m llama31.checkpoint.dcp FOLDER makes it for other tools of torch's"


class Pickled:
    """A folder's blocks as `.metadata` says; what `Index` is to newer folders. `bytes_read` counts the whole file."""

    def __init__(self, folder: Path) -> None:
        """OSError where there is none."""
        metadata = FileSystemReader(folder).read_metadata()
        self.bytes_read = (folder / METADATA).stat().st_size
        self._tensors = cast(dict[str, TensorStorageMetadata], metadata.state_dict_metadata)
        self._places: dict[MetadataIndex, _StorageInfo] = metadata.storage_data
        self.tensors = {
            name: Tensor(tuple(one.size), name_of(one.properties.dtype)) for name, one in self._tensors.items()
        }

    def blocks(self, name: str, offset: Shape = (), shape: Shape = ()) -> Iterator[Stored]:
        """The blocks of a tensor that touch the box of `shape` at `offset`; all of them where none is given."""
        for chunk in self._tensors[name].chunks:
            box = zip(offset, shape, chunk.offsets, chunk.sizes)
            if all(at < begin + size and begin < at + wide for at, wide, begin, size in box):
                place = self._places[MetadataIndex(name, chunk.offsets)]
                begins, sizes = tuple(chunk.offsets), tuple(chunk.sizes)
                yield Stored(begins, sizes, place.relative_path, place.offset, place.length)


def name_of(dtype: torch.dtype) -> str:
    """As an index names it: bfloat16, float32."""
    return str(dtype).removeprefix("torch.")


def dtype_of(tensor: Tensor) -> torch.dtype:
    """Number format of a tensor of an index."""
    return cast(torch.dtype, getattr(torch, tensor.dtype))


def write(folder: Path) -> Entry:
    """Make `.metadata` of a folder's index, on the disk when this returns. OSError where there is no index."""
    index = Index(folder / NAME)
    tensors: dict[str, TensorStorageMetadata] = {}
    places = []
    for name, tensor in index.tensors.items():
        chunks = []
        for block in index.blocks(name):
            chunks.append(ChunkStorageMetadata(torch.Size(block.offset), torch.Size(block.shape)))
            place = _StorageInfo(block.file, block.position, block.length)
            places.append(WriteResult(MetadataIndex(name, block.offset), block.length, place))
        properties = TensorProperties(dtype=dtype_of(tensor))
        tensors[name] = TensorStorageMetadata(properties, torch.Size(tensor.shape), chunks)
    writer = FileSystemWriter(folder, sync_files=True)
    writer.set_up_storage_writer(True)
    writer.finish(Metadata(dict(tensors)), [places])
    return of_file(folder / METADATA)


if __name__ == "__main__":
    for given in sys.argv[1:] or [""]:
        if not (Path(given) / NAME).is_file():
            sys.exit(f"{given or 'FOLDER'}: give the weights/ or optimizer/ folder of a checkpoint, with a {NAME}")
        print(f"{Path(given) / METADATA}: {write(Path(given)).size:,} bytes")
