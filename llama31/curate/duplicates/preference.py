"""Which of several documents that are the same stays."""

from __future__ import annotations

import math
import re
import struct
from typing import Literal, get_args

from datatrove.data import Document

from llama31.curate.reading.documents import iso

Keep = Literal["newest", "longest", "best"]
DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


def check(keep: str) -> None:
    """ValueError for what is no choice."""
    if keep not in get_args(Keep):
        raise ValueError(f"keep={keep!r} is none of {', '.join(get_args(Keep))}")


def preference(document: Document, keep: Keep, score_key: str) -> int:
    """A number of 64 bits; of documents that are the same the one with the largest stays.

    `newest` goes by metadata's date, `longest` by characters, `best` by the number under `score_key` in the metadata.
    0 for a document without a date or score: it stays only among others of its kind. Between equals the smaller
    `shards.identity` stays, whatever the order and the number of tasks.
    """
    if keep == "longest":
        return len(document.text)
    if keep == "newest":
        date = document.metadata.get("date")
        when = date if isinstance(date, str) and DATE.fullmatch(date) else iso(date)
        return int(re.sub(r"\D", "", when)) if when else 0
    score = document.metadata.get(score_key)
    if isinstance(score, bool) or not isinstance(score, int | float) or math.isnan(score):
        return 0
    # The order of floating-point numbers is that of their bits, backwards below zero.
    bits: int = struct.unpack("<Q", struct.pack("<d", score + 0.0))[0]
    return bits ^ ((1 << 64) - 1) if bits >> 63 else bits | 1 << 63
