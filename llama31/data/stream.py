"""A packed source as an endless stream of tokens: its documents end to end, in a new seeded order each epoch.

An order is the ranks of raw counter-based random numbers, one per document: reproducible across numpy versions, whose
`permutation` is not promised to stay.
"""

from __future__ import annotations

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


def _order(seed: str, count: int) -> NDArray[Any]:
    key = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:16], "little")
    return np.argsort(np.random.Philox(key=key).random_raw(count), kind="stable")
