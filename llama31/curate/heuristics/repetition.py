"""Gopher's rules on repetition within a document (Rae et al. 2021, table A1), fast.

Verdicts and reasons are those of datatrove's GopherRepetitionFilter, given the same words. n-grams are counted by their
hashes (`spans`), and what costs more is left out where a bound that costs less is within the limit already.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.disk_base import DiskWriter

from llama31.curate import spans
from llama31.curate.heuristics import languages

Verdict = bool | tuple[bool, str]
MULTIPLIER = np.uint64(0xD6E8FEB86659FD93)  # odd; apart from BASE, so that a pair is no longer word
PADDING = np.random.default_rng(0).integers(0, 1 << 64, 1 << 10, np.uint64)


@dataclass(frozen=True)
class RepetitionLimits:
    """Limits of one language; None and () leave a rule out. The defaults are table A1 of Rae et al. 2021.

    Shares of lines and paragraphs that stood before, of them all and of the text's characters; (n, share) of the
    characters in the most frequent n-gram, and of those in n-grams that stood before.
    """

    lines: float | None = 0.3
    paragraphs: float | None = 0.3
    line_characters: float | None = 0.2
    paragraph_characters: float | None = 0.2
    top: tuple[tuple[int, float], ...] = ((2, 0.2), (3, 0.18), (4, 0.16))
    duplicates: tuple[tuple[int, float], ...] = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))
    separator: str = " "


class RepetitionFilter(BaseFilter):
    """Drops documents that repeat lines, paragraphs or n-grams, by the first rule that is broken.

    Args:
        limits: limits for English, and for languages that `by_language` does not name.
        by_language: what differs for a language, ISO 639-1, as keys of RepetitionLimits. None takes
            `languages.REPETITION` (ours: longer n-grams where a word is a character), {} the same limits for all.
        exclusion_writer: where what is dropped is written.
    """

    name = "Gopher repetition"

    def __init__(
        self,
        limits: RepetitionLimits | None = None,
        by_language: Mapping[str, Mapping[str, Any]] | None = None,
        exclusion_writer: DiskWriter | None = None,
    ) -> None:
        super().__init__(exclusion_writer)
        differing = languages.REPETITION if by_language is None else by_language
        self.limits = languages.ByLanguage(RepetitionLimits() if limits is None else limits, differing)

    def filter(self, document: Document) -> Verdict:
        """True, or False and the reason."""
        language = document.metadata.get("language") or ""
        return repetition(document.text, language, self.limits.of(language))


def repetition(text: str, language: str, limits: RepetitionLimits) -> Verdict:
    """True, or False and the first rule that a text breaks."""
    if not text:
        return False, "empty"
    reason = _lines(text, limits) or _ngrams(spans.of(text, language), len(text), limits)
    return (False, reason) if reason else True


def _lines(text: str, limits: RepetitionLimits) -> str:
    stripped = text.strip()
    every = lines(text)
    # Paragraphs are made of lines: where no line stands twice, no paragraph does.
    if len(stripped) == len(text) and len(set(every)) == len(every):
        return ""
    reason = _pieces(paragraphs(stripped), len(text), limits.paragraphs, limits.paragraph_characters, "para")
    return reason or _pieces(every, len(text), limits.lines, limits.line_characters, "line")


def paragraphs(text: str) -> list[str]:
    r"""`re.split(r"\n{2,}", text)` of a text without white space at its ends, at a third of its time."""
    return [piece.lstrip("\n") for piece in text.split("\n\n") if piece]


def lines(text: str) -> list[str]:
    r"""`re.split(r"\n+", text)` likewise: line feeds at either end leave an empty line."""
    pieces = [piece for piece in text.split("\n") if piece]
    return [*[""][: text.startswith("\n")], *pieces, *[""][: text.endswith("\n")]]


def _pieces(pieces: list[str], length: int, share: float | None, characters: float | None, name: str) -> str:
    if len(set(pieces)) == len(pieces):
        return ""
    seen: set[str] = set()
    again = []
    for piece in pieces:
        if piece in seen:
            again.append(len(piece))
        else:
            seen.add(piece)
    if share and len(again) / len(pieces) > share:
        return f"dup_{name}_frac"
    return f"dup_{name}_char_frac" if characters and sum(again) / length > characters else ""


def _ngrams(found: spans.Spans, length: int, limits: RepetitionLimits) -> str:
    # A share at its very limit is left to the numbers themselves.
    short = length * (1 - 1e-9)
    reason = _most_frequent(found, length, short, limits)
    if reason or not limits.duplicates:
        return reason
    for (n, share), most in zip(limits.duplicates, most_repeated(found, [n for n, _ in limits.duplicates])):
        if most > share * short and Repeats(found, n).characters() / length > share:
            return f"duplicated_{n}_n_grams"
    return ""


def _most_frequent(found: spans.Spans, length: int, short: float, limits: RepetitionLimits) -> str:
    if not limits.top or not len(found):
        return ""
    # The most frequent n-gram stands no more often than that of the least n.
    least = min(n for n, _ in limits.top)
    ordered = np.sort(grams(found.hashes, least))
    for n, share in limits.top:
        wide = found.longest(n) + (n - 1) * len(limits.separator)
        times = int(share * short / wide) if wide else len(ordered)
        if not _more_than(ordered, times):
            continue
        if n != least and not _more_than(np.sort(grams(found.hashes, n)), times):
            continue
        if most_frequent(found, n, limits.separator) / length > share:
            return f"top_{n}_gram"
    return ""


def _more_than(ordered: spans.Hashes, times: int) -> bool:
    """Whether one of sorted values stands more often than so many times."""
    return times < len(ordered) and bool((ordered[times:] == ordered[: len(ordered) - times]).any())


def grams(hashes: spans.Hashes, n: int) -> spans.Hashes:
    """Hashes of n-grams, the same where each word is, [words - n + 1, or 0]."""
    count = max(0, len(hashes) - n + 1)
    result = np.zeros(count, np.uint64)
    for i in range(n):
        result *= MULTIPLIER
        result += hashes[i : i + count]
    return result


def most_frequent(found: spans.Spans, n: int, separator: str = " ") -> int:
    """Characters of the most frequent n-gram, the first of several, as often as it stands; 0 without any."""
    if len(found) < n:
        return 0
    values = grams(found.hashes, n)
    ordered = np.sort(values)
    ends = np.flatnonzero(ordered[1:] != ordered[:-1])
    counts = np.diff(ends, prepend=-1, append=len(ordered) - 1)
    most = int(counts.max())
    frequent = ordered[np.append(ends, len(ordered) - 1)[counts == most]]
    at = int((values == frequent[0]).argmax() if len(frequent) == 1 else np.isin(values, frequent).argmax())
    return most * (int(found.starts[at + n] - found.starts[at]) + (n - 1) * len(separator))


def most_repeated(found: spans.Spans, lengths: list[int]) -> list[int]:
    """Numbers that `Repeats(found, n).characters()` does not exceed, for each n: all words of runs that stood before.

    One sort of each n gives values and places, for the place stands in the low bits of the value. That values of the
    same upper bits are equal is an accident of about words^3 / 2^64, which makes a number larger and no verdict.
    """
    count, (sums, inverses) = len(found), found.sums
    # Behind the end stand sums of no text, so that all n have as many runs.
    padded = np.concatenate([sums, PADDING[: max(lengths)]])
    runs = np.stack([padded[n : n + count] for n in lengths])
    runs -= sums[:-1]
    runs *= inverses[:-1] * MULTIPLIER  # so that what differs in its low bits does in the upper ones
    bits = count.bit_length()
    low = np.uint64((1 << bits) - 1)
    runs &= ~low
    runs |= np.arange(count, dtype=np.uint64)
    runs.sort(axis=1)
    upper = runs >> np.uint64(bits)
    same = upper[:, 1:] == upper[:, :-1]
    if not same.any():
        return [0] * len(lengths)
    rows, columns = np.nonzero(same)
    places = (runs[rows, columns + 1] & low).astype(np.int64)
    marks = np.zeros((len(lengths), count + max(lengths) + 1), np.int32)
    marks[rows, places] += 1
    marks[rows, places + np.array(lengths)[rows]] -= 1
    inside = np.cumsum(marks[:, :count], axis=1) > 0
    most: list[int] = (inside * found.lengths).sum(axis=1).tolist()
    return most


def again(grams: spans.Hashes) -> tuple[spans.Ints, spans.Ints]:
    """Where n-grams begin that stood before, ascending, and where each stood first; both [repeats]."""
    ordered = np.sort(grams)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    # Of all those whose upper bits are a repeated one's: few others, and the order of few is quickly found.
    marks = np.zeros(1 << 16, np.bool_)
    marks[twice >> 48] = True
    candidates = np.flatnonzero(marks[grams >> 48])
    order = np.argsort(grams[candidates], kind="stable")
    ordered, places = grams[candidates][order], candidates[order]
    new = np.ones(len(order), np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=new[1:])
    firsts = places[np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))]
    by_place = np.argsort(places[~new], kind="stable")
    return places[~new][by_place], firsts[~new][by_place]


def covered(positions: spans.Ints, n: int, count: int) -> npt.NDArray[np.bool_]:
    """Which of `count` words lie in an n-gram that begins at one of the positions, [count]."""
    marks = np.zeros(count + 1, np.int64)
    marks[positions] += 1
    marks[positions + n] -= 1
    result: npt.NDArray[np.bool_] = np.cumsum(marks[:-1]) > 0
    return result


class Repeats:
    """Runs of n words that stood before, the same where their words set one after the other are, as in datatrove."""

    def __init__(self, found: spans.Spans, n: int) -> None:
        self.found, self.n = found, n
        self.positions, self.firsts = again(found.runs(n))

    def characters(self) -> int:
        """Characters in runs that stood before, each counted once: after one the next run begins behind it.

        Rae et al. 2021 say no more than that overlapping runs are not counted twice; this is datatrove's count, in
        which a run that was passed over has not stood.
        """
        starts, n = self.found.starts, self.n
        widths = starts[self.positions + n] - starts[self.positions]
        visited = bytearray(b"\1" * len(self.found))
        seen: set[int] = set()
        result = 0
        for at, first, width in zip(self.positions.tolist(), self.firsts.tolist(), widths.tolist()):
            if not visited[at]:
                continue
            if visited[first] or first in seen:
                result += width
                visited[at + 1 : at + n] = bytes(n - 1)
            else:
                seen.add(first)
        return result
