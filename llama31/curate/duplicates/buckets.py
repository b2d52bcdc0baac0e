"""Pairs of documents that share a bucket of their signatures, in datatrove's files, merged in numpy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from datatrove.data import DocumentsPipeline
from datatrove.io import DataFolder

from llama31.curate.duplicates import merging, shards
from llama31.curate.duplicates.shards import Records

PAIRS = ".dups"
PAIR = np.dtype("<u4")  # four of them: a document's task and place, another one's
ODD = np.uint64(0x9E3779B97F4A7C15)


def signature_record(hashes_per_bucket: int, precision: int) -> np.dtype[Any]:
    """A record of `bucket_003/00000.minhash.sig`, whose first hash orders the file."""
    number = f"<u{precision // 8}"
    return np.dtype([("key", number), ("rest", number, (hashes_per_bucket - 1,)), ("document", "<u4")])


def digest(rest: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """64 bits of the other hashes: shape (documents, hashes) to (documents)."""
    result = np.zeros(len(rest), np.uint64)
    for column in range(rest.shape[1]):
        result = (result ^ rest[:, column]) * ODD
        result ^= result >> np.uint64(32)
    return result


def pairs_of(chunks: Iterator[tuple[npt.NDArray[np.int64], Records]]) -> Iterator[npt.NDArray[np.uint32]]:
    """Of documents with one signature each but the first, with the first: shape (pairs, 4).

    Signatures count as one where their first hash and a digest of the others agree, 128 bits of which chance is no
    match. Of those whose first hash may go on in the next chunk, the first document of each is taken along.
    """
    names = [("key", "<u8"), ("digest", "<u8"), ("rank", "<u4"), ("document", "<u4")]
    first_ones = np.zeros(0, np.dtype(names))
    for ranks, records in chunks:
        found = np.zeros(len(records), first_ones.dtype)
        found["key"], found["digest"] = records["key"], digest(records["rest"])
        found["rank"], found["document"] = ranks, records["document"]
        found = np.concatenate([first_ones, found])
        found = found[np.lexsort((found["digest"], found["key"]))]
        first = merging.starts(found["key"]) | merging.starts(found["digest"])
        of = found[np.flatnonzero(first)[np.cumsum(first) - 1]]
        first_ones = found[first & (found["key"] == found["key"][-1])]
        yield np.stack([of["rank"], of["document"], found["rank"], found["document"]], axis=1)[~first]


class MinhashBuckets(merging.MergingStep):
    """Second stage: pairs of documents that agree in all hashes of a bucket.

    Reads and writes datatrove's files (MinhashDedupBuckets, MinhashDedupCluster). Pairs form stars around a document
    where datatrove's form chains, so that clusters are found in fewer rounds; chains are as good. Any number of tasks;
    those beyond the number of buckets have nothing to do. Statistics: `pairs`. Memory: `memory_bytes`, and never less
    than 64 records of each task of the first stage.

    Args:
        signature_folder: what MinhashSignatures wrote.
        output_folder: for 16 bytes per pair.
        memory_bytes: for signatures in hand.
    """

    name = "MinHash buckets"

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:
        """Find the pairs of this task's buckets."""
        tasks = len(shards.complete(self.signature_folder, shards.SEEN))
        signed = shards.load_seen(self.signature_folder, 0, tasks)
        dtype = signature_record(signed["hashes_per_bucket"], signed["precision"])
        for bucket in range(rank, signed["buckets"], world_size):
            names = [f"bucket_{bucket:03d}/{task:05d}.minhash.sig" for task in range(tasks)]
            chunks = merging.merge(self.signature_folder, names, dtype, self.memory_bytes)
            with self.track_time("bucket"), shards.whole(self.output_folder, f"{bucket:05d}_00{PAIRS}") as file:
                for pairs in pairs_of(chunks):
                    file.write(np.ascontiguousarray(pairs, PAIR).data)
                    self.stat_update("pairs", value=len(pairs))


def pair_files(folder: DataFolder, buckets: int) -> list[str]:
    """The files of all buckets; ValueError where one lacks."""
    names = folder.list_files(glob_pattern=f"*{PAIRS}")
    lacking = set(range(buckets)) - {int(name[:5]) for name in names if name[:5].isdigit()}
    if lacking:
        raise ValueError(f"{folder.path} lacks pairs of the buckets {sorted(lacking)}; run MinhashBuckets first")
    return names
