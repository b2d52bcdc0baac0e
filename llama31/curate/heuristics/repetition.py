"""Gopher's rules on repetition within a document (Rae et al. 2021, table A1), fast.

Verdicts and reasons are those of datatrove's GopherRepetitionFilter, given the same words. n-grams are counted by their
hashes (`spans`), and what costs more is left out where a bound that costs less is within the limit already.
"""

from __future__ import annotations

import math
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
SORTED = 400  # values of a row, up to which to sort them takes less time
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
    pieces = text.split("\n\n")
    return [piece.lstrip("\n") for piece in pieces if piece] if "\n\n\n" in text else pieces


def lines(text: str) -> list[str]:
    r"""`re.split(r"\n+", text)` likewise: line feeds at either end leave an empty line."""
    pieces = [piece for piece in text.split("\n") if piece]
    return [*[""][: text.startswith("\n")], *pieces, *[""][: text.endswith("\n")]]


def _pieces(pieces: list[str], length: int, share: float | None, characters: float | None, name: str) -> str:
    distinct = set(pieces)
    again = len(pieces) - len(distinct)
    if not again:
        return ""
    if share and again / len(pieces) > share:
        return f"dup_{name}_frac"
    if characters and (sum(map(len, pieces)) - sum(map(len, distinct))) / length > characters:
        return f"dup_{name}_char_frac"
    return ""


def _ngrams(found: spans.Spans, length: int, limits: RepetitionLimits) -> str:
    # A share at its very limit is left to the numbers themselves.
    short = length * (1 - 1e-9)
    reason = _most_frequent(found, length, short, limits)
    if reason or not limits.duplicates:
        return reason
    repeats = Repeats(found, [n for n, _ in limits.duplicates])
    for row, ((n, share), most) in enumerate(zip(limits.duplicates, repeats.most())):
        if most > share * short and repeats.characters(row, share * length * (1 + 1e-9)) / length > share:
            return f"duplicated_{n}_n_grams"
    return ""


def _most_frequent(found: spans.Spans, length: int, short: float, limits: RepetitionLimits) -> str:
    if not limits.top or not len(found):
        return ""
    # The most frequent n-gram stands no more often than that of the least n.
    least = min(n for n, _ in limits.top)
    most = _most(grams(found.hashes, least))
    for n, share in limits.top:
        wide = found.longest(n) + (n - 1) * len(limits.separator)
        times = int(share * short / wide) if wide else len(found)
        if most <= times or (n != least and _most(grams(found.hashes, n)) <= times):
            continue
        if most_frequent(found, n, limits.separator) / length > share:
            return f"top_{n}_gram"
    return ""


def _slots(values: spans.Hashes, count: int) -> tuple[spans.Ints, int]:
    """A number for each value, equal ones for equal values, mostly others for other ones of so many, and its bits."""
    bits = (4 * count).bit_length()
    # Multiplied, so that what differs in its low bits does in the upper ones.
    return (values * MULTIPLIER >> np.uint64(64 - bits)).view(np.int64), bits


def _most(values: spans.Hashes) -> int:
    """A number of times that no value stands more often than, seldom more than the most frequent one stands."""
    return int(np.bincount(_slots(values, len(values))[0]).max()) if len(values) else 0


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
    _, firsts = again(grams(found.hashes, n)[None])
    counts = np.bincount(firsts, minlength=1)
    at = int(counts.argmax())
    return (int(counts[at]) + 1) * (int(found.starts[at + n] - found.starts[at]) + (n - 1) * len(separator))


def again(values: spans.Hashes) -> tuple[spans.Ints, spans.Ints]:
    """Which values stood before in their row, ascending, and where each stood first; values [rows, count].

    Both are places of the flattened array, [repeats].
    """
    return (_by_order if values.shape[1] <= SORTED else _by_table)(values)


def _by_order(values: spans.Hashes) -> tuple[spans.Ints, spans.Ints]:
    """By sorting values with their places in the low bits: the upper ones are the same by an accident of 2^-55."""
    count = values.shape[1]
    low = np.uint64((1 << count.bit_length()) - 1)
    mixed = values * MULTIPLIER  # so that what differs in its low bits does in the upper ones
    mixed &= ~low
    mixed |= np.arange(count, dtype=np.uint64)
    mixed.sort(axis=1)
    rows, columns = np.nonzero((mixed[:, 1:] ^ mixed[:, :-1]) <= low)
    if not len(rows):
        return rows, rows
    chained = np.zeros(len(rows), np.bool_)
    chained[1:] = (columns[1:] == columns[:-1] + 1) & (rows[1:] == rows[:-1])
    begins = np.maximum.accumulate(np.where(chained, 0, np.arange(len(rows))))
    firsts = (mixed[rows, columns] & low).astype(np.int64)[begins] + rows * count
    places = (mixed[rows, columns + 1] & low).astype(np.int64) + rows * count
    order = np.argsort(places, kind="stable")
    return places[order], firsts[order]


