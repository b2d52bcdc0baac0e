"""How often each token stands in a corpus, by language: counted in a pass over the documents, merged, kept in one file.

Tokens are words (`spans`), kept as 2^16 buckets of their hashes: what is held is bounded, 0.5 MB for a language, and
counts of shards are added whatever words each has seen. In the bucket of a rare word there may be a frequent one; what
is asked of them is how far a document lies from a corpus, which tens of thousands of buckets say.
"""

from __future__ import annotations

import io
from typing import cast

import numpy as np
import numpy.typing as npt
from datatrove.data import DocumentsPipeline
from datatrove.io import DataFolder, DataFolderLike, get_datafolder
from datatrove.pipeline.base import PipelineStep

from llama31.curate import spans

BUCKETS = 1 << 16
MERGED = "merged.npz"
MIX = np.uint64(0xFF51AFD7ED558CCD)  # of MurmurHash3's finaliser: short words' hashes differ in their low bits alone
Counts = npt.NDArray[np.int64]


def tokens(text: str, language: str) -> npt.NDArray[np.int64]:
    """The bucket of each word of a text, [words]."""
    hashes = spans.of(text, language).hashes
    mixed = (hashes ^ (hashes >> 33)) * MIX
    return (mixed >> (64 - 16)).astype(np.int64)


class TokenCounts(PipelineStep):
    """Counts tokens by language of what passes by, and leaves a file for each task: RANK.npz.

    Args:
        folder: where the counts of all tasks lie.
    """

    type = "COUNT"
    name = "Tokens by language"

    def __init__(self, folder: DataFolderLike) -> None:
        super().__init__()
        self.folder = get_datafolder(folder)

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """The documents as they came."""
        counts = _Counting()
        for document in data:
            with self.track_time():
                language = document.metadata.get("language") or ""
                found = tokens(document.text, language)
                counts.add(language, found)
                self.stat_update("tokens", value=len(found))
            yield document
        write(self.folder, f"{rank:05d}.npz", counts.all())


class _Counting:
    """Counts by language, of many documents at once: to add up all buckets takes longer than to split a short page."""

    def __init__(self) -> None:
        self.counts: dict[str, Counts] = {}
        self.waiting: dict[str, list[npt.NDArray[np.int64]]] = {}
        self.lengths: dict[str, int] = {}

    def add(self, language: str, found: npt.NDArray[np.int64]) -> None:
        """Take a document's tokens."""
        self.waiting.setdefault(language, []).append(found)
        self.lengths[language] = self.lengths.get(language, 0) + len(found)
        if self.lengths[language] >= BUCKETS:
            self._flush(language)

    def _flush(self, language: str) -> None:
        found = np.bincount(np.concatenate(self.waiting.pop(language)), minlength=BUCKETS)
        self.counts[language] = self.counts.get(language, 0) + found
        self.lengths[language] = 0

    def all(self) -> dict[str, Counts]:
        """The counts of all that came."""
        for language in list(self.waiting):
            self._flush(language)
        return self.counts


class MergeTokenCounts(PipelineStep):
    """Adds the counts of all tasks up, in one task, to one file.

    Args:
        folder: where TokenCounts left them, of `tasks` tasks.
        tasks: how many; ValueError where it finds another number of files.
        output: where their sum goes; None: beside them.
    """

    type = "COUNT"
    name = "Tokens by language, merged"

    def __init__(self, folder: DataFolderLike, tasks: int, output: DataFolderLike | None = None) -> None:
        super().__init__()
        self.folder, self.tasks = get_datafolder(folder), tasks
        self.output = self.folder if output is None else get_datafolder(output)

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """No documents."""
        names = sorted(name for name in self.folder.list_files(glob_pattern="*.npz") if name != MERGED)
        if len(names) != self.tasks:
            raise ValueError(
                f"{self.folder.path} has token counts of {len(names)} tasks, not of {self.tasks}: run those that are "
                "missing, and remove what another number of tasks left"
            )
        counts: dict[str, Counts] = {}
        for name in names:
            for language, found in read(self.folder, name).items():
                counts[language] = counts.get(language, 0) + found
        write(self.output, MERGED, counts)
        yield from ()


def write(folder: DataFolder, name: str, counts: dict[str, Counts]) -> None:
    """Write counts by language, whole or not at all; languages sorted, so that the same counts are the same bytes."""
    buffer = io.BytesIO()
    languages = sorted(counts)
    table = np.stack([counts[language] for language in languages]) if languages else np.zeros((0, BUCKETS), np.int64)
    np.savez_compressed(buffer, languages=np.array(languages, "U16"), counts=table)
    with folder.open(f"{name}.part", "wb") as file:
        file.write(buffer.getvalue())
    folder.mv(f"{name}.part", name)


def read(folder: DataFolder, name: str) -> dict[str, Counts]:
    """Counts by language of a file. Raises ValueError where it is of other buckets."""
    with folder.open(name, "rb") as file, np.load(io.BytesIO(file.read())) as stored:
        table = cast(Counts, stored["counts"])
        if table.shape[1] != BUCKETS:
            raise ValueError(f"{name} has counts of {table.shape[1]} buckets, not of {BUCKETS}; count anew")
        return dict(zip(stored["languages"].tolist(), table))
