"""The numbers of a text, whatever notation its language has: 1,234.5, 1.234,5 and 1 234,5 have the same digits."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

_GROUPED = re.compile(r"(?<!\d)\d{1,3}(?:(?:\{,\}|\\,|[ .,'’\u00a0\u202f\u2009])\d{3})+(?!\d)")  # noqa: RUF001
_INDIAN = re.compile(r"(?<!\d)\d{1,2}(?:,\d{2})+,\d{3}(?!\d)")
_RUN = re.compile(r"\d+")


def ascii_digits(text: str) -> str:
    """A text whose digits of other scripts, as Thai's, are ASCII's."""
    if text.isascii():
        return text
    return "".join(str(unicodedata.decimal(char)) if char.isdecimal() else char for char in text)


def runs(text: str) -> Counter[str]:
    """Runs of digits by how often they stand there; what groups three digits is taken out, any other mark divides.

    So 3.14 and 3,14 are 3 and 14. A decimal of three digits is not told from thousands; final answers are compared by
    value elsewhere.
    """
    plain = ascii_digits(text)
    for pattern in (_INDIAN, _GROUPED):
        plain = pattern.sub(lambda match: re.sub(r"\D", "", match[0]), plain)
    return Counter(_RUN.findall(plain))


def differences(one: str, other: str) -> tuple[list[str], list[str]]:
    """Numbers of the first text that the second lacks, and those that it has beyond them, each in order."""
    before, after = runs(one), runs(other)
    return sorted((before - after).elements()), sorted((after - before).elements())
