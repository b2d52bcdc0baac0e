"""The last stage for whole documents: drop those that a stage before listed."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from datatrove.data import Document, DocumentsPipeline
from datatrove.io import DataFolder, DataFolderLike, get_datafolder
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.disk_base import DiskWriter

from llama31.curate.duplicates import shards

LISTED = ".removed"
PLACE = np.dtype("<u4")


def write_listed(
    folder: DataFolder, name: str, tasks: int, ranks: npt.NDArray[Any], places: npt.NDArray[np.uint32]
) -> None:
    """List documents by their task and their place in its stream; the file is the same in whatever order they come."""
    order = np.lexsort((places, ranks))
    shards.write_sections(folder, name, tasks, ranks[order].astype(np.int64), places[order].astype(PLACE))


class DropListed(BaseFilter):
    """Drops the documents that a stage before listed, and nothing else.

    It must read what the first stage read, with as many tasks; ValueError, at the end of the stream at the latest,
    where it did not. Statistics: `dropped_REASON`. Memory: 8 bytes per document that this task drops.

    Args:
        signature_folder: what the first stage wrote.
        listed_folders: what UrlDuplicates, Clusters or ClusterSurvivors wrote; all of them count.
        reason: by which the dropped ones are counted.
        exclusion_writer: keeps what was dropped.
    """

    name = "Drop listed duplicates"

    def __init__(
        self,
        signature_folder: DataFolderLike,
        listed_folders: DataFolderLike | list[DataFolderLike],
        reason: str,
        exclusion_writer: DiskWriter | None = None,
    ) -> None:
        super().__init__(exclusion_writer)
        self.signature_folder = get_datafolder(signature_folder)
        several = listed_folders if isinstance(listed_folders, list) else [listed_folders]
        self.listed_folders = [get_datafolder(folder) for folder in several]
        self.reason = reason
        self._listed: set[int] = set()
        self._seen: shards.SeenDocuments | None = None  # which cannot be pickled, as executors do with steps

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether a document stays; documents must come in their order."""
        assert self._seen is not None  # run sets it
        place = self._seen.total
        self._seen.add(doc, shards.identity(doc))
        return (False, self.reason) if place in self._listed else True

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """The documents that stay."""
        shards.load_seen(self.signature_folder, rank, world_size)
        found = [
            shards.read_section(folder, name, world_size, rank, PLACE)
            for folder in self.listed_folders
            for name in shards.complete(folder, LISTED)
        ]
        self._listed, self._seen = set(np.concatenate(found).tolist()), (seen := shards.SeenDocuments())
        yield from super().run(data, rank, world_size)
        seen.check(self.signature_folder, rank, world_size)
