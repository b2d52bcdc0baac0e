"""What Gopher's and C4's rules mean in other languages than English.

The report names "language-specific heuristics" without a figure. What stands here is ours:

- stop words: eight of the most frequent function words of each language, as Gopher took eight of English. A language
  without a list is not asked for any;
- mean length of words: Gopher's 3 to 10 holds for all languages with spaces (of pages of Debian's documentation 98 %
  lie between 3.9 and 7.8 in English, German, French, Italian, Spanish and Portuguese). Where `words.split` cuts at
  characters or clusters of them (Chinese, Thai), there is none;
- there it takes two or three to say what a word of English does (`words.PIECES`): documents have as many times more at
  least, n-grams are as many times longer, and what they share is counted without the spaces between words, which the
  text does not have. With n-grams of twice the length Thai, Japanese and Khmer lost a half more of the same pages than
  English;
- ends of sentences: C4 keeps lines that end as an English sentence does; others have quotation marks and points of
  their own, and Thai and Lao none, so there the rule does not hold.
"""

# ruff: noqa: RUF001 - punctuation of all languages
from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from llama31.curate.words import PIECES, UNPOINTED

OTHERS = "*"  # languages that are not named
STOP_WORDS = {
    "de": ("der", "die", "und", "in", "den", "das", "zu", "ist"),
    "fr": ("de", "la", "le", "et", "les", "des", "en", "est"),
    "it": ("di", "e", "il", "la", "che", "un", "per", "è"),
    "pt": ("de", "a", "o", "que", "e", "do", "da", "em"),
    "es": ("de", "la", "que", "el", "en", "y", "los", "se"),
    "hi": ("के", "में", "है", "की", "और", "को", "से", "का"),
}


@dataclasses.dataclass(frozen=True)
class Times:
    """A limit that is as many times the one that is given: a number of words, or n of n-grams with their shares."""

    factor: int

    def of(self, limit: Any) -> Any:
        """The limit; None where there is none."""
        if isinstance(limit, tuple):
            return tuple((self.factor * n, share) for n, share in limit)
        return None if limit is None else self.factor * limit


UNASKED = dict.fromkeys(("min_mean_length", "max_mean_length", "min_stop_words"))
# Beside those of English: quotation marks, Hindi's, Chinese and Japanese, Arabic's and Urdu's points.
ENDS = (".", "?", "!", '"', "'", *"»“”’।॥。！？」』）؟۔")

QUALITY: Mapping[str, Mapping[str, Any]] = {
    "en": {},
    **{language: {"stop_words": listed} for language, listed in STOP_WORDS.items()},
    **{
        language: dict.fromkeys(("min_words", "max_words"), Times(pieces)) | UNASKED
        for language, pieces in PIECES.items()
    },
    OTHERS: {"min_stop_words": None},
}
REPETITION: Mapping[str, Mapping[str, Any]] = {
    language: dict.fromkeys(("top", "duplicates"), Times(pieces)) | {"separator": ""}
    for language, pieces in PIECES.items()
}
C4: Mapping[str, Mapping[str, Any]] = {
    "en": {},
    **{
        language: {"ends": None if language in UNPOINTED else ENDS, "min_words": Times(pieces), "max_word_length": None}
        for language, pieces in PIECES.items()
    },
    OTHERS: {"ends": ENDS},
}


class ByLanguage[L]:
    """Limits, a dataclass, and what differs from them for languages, ISO 639-1 or OTHERS, as keys of it, or Times.

    Raises ValueError for a key that the limits do not have.
    """

    def __init__(self, limits: L, differing: Mapping[str, Mapping[str, Any]]) -> None:
        known = [field.name for field in dataclasses.fields(limits)]  # type: ignore[arg-type]
        for language, keys in differing.items():
            for key in keys:
                if key not in known:
                    raise ValueError(
                        f"by_language[{language!r}] has {key!r}, which no limit is; leave it out, or take one of "
                        f"{', '.join(known)}"
                    )
        self._limits, self._differing = limits, differing
        self._known: dict[str, L] = {}

    def of(self, language: str) -> L:
        """The limits that hold for a language."""
        if language not in self._known:
            keys = self._differing.get(language, self._differing.get(OTHERS, {}))
            own = {
                key: value.of(getattr(self._limits, key)) if isinstance(value, Times) else value
                for key, value in keys.items()
            }
            self._known[language] = dataclasses.replace(self._limits, **own)  # type: ignore[type-var]
        return self._known[language]
