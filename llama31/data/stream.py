"""A packed source as an endless stream of tokens: its documents end to end, in a new seeded order each epoch.

Rows do not follow that stream from document to document: a long document would fill one batch after another with
itself, and training would learn each in turn instead of the whole. `scattered` cuts an epoch into slots, about as long
as a row, and visits them in an order of its own. What is left of an epoch after its last whole slot is not read; the
next epoch's order of documents leaves out something else.

No process holds anything for each document. An epoch orders blocks of 2,048 documents and, where it comes to a block,
the documents in it; where blocks begin is read from a file that packing wrote. So rows hold documents that were packed
near each other, in an order of their own in each epoch, and any row stands next to rows from anywhere.

An order is the ranks of raw counter-based random numbers: reproducible across numpy versions, which do not promise
that numpy's own permutations stay.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llama31.tokens.indexed import BLOCK, IndexedReader

Ints = NDArray[np.int64]

_LOW = np.uint64(BLOCK - 1)
_PLACES = np.arange(BLOCK, dtype=np.uint64)
_STEPS = _PLACES * np.uint64(0x9E3779B97F4A7C15)
_MIXING = ((np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB)))
_KEPT_PARTS = 2048  # at most 100 MB: the rows of a batch come from anywhere, also from where one was before


@dataclass(frozen=True)
class _OrderedBlock:
    """Documents that follow each other in an epoch: where they stand in the file, and in the epoch."""

    places: Ints  # [documents], the first token of each in the file
    lengths: Ints  # [documents]
    begins: Ints  # [documents], in tokens of the epoch


@dataclass(frozen=True)
class _EpochOfBlocks:
    """Blocks in the order of one epoch, and the token of the epoch at which each begins."""

    order: NDArray[np.int32]  # [blocks]
    begins: Ints  # [blocks]


class Stream:
    """Random access to the stream of one source. Epochs are ordered by `key` and their number; key None: as packed.

    With `whole` an epoch orders all documents at once, as runs did that began before blocks: 32 bytes for each.
    """

    def __init__(self, reader: IndexedReader, key: str | None, whole: bool = False) -> None:
        self._reader, self._key = reader, key
        self._whole = whole or len(reader) <= BLOCK  # of one block, which makes no difference
        self._edges = np.array([0, reader.tokens.size]) if self._whole else reader.blocks()
        self._block = len(reader) if self._whole else BLOCK
        self.epoch_tokens = int(reader.tokens.size)
        self._epochs: dict[int, _EpochOfBlocks] = {}
        self._parts: dict[tuple[int, int], _OrderedBlock] = {}
        self._lock = threading.Lock()  # the prefetcher and its owner may ask at once

    def scattered(self, position: int, slot_tokens: int) -> tuple[int, int]:
        """Where in the stream the `position`-th token to be trained on stands, and how many follow it in its slot."""
        slot, offset = divmod(position, slot_tokens)
        epoch, index = divmod(slot, self.epoch_tokens // slot_tokens)
        place = permuted(index, self.epoch_tokens // slot_tokens, f"{self._key}/{epoch}/slots")
        return epoch * self.epoch_tokens + place * slot_tokens + offset, slot_tokens - offset

    def read(self, position: int, tokens: Ints, documents: NDArray[np.int32]) -> None:
        """Fill `tokens` [n] with the stream from `position`, and `documents` [n] with 0, 1, ... by document."""
        filled = document = 0
        for places, _, taken in self._pieces(position, tokens.size):
            for place, count in zip(places.tolist(), taken.tolist()):
                tokens[filled : filled + count] = self._reader.tokens[place : place + count]
                documents[filled : filled + count] = document
                document += 1
                filled += count

    def spans(self, position: int, count: int) -> tuple[Ints, Ints]:
        """(whole length, tokens read) of every document in the `count` tokens of the stream from `position`."""
        pieces = [(lengths, taken) for _, lengths, taken in self._pieces(position, count)]
        return np.concatenate([whole for whole, _ in pieces]), np.concatenate([taken for _, taken in pieces])

    def _pieces(self, position: int, count: int) -> Iterator[tuple[Ints, Ints, Ints]]:
        """(first token in the file, length of its document, tokens) of what stands in the stream, part by part.

        Empty documents, which other packers may write, are none.
        """
        end = position + count
        while position < end:
            number, offset = divmod(position, self.epoch_tokens)
            part = self._part(number, offset)
            stop = min(offset + end - position, int(part.begins[-1] + part.lengths[-1]))
            first = int(np.searchsorted(part.begins, offset, side="right")) - 1
            last = int(np.searchsorted(part.begins, stop, side="left"))
            places, lengths, begins = (x[first:last] for x in (part.places, part.lengths, part.begins))
            skipped = np.maximum(offset - begins, 0)
            taken = np.minimum(lengths, stop - begins) - skipped
            held = taken > 0
            yield (places + skipped)[held], lengths[held], taken[held]
            position += stop - offset

    def _part(self, number: int, offset: int) -> _OrderedBlock:
        """What holds token `offset` of an epoch."""
        with self._lock:
            if number not in self._epochs:
                for old in [n for n in self._epochs if n < number - 1]:
                    del self._epochs[old]
                self._epochs[number] = self._ordered(number)
            epoch = self._epochs[number]
            at = int(np.searchsorted(epoch.begins, offset, side="right")) - 1
            key = number, int(epoch.order[at])
            part = self._parts.pop(key, None) or self._opened(*key, int(epoch.begins[at]))
            self._parts[key] = part  # the newest stands last
            if len(self._parts) > (2 if self._whole else _KEPT_PARTS):
                del self._parts[next(iter(self._parts))]
            return part

    def _ordered(self, number: int) -> _EpochOfBlocks:
        """The blocks of an epoch. Blocks without a token may stand anywhere: `searchsorted` passes over them."""
        count = self._edges.size - 1
        order = np.arange(count) if self._key is None else permutation(f"{self._key}/{number}/blocks", count)
        tokens = np.diff(self._edges)[order]
        return _EpochOfBlocks(order.astype(np.int32), np.cumsum(tokens) - tokens)

    def _opened(self, number: int, block: int, begin: int) -> _OrderedBlock:
        """The documents of a block in the order of an epoch, in which it begins at token `begin`."""
        first = block * self._block
        edges = self._reader.edges(slice(first, min(first + self._block, len(self._reader)) + 1))
        places, lengths = edges[:-1], np.diff(edges)
        if self._key is not None:
            seed, count = f"{self._key}/{number}", lengths.size
            order = permutation(seed, count) if self._whole else shuffled(f"{seed}/{block}", count)
            places, lengths = places[order], lengths[order]
        return _OrderedBlock(places, lengths, begin + np.cumsum(lengths) - lengths)


class Scattered:
    """Rows cut from a stream: slots of `slot_tokens` in an order of their own, or parts of them."""

    def __init__(self, stream: Stream, slot_tokens: int) -> None:
        self._stream, self._slot_tokens = stream, slot_tokens

    def row(
        self,
        position: int,
        tokens: NDArray[np.int64],
        labels: NDArray[np.int64],
        documents: NDArray[np.int32],
        mask: NDArray[np.float32],
        document_mask: bool,
    ) -> None:
        """Fill one row [row tokens] of each array; after a change of length it may begin in one slot and end in
        another.
        """
        begin = document = 0
        while begin < tokens.size:
            place, left = self._stream.scattered(position + begin, self._slot_tokens)
            end = min(begin + left, tokens.size)
            read, numbers = np.empty(end - begin + 1, np.int64), np.empty(end - begin + 1, np.int32)
            self._stream.read(place, read, numbers)
            tokens[begin:end], labels[begin:end] = read[:-1], read[1:]
            documents[begin:end] = document + numbers[:-1]
            mask[begin:end] = numbers[1:] == numbers[:-1]
            begin, document = end, int(documents[end - 1]) + 1
        if not document_mask:
            documents[:], mask[:] = 0, 1

    def spans(self, position: int, row_tokens: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(length of every document that the row holds a piece of, tokens of each piece)."""
        parts, begin = [], 0
        while begin < row_tokens:
            place, left = self._stream.scattered(position + begin, self._slot_tokens)
            parts.append(self._stream.spans(place, min(left, row_tokens - begin)))
            begin += left
        return np.concatenate([lengths for lengths, _ in parts]), np.concatenate([spans for _, spans in parts])


