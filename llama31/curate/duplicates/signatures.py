"""MinHash signatures of documents (Broder 1997, "On the resemblance and containment of documents").

Two documents agree in one hash with the probability of their Jaccard similarity s, the share of shingles (n-grams of
words) that they have in common; so in all r of a bucket, in one of b buckets at least, with 1 - (1 - s^r)^b
(`probability`). With 14 buckets of 8, datatrove's defaults and FineWeb's (Penedo et al. 2024), it rises at 0.72:

    s              0.5    0.6    0.65   0.7    0.75   0.8    0.85   0.9     0.95
    found as one   0.053  0.211  0.365  0.565  0.772  0.924  0.988  0.9996  1.0000

Given the same words the signatures are datatrove's own, number by number, and so are the files. Words are split by
`curate.words` in place of spaCy, and the remainder of a division by 2**61 - 1 is a shift and an addition. Two
departures: a document of fewer words than a shingle has is one shingle of all its words (there it has no signature, and
copies of it are all kept), and of diacritics only those of Latin, Greek and Cyrillic letters go (there the vowel signs
of Hindi and Thai go as well, which makes one word of several).
"""

from __future__ import annotations

import re
import unicodedata
from typing import IO

import numpy as np
import numpy.typing as npt
import xxhash
from datatrove.data import Document, DocumentsPipeline
from datatrove.io import DataFolderLike, get_datafolder
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.typeshelper import StatHints

from llama31.curate import kernels, spans
from llama31.curate.duplicates import preference, shards
from llama31.curate.duplicates.preference import Keep

PREFERENCES = ".preferences"
PREFERENCE = np.dtype([("preference", "<u8"), ("identity", "<u8")])
PRIME = (1 << 61) - 1
BATCH = 2048  # signatures in memory

Hashes = npt.NDArray[np.uint64]
NUMBER = re.compile(r"\d+(?:[.,]\d+)?")
DIACRITICS = re.compile("[\u0300-\u036f]+")


def probability(similarity: float, buckets: int = 14, hashes_per_bucket: int = 8) -> float:
    """That two documents of a Jaccard similarity share a bucket."""
    return 1.0 - (1.0 - similarity**hashes_per_bucket) ** buckets


def simplify(text: str) -> str:
    """Small letters without diacritics, numbers as 0, as datatrove has it; punctuation goes when words are split."""
    text = NUMBER.sub("0", text.lower())
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", DIACRITICS.sub("", unicodedata.normalize("NFD", text)))


def hashed(data: bytes, ngram: int, precision: int) -> Hashes:
    """xxHash of each run of `ngram` words, which have a space between; one of all words where they are fewer."""
    spaces = np.flatnonzero(np.frombuffer(data, np.uint8) == ord(" "))
    starts = np.concatenate([[0], spaces + 1])
    ends = np.concatenate([spaces, [len(data)]])
    width = min(ngram, len(starts))
    starts, ends = starts[: len(starts) - width + 1], ends[width - 1 :]
    digest = xxhash.xxh64_intdigest if precision == 64 else xxhash.xxh32_intdigest
    # A list of slices written out: Python makes no object of each, as it does for `map`, and takes half the time.
    return np.array([digest(data[start:end]) for start, end in zip(starts.tolist(), ends.tolist())], np.uint64)


class Permutations:
    """The hash functions (a x + b mod 2**64) mod (2**61 - 1), with datatrove's a and b for a seed."""

    def __init__(self, count: int, seed: int, precision: int) -> None:
        generator = np.random.RandomState(seed)
        self.a = generator.randint(1, PRIME, dtype=np.uint64, size=count)
        self.b = generator.randint(0, PRIME, dtype=np.uint64, size=count)
        self.bits = np.uint64((1 << precision) - 1)

    def smallest(self, shingles: Hashes) -> Hashes:
        """The smallest value of each function over the shingles, shape (functions)."""
        return kernels.smallest(shingles, self.a, self.b, self.bits)


def record(hashes_per_bucket: int, precision: int) -> np.dtype[np.void]:
    """datatrove's record of a signature: the hashes of a bucket, then the document's place in its task's stream."""
    return np.dtype([("hashes", f"<u{precision // 8}", (hashes_per_bucket,)), ("document", "<u4")])


