"""Gopher's rules on the quality of a document (Rae et al. 2021, "Scaling Language Models", appendix A.1.1), fast.

Verdicts and reasons are those of datatrove's GopherQualityFilter, given the same words: `tests/curate` compares them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.filters.gopher_quality_filter import STOP_WORDS
from datatrove.pipeline.writers.disk_base import DiskWriter

from llama31.curate import kernels, spans
from llama31.curate.heuristics import languages

Verdict = bool | tuple[bool, str]
LONG = 1 << 22  # characters from which on a text's beginning is looked at first, whether it is too long by itself


@dataclass(frozen=True)
class QualityLimits:
    """Limits of one language; None leaves a rule out. The defaults are Gopher's, by way of datatrove.

    Words that are punctuation alone count neither as words nor in their mean length. `min_alphabetic` is a share of all
    words, `max_symbols` that of `#` and of ellipses to words; `max_bullets` and `max_ellipses` are shares of lines.
    """

    min_words: int | None = 50
    max_words: int | None = 100_000
    min_mean_length: float | None = 3
    max_mean_length: float | None = 10
    max_symbols: float | None = 0.1
    max_bullets: float | None = 0.9
    max_ellipses: float | None = 0.3
    min_alphabetic: float | None = 0.8
    min_stop_words: int | None = 2
    stop_words: tuple[str, ...] = tuple(STOP_WORDS)


class QualityFilter(BaseFilter):
    """Drops documents that break one of Gopher's rules of quality, by the first that is broken.

    Args:
        limits: limits for English, and for languages that `by_language` does not name.
        by_language: what differs for a language, ISO 639-1, as keys of QualityLimits. None takes `languages.QUALITY`
            (ours: stop words of each language, other lengths of words), {} the same limits for all.
        exclusion_writer: where what is dropped is written.
    """

    name = "Gopher quality"

    def __init__(
        self,
        limits: QualityLimits | None = None,
        by_language: Mapping[str, Mapping[str, Any]] | None = None,
        exclusion_writer: DiskWriter | None = None,
    ) -> None:
        super().__init__(exclusion_writer)
        differing = languages.QUALITY if by_language is None else by_language
        self.limits = languages.ByLanguage(QualityLimits() if limits is None else limits, differing)

    def filter(self, document: Document) -> Verdict:
        """True, or False and the reason."""
        language = document.metadata.get("language") or ""
        return quality(document.text, language, self.limits.of(language))


def quality(text: str, language: str, limits: QualityLimits) -> Verdict:
    """True, or False and the first rule that a text breaks."""
    if limits.max_words and len(text) > LONG and _begins_long(text, language, limits.max_words):
        return False, "gopher_long_doc"
    found = spans.of(text, language)
    for rule in (_words, _symbols, _lines, _kinds):
        reason = rule(text, found, limits)
        if reason:
            return False, reason
    return True


def _words(text: str, found: spans.Spans, limits: QualityLimits) -> str:
    spoken = (found.kinds & kernels.SPOKEN) != 0
    count = int(np.count_nonzero(spoken))
    if limits.min_words and count < limits.min_words:
        return "gopher_short_doc"
    if limits.max_words and count > limits.max_words:
        return "gopher_long_doc"
    mean = int(found.lengths[spoken].sum()) / count if count else float("nan")
    if limits.min_mean_length and mean < limits.min_mean_length:
        return "gopher_below_avg_threshold"
    if limits.max_mean_length and mean > limits.max_mean_length:
        return "gopher_above_avg_threshold"
    return ""


def _symbols(text: str, found: spans.Spans, limits: QualityLimits) -> str:
    count = len(found)
    if not limits.max_symbols or not count:
        return ""
    if text.count("#") / count > limits.max_symbols:
        return "gopher_too_many_hashes"
    if _ellipses(text) / count > limits.max_symbols:
        return "gopher_too_many_ellipsis"
    return ""


@functools.lru_cache(1)  # two rules ask in turn
def _ellipses(text: str) -> int:
    return text.count("...") + text.count("…")


def _lines(text: str, found: spans.Spans, limits: QualityLimits) -> str:
    # No line is looked at where the whole text has too few of the characters; it has as many lines as ends of them.
    least = text.count("\n")
    most = limits.max_bullets
    if most and text.count("-") + text.count("•") > most * least:
        lines = text.splitlines()
        begun = sum(line.lstrip().startswith(("•", "-")) for line in lines)
        if begun / len(lines) > most:
            return "gopher_too_many_bullets"
    most = limits.max_ellipses
    if most and _ellipses(text) > most * least:
        lines = text.splitlines()
        ended = sum(line.rstrip().endswith(("...", "…")) for line in lines)
        if ended / len(lines) > most:
            return "gopher_too_many_end_ellipsis"
    return ""


def _kinds(text: str, found: spans.Spans, limits: QualityLimits) -> str:
    count = len(found)
    alphabetic = int(np.count_nonzero(found.kinds & kernels.ALPHABETIC))
    if limits.min_alphabetic and count and alphabetic / count < limits.min_alphabetic:
        return "gopher_below_alpha_threshold"
    if limits.min_stop_words:
        present = 0
        for word in _stop_words(limits.stop_words):
            present += bool((found.hashes == word).any())
            if present >= limits.min_stop_words:
                return ""
        return "gopher_enough_stop_words"
    return ""


@functools.cache
def _stop_words(listed: tuple[str, ...]) -> kernels.Hashes:
    return np.array([spans.hash_of(word) for word in dict.fromkeys(listed)], np.uint64)


def _begins_long(text: str, language: str, most: int) -> bool:
    """Whether a text is too long by its first pieces alone, so that 50 MB of it are not looked at whole."""
    count = 0
    for piece in spans.pieces(text):
        count += int(np.count_nonzero(spans.measured(piece, language).kinds & kernels.SPOKEN))
        if count > most:
            return True
    return False
