"""Whether a text says only what its sources say, as far as a program can tell: quotations, figures and names."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

SHORTEST_QUOTE = 20  # characters: below, a quotation stands in any text
_FIGURE = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?", re.IGNORECASE)
_LISTED = re.compile(r"^\s*\d+[.)]\s", re.MULTILINE)  # the number of a list's entry says nothing
_NAME = re.compile(r"(?<=[\w,;] )[A-Z][a-z]+")  # not the first word of a sentence
_ALIKE = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "\u00a0": " "})  # noqa: RUF001


def plain(text: str) -> str:
    """The text for comparing: one space for white space, one kind of quotation mark and dash, no case."""
    return re.sub(r"\s+", " ", text.translate(_ALIKE)).strip().casefold()


def misquoted(quotes: Iterable[str], source: str) -> list[str]:
    """The quotations that do not stand in the source letter by letter, or are too short to tell anything."""
    inside = plain(source)
    return [one for one in quotes if len(plain(one)) < SHORTEST_QUOTE or plain(one) not in inside]


def figures(text: str) -> list[str]:
    """The numbers of a text in their order, without the commas of thousands; numbers of a list's entries apart."""
    return [one.replace(",", "").rstrip(".") for one in _FIGURE.findall(_LISTED.sub("", text))]


def names(text: str) -> list[str]:
    """Words with a capital inside of a sentence: names, in languages where no other words have one."""
    return _NAME.findall(text)


def strange(text: str, sources: Sequence[str]) -> list[str]:
    """Figures and names of a text that stand in none of its sources."""
    known = {one for source in sources for one in figures(source)}
    inside = {word for source in sources for word in re.findall(r"\w+", plain(source))}
    new = [one for one in figures(text) if one not in known]
    return new + [one for one in names(text) if plain(one) not in inside]


def unsupported(text: str, sources: Sequence[str]) -> list[str]:
    """Figures of a text that no figure of its sources is, be it rounded or as a percentage."""
    known = [float(one) for source in sources for one in figures(source)]
    return [one for one in figures(text) if not any(_rounds(value, one) for value in known)]


def _rounds(value: float, said: str) -> bool:
    mantissa = said.lower().partition("e")[0]
    decimals = len(mantissa.partition(".")[2])
    wanted = float(said)
    if not (math.isfinite(wanted) and math.isfinite(value)):
        return False
    return any(abs(round(shown, decimals) - wanted) <= 1e-9 * abs(wanted) for shown in (value, 100 * value))
