"""A packed source as rows of whole documents: none that fits in a row is ever split, the rest of a row is padding.

`bins.py` says once, for the lengths of the source, which lengths share a row. An epoch is a seeded order of those rows,
and the n-th place for a length takes the n-th document of that length: all documents of one length are read once, in
an order of their own, before any of them is read twice. Whatever training changes on its way (row length, weights by
length, skipped steps) begins a chapter, whose first epoch consists of what was left of the one under way. So each
document is read once in its epoch through all changes; and it is arithmetic over the schedule, there is no state.

Documents longer than a row are split at multiples of the row, and their pieces are placed like documents. Where the
length of the rows changes, those that were begun begin anew: what remained of them cannot be told in other pieces.

Weights by length multiply how often the documents of a bucket are read in an epoch, so that long and short ones still
fill rows together and a source keeps its share of the mixture (per-source up-sampling: Fu et al. 2024, "Data
Engineering for Scaling Language Models to 128K Context", arXiv:2402.10171).

All this grows with the documents and their pieces. Of a run with `Plans`, one process works it out, and the others map
it; of few documents everybody does, and there is no file.
"""

from __future__ import annotations

import bisect
import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llama31.data.bins import Bins, fill
from llama31.data.mixture import Chapter
from llama31.data.plans import Arrays, Plans
from llama31.data.stream import permutation, permuted
from llama31.tokens.indexed import IndexedReader

Ints = NDArray[np.int64]

PLANNED_FROM = 1 << 16  # documents; of fewer, planning takes milliseconds, and what is held 3 MB


@dataclass(frozen=True)
class _Plan:
    """The rows of an epoch, in no order. A kind is a piece number of all documents of one length."""

    length_of: Ints  # [kinds], index into the distinct lengths
    piece_of: Ints  # [kinds]
    span_of: Ints  # [kinds], tokens
    readings: Ints  # [lengths], places for its documents
    bins: Bins


@dataclass(frozen=True)
class _WholeEpoch:
    """One epoch in the order of training: rows [begins[k], begins[k + 1]) of the pieces."""

    begins: Ints  # [rows + 1]
    kinds: NDArray[np.int32]  # [pieces]
    ranks: NDArray[np.int32]  # [pieces], how many of the same kind were placed before in this epoch


