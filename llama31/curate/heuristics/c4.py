"""C4's rules on lines and documents (Raffel et al. 2020, section 2.2), fast.

Verdicts, reasons and texts are those of datatrove's C4QualityFilter, given the same sentences, and so are the totals of
its statistics. What takes its time is left out where it decides nothing: sentences are counted up to the limit, and
phrases are looked for in lines where the text has one at all.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.filters.c4_filters import CITATION_REGEX, ELLIPSIS, END_PUNCTUATION, POLICY_SUBSTRINGS
from datatrove.pipeline.writers.disk_base import DiskWriter

from llama31.curate import words
from llama31.curate.heuristics import languages

Verdict = bool | tuple[bool, str]
PHRASES = ("lorem ipsum", "javascript", *POLICY_SUBSTRINGS)
BECOMING_ASCII = "\u0130\u212a"  # what str.lower makes an ASCII character of, beside those
DROPPING = ("lorem_ipsum", "curly_bracket")  # the whole document


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
            if count:
                self.stat_update(f"line-{name}", value=count)
        if verdict is True:
            document.text = text
        return verdict


def lines(text: str, language: str, limits: LineLimits, counts: Counter[str]) -> tuple[Verdict, str]:
    """True and the lines that are left, or False with the reason, and ""; counts gets lines by what became of them."""
    whole = text.splitlines()
    prose = _prose(whole, language, limits)
    reasons = _reasons([line for _, line in prose.lines], limits)
    for number, reason in sorted(reasons.items()):
        if reason in DROPPING:  # what comes behind is not looked at
            prose = _prose(whole[: prose.lines[number][0]], language, limits)
            break
        counts[f"filter-{reason}"] += 1
    else:
        reason = ""
    counts.update(prose.removed | {"kept": len(prose.lines) - counts.total(), "total": prose.total + bool(reason)})
    if reason:
        return (False, reason), ""
    kept = [line for number, (_, line) in enumerate(prose.lines) if number not in reasons]
    if not _has_sentences(kept, language, limits.min_sentences or 0):
        return (False, "too_few_sentences"), ""
    return True, "\n".join(kept).strip()


class _Prose(NamedTuple):
    """Lines that have the form of prose, without their citations, by their place; how many of all went, by reason."""

    lines: list[tuple[int, str]]
    removed: dict[str, int]
    total: int


def _prose(whole: list[str], language: str, limits: LineLimits) -> _Prose:
    ends, longest, least = limits.ends, limits.max_word_length or sys.maxsize, limits.min_words or 0
    cited, spaceless = limits.remove_citations, language in words.SPACELESS
    lasts = frozenset(end[-1:] for end in ends or ())  # most lines fail by their last character
    kept: list[tuple[int, str]] = []
    long = short = 0
    for place, stripped in enumerate(map(str.strip, whole)):
        if len(stripped) > longest and any(len(word) > longest for word in stripped.split()):
            long += 1
            continue
        line = CITATION_REGEX.sub("", stripped) if cited and "[" in stripped else stripped
        if ends is not None and (line[-1:] not in lasts or not line.endswith(ends) or line.endswith(ELLIPSIS)):
            continue
        if len(words.split(stripped, language) if spaceless else stripped.split(None, least)) < least:
            short += 1
        else:
            kept.append((place, line))
    unended = len(whole) - long - short - len(kept)
    removed = {"too_long_word": long, "too_few_words": short, "no_terminal_punc": unended}
    return _Prose(kept, {f"filter-{reason}": count for reason, count in removed.items()}, len(whole))


def _reasons(kept: list[str], limits: LineLimits) -> dict[int, str]:
    """Why lines go that are prose in their form, by their place among those: what they speak of."""
    rules = [("lorem_ipsum", limits.lorem_ipsum, PHRASES[:1]), ("javascript", limits.javascript, PHRASES[1:2])]
    rules += [("curly_bracket", limits.curly_bracket, ("{",)), ("policy", limits.policy, PHRASES[2:])]
    low, each, reasons = _lowered("\n".join(kept)), list[str](), dict[int, str]()
    cookie = "cookie" in low  # of most policies' phrases
    for why, asked, phrases in reversed(rules):  # in datatrove's order the first one counts
        for phrase in phrases if asked else ():
            if (cookie or "cookie" not in phrase) and phrase in low:
                each = each or low.split("\n")
                reasons |= {number: why for number, line in enumerate(each) if phrase in line}
    return reasons


def _lowered(text: str) -> str:
    """A text in small letters as far as they are ASCII's, each other character as some that are none."""
    if text.isascii() or any(character in text for character in BECOMING_ASCII):
        return text.lower()
    return text.encode("utf-8", "surrogatepass").lower().decode("latin-1")  # str.lower takes four times as long


def _has_sentences(kept: list[str], language: str, least: int) -> bool:
    """Whether there are as many; each line that is not blank has one at least, which mostly is enough to know."""
    if len(kept) >= least and sum(bool(line) and not line.isspace() for line in kept) >= least:
        return True
    count = 0
    for line in kept:
        count += len(words.sentences(line, language))
        if count >= least:
            return True
    return count >= least
