"""Sorted files of records, merged in memory that does not grow with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from datatrove.io import DataFolder, DataFolderLike, get_datafolder
from datatrove.pipeline.base import PipelineStep

from llama31.curate.duplicates import shards
from llama31.curate.duplicates.shards import Records

MEMORY_BYTES = 1 << 30
LEAST = 64  # records that are read of a file at once, where files are very many
BESIDE = 72  # bytes of memory for each record in hand beside its own, for its place, its order and what is made of it


class MergingStep(PipelineStep):
    """A second stage: merges what all tasks of the first one left, with at most `memory_bytes` of records in hand."""

    type = "Deduplication"

    def __init__(
        self,
        signature_folder: DataFolderLike,
        output_folder: DataFolderLike,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        super().__init__()
        self.signature_folder, self.output_folder = get_datafolder(signature_folder), get_datafolder(output_folder)
        self.memory_bytes = memory_bytes


class Cursor:
    """A sorted file, between two keys, from its next record on."""

    def __init__(self, folder: DataFolder, name: str, dtype: np.dtype[Any], low: int, high: int) -> None:
        self.folder, self.name, self.dtype = folder, name, dtype
        self.left = np.zeros(0, dtype)
        with folder.open(name, "rb") as file:
            count = file.seek(0, 2) // dtype.itemsize

            def first_at_least(key: int) -> int:
                if key <= 0:
                    return 0
                low, high = 0, count
                while low < high:
                    middle = (low + high) // 2
                    file.seek(middle * dtype.itemsize)
                    if int(np.frombuffer(file.read(dtype.itemsize), dtype)["key"][0]) < key:
                        low = middle + 1
                    else:
                        high = middle
                return low

            self.next = first_at_least(low)
            self.end = count if high >= 1 << 64 else first_at_least(high)

    @property
    def more(self) -> bool:
        """Whether the file has records that were not read."""
        return self.next < self.end

    def fill(self, count: int) -> None:
        """Have `count` records at hand, or what is left."""
        wanted = min(count - len(self.left), self.end - self.next)
        if wanted > 0:
            read = shards.read(self.folder, self.name, self.dtype, self.next, wanted)
            if len(read) != wanted:
                raise ValueError(f"{self.folder.path}/{self.name} became shorter; run the stage that wrote it again")
            self.left = np.concatenate([self.left, read])
            self.next += wanted

    def take(self, cut: np.uint64 | None) -> Records:
        """What is at hand up to a key, that included; all of it without one."""
        count = len(self.left) if cut is None else int(np.searchsorted(self.left["key"], cut, side="right"))
        taken, self.left = self.left[:count], self.left[count:]
        return taken


def merge(
    folder: DataFolder,
    names: Sequence[str],
    dtype: np.dtype[Any],
    memory_bytes: int = MEMORY_BYTES,
    part: int = 0,
    parts: int = 1,
) -> Iterator[tuple[npt.NDArray[np.int64], Records]]:
    """Records of files that are each sorted by `key` (uint64), in chunks in order of the key, with their files' places.

    Of the last key of a chunk there may be more in the next, of no other one. Of `parts` equal ranges of keys it reads
    the one that is asked for. Memory: about `memory_bytes`, and never less than 64 records of each file; a chunk is
    sorted, so four times what is read of the files is in hand.
    """
    cursors = [Cursor(folder, name, dtype, (part << 64) // parts, ((part + 1) << 64) // parts) for name in names]
    at_once = max(LEAST, memory_bytes // ((4 * dtype.itemsize + BESIDE) * max(1, len(cursors))))
    while True:
        for cursor in cursors:
            cursor.fill(at_once)
        live = [(place, cursor) for place, cursor in enumerate(cursors) if len(cursor.left)]
        if not live:
            return
        lasts = [cursor.left["key"][-1] for _, cursor in live if cursor.more]
        taken = [(place, cursor.take(min(lasts) if lasts else None)) for place, cursor in live]
        records = np.concatenate([part for _, part in taken])
        places = np.repeat([place for place, _ in taken], [len(part) for _, part in taken])
        order = np.argsort(records["key"], kind="stable")
        yield places[order], records[order]


def starts(keys: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which of sorted keys differ from the one before."""
    first = np.ones(len(keys), bool)
    first[1:] = keys[1:] != keys[:-1]
    return first
