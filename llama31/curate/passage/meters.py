"""What the blocks of a task did: documents, bytes and seconds, what was removed by reason, and texts to look at.

Texts are drawn by a hash of the document's name, so that the same ones are shown whatever the number of tasks.
"""

from __future__ import annotations

import contextlib
import heapq
import resource
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import xxhash
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

MOST_REASONS = 500  # of one block and task; what comes beyond is counted together
UNKNOWN = "without a reason"
BEYOND = "other reasons"


def reset_peak() -> None:
    """Forget what the process had of memory before: a pool's have run other tasks."""
    with contextlib.suppress(OSError):  # of systems that cannot
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The most resident memory of the process since `reset_peak`."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def size(text: str) -> int:
    """Bytes of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


@dataclass
class Samples:
    """The `most` documents with the smallest hashes."""

    most: int
    chars: int
    kept: list[tuple[int, int, dict[str, Any]]] = field(default_factory=list)  # a heap: -hash, -number, the text
    seen: int = 0

    def add(self, document: Document, before: str | None = None) -> None:
        """Keep the document's beginning, if it is drawn; of one that was `before`, that of the lines it has no more."""
        self.seen += 1
        named = f"{document.id} {(document.text if before is None else before)[:100]}"
        drawn = -xxhash.xxh64_intdigest(named.encode("utf-8", "replace"))
        if not self.most or (len(self.kept) == self.most and drawn <= self.kept[0][0]):
            return
        known = {name: document.metadata.get(name, "") for name in ("url", "source", "language")}
        text = document.text if before is None else taken(before, document.text)
        shown = {"id": document.id, **known, "text": text[: self.chars], "chars": len(text)}
        (heapq.heappush if len(self.kept) < self.most else heapq.heapreplace)(self.kept, (drawn, -self.seen, shown))

    def all(self) -> list[dict[str, Any]]:
        """The texts, in the order of their hashes, each with it as `drawn`."""
        return [{"drawn": -drawn, **shown} for drawn, _, shown in sorted(self.kept, key=lambda one: -one[0])]


def taken(before: str, after: str) -> str:
    """The lines of a text that what was left of it has no more, or has in another form."""
    left = Counter(line.strip() for line in after.splitlines())
    gone = []
    for line in before.splitlines():
        bare = line.strip()
        if left[bare] > 0:
            left[bare] -= 1
        elif bare:
            gone.append(line)
    return "\n".join(gone)


@dataclass
class Shortened:
    """What a block took out of documents that stay: of how many, how many bytes, and some of the lines to read."""

    samples: Samples
    documents: int = 0
    bytes: int = 0
    inside: dict[int, str] = field(default_factory=dict)  # texts of documents that are in the block, by identity

    def before(self, data: Iterable[Document]) -> Iterator[Document]:
        """The documents that go into the block."""
        for document in data:
            self.inside[id(document)] = document.text
            yield document

    def dropped(self, document: Document) -> None:
        """A document did not come out of it."""
        self.inside.pop(id(document), None)

    def behind(self, data: Iterable[Document]) -> Iterator[Document]:
        """Those that come out of it."""
        for document in data:
            before = self.inside.pop(id(document), document.text)
            if before is not document.text and before != document.text:
                self.documents += 1
                self.bytes += size(before) - size(document.text)
                self.samples.add(document, before)
            yield document


@dataclass
class Removed:
    """Documents that a block removed for one reason."""

    samples: Samples
    documents: int = 0
    bytes: int = 0


class RemovedDocuments:
    """What a filter of datatrove takes for the writer of what it removes: counts by reason, and some to read."""

    def __init__(self, samples: int, chars: int, shortened: Shortened | None = None) -> None:
        self.samples, self.chars, self.shortened = samples, chars, shortened
        self.reasons: dict[str, Removed] = {}

    def __enter__(self) -> RemovedDocuments:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Nothing to close."""

    def write(self, document: Document, rank: int = 0, **others: Any) -> None:
        """Count a document under its `filter_reason`."""
        if self.shortened is not None:
            self.shortened.dropped(document)
        reason = str(document.metadata.get("filter_reason", UNKNOWN))
        if reason not in self.reasons:
            reason = reason if len(self.reasons) < MOST_REASONS else BEYOND
            self.reasons.setdefault(reason, Removed(Samples(self.samples, self.chars)))
        removed = self.reasons[reason]
        removed.documents += 1
        removed.bytes += size(document.text)
        removed.samples.add(document)

    def close(self) -> None:
        """datatrove's writers have it."""


@dataclass
class BlockMeter:
    """Documents behind a block, and the time that it and all before it took."""

    name: str
    documents: int = 0
    bytes: int = 0
    seconds: float = 0.0
    languages: Counter[str] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)  # documents by the binary logarithm of their bytes

    def behind(self, data: Iterable[Document]) -> Iterator[Document]:
        """The documents, counted. Seconds are those of the thread, whatever else the machine does."""
        documents, clock = iter(data), time.thread_time
        while True:
            begun = clock()
            document = next(documents, None)
            self.seconds += clock() - begun
            if document is None:
                return
            length = size(document.text)
            self.documents += 1
            self.bytes += length
            self.lengths[length.bit_length()] += 1
            self.languages[str(document.metadata.get("language") or "")] += 1
            yield document


def counts(block: PipelineStep) -> dict[str, float]:
    """What a block counted itself: totals by name."""
    return {name: stat.total for name, stat in block.stats.stats.items()}
