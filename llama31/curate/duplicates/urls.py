"""Duplicates by URL: of pages of one language with one URL the newest stays (report, section 3.1.1).

Three stages, each a list of steps for an executor that depends on the one before:

    [reader, UrlSignatures(signatures)]                              T tasks
    [UrlDuplicates(signatures, listed)]                              any number of tasks
    [reader, DropListed(signatures, listed, "url"), writer]          T tasks

datatrove's `exact_dedup` has the same stages. Its priority has 16 bits, days at best, and between equals the document
that stood earlier in its task's stream stays, so that another number of tasks keeps others; it also merges record by
record.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import SplitResult, urlsplit

import numpy as np
import xxhash
from datatrove.data import DocumentsPipeline
from datatrove.io import DataFolderLike, get_datafolder
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.typeshelper import StatHints

from llama31.curate.duplicates import merging, preference, shards
from llama31.curate.duplicates.preference import Keep
from llama31.curate.duplicates.removal import LISTED, write_listed

URLS = ".urls"
URL = np.dtype([("key", "<u8"), ("preference", "<u8"), ("identity", "<u8"), ("document", "<u4")])
PORTS = {"http": ":80", "https": ":443", "ftp": ":21"}
ESCAPED = re.compile(r"%([0-9A-Fa-f]{2})")
UNRESERVED = re.compile(r"[A-Za-z0-9\-._~]")


def _unescape(match: re.Match[str]) -> str:
    character = chr(int(match[1], 16))
    return character if UNRESERVED.fullmatch(character) else match[0].upper()


def _path(path: str) -> str:
    if "/." in path:  # RFC 3986, 5.2.4, which keeps double slashes, as normpath does not
        kept: list[str] = []
        for part in (parts := path.split("/")):
            if part == "..":
                del kept[max(1, len(kept) - 1) :]
            elif part != ".":
                kept.append(part)
        path = "/".join([*kept, ""] if parts[-1] in (".", "..") else kept)
    return path or "/"


def _host(split: SplitResult) -> str:
    user, at, host = split.netloc.rpartition("@")
    return user + at + host.lower().removesuffix(PORTS.get(split.scheme, ":")).removesuffix(":")


def normalise(url: str) -> str:
    """A URL such that two which RFC 3986 (section 6.2) calls equivalent are equal.

    Scheme and host in small letters, no default port, `/` for an empty path, no `.` and `..` in it, escapes of letters,
    digits and `-._~` undone and the others in capitals; no fragment but `#!...`, which names another page. What stands
    in the query, `www.`, `http` or `https` and slashes at the end may matter to a server and stay. What is no URL of a
    host stays as it is, without white space around it.
    """
    url = url.strip()
    page, _, fragment = url.partition("#")
    page = page.strip()
    try:
        split = urlsplit(page)
        if not split.scheme or not split.netloc:
            return url
    except ValueError:  # a bracket that is not closed
        return url
    path, query = (ESCAPED.sub(_unescape, part) if "%" in part else part for part in (split.path, split.query))
    query = f"?{query}" if query or page.endswith("?") else ""
    fragment = f"#{fragment}" if fragment.startswith("!") else ""
    return f"{split.scheme}://{_host(split)}{_path(path)}{query}{fragment}"


class UrlSignatures(PipelineStep):
    """First stage: a record of each document's URL. Passes documents on, so that it may stand behind a writer.

    Statistics: `no url` (never a duplicate), `no date`. Memory: 28 bytes per document of the task, and as much to sort.

    Args:
        output_folder: for 28 bytes per document.
        keep: which stays, see `preference`; the report keeps the newest.
        score_key: metadata's key for `keep="best"`.
    """

    name = "URLs"
    type = "Deduplication"

    def __init__(self, output_folder: DataFolderLike, keep: Keep = "newest", score_key: str = "score") -> None:
        super().__init__()
        preference.check(keep)
        self.output_folder, self.keep, self.score_key = get_datafolder(output_folder), keep, score_key

    def _records(self, data: DocumentsPipeline, seen: shards.SeenDocuments, out: bytearray) -> DocumentsPipeline:
        seeds: dict[str, int] = {}
        for document in data:
            with self.track_time():
                self.stat_update(StatHints.total)
                identity, place = shards.identity(document), seen.total
                seen.add(document, identity)
                url = document.metadata.get("url")
                if isinstance(url, str) and url.strip():
                    language = shards.language(document)
                    seed = seeds.setdefault(language, xxhash.xxh64_intdigest(shards.encoded(language)))
                    key = xxhash.xxh64_intdigest(shards.encoded(normalise(url)), seed)
                    preferred = preference.preference(document, self.keep, self.score_key)
                    out += b"".join(number.to_bytes(8, "little") for number in (key, preferred, identity))
                    out += place.to_bytes(4, "little")
                    if self.keep == "newest" and not preferred:
                        self.stat_update("no date")
                else:
                    self.stat_update("no url")
            yield document

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """The documents, unchanged; the files appear behind the last of them."""
        seen, out = shards.SeenDocuments(), bytearray()
        yield from self._records(data, seen, out)
        records = np.frombuffer(out, URL)
        records = records[np.argsort(records["key"], kind="stable")]
        shards.write(self.output_folder, shards.name_of(rank, world_size, URLS), records)
        seen.save(self.output_folder, rank, world_size)


class UrlDuplicates(merging.MergingStep):
    """Second stage: the documents that another one with the same URL and language replaces.

    Each task takes an equal range of the hashes of URLs, in all files. Statistics: `urls` (distinct), `listed`. Memory:
    `memory_bytes`, and 12 bytes for each document that a task lists. Two URLs of one language count as the same with a
    chance of 2**-64.

    Args:
        signature_folder: what UrlSignatures wrote.
        output_folder: for 4 bytes per document that is listed.
        memory_bytes: for records in hand.
    """

    name = "Same URL"

    def _losers(self, rank: int, world_size: int, names: list[str]) -> Iterator[tuple[shards.Records, shards.Records]]:
        best, best_place = np.zeros(0, URL), np.zeros(0, np.int64)
        for places, records in merging.merge(self.signature_folder, names, URL, self.memory_bytes, rank, world_size):
            records, places = np.concatenate([best, records]), np.concatenate([best_place, places])
            order = np.lexsort((records["identity"], ~records["preference"], records["key"]))
            records, places = records[order], places[order]
            first = merging.starts(records["key"])
            # The best one of the last key may meet a better one in the next chunk.
            last = np.flatnonzero(first)[-1:]
            self.stat_update("urls", value=int(first.sum()) - len(best))
            best, best_place = records[last], places[last]
            yield places[~first], records["document"][~first]

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:
        """List the documents of this task's range of URLs."""
        tasks = len(shards.complete(self.signature_folder, shards.SEEN))
        names = [shards.name_of(one, tasks, URLS) for one in range(tasks)]
        with self.track_time():
            found = list(self._losers(rank, world_size, names))
            places = np.concatenate([np.zeros(0, np.int64), *(place for place, _ in found)])
            listed = np.concatenate([np.zeros(0, np.uint32), *(document for _, document in found)])
            write_listed(self.output_folder, shards.name_of(rank, world_size, LISTED), tasks, places, listed)
            self.stat_update("listed", value=len(listed))
