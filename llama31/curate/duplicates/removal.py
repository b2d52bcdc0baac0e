"""The last stage for whole documents: drop those that a stage before listed."""

from __future__ import annotations

import numpy as np
from datatrove.data import Document, DocumentsPipeline
from datatrove.io import DataFolderLike, get_datafolder
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.disk_base import DiskWriter

from llama31.curate.duplicates import shards

LISTED = ".removed"
PLACE = np.dtype("<u4")


class DropListed(BaseFilter):
    """Drops the documents that a stage before listed, and nothing else.

    It must read what the first stage read, with as many tasks; ValueError, at the end of the stream at the latest,
    where it did not. Statistics: `dropped_REASON`. Memory: 8 bytes per document that this task drops.

    Args:
        signature_folder: what the first stage wrote.
        listed_folder: what UrlDuplicates wrote.
        reason: by which the dropped ones are counted.
        exclusion_writer: keeps what was dropped.
    """

    name = "Drop listed duplicates"

    def __init__(
        self,
        signature_folder: DataFolderLike,
        listed_folder: DataFolderLike,
        reason: str,
        exclusion_writer: DiskWriter | None = None,
    ) -> None:
        super().__init__(exclusion_writer)
        self.signature_folder, self.listed_folder = get_datafolder(signature_folder), get_datafolder(listed_folder)
        self.reason = reason
        self._listed: set[int] = set()
        self._seen = shards.SeenDocuments()

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether a document stays; documents must come in their order."""
        place = self._seen.total
        self._seen.add(doc, shards.identity(doc))
        return (False, self.reason) if place in self._listed else True

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """The documents that stay."""
        shards.load_seen(self.signature_folder, rank, world_size)
        found = [
            shards.read_section(self.listed_folder, name, world_size, rank, PLACE)
            for name in shards.complete(self.listed_folder, LISTED)
        ]
        self._listed, self._seen = set(np.concatenate(found).tolist()), shards.SeenDocuments()
        yield from super().run(data, rank, world_size)
        self._seen.check(self.signature_folder, rank, world_size)
