"""Which lengths share a row: best fit, the longest first, over a whole source at once.

Documents of equal length are interchangeable here, so the work grows with the number of distinct lengths, of which
there are at most as many as tokens in a row, and not with the number of documents. Filling rows by best fit from the
longest down leaves almost no room where there are short documents too (Ding et al. 2024, "Fewer Truncations Improve
Language Modeling", arXiv:2404.10830).
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Bins:
    """Rows and what stands in each: `items[begins[r] : begins[r + 1]]` are the kinds of the pieces in row r."""

    begins: NDArray[np.int64]  # [rows + 1]
    items: NDArray[np.int32]  # [pieces], index of a kind

    @property
    def rows(self) -> int:
        return self.begins.size - 1


def fill(spans: NDArray[np.int64], counts: NDArray[np.int64], row_tokens: int) -> Bins:
    """Rows of `row_tokens` that hold `counts[k]` pieces of `spans[k]` tokens (1 to row_tokens) for every kind k.

    Each piece goes to the row with the least room that takes it, longer pieces first; deterministic.
    """
    assert spans.size == counts.size and (not spans.size or 1 <= spans.min() <= spans.max() <= row_tokens)
    order = np.argsort(-spans, kind="stable")
    distinct, firsts = np.unique(-spans[order], return_index=True)
    totals = np.add.reduceat(counts[order], firsts) if spans.size else counts
    taken, rows = _place((-distinct).tolist(), totals.tolist(), row_tokens)
    in_rows = np.argsort(taken, kind="stable")  # longer pieces were placed first, so they stand first
    begins = np.zeros(rows + 1, np.int64)
    np.cumsum(np.bincount(taken, minlength=rows), out=begins[1:])
    return Bins(begins, np.repeat(order, counts[order]).astype(np.int32)[in_rows])


def _place(spans: list[int], counts: list[int], row_tokens: int) -> tuple[NDArray[np.int64], int]:
    """(row of every piece, in the order of `spans`; number of rows). Rows with equal room are filled together."""
    placed: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    by_room: dict[int, list[NDArray[np.int64]]] = {}  # room left -> rows that have it
    rooms: list[int] = []  # the keys, in order
    rows = 0
    for span, count in zip(spans, counts):
        while count:
            at = bisect.bisect_left(rooms, span)
            room = rooms[at] if at < len(rooms) else row_tokens
            each = room // span  # once opened, a row is the best fit for the next piece of the same span too
            if at < len(rooms):
                rows_left = by_room[room].pop()
                if not by_room[room]:
                    del by_room[room], rooms[at]
            else:
                rows_left = np.arange(rows, rows + -(-count // each))
                rows += rows_left.size
            full, rest = divmod(min(count, rows_left.size * each), each)
            count -= full * each + rest
            placed.append(np.repeat(rows_left[:full], each))
            _keep(by_room, rooms, room - each * span, rows_left[:full])
            if rest:
                placed.append(np.repeat(rows_left[full : full + 1], rest))
                _keep(by_room, rooms, room - rest * span, rows_left[full : full + 1])
            _keep(by_room, rooms, room, rows_left[full + bool(rest) :])
    return np.concatenate(placed), rows


def _keep(by_room: dict[int, list[NDArray[np.int64]]], rooms: list[int], room: int, rows: NDArray[np.int64]) -> None:
    if not rows.size or not room:
        return
    if room not in by_room:
        by_room[room] = []
        bisect.insort(rooms, room)
    by_room[room].append(rows)
