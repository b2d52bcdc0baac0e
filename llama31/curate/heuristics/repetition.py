"""Gopher's rules on repetition within a document (Rae et al. 2021, table A1), fast.

Verdicts and reasons are those of datatrove's GopherRepetitionFilter, given the same words. n-grams are counted by their
hashes (`spans`, `kernels`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.disk_base import DiskWriter

from llama31.curate import kernels, spans
from llama31.curate.heuristics import languages

Verdict = bool | tuple[bool, str]


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
    for n, share in limits.top:
        if most_frequent(found, n, limits.separator) / length > share:
            return f"top_{n}_gram"
    ns, shares = _arrays(limits.duplicates)
    row = kernels.first_repeated(found.hashes, found.lengths, found.starts, ns, length, shares)
    return f"duplicated_{ns[row]}_n_grams" if row >= 0 else ""


@functools.cache
def _arrays(duplicates: tuple[tuple[int, float], ...]) -> tuple[kernels.Ints, kernels.Floats]:
    return np.array([n for n, _ in duplicates], np.int64), np.array([share for _, share in duplicates], np.float64)


def most_frequent(found: spans.Spans, n: int, separator: str = " ") -> int:
    """Characters of the most frequent n-gram, the first of several, as often as it stands; 0 without any."""
    first, times = kernels.most_frequent(found.hashes, n)
    return times * int(found.starts[first + n] - found.starts[first] + (n - 1) * len(separator)) if times else 0
