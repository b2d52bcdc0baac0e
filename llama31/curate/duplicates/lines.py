"""Lines that stand often in a bucket of documents of one language go: menus, notices about cookies, signatures.

The report (section 3.1.1): "line-level de-duplication similar to ccNet (Wenzek et al., 2019). We remove lines that
appeared more than 6 times in each bucket of 30M documents". Read here as:

- A line is what stands between line feeds. Two are the same but for white space and punctuation, capitals, and which
  digit it is, as in ccNet; of ASCII's, for then a page takes one look. A line of nothing else (empty ones, rules, a
  bracket) is never removed.
- All occurrences in a bucket count, those within one document too, and where they are 7 or more, all of them go.
- A document's bucket is drawn by the hash of its id and text, out of as many as leave 30M documents in each, for each
  language by itself; so on any number of tasks a line meets the same ones.
- Pages that are technical (extraction's word for code and formulas) are left alone: of `return x` and `import numpy as
  np` all of a corpus has more than 6. The report has pipelines of their own for these; that they are left out is ours.

    [reader, LineSignatures(signatures, counts)]                 T tasks
    [LineDuplicates(signatures, lines)]                          any number of tasks
    [reader, RemoveLines(signatures, lines), writer]             T tasks
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
from datatrove.data import Document, DocumentsPipeline
from datatrove.io import DataFolder, DataFolderLike, get_datafolder
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.disk_base import DiskWriter
from datatrove.utils.typeshelper import StatHints

from llama31.curate import kernels
from llama31.curate.duplicates import merging, shards

KEYS, OFTEN = ".keys", ".lines"
KEY = np.dtype([("key", "<u8")])
NUMBER = np.dtype("<u8")
BATCH_DOCUMENTS, BATCH_CHARACTERS = 512, 1 << 20
FILTERED = 64  # documents at once, whatever their length

Keys = npt.NDArray[np.uint64]


def capped(keys: Keys, most: int) -> Keys:
    """Sorted keys, none more than `most` times: that suffices to know what is more often than one time less."""
    again = np.zeros(len(keys), bool)
    again[most:] = keys[most:] == keys[:-most]
    return keys[~again]


class LineKeys:
    """The lines of documents as numbers, other ones in another language and bucket.

    Args:
        buckets: how many, for each language that has more than one.
        exempt: values of metadata's `extraction` whose documents have no lines here.
    """

    def __init__(self, buckets: dict[str, int], exempt: Collection[str]) -> None:
        self.buckets, self.exempt = buckets, tuple(exempt)
        self._seeds: dict[tuple[str, int], int] = {}

    def _seed(self, document: Document, identity: int) -> int:
        language = shards.language(document)
        place = (language, identity % self.buckets.get(language, 1))
        if place not in self._seeds:
            self._seeds[place] = xxhash.xxh64_intdigest(shards.encoded(f"{place[0]}\0{place[1]}"))
        return self._seeds[place]

    def of(
        self, documents: list[Document], data: list[bytes], identities: list[int]
    ) -> tuple[Keys, npt.NDArray[np.bool_], list[int]]:
        """Of all lines of some documents the key and whether the line counts; of each document the number of lines.

        `data` are their texts in UTF-8.
        """
        texts = [b"" if one.metadata.get("extraction") in self.exempt else text for one, text in zip(documents, data)]
        counts = [text.count(b"\n") + 1 for text in texts]
        joined = np.frombuffer(b"\n".join([*texts, b""]), np.uint8)
        hashes, counting = kernels.line_hashes(joined, sum(counts))
        seeds = np.array([self._seed(one, identity) for one, identity in zip(documents, identities)], np.uint64)
        # Mixed, for ranges of keys are shared out: the middle of splitmix64 (Steele et al. 2014).
        keys = (hashes ^ np.repeat(seeds, counts)) * np.uint64(0xBF58476D1CE4E5B9)
        keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return keys ^ (keys >> np.uint64(31)), counting, counts


def batches(data: DocumentsPipeline) -> Iterator[list[Document]]:
    """Documents some at a time, for less work for each of them."""
    batch: list[Document] = []
    characters = 0
    for document in data:
        batch.append(document)
        characters += len(document.text)
        if len(batch) == BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


class CountDocuments(PipelineStep):
    """Counts documents by language on their way, for LineSignatures; stands behind the last filter before it.

    Args:
        output_folder: for one small file of each task.
    """

    name = "Count documents"
    type = "Deduplication"

    def __init__(self, output_folder: DataFolderLike) -> None:
        super().__init__()
        self.output_folder = get_datafolder(output_folder)

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """The documents, unchanged; the file appears behind the last of them."""
        seen = shards.SeenDocuments()
        for document in data:
            self.stat_update(StatHints.total)
            seen.add(document, 0)
            yield document
        seen.save(self.output_folder, rank, world_size)


def buckets_of(folder: DataFolder, documents: int) -> dict[str, int]:
    """How many buckets of at most about so many documents each language has, by the counts of all tasks."""
    tasks = len(shards.complete(folder, shards.SEEN))
    total: dict[str, int] = {}
    for rank in range(tasks):
        for language, count in shards.load_seen(folder, rank, tasks)["documents"].items():
            total[language] = total.get(language, 0) + count
    return {language: -(-count // documents) for language, count in sorted(total.items()) if count > documents}


class SortedKeys:
    """Keys of a task, in sorted files when they are many, and in the end in one."""

    def __init__(self, folder: DataFolder, rank: int, most: int, memory_bytes: int) -> None:
        self.folder, self.rank, self.most, self.memory_bytes = folder, rank, most, memory_bytes
        self.runs: list[str] = []
        self.hand: list[Keys] = []
        self.count = 0

    def add(self, keys: Keys) -> None:
        """Take some; write what is in hand where it is a third of the memory, for sorting takes as much again."""
        self.hand.append(keys)
        self.count += len(keys)
        if self.count * 24 > self.memory_bytes:
            self.runs.append(f"partial/run-{self.rank:05d}-{len(self.runs):05d}")
            with self.folder.open(self.runs[-1], "wb") as file:
                file.write(self._sorted().tobytes())

    def _sorted(self) -> Keys:
        keys = np.concatenate([np.zeros(0, np.uint64), *self.hand])
        self.hand, self.count = [], 0
        keys.sort()
        return capped(keys, self.most)

    def chunks(self) -> Iterator[Keys]:
        """All keys, sorted."""
        last = self._sorted()
        if not self.runs:
            yield last
            return
        self.runs.append(f"partial/run-{self.rank:05d}-{len(self.runs):05d}")
        with self.folder.open(self.runs[-1], "wb") as file:
            file.write(last.tobytes())
        held = np.zeros(0, np.uint64)
        for _, records in merging.merge(self.folder, self.runs, KEY, self.memory_bytes):
            keys = capped(np.concatenate([held, records["key"]]), self.most)
            border = int(np.searchsorted(keys, keys[-1]))
            held = keys[border:]
            yield keys[:border]
        yield held
        for name in self.runs:
            self.folder.rm(name)


class LineSignatures(PipelineStep):
    """First stage: a number for each line. Passes documents on, so that it may stand behind a writer.

    Statistics: `exempt` (documents). Memory: `memory_bytes` and a megabyte of text.

    Args:
        output_folder: for 8 bytes per line, `limit` + 1 times per task at most for equal ones.
        counts_folder: what CountDocuments wrote, or, with somewhat more than what came to this stage, the folder of
            the signatures of URLs or MinHash. Without it a language is one bucket, whatever its size.
        documents: of a bucket, 30M in the report.
        limit: lines that stand more often than this in a bucket go; 6 in the report.
        exempt: values of metadata's `extraction`; documents that have one are neither counted nor changed. Ours.
        memory_bytes: for keys in hand.
    """

    name = "Lines"
    type = "Deduplication"

    def __init__(
        self,
        output_folder: DataFolderLike,
        counts_folder: DataFolderLike | None = None,
        documents: int = 30_000_000,
        limit: int = 6,
        exempt: Collection[str] = ("technical",),
        memory_bytes: int = merging.MEMORY_BYTES,
    ) -> None:
        super().__init__()
        if documents < 1:
            raise ValueError(f"documents={documents} is no size of a bucket; give 1 or more")
        if limit < 1:
            raise ValueError(f"limit={limit} would remove every line; give 1 or more")
        self.output_folder = get_datafolder(output_folder)
        self.counts_folder = get_datafolder(counts_folder) if counts_folder else None
        self.documents, self.limit, self.exempt, self.memory_bytes = documents, limit, tuple(exempt), memory_bytes

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """The documents, unchanged; the files appear behind the last of them."""
        buckets = buckets_of(self.counts_folder, self.documents) if self.counts_folder else {}
        line_keys, seen = LineKeys(buckets, self.exempt), shards.SeenDocuments()
        keys = SortedKeys(self.output_folder, rank, self.limit + 1, self.memory_bytes)
        for batch in batches(data):
            with self.track_time("batch"):
                self.stat_update(StatHints.total, value=len(batch))
                data = [shards.encoded(one.text) for one in batch]
                identities = seen.add_all(batch, data)
                self.stat_update("exempt", value=sum(one.metadata.get("extraction") in self.exempt for one in batch))
                numbers, counting, _ = line_keys.of(batch, data, identities)
                keys.add(numbers[counting])
            yield from batch
        with self.track_time("task"):
            with shards.whole(self.output_folder, shards.name_of(rank, world_size, KEYS)) as file:
                for chunk in keys.chunks():
                    file.write(np.ascontiguousarray(chunk, NUMBER).data)
            parameters = {"buckets": buckets, "limit": self.limit, "exempt": list(self.exempt)}
            seen.save(self.output_folder, rank, world_size, **parameters)


class LineDuplicates(merging.MergingStep):
    """Second stage: the lines that are too many, told to each task that has one of them.

    Each task takes an equal range of the numbers, in all files. Statistics: `lines` (distinct ones that go). Memory:
    `memory_bytes`, and 24 bytes for each line that goes, of this range, and each task that has it.

    Args:
        signature_folder: what LineSignatures wrote.
        output_folder: for 8 bytes per line that goes and task that has it.
        memory_bytes: for keys in hand.
    """

    name = "Frequent lines"

    def _often(
        self, chunks: Iterator[tuple[npt.NDArray[np.int64], shards.Records]], limit: int
    ) -> Iterator[tuple[npt.NDArray[np.int64], Keys]]:
        held_places, held = np.zeros(0, np.int64), np.zeros(0, np.uint64)
        nothing = (np.zeros(0, np.int64), np.zeros(0, KEY))
        for places, records in itertools.chain(chunks, [nothing]):
            keys, places = np.concatenate([held, records["key"]]), np.concatenate([held_places, places])
            # The last key waits for what the next chunk has of it.
            border = int(np.searchsorted(keys, keys[-1])) if len(records) else len(keys)
            held_places, held = places[border:], keys[border:]
            places, keys = places[:border], keys[:border]
            first = merging.starts(keys)
            group = np.cumsum(first) - 1
            often = np.bincount(group) > limit if len(keys) else np.zeros(0, bool)
            self.stat_update("lines", value=int(often.sum()))
            # Of a key the places are in order: once for each.
            each = (first | merging.starts(places)) & often[group]
            yield places[each], keys[each]

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:
        """Find what is too often in this task's range."""
        tasks = len(shards.complete(self.signature_folder, shards.SEEN))
        limit = shards.load_seen(self.signature_folder, 0, tasks)["limit"]
        names = [shards.name_of(one, tasks, KEYS) for one in range(tasks)]
        with self.track_time("task"):
            chunks = merging.merge(self.signature_folder, names, KEY, self.memory_bytes, rank, world_size)
            found = list(self._often(chunks, limit))
            places = np.concatenate([np.zeros(0, np.int64), *(place for place, _ in found)])
            keys = np.concatenate([np.zeros(0, np.uint64), *(key for _, key in found)])
            name = shards.name_of(rank, world_size, OFTEN)
            shards.write_sections(self.output_folder, name, tasks, places, keys.astype(NUMBER))