def _by_table(values: spans.Hashes) -> tuple[spans.Ints, spans.Ints]:
    """By a table with a few places for each value; values that meet another there are sorted.

    To sort all takes longer, several times as long on AMD's processors with AVX-512.
    """
    flat, (rows, count) = values.ravel(), values.shape
    slots, bits = _slots(values, count)
    # Numbers of a row are less than those of the rows before, which may stay in the table.
    numbers = np.arange(rows * count, dtype=np.int32).reshape(rows, count)[::-1]
    table, found = np.full(1 << bits, rows * count, np.int32), np.empty((rows, count), np.int32)
    for row in range(rows):
        np.minimum.at(table, slots[row], numbers[row])
        found[row] = table[slots[row]]
    found -= numbers
    places = np.flatnonzero(found)
    firsts = places + found.ravel()[places]
    wrong = np.flatnonzero(flat[firsts] != flat[places])
    if not len(wrong):
        return places, firsts
    left = places[wrong]
    order = np.argsort(flat[left], kind="stable")  # of a value by rows, of a row by places
    left = left[order]
    new = np.ones(len(left), np.bool_)
    new[1:] = (flat[left[1:]] != flat[left[:-1]]) | (left[1:] // count != left[:-1] // count)
    firsts[wrong[order]] = left[np.maximum.accumulate(np.where(new, np.arange(len(left)), 0))]
    repeated = firsts != places
    return places[repeated], firsts[repeated]


def covered(positions: spans.Ints, n: int, count: int) -> npt.NDArray[np.bool_]:
    """Which of `count` words lie in an n-gram that begins at one of the positions, [count]."""
    marks = np.zeros(count + 1, np.int64)
    marks[positions] += 1
    marks[positions + n] -= 1
    result: npt.NDArray[np.bool_] = np.cumsum(marks[:-1]) > 0
    return result


class Repeats:
    """Runs of n words that stood before, the same where their words set one after the other are, as in datatrove.

    Args:
        found: the words.
        lengths: each n.
    """

    def __init__(self, found: spans.Spans, lengths: list[int]) -> None:
        self.found, self.lengths = found, lengths
        count, (sums, inverses) = len(found), found.sums
        # Behind the end stand sums of no text, so that all n have as many runs.
        padded = np.concatenate([sums, PADDING[: max(lengths)]])
        runs = np.stack([padded[n : n + count] for n in lengths])
        runs -= sums[:-1]
        runs *= inverses[:-1]
        self._places, self._firsts = again(runs)
        self._borders = np.searchsorted(self._places, np.arange(len(lengths) + 1) * count)

    def positions(self, row: int) -> tuple[spans.Ints, spans.Ints]:
        """Where runs of the n of a row begin that stood before, ascending, and where each stood first."""
        part, before = slice(self._borders[row], self._borders[row + 1]), row * len(self.found)
        return self._places[part] - before, self._firsts[part] - before

    def most(self) -> list[int]:
        """Numbers that `characters` does not exceed, for each n: of all words of runs that stood before."""
        if not len(self._places):
            return [0] * len(self.lengths)
        places, starts, rows = self._places, self.found.starts, np.diff(self._borders)
        ends = places + np.repeat(self.lengths, rows)
        np.minimum(ends[:-1], places[1:], out=ends[:-1])  # no run goes beyond its row
        before = np.repeat(np.arange(len(rows)) * len(self.found), rows)
        sums = np.zeros(len(places) + 1, np.int64)
        np.cumsum(starts[ends - before] - starts[places - before], out=sums[1:])
        most: list[int] = np.diff(sums[self._borders]).tolist()
        return most

    def characters(self, row: int, enough: float = math.inf) -> int:
        """Characters in runs that stood before, each counted once: after one the next run begins behind it.

        Rae et al. 2021 say no more than that overlapping runs are not counted twice; this is datatrove's count, in
        which a run that was passed over has not stood. More than `enough` are not counted to the end.
        """
        starts, n, (positions, firsts) = self.found.starts, self.lengths[row], self.positions(row)
        widths = starts[positions + n] - starts[positions]
        visited = bytearray(b"\1" * len(self.found))
        seen: set[int] = set()
        result = 0
        for at, first, width in zip(positions.tolist(), firsts.tolist(), widths.tolist()):
            if not visited[at]:
                continue
            if visited[first] or first in seen:
                result += width
                if result > enough:
                    break
                visited[at + 1 : at + n] = bytes(n - 1)
            else:
                seen.add(first)
        return result
