"""Seconds of matrix products by their shape: tiles that fill the device in waves, and a lead for each sum. No torch."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

# Rows and columns of the tiles that cuBLAS takes on Hopper, with the rate of each relative to the largest.
TILES = ((128, 256, 1.0), (256, 128, 1.0), (192, 192, 0.98), (128, 128, 0.93))


class Rate(NamedTuple):
    """How fast products of one number format run."""

    flops: float  # per second, of large ones
    lead: float  # terms of the sum that starting and ending it cost
    multiprocessors: int  # 0: no waves are filled


@functools.lru_cache(maxsize=100_000)
def filled(rows: float, columns: float, multiprocessors: int) -> float:
    """Share of the device that the best tiles keep busy: the last wave is seldom full, nor the last tile."""
    best = 0.0 if multiprocessors else 1.0
    for height, width, rate in TILES if multiprocessors else ():
        tiles = math.ceil(rows / height) * math.ceil(columns / width)
        waves = math.ceil(tiles / multiprocessors)
        best = max(best, rate * rows * columns / (height * width * multiprocessors * waves))
    return best


def seconds(rows: float, columns: float, terms: float, rate: Rate) -> float:
    """Of a product [rows, terms] x [terms, columns]."""
    return 2 * rows * columns * (terms + rate.lead) / (rate.flops * filled(rows, columns, rate.multiprocessors))


def forward(tokens: float, linear: tuple[float, float], rate: Rate) -> float:
    """Of a linear layer (columns out, columns in) on `tokens`."""
    out, into = linear
    return seconds(tokens, out, into, rate)


def backward(tokens: float, linear: tuple[float, float], rate: Rate) -> float:
    """Of both gradients of a linear layer (columns out, columns in)."""
    out, into = linear
    return seconds(tokens, into, out, rate) + seconds(out, into, tokens, rate)