class MinhashSignatures(PipelineStep):
    """First stage: each document's signature, and what decides which one stays. Passes documents on.

    The files are datatrove's (`bucket_003/00000.minhash.sig`, sorted), so that its MinhashDedupBuckets and indexes can
    be used on them. A number of the language is folded into each hash (exclusive or), so that documents of two
    languages never agree; where it is unknown, nothing is, and the file is datatrove's to the byte. Statistics: `short`
    (fewer words than `ngram`), `no date` or `no score`. Memory: 16 MB, 16 bytes per document of the task, and while a
    bucket is sorted three times its 68 bytes per document.

    Args:
        output_folder: for 968 bytes per document, with the defaults.
        ngram: words of a shingle; 5 as datatrove and FineWeb.
        buckets: see above; as datatrove.
        hashes_per_bucket: see above; as datatrove.
        seed: of the hash functions; as datatrove.
        precision: bits of a hash, 64 as datatrove, or 32, which halves the files.
        keep: which document of a cluster stays: newest, longest or best, see `preference`.
        score_key: metadata's key for `keep="best"`.
    """

    name = "MinHash signatures"
    type = "Deduplication"

    def __init__(
        self,
        output_folder: DataFolderLike,
        ngram: int = 5,
        buckets: int = 14,
        hashes_per_bucket: int = 8,
        seed: int = 1,
        precision: int = 64,
        keep: Keep = "newest",
        score_key: str = "score",
    ) -> None:
        super().__init__()
        preference.check(keep)
        for key, value in (("ngram", ngram), ("buckets", buckets), ("hashes_per_bucket", hashes_per_bucket)):
            if value < 1:
                raise ValueError(f"{key}={value} gives no signature; give 1 or more")
        if precision not in (32, 64):
            raise ValueError(f"precision={precision} is neither 32 nor 64")
        self.output_folder = get_datafolder(output_folder)
        self.ngram, self.buckets, self.hashes_per_bucket = ngram, buckets, hashes_per_bucket
        self.seed, self.precision, self.keep, self.score_key = seed, precision, keep, score_key
        self._permutations: Permutations | None = None
        self._masks: dict[str, int] = {"": 0}

    def signature(self, text: str, language: str) -> Hashes:
        """The hashes of a text, shape (buckets * hashes_per_bucket), without the language's number."""
        if self._permutations is None:
            self._permutations = Permutations(self.buckets * self.hashes_per_bucket, self.seed, self.precision)
        data = spans.joined(simplify(text), language)
        if not data or data.count(b" ") + 1 < self.ngram:
            self.stat_update("short")
        data = data or shards.encoded(" ".join(text.split()))
        return self._permutations.smallest(hashed(data, self.ngram, self.precision))

    def _mask(self, language: str) -> int:
        bits = 61 if self.precision == 64 else 32
        value = xxhash.xxh64_intdigest(shards.encoded(language)) >> (64 - bits)
        return self._masks.setdefault(language, value)

    def _row(self, document: Document) -> Hashes:
        language = shards.language(document)
        return self.signature(document.text, language) ^ np.uint64(self._mask(language))

    def _unsorted(self, rank: int, bucket: int) -> str:
        return f"partial/unsorted-{rank:05d}-{bucket:03d}"

    def _append(self, files: list[IO[bytes]], rows: list[Hashes], first: int) -> None:
        hashes = np.stack(rows).reshape(len(rows), self.buckets, self.hashes_per_bucket)
        records = np.zeros(len(rows), record(self.hashes_per_bucket, self.precision))
        records["document"] = np.arange(first, first + len(rows))
        for bucket, file in enumerate(files):
            records["hashes"] = hashes[:, bucket]
            file.write(records.tobytes())
        rows.clear()

    def _signed(
        self, data: DocumentsPipeline, rank: int, seen: shards.SeenDocuments, preferences: bytearray
    ) -> DocumentsPipeline:
        files = [self.output_folder.open(self._unsorted(rank, bucket), "wb") for bucket in range(self.buckets)]
        rows: list[Hashes] = []
        try:
            for document in data:
                with self.track_time():
                    self.stat_update(StatHints.total)
                    identity = shards.identity(document)
                    seen.add(document, identity)
                    preferred = preference.preference(document, self.keep, self.score_key)
                    if not preferred and self.keep != "longest":
                        self.stat_update("no date" if self.keep == "newest" else "no score")
                    preferences += preferred.to_bytes(8, "little") + identity.to_bytes(8, "little")
                    rows.append(self._row(document))
                    if len(rows) == BATCH:
                        self._append(files, rows, seen.total - len(rows))
                yield document
            if rows:
                self._append(files, rows, seen.total - len(rows))
        finally:
            for file in files:
                file.close()

    def _sort(self, rank: int) -> None:
        dtype = record(self.hashes_per_bucket, self.precision)
        for bucket in range(self.buckets):
            records = shards.read(self.output_folder, self._unsorted(rank, bucket), dtype)
            columns = [records["hashes"][:, column] for column in range(self.hashes_per_bucket)]
            order = np.lexsort((records["document"], *columns[::-1]))
            shards.write(self.output_folder, f"bucket_{bucket:03d}/{rank:05d}.minhash.sig", records[order])
            self.output_folder.rm(self._unsorted(rank, bucket))

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """The documents, unchanged; the files appear behind the last of them."""
        seen, preferences = shards.SeenDocuments(), bytearray()
        yield from self._signed(data, rank, seen, preferences)
        with self.track_time("task"):
            self._sort(rank)
            name = shards.name_of(rank, world_size, PREFERENCES)
            shards.write(self.output_folder, name, np.frombuffer(preferences, PREFERENCE))
            seen.save(
                self.output_folder,
                rank,
                world_size,
                buckets=self.buckets,
                hashes_per_bucket=self.hashes_per_bucket,
                precision=self.precision,
            )
