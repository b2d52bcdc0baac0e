"""A packed source as an endless stream of tokens: its documents end to end, in a new seeded order each epoch.

Rows do not follow that stream from document to document: a long document would fill one batch after another with
itself, and training would learn each in turn instead of the whole. `scattered` cuts an epoch into slots, about as long
as a row, and visits them in an order of its own. What is left of an epoch after its last whole slot is not read; the
next epoch's order of documents leaves out something else.

An order is the ranks of raw counter-based random numbers, one per document: reproducible across numpy versions, which
do not promise that numpy's own permutations stay.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llama31.tokens.indexed import IndexedReader


@dataclass(frozen=True)
class _Epoch:
    """Documents in the order of one epoch, and the token of the epoch at which each begins."""

    order: NDArray[np.int64]  # [documents]
    begins: NDArray[np.int64]  # [documents]


class Stream:
    """Random access to the stream of one source. Epochs are ordered by `key` and their number; key None: as packed."""

    def __init__(self, reader: IndexedReader, key: str | None) -> None:
        self._reader, self._key = reader, key
        self.epoch_tokens = int(reader.lengths.sum())
        self._epochs: dict[int, _Epoch] = {}
        self._lock = threading.Lock()  # the prefetcher and its owner may ask at once

    def scattered(self, position: int, slot_tokens: int) -> tuple[int, int]:
        """Where in the stream the `position`-th token to be trained on stands, and how many follow it in its slot."""
        slot, offset = divmod(position, slot_tokens)
        epoch, index = divmod(slot, self.epoch_tokens // slot_tokens)
        place = permuted(index, self.epoch_tokens // slot_tokens, f"{self._key}/{epoch}/slots")
        return epoch * self.epoch_tokens + place * slot_tokens + offset, slot_tokens - offset

    def read(self, position: int, tokens: NDArray[np.int64], documents: NDArray[np.int32]) -> None:
        """Fill `tokens` [n] with the stream from `position`, and `documents` [n] with 0, 1, ... by document."""
        filled, document = 0, 0
        while filled < tokens.size:
            number, offset = divmod(position + filled, self.epoch_tokens)
            epoch = self._epoch(number)
            first = int(np.searchsorted(epoch.begins, offset, side="right")) - 1
            for i in range(first, epoch.order.size):
                piece = self._reader.document(int(epoch.order[i]))[max(0, offset - int(epoch.begins[i])) :]
                end = min(filled + piece.size, tokens.size)
                tokens[filled:end] = piece[: end - filled]
                documents[filled:end] = document
                document += int(end > filled)  # empty documents, which other packers may write, are none
                filled = end
                if filled == tokens.size:
                    return

    def spans(self, position: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(whole length, tokens read) of every document in the `count` tokens of the stream from `position`."""
        lengths, spans, end = [], [], position + count
        while position < end:
            number, offset = divmod(position, self.epoch_tokens)
            epoch, taken = self._epoch(number), min(end - position, self.epoch_tokens - offset)
            first = int(np.searchsorted(epoch.begins, offset, side="right")) - 1
            last = int(np.searchsorted(epoch.begins, offset + taken, side="left"))
            whole = self._reader.lengths[epoch.order[first:last]]
            begins = epoch.begins[first:last]
            held = np.minimum(begins + whole, offset + taken) - np.maximum(begins, offset)
            lengths.append(whole[held > 0])
            spans.append(held[held > 0])
            position += taken
        return np.concatenate(lengths), np.concatenate(spans)

    def _epoch(self, number: int) -> _Epoch:
        with self._lock:
            if number not in self._epochs:
                for old in [n for n in self._epochs if n < number - 1]:
                    del self._epochs[old]
                self._epochs[number] = self._ordered(number)
            return self._epochs[number]

    def _ordered(self, number: int) -> _Epoch:
        count = len(self._reader)
        order = np.arange(count) if self._key is None else permutation(f"{self._key}/{number}", count)
        lengths = self._reader.lengths[order]
        return _Epoch(order, np.cumsum(lengths) - lengths)


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


def permutation(seed: str, count: int) -> NDArray[np.int64]:
    """A seeded permutation of range(count)."""
    key = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:16], "little")
    return np.argsort(np.random.Philox(key=key).random_raw(count), kind="stable")