class Whole:
    """Random access to the rows of one source, which a `position` of the mixture stands for.

    `chapters` are the mixture's, `column` is the place of this source in them; `edges` are the shortest lengths of the
    buckets that the chapters' weights by length belong to. `plans`, where given, keep what grows with the documents.
    Raises ValueError where all documents weigh nothing.
    """

    def __init__(
        self,
        reader: IndexedReader,
        key: str,
        chapters: Sequence[Chapter],
        column: int,
        edges: Sequence[int],
        name: str,
        plans: Plans | None = None,
    ) -> None:
        self._reader, self._key, self._chapters, self._edges = reader, key, chapters, edges
        self._cursors = [chapter.cursors[column] for chapter in chapters]
        self._kept = plans if len(reader) >= PLANNED_FROM else None
        self._files: dict[tuple[object, ...], str] = {}  # of what has one
        self._lock = threading.RLock()  # the prefetcher and its owner may ask at once
        # Documents by length: those of the k-th distinct length are _documents[_firsts[k] : _firsts[k + 1]].
        found = self._made(("documents",), [], lambda: _by_length(reader))
        self._documents, self._lengths, self._firsts = found["documents"], found["lengths"], found["firsts"]
        self._counts = np.diff(self._firsts)
        # Before each chapter: documents read of each length, and places left of the epoch that was under way.
        self._begun = {0: (np.zeros(self._lengths.size, np.int64), self._readings(0))}
        self._plans: dict[tuple[int, bool], _Plan] = {}
        self._epochs: dict[tuple[int, int], _WholeEpoch] = {}
        for number, chapter in enumerate(chapters):
            if not self._readings(number).any():
                raise ValueError(
                    f"data.sources.{name}: none of its documents is in a bucket of data.length_buckets with a weight "
                    f"above 0 (weights {list(chapter.lengths)}); weigh its lengths, or give the source weight 0"
                )

    def row(
        self,
        position: int,
        tokens: Ints,
        labels: Ints,
        documents: NDArray[np.int32],
        mask: NDArray[np.float32],
        document_mask: bool,
    ) -> None:
        """Fill one row [row tokens] of each array; padding is a document of its own, with token 0 and weight 0."""
        tokens[:], labels[:], mask[:] = 0, 0, 0
        begin, length = 0, tokens.size
        pieces = self._pieces(position, length)
        for number, (document, first, span) in enumerate(pieces):
            read = self._reader.document(document)[first : first + span + 1]
            end = begin + span
            tokens[begin:end], documents[begin:end] = read[:span], number if document_mask else 0
            predicted = read.size - 1
            labels[begin : begin + predicted], mask[begin : begin + predicted] = read[1:], 1
            if begin:  # the end of the document before
                labels[begin - 1], mask[begin - 1] = read[0], 0 if document_mask else 1
            begin = end
        documents[begin:] = len(pieces) if document_mask else 0

    def spans(self, position: int, row_tokens: int) -> tuple[Ints, Ints]:
        """(length of every document that the row holds a piece of, tokens of each piece); padding is left out."""
        number, epoch, row = self._place(position, row_tokens)
        plan, filled = self._plan(number, epoch), self._epoch(number, epoch)
        kinds = filled.kinds[filled.begins[row] : filled.begins[row + 1]]
        return self._lengths[plan.length_of[kinds]], plan.span_of[kinds]

    def prepare(self, positions: Ints, row_tokens: int) -> None:
        """Plan for rows at these positions [n] of one chapter, whoever reads them."""
        number, begin, _ = self._place(int(positions.min()), row_tokens)
        _, end, _ = self._place(int(positions.max()), row_tokens)
        for epoch in range(begin, end + 1):
            self._epoch(number, epoch)

    def held(self) -> set[str]:
        """The files that this process holds, whether a row of late stood in them or not."""
        with self._lock:
            of = [("documents",), *(("chapter", number) for number in self._begun)]
            of += [("plan", *key) for key in self._plans] + [("epoch", *key) for key in self._epochs]
            return {self._files[one] for one in of if one in self._files}

    def _made(self, what: tuple[object, ...], depends: object, make: Callable[[], Arrays]) -> Arrays:
        """What `make` returns, kept where this source has plans; it depends on the data, the seed, and `depends`."""
        if self._kept is None:
            return make()
        data = [self._key, len(self._reader), self._reader.tokens.size]
        self._files[what], found = self._kept.arrays(str(what[0]), [data, depends], make)
        return found

    def _pieces(self, position: int, row_tokens: int) -> list[tuple[int, int, int]]:
        """(document, its first token in the row, tokens) of every piece, in the order of the row."""
        number, epoch, row = self._place(position, row_tokens)
        plan, filled = self._plan(number, epoch), self._epoch(number, epoch)
        before, pieces = self._before(number, epoch), []
        places = np.arange(filled.begins[row], filled.begins[row + 1])
        # In the order in which they were fitted, a row would always begin with its longest document.
        for at in places[permutation(f"{self._key}/{position}/row", places.size)]:
            kind = filled.kinds[at]
            index = plan.length_of[kind]
            read = int(before[index]) + int(filled.ranks[at])
            cycle, place = divmod(read, int(self._counts[index]))
            seed = f"{self._key}/{self._lengths[index]}/{cycle}"
            document = self._documents[self._firsts[index] + permuted(place, int(self._counts[index]), seed)]
            pieces.append((int(document), int(plan.piece_of[kind]) * row_tokens, int(plan.span_of[kind])))
        return pieces

    def _place(self, position: int, row_tokens: int) -> tuple[int, int, int]:
        """(chapter, epoch within it, row of the epoch) of a position."""
        number = bisect.bisect_right(self._cursors, position) - 1
        assert self._chapters[number].sequence_length == row_tokens, (position, row_tokens, number)
        return number, *self._after_rows(number, (position - self._cursors[number]) // row_tokens)

    def _after_rows(self, number: int, rows: int) -> tuple[int, int]:
        """(epoch, row of it) after so many rows of a chapter."""
        first = self._plan(number, 0).bins.rows
        if rows < first:
            return 0, rows
        epoch, row = divmod(rows - first, self._plan(number, 1).bins.rows)
        return epoch + 1, row

    def _readings(self, number: int) -> Ints:
        """Places of each distinct length in an epoch of a chapter: its documents, times the weight of their bucket.

        The smallest weight counts as 1. Fractions are carried from length to length, so that buckets have their share.
        """
        weights = np.array(self._chapters[number].lengths)
        if not weights.size:
            return self._counts
        weights = weights / weights[weights > 0].min()
        bucket = np.searchsorted(self._edges, self._lengths, side="right") - 1
        readings = np.zeros_like(self._counts)
        for index, weight in enumerate(weights):
            inside = bucket == index
            exact = np.floor(np.cumsum(self._counts[inside]) * weight + 1e-6).astype(np.int64)
            readings[inside] = np.diff(exact, prepend=0)
        return readings

    def _plan(self, number: int, epoch: int) -> _Plan:
        """The plan of an epoch: all after the first of a chapter are alike."""
        with self._lock:
            key = number, epoch == 0
            if key not in self._plans:
                for old in [old for old in self._plans if old[0] < number - 1]:
                    del self._plans[old]
                whole = self._readings(number)
                readings = self._started(number)[1] if epoch == 0 else whole
                other = self._plans.get((number, epoch != 0))
                same = other is not None and np.array_equal(other.readings, readings)
                self._plans[key] = other if other is not None and same else self._planned(*key, readings)
            return self._plans[key]

    def _planned(self, number: int, first: bool, readings: Ints) -> _Plan:
        row_tokens = self._chapters[number].sequence_length
        depends = [row_tokens, hashlib.sha256(readings.tobytes()).hexdigest()]
        made = self._made(("plan", number, first), depends, lambda: self._filled(row_tokens, readings))
        bins = Bins(made["begins"], made["items"])
        return _Plan(made["length_of"], made["piece_of"], made["span_of"], readings, bins)

    def _filled(self, row_tokens: int, readings: Ints) -> Arrays:
        pieces = np.where(readings > 0, -(-self._lengths // row_tokens), 0)
        length_of = np.repeat(np.arange(self._lengths.size), pieces)
        piece_of = np.arange(length_of.size) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        span_of = np.minimum(row_tokens, self._lengths[length_of] - piece_of * row_tokens)
        bins = fill(span_of, readings[length_of], row_tokens)
        return {"length_of": length_of, "piece_of": piece_of, "span_of": span_of} | vars(bins)

    def _epoch(self, number: int, epoch: int) -> _WholeEpoch:
        with self._lock:
            if (number, epoch) not in self._epochs:
                while len(self._epochs) > 1:
                    del self._epochs[min(self._epochs)]
                depends = [*self._until(number), epoch]
                made = self._made(("epoch", number, epoch), depends, lambda: self._ordered(number, epoch))
                self._epochs[number, epoch] = _WholeEpoch(**made)
            return self._epochs[number, epoch]

    def _until(self, number: int) -> list[object]:
        """All that the plan of a chapter depends on beside the data: the chapters up to it."""
        given = zip(self._chapters[: number + 1], self._cursors)
        return [[*self._edges], *([part.sequence_length, part.lengths, cursor] for part, cursor in given)]

    def _ordered(self, number: int, epoch: int) -> Arrays:
        bins = self._plan(number, epoch).bins
        order = permutation(f"{self._key}/{self._cursors[number]}/{epoch}/rows", bins.rows)
        sizes = np.diff(bins.begins)[order]
        begins = np.zeros(bins.rows + 1, np.int64)
        np.cumsum(sizes, out=begins[1:])
        kinds = bins.items[np.repeat(bins.begins[order] - begins[:-1], sizes) + np.arange(bins.items.size)]
        sorted_by_kind = np.argsort(kinds, kind="stable")
        firsts = np.cumsum(np.bincount(kinds)) - np.bincount(kinds)
        ranks = np.empty(kinds.size, np.int32)
        ranks[sorted_by_kind] = np.arange(kinds.size) - np.repeat(firsts, np.bincount(kinds))
        return {"begins": begins, "kinds": kinds, "ranks": ranks}

    def _before(self, number: int, epoch: int) -> Ints:
        """Documents read of each length before an epoch of a chapter, since the beginning of training."""
        begun, left = self._started(number)
        return begun + left + (epoch - 1) * self._readings(number) if epoch else begun

    def _started(self, number: int) -> tuple[Ints, Ints]:
        """Documents read of each length before a chapter, and places left of the epoch that was under way."""
        with self._lock:
            if number not in self._begun:
                made = self._made(("chapter", number), self._until(number), lambda: self._ended(number - 1))
                self._begun[number] = made["read"], made["left"]
            return self._begun[number]

    def _ended(self, number: int) -> Arrays:
        """What `_started` says of the next chapter. Split documents that were begun count as read, and begin anew."""
        row_tokens, following = (self._chapters[n].sequence_length for n in (number, number + 1))
        rows = (self._cursors[number + 1] - self._cursors[number]) // row_tokens
        before, left = self._started(number)
        read = np.zeros_like(left)
        if rows:
            epoch, row = self._after_rows(number, rows)
            plan, filled = self._plan(number, epoch), self._epoch(number, epoch)
            np.maximum.at(
                read, plan.length_of, np.bincount(filled.kinds[: filled.begins[row]], minlength=plan.length_of.size)
            )
            before, left = self._before(number, epoch), plan.readings - read
        old, new = self._readings(number), self._readings(number + 1)
        left = np.where(old > 0, np.rint(left * (new / np.maximum(old, 1))), new).astype(np.int64)
        split = (self._lengths > min(row_tokens, following)) & (read > 0)
        after = before + read
        turns = -(-after // self._counts) * self._counts
        return {"read": np.where(split, turns, after), "left": np.where(split, new, left)}


def _by_length(reader: IndexedReader) -> Arrays:
    """Documents that are not empty, by length, the distinct lengths, and where each begins."""
    lengths = reader.lengths()
    documents = np.argsort(lengths, kind="stable")
    documents = documents[int(np.searchsorted(lengths[documents], 1)) :]
    distinct, firsts = np.unique(lengths[documents], return_index=True)
    return {"documents": documents, "lengths": distinct, "firsts": np.append(firsts, documents.size)}