def permuted(index: int, count: int, seed: str) -> int:
    """Image of `index` under a seeded permutation of range(count), without making the permutation.

    A Feistel network permutes the next power of 4; what falls outside is permuted again until it falls inside.
    """
    bits = max(1, ((count - 1).bit_length() + 1) // 2)
    keys = _keys(seed)
    while True:
        left, right = index >> bits, index & ((1 << bits) - 1)
        for key in keys:
            mixed = ((right ^ key) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
            mixed = ((mixed ^ (mixed >> 29)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
            left, right = right, left ^ ((mixed >> 32) & ((1 << bits) - 1))
        index = left << bits | right
        if index < count:
            return index


@functools.lru_cache(maxsize=4096)
def _keys(seed: str) -> tuple[int, ...]:
    digest = hashlib.sha256(seed.encode()).digest()
    return tuple(int.from_bytes(digest[i : i + 8], "little") for i in range(0, 32, 8))


def shuffled(seed: str, count: int) -> NDArray[np.int64]:
    """A seeded permutation of range(count) for a `count` of at most BLOCK: quicker than `permutation`, and another one.

    Places are sorted by what SplitMix64 (Steele et al. 2014) makes of them, of which the last bits give way to them.
    """
    begin = np.uint64(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "little"))
    mixed = _STEPS[:count] + begin
    for shift, factor in _MIXING:
        mixed ^= mixed >> shift
        mixed *= factor
    mixed &= ~_LOW
    mixed |= _PLACES[:count]
    mixed.sort()
    mixed &= _LOW
    return mixed.view(np.int64)


def permutation(seed: str, count: int) -> NDArray[np.int64]:
    """A seeded permutation of range(count)."""
    key = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:16], "little")
    return np.argsort(np.random.Philox(key=key).random_raw(count), kind="stable")
