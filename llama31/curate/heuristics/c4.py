"""C4's rules on lines and documents (Raffel et al. 2020, section 2.2), fast.

Verdicts, reasons and texts are those of datatrove's C4QualityFilter, given the same sentences, and so are the totals of
its statistics. What takes its time is left out where it decides nothing: sentences are counted up to the limit, and
phrases are looked for in lines where the text has one at all.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.filters.c4_filters import CITATION_REGEX, ELLIPSIS, END_PUNCTUATION, POLICY_SUBSTRINGS
from datatrove.pipeline.writers.disk_base import DiskWriter

from llama31.curate import words
from llama31.curate.heuristics import languages

Verdict = bool | tuple[bool, str]
PHRASES = ("lorem ipsum", "javascript", *POLICY_SUBSTRINGS)


@dataclass(frozen=True)
class LineLimits:
    """Rules of one language; None leaves a rule out. The defaults are C4's, by way of datatrove.

    Lines go that do not end with one of `ends`, that have fewer words than `min_words` (between white space, in
    languages without it those of `words.split`), a word of more than `max_word_length` characters, or, by switches,
    that speak of JavaScript or of policies; documents that have fewer than `min_sentences` left, "lorem ipsum" or a
    curly bracket. Marks of citations (`[1]`, `[edit]`) are cut out of lines.
    """

    ends: tuple[str, ...] | None = END_PUNCTUATION
    min_sentences: int | None = 5
    min_words: int | None = 3
    max_word_length: int | None = 1000
    remove_citations: bool = True
    lorem_ipsum: bool = True
    javascript: bool = True
    curly_bracket: bool = True
    policy: bool = True


class LineFilter(BaseFilter):
    """Drops lines that are no prose, and documents of which too little is left.

    Statistics: `line-total`, `line-kept`, `line-filter-REASON`, and `technical`, of documents left as they are.

    Args:
        limits: rules for English, and for languages that `by_language` does not name.
        by_language: what differs for a language, ISO 639-1, as keys of LineLimits. None takes `languages.C4` (ours: how
            sentences end), {} the same rules for all.
        keep_technical: leave documents alone whose metadata say `extraction` "technical": code ends in no full stop,
            and one bracket would cost the page. Ours; the report has a path of its own for code and mathematics.
        exclusion_writer: where what is dropped is written.
    """

    name = "C4 lines"

    def __init__(
        self,
        limits: LineLimits | None = None,
        by_language: Mapping[str, Mapping[str, Any]] | None = None,
        keep_technical: bool = True,
        exclusion_writer: DiskWriter | None = None,
    ) -> None:
        super().__init__(exclusion_writer)
        differing = languages.C4 if by_language is None else by_language
        self.limits = languages.ByLanguage(LineLimits() if limits is None else limits, differing)
        self.keep_technical = keep_technical

    def filter(self, document: Document) -> Verdict:
        """True, with the lines that are left as text, or False and the reason."""
        if self.keep_technical and document.metadata.get("extraction") == "technical":
            self.stat_update("technical")
            return True
        language = document.metadata.get("language") or ""
        counts: Counter[str] = Counter()
        verdict, text = lines(document.text, language, self.limits.of(language), counts)
        for name, count in counts.items():
            self.stat_update(f"line-{name}", value=count)
        if verdict is True:
            document.text = text
        return verdict


def lines(text: str, language: str, limits: LineLimits, counts: Counter[str]) -> tuple[Verdict, str]:
    """True and the lines that are left, or False with the reason, and ""; counts gets lines by what became of them."""
    low = text.lower()
    # What stands between the halves of a phrase may be a citation, so there each line is looked at.
    suspect = (limits.remove_citations and "[" in text) or any(phrase in low for phrase in PHRASES)
    bracket = limits.curly_bracket and "{" in text
    kept: list[str] = []
    sentences, least = 0, limits.min_sentences or 0
    for line in _prose(text, language, limits, counts):
        reason = _phrase(line.lower(), line, limits) if suspect or bracket else ""
        if reason in ("lorem_ipsum", "curly_bracket"):
            return (False, reason), ""
        if reason:
            counts[f"filter-{reason}"] += 1
            continue
        if sentences < least:
            sentences += len(words.sentences(line, language))
        kept.append(line)
        counts["kept"] += 1
    if sentences < least:
        return (False, "too_few_sentences"), ""
    return True, "\n".join(kept).strip()


def _prose(text: str, language: str, limits: LineLimits, counts: Counter[str]) -> Iterator[str]:
    """Lines that have the form of prose, without their citations; the others are counted."""
    ends, longest, citations = limits.ends, limits.max_word_length or sys.maxsize, limits.remove_citations
    least, spaceless = limits.min_words or 0, language in words.SPACELESS
    for whole in text.splitlines():
        counts["total"] += 1
        line = whole = whole.strip()
        if len(whole) > longest and any(len(word) > longest for word in whole.split()):
            counts["filter-too_long_word"] += 1
            continue
        if citations and "[" in whole:
            line = CITATION_REGEX.sub("", whole)
        if ends is not None and (not line.endswith(ends) or line.endswith(ELLIPSIS)):
            counts["filter-no_terminal_punc"] += 1
        elif len(words.split(whole, language) if spaceless else whole.split(None, least)) < least:
            counts["filter-too_few_words"] += 1
        else:
            yield line


def _phrase(low: str, line: str, limits: LineLimits) -> str:
    """What a line speaks of, in datatrove's order."""
    if limits.lorem_ipsum and "lorem ipsum" in low:
        return "lorem_ipsum"
    if limits.javascript and "javascript" in low:
        return "javascript"
    if limits.curly_bracket and "{" in line:
        return "curly_bracket"
    return "policy" if limits.policy and any(phrase in low for phrase in POLICY_SUBSTRINGS) else ""