class RemoveLines(BaseFilter):
    """Last stage: documents without the lines that are too many, and none of which too little is left.

    It must read what the first stage read, with as many tasks; ValueError, at the end of the stream at the latest,
    where it did not. Statistics: `dropped_only frequent lines`, `dropped_too short without frequent lines`, `shortened`
    (documents that stay), `removed lines` and `removed characters` of these. Memory: 16 bytes per line that goes and
    that this task has, and 64 documents.

    Args:
        signature_folder: what LineSignatures wrote.
        lines_folder: what LineDuplicates wrote.
        min_characters: a document that lost lines and has fewer left goes; 100, ours. Others may be shorter.
        exclusion_writer: keeps what was dropped, as it was.
    """

    name = "Remove lines"

    def __init__(
        self,
        signature_folder: DataFolderLike,
        lines_folder: DataFolderLike,
        min_characters: int = 100,
        exclusion_writer: DiskWriter | None = None,
    ) -> None:
        super().__init__(exclusion_writer, FILTERED)
        self.signature_folder, self.lines_folder = get_datafolder(signature_folder), get_datafolder(lines_folder)
        self.min_characters = min_characters
        self._often: Keys = np.zeros(0, np.uint64)
        self._keys: LineKeys | None = None
        self._seen: shards.SeenDocuments | None = None  # which cannot be pickled, as executors do with steps

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether a document stays; takes lines out of its text. Documents must come in their order."""
        return self.filter_batch([doc])[0]

    def filter_batch(self, batch: list[Document]) -> list[bool | tuple[bool, str]]:
        """The same of several."""
        assert self._seen is not None and self._keys is not None  # run sets them
        data = [shards.encoded(one.text) for one in batch]
        keys, counting, counts = self._keys.of(batch, data, self._seen.add_all(batch, data))
        places = np.searchsorted(self._often, keys)
        places[places == len(self._often)] = 0
        gone = (self._often[places] == keys) & counting if len(self._often) else np.zeros(len(keys), bool)
        borders = np.cumsum([0, *counts])
        hits = np.add.reduceat(gone, borders[:-1], dtype=np.int64).tolist()
        results: list[bool | tuple[bool, str]] = []
        removed = [0, 0, 0]
        for one, encoded, start, end, hit in zip(batch, data, borders[:-1].tolist(), borders[1:].tolist(), hits):
            text = one.text
            if hit:
                kept = kernels.without(np.frombuffer(encoded, np.uint8), gone[start:end])
                text = kept.tobytes().decode("utf-8", "surrogatepass")
            if hit and not text.strip():
                results.append((False, "only frequent lines"))
            elif hit and len(text) < self.min_characters:
                results.append((False, "too short without frequent lines"))
            else:
                results.append(True)
                removed = [removed[0] + (hit > 0), removed[1] + hit, removed[2] + len(one.text) - len(text)]
                one.text = text
        for name, count in zip(("shortened", "removed lines", "removed characters"), removed):
            self.stat_update(name, value=count)
        return results

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """The documents that stay, without those lines."""
        then = shards.load_seen(self.signature_folder, rank, world_size)
        self._keys, self._seen = LineKeys(then["buckets"], then["exempt"]), (seen := shards.SeenDocuments())
        found: list[Any] = [
            shards.read_section(self.lines_folder, name, world_size, rank, NUMBER)
            for name in shards.complete(self.lines_folder, OFTEN)
        ]
        self._often = np.concatenate(found)  # of rising ranges, each sorted
        yield from super().run(data, rank, world_size)
        seen.check(self.signature_folder, rank, world_size)
