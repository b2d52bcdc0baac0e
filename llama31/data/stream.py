"""A packed source as an endless stream of tokens: its documents end to end, in a new seeded order each epoch.

Rows do not follow that stream from document to document: a long document would fill one batch after another with
itself, and training would learn each in turn instead of the whole. `scattered` cuts an epoch into slots, about as long
as a row, and visits them in an order of its own. What is left of an epoch after its last whole slot is not read; the
next epoch's order of documents leaves out something else.

An order is the ranks of raw counter-based random numbers, one per document: reproducible across numpy versions, whose
`permutation` is not promised to stay.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama31.data.indexed import IndexedReader


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
        place = _permuted(index, self.epoch_tokens // slot_tokens, f"{self._key}/{epoch}/slots")
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

    def _epoch(self, number: int) -> _Epoch:
        with self._lock:
            if number not in self._epochs:
                for old in [n for n in self._epochs if n < number - 1]:
                    del self._epochs[old]
                self._epochs[number] = self._ordered(number)
            return self._epochs[number]

    def _ordered(self, number: int) -> _Epoch:
        count = len(self._reader)
        order = np.arange(count) if self._key is None else _order(f"{self._key}/{number}", count)
        lengths = self._reader.lengths[order]
        return _Epoch(order, np.cumsum(lengths) - lengths)


def _permuted(index: int, count: int, seed: str) -> int:
    """Image of `index` under a seeded permutation of range(count), without making the permutation.

    A Feistel network permutes the next power of 4; what falls outside is permuted again until it falls inside.
    """
    bits = max(1, ((count - 1).bit_length() + 1) // 2)
    keys = [int.from_bytes(part, "little") for part in np.split(_digest(seed), 4)]
    while True:
        left, right = index >> bits, index & ((1 << bits) - 1)
        for key in keys:
            mixed = ((right ^ key) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
            mixed = ((mixed ^ (mixed >> 29)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
            left, right = right, left ^ ((mixed >> 32) & ((1 << bits) - 1))
        index = left << bits | right
        if index < count:
            return index


@functools.lru_cache(maxsize=64)
def _digest(seed: str) -> NDArray[np.uint8]:
    return np.frombuffer(hashlib.sha256(seed.encode()).digest(), np.uint8)


def _order(seed: str, count: int) -> NDArray[Any]:
    key = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:16], "little")
    return np.argsort(np.random.Philox(key=key).random_raw(count), kind="stable")
