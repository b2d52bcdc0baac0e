"""Words and sentences of a text, fast: one tokenizer for every rule that counts words and for MinHash's shingles.

datatrove splits by spaCy (and, for Thai, Chinese and others, by packages that are larger still) at about a hundred
documents a second. The rules here know nothing of a dictionary; they follow how a script marks words:

- letters, digits and `_` make a word, with the marks that stand on them (Devanagari's vowel signs, decomposed accents,
  zero-width joiners, soft hyphens);
- an apostrophe or a hyphen between letters joins (`don't`, `E-Mail`), a point, comma or colon between digits does
  (`1,000.50`, `12:30`). In French the elided words stand alone (`l'` `homme`, but `aujourd'hui`), in Italian and
  Catalan all of them do;
- scripts without spaces: Chinese and Japanese by character, Thai, Lao, Khmer and Burmese by the cluster of a consonant
  with its vowels and tone marks (Theeramunkong et al. 2000, "Character cluster based Thai information retrieval"),
  about half a syllable.
  So it is whatever `language` says: Chinese quoted in an English page is no single long word.

Words are slices of the text in its order; case and characters stay as they are.
"""

# ruff: noqa: RUF001 - punctuation of all languages
from __future__ import annotations

import itertools
import re
from functools import cache

import regex

# Languages (ISO 639-1) that put no space between words, and how many of their characters or clusters, which are their
# words here, say what a word of English does: 3.0 in Thai and Khmer, 2.8 in Burmese, 2.7 in Japanese, 1.6 in Chinese,
# by 600 to 2,700 messages of Firefox and their translations. Of the others none were at hand.
PIECES = {"zh": 2, **dict.fromkeys(("th", "lo", "km", "my", "bo", "dz", "ja"), 3)}
SPACELESS = frozenset(PIECES)
# Of these, the ones that end a sentence by a space alone.
UNPOINTED = frozenset({"th", "lo"})
# Closed in French, where `aujourd'hui` is a word; in Italian and Catalan an apostrophe within a word is an elision.
ELISIONS = {
    "fr": r"(?<![\w'’\-])(?:[cdjlmnstCDJLMNST]|(?:[Jj]us|[Ll]ors|[Pp]uis|[Qq]uoi)?[Qq]u)['’](?=[\w])",
    "it": r"(?<![\w'’\-])[\w]+['’](?=[\w])",
    "ca": r"(?<![\w'’\-])[\w]+['’](?=[\w])",
}
JOINED = r"(?:['’\-]|(?<=\d)[.,:](?=\d))"
SPACE, OTHER = r"[\s]", r"[^\w\s]"
SYMBOLS = r"(?<![^\s])[^\w\s]+(?![^\s])"

# What `re` takes apart: it counts no mark as part of a word, and knows no script. The gaps are Greek, Cyrillic and
# Armenian, Latin with two diacritics (Vietnamese), polytonic Greek and punctuation. Of the other characters there are
# a few that `regex` sees otherwise (circled letters); `alike` tells it what `re` thinks of ½ and of separators.
HARD = re.compile(
    "[\u00ad\u0300-\u036f\u0483-\u0489\u0558\u058b\u058c\u0591-\u1dff\u200c\u200d\u203f\u2040\u2054\u208f\u209d-\u209f"
    "\u20d0-\u20f0\u24b6-\u24e9\u2cef-\U0010ffff]"
)
BY_CHARACTER = r"\p{Han}\p{Hiragana}\p{Katakana}\u30fc\uff70"
BY_CLUSTER = r"\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
CLUSTERS = (
    r"[\u0e40-\u0e44]?[\u0e01-\u0e2e][\u0e30-\u0e3a\u0e45\u0e47-\u0e4e]*",
    r"[\u0ec0-\u0ec4]?[[\u0e81-\u0eae\u0edc-\u0edf]&&\p{Lao}][\u0eb0-\u0ebd\u0ec8-\u0ece]*",
    # U+17D2 and U+1039 stack the next consonant below.
    r"[[\p{Khmer}\p{Myanmar}\p{Tibetan}]&&\p{L}](?:\p{M}|(?<=[\u17d2\u1039])\p{L})*",
    r"[[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]&&\p{Nd}]+",
    rf"[[{BY_CHARACTER}{BY_CLUSTER}]&&[\w\p{{No}}]]",
)
LETTER = rf"[[\w\p{{No}}\u00ad\u200c\u200d]--[{BY_CHARACTER}{BY_CLUSTER}]]"

CLOSING = "\"'”’»)\\]」』"
MARKS = ".!?…؟。！？｡।॥"
ENDED = re.compile(
    # One mark first, which is searched for quickly. Not after an initial ("J. Smith"), nor before a small letter
    # ("e.g. this"); the marks of Chinese, Japanese and Hindi anywhere.
    rf"[{MARKS}\n](?:"
    rf"(?<=[.!?…؟])(?:(?<!\b[^\W\d_a-z]\.)|(?<=\.\.))[.!?…]*[{CLOSING}]*(?:\s+(?![a-zà-ÿ])|$)"
    rf"|(?<=[。！？｡।॥])[。！？｡।॥]*[{CLOSING}]*\s*"
    r"|(?<=\n)\n*)"
)
SPACED = re.compile(r"\s+")


def alike(expression: str) -> str:
    r"""An expression for `regex` that sees characters which are not HARD as `re` does; \w and \s stand in brackets."""
    return expression.replace(r"\w", r"\w\p{No}").replace(r"\s", r"\s\x1c-\x1f")


@cache
def pattern(language: str, hard: bool, symbols: bool) -> re.Pattern[str]:
    """The expression whose matches are the words; `hard` for texts with characters that only `regex` knows."""
    letter = LETTER if hard else r"\w"
    word = rf"{letter}+(?:{JOINED}{letter}+)*"
    before, behind = [ELISIONS[language]] if language in ELISIONS else [], [SYMBOLS] if symbols else []
    if not hard:
        return re.compile("|".join([*before, word, *behind]))
    return regex.compile("|".join([*map(alike, before), word, *CLUSTERS, *map(alike, behind)]), regex.V1)


def split(text: str, language: str, symbols: bool = False) -> list[str]:
    """The words of a text, in order, repeated as they are repeated.

    `language` is an ISO 639-1 code; an unknown one is split as English is. With `symbols`, runs of other characters
    that stand alone between white space (`|`, `--`, a bullet) are words too: what a split at white space would count,
    as rules that measure the share of words with letters need.
    """
    hard = not text.isascii() and HARD.search(text) is not None
    return pattern(language if language in ELISIONS else "", hard, symbols).findall(text)


def sentences(text: str, language: str) -> list[str]:
    """The sentences of a text, without the white space around them; a line's end ends a sentence as well.

    Points end a sentence before white space, unless a small letter follows or a single capital stands before; the marks
    of Chinese, Japanese and Hindi do anywhere. In Thai and Lao, which set no point, a space does.
    """
    ends = [*(SPACED if language in UNPOINTED else ENDED).finditer(text)]
    borders = [0, *(match.end() for match in ends), len(text)]
    return [part for a, b in itertools.pairwise(borders) if (part := text[a:b].strip())]
