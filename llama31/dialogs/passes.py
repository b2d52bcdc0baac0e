"""Which pieces stand in which row: arithmetic over (seed, pass, row), no state to save.

A pass visits every source as often as its `epochs` say: 2 gives each example twice, 0.3 three tenths of them, another
draw in each pass. Its examples are packed whole, the longest first, each into the fullest row that has room, and the
rows are shuffled. Rows are numbered through all passes.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama31.data.stream import permutation

Rows = list[NDArray[np.int64]]


def best_fit(lengths: NDArray[Any], capacity: int) -> Rows:
    """Indices of each row. All `lengths` [n] are at most `capacity`; those alike are taken in the order given."""
    room: dict[int, list[int]] = {}  # rows by what is left of them
    free: list[int] = []  # the keys of `room`, sorted
    rows: list[list[int]] = []
    for index in np.argsort(-lengths, kind="stable"):
        length = int(lengths[index])
        place = bisect.bisect_left(free, length)
        if place == len(free):
            row, left = len(rows), capacity
            rows.append([])
        else:
            left = free[place]
            row = room[left].pop()
            if not room[left]:
                del room[left], free[place]
        rows[row].append(int(index))
        left -= length
        if left not in room:
            room[left] = []
            bisect.insort(free, left)
        room[left].append(row)
    return [np.array(row, np.int64) for row in rows]


class PassPlan:
    """Rows of `capacity` places out of sources' examples, which are numbered through in the order of the names.

    `lengths`: places of each example by source, 0 for one that is left out; `epochs` by source. Raises ValueError (key
    `data.sources`) where nothing fits.
    """

    def __init__(
        self, lengths: Mapping[str, NDArray[Any]], epochs: Mapping[str, float], capacity: int, seed: int
    ) -> None:
        self.names = sorted(lengths)
        sizes = [len(lengths[name]) for name in self.names]
        self.firsts = np.cumsum([0, *sizes])
        self.lengths = np.concatenate([np.asarray(lengths[name], np.int64) for name in self.names])
        self._epochs, self._capacity, self._seed = epochs, capacity, seed
        self.too_long = int((self.lengths > capacity).sum())
        self._fits = (self.lengths > 0) & (self.lengths <= capacity)
        if not any(epochs[name] > 0 and self._of(name).size for name in self.names):
            if not self.too_long:
                raise ValueError(f"data.sources: no example to learn from in {', '.join(self.names)}; give other data")
            raise ValueError(
                f"data.sources: no example fits into a row of schedule.sequence_length={capacity} "
                f"({self.too_long} are longer); give longer rows, or other data"
            )
        self._begins = [0]  # first row of each pass that is known, and of the next one
        self._passes: dict[int, Rows] = {}
        self._lock = threading.Lock()  # the prefetcher and its owner may ask at once

    def row(self, number: int) -> tuple[int, NDArray[np.int64]]:
        """(pass, examples) of a row."""
        with self._lock:
            while self._begins[-1] <= number:
                self._begins.append(self._begins[-1] + len(self._rows(len(self._begins) - 1)))
            which = bisect.bisect_right(self._begins, number) - 1
            return which, self._rows(which)[number - self._begins[which]]

    def once(self) -> Rows:
        """Every example that fits in exactly one row, whatever the epochs."""
        chosen = np.nonzero(self._fits)[0]
        return [chosen[row] for row in best_fit(self.lengths[chosen], self._capacity)]

    def _of(self, name: str) -> NDArray[np.int64]:
        place = self.names.index(name)
        begin, end = self.firsts[place], self.firsts[place + 1]
        return begin + np.nonzero(self._fits[begin:end])[0]

    def _rows(self, which: int) -> Rows:
        if which not in self._passes:
            for old in [number for number in self._passes if number < which - 1]:
                del self._passes[old]
            self._passes[which] = self._packed(which)
        return self._passes[which]

    def _packed(self, which: int) -> Rows:
        drawn: list[NDArray[np.int64]] = []
        for name in self.names:
            given, (whole, rest) = self._of(name), divmod(self._epochs[name], 1)
            drawn += [given] * int(whole)
            drawn.append(given[permutation(f"{self._seed}/{which}/{name}", len(given))[: round(rest * len(given))]])
        chosen = np.concatenate(drawn)
        if not chosen.size:  # shares so small that none is due: one, rather than a pass without rows
            chosen = np.concatenate([self._of(name) for name in self.names if self._epochs[name] > 0])[:1]
        chosen = chosen[permutation(f"{self._seed}/{which}/examples", len(chosen))]
        rows = best_fit(self.lengths[chosen], self._capacity)
        return [chosen[rows[row]] for row in permutation(f"{self._seed}/{which}/rows", len(rows))]


def fill(rows: Sequence[NDArray[np.int64]], lengths: NDArray[Any], capacity: int) -> float:
    """Share of the places of `rows` that hold something."""
    return float(sum(lengths[row].sum() for row in rows)) / max(1, len(rows) * capacity)
