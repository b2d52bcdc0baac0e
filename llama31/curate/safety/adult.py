"""Adult text by counting words of a list, as the report does for sites that no block list has yet (section 3.1.1).

C4 (Raffel et al. 2020) drops a page for one word, with it pages on breast cancer and every quotation. Here words are
counted, all of them and how many different ones, and a page goes where both are many.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

import ahocorasick
from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.disk_base import DiskWriter

from llama31.curate import spans
from llama31.curate.words import PIECES, SPACELESS

Verdict = bool | tuple[bool, str]
# A letter, digit or mark at a border says that a word goes on; `re` takes no mark for a part of a word.
INSIDE = re.compile(r"[\w\u00ad\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0900-\u0903\u093a-\u094f\u200c\u200d]")
MARKS = ("Mn", "Mc")
ALL = "*"  # a list for documents of every language


class AdultWordsFilter(BaseFilter):
    """Drops documents with many words of the lists of their language.

    Statistics: `documents with listed words`, `no list: LANGUAGE` of documents of a language without one. Adds metadata
    `adult_words`, with total, distinct and per_1000_words, to documents that have any.

    Args:
        lists: files by language, ISO 639-1, or `*` for all: a word or phrase a line, in any case; lines that begin with
            `#` are comments. Lists are not brought along: they differ by what somebody wants to keep.
        min_distinct: how many different listed words a document must have. 3: ours.
        min_per_1000_words: how many listed words it must have in a thousand. 10: ours; the report has no figure.
        exclusion_writer: where what is dropped is written.

    Raises ValueError for a list without a word, OSError for one that is not there.
    """

    name = "Adult words"

    def __init__(
        self,
        lists: Mapping[str, str | Sequence[str]],
        min_distinct: int = 3,
        min_per_1000_words: float = 10,
        exclusion_writer: DiskWriter | None = None,
    ) -> None:
        super().__init__(exclusion_writer)
        self.min_distinct, self.min_per_1000_words = min_distinct, min_per_1000_words
        listed = {language: _words(paths) for language, paths in lists.items()}
        everywhere = listed.pop(ALL, [])
        self._lists = {language: Phrases([*words, *everywhere]) for language, words in listed.items()}
        self._everywhere = Phrases(everywhere) if everywhere else None

    def filter(self, document: Document) -> Verdict:
        """True, or False and the reason."""
        language = document.metadata.get("language") or ""
        phrases = self._lists.get(language, self._everywhere)
        if phrases is None:
            self.stat_update(f"no list: {language or 'unknown'}")
            return True
        found = phrases.find(document.text, language)
        if not found:
            return True
        length = len(spans.of(document.text, language)) / PIECES.get(language, 1)
        per_1000 = 1000 * len(found) / max(1, length)
        counts = {"total": len(found), "distinct": len(set(found)), "per_1000_words": round(per_1000, 2)}
        document.metadata["adult_words"] = counts
        self.stat_update("documents with listed words")
        if counts["distinct"] >= self.min_distinct and per_1000 >= self.min_per_1000_words:
            return False, "adult_words"
        return True


def _words(paths: str | Sequence[str]) -> list[str]:
    result = []
    for path in [paths] if isinstance(paths, str) else paths:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
        words = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not words:
            raise ValueError(f"lists: {path} has no word; write one a line, or leave the list out")
        result += words
    return result


def folded(text: str) -> str:
    """A text in one form of its characters and one case."""
    text = text.casefold()
    return text if text.isascii() or unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)


class Phrases:
    """Words and phrases that are looked for all at once (Aho and Corasick 1975)."""

    def __init__(self, phrases: Sequence[str]) -> None:
        self._automaton = ahocorasick.Automaton()
        for phrase in phrases:
            one = " ".join(folded(phrase).split())
            self._automaton.add_word(one, len(one))
        self._automaton.make_automaton()

    def find(self, text: str, language: str) -> list[str]:
        """Which stand in a text, in their order; of those that overlap the first, of several there the longest.

        A phrase is whole: no letter, digit or mark goes on at its ends. In languages without spaces letters may, for
        nothing shows where a word ends, but no mark.
        """
        text = folded(text)
        if any(character in text for character in "\n\t\u00a0"):
            text = SPACES.sub(" ", text)
        found = []
        for last, length in self._automaton.iter(text):
            begin, end = last - length + 1, last + 1
            if language in SPACELESS or (not text[begin:end].isascii() and SCRIPTS.search(text[begin:end])):
                whole = unicodedata.category(text[end : end + 1] or " ") not in MARKS
            else:
                whole = not INSIDE.match(text[begin - 1 : begin]) and not INSIDE.match(text[end : end + 1])
            if whole:
                found.append((begin, -end))
        result, after = [], 0
        for begin, end in sorted(found):
            if begin >= after:
                result.append(text[begin:-end])
                after = -end
        return result


SPACES = re.compile(r"\s+")
# Of scripts without spaces, whatever the language is.
SCRIPTS = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
