"""Whether an answer is in the language that its prompt asks for: by the record, by name, or the prompt's own.

A fastText model by path tells languages apart (`curate/scoring/language.py`); without one scripts alone do. Formulas
and code are left out, for they have none. What cannot be told passes: few letters, or a model that is not sure.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from llama31.sampling import writing_systems

if TYPE_CHECKING:
    from llama31.curate.fast_text.model import FastText

FEWEST_LETTERS = 20
SURE = 0.5  # as CCNet keeps a page by its language; ours
NAMES: Mapping[str, str] = {
    "en": "English", "de": "German", "fr": "French", "it": "Italian", "pt": "Portuguese", "hi": "Hindi",
    "es": "Spanish", "th": "Thai",
}  # fmt: skip
SCRIPTS = {"hi": "DEVANAGARI", "th": "THAI"}  # of the report's languages; the others are Latin
# Beginnings of the languages' names in the report's languages.
_NAMED = {
    "en": "english|englisch|anglais|inglese|inglês|ingles|inglés|अंग्रेज|अंग्रेज़|อังกฤษ",
    "de": "german(?!y)|deutsch(?!land)|allemand|tedesc|alem[aã]o|alemán|जर्मन(?!ी)|เยอรมัน",
    "fr": "french|französisch|français|francese|francês|francés|फ़्रेंच|फ्रेंच|ฝรั่งเศส",
    "it": "italian|italienisch|en italien|italienne|इतालवी|อิตาลี",
    "pt": "portugu|portoghese|पुर्तगाली|โปรตุเกส",
    "hi": "hindi|हिंदी|हिन्दी|ฮินดี",
    "es": "spanish|spanisch|espagnol|spagnol|espanhol|español|स्पेनिश|สเปน",
    "th": "thai(?!land)|thailändisch|tailand[eé]s|thaï(?!lande)|थाई|ไทย",
}
_TRANSLATE = re.compile(r"translat|übersetz|tradu[iczs]|tradur|अनुवाद|แปล|翻译|翻訳|번역|перевед|перевод", re.IGNORECASE)
_NO_LANGUAGE = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$|\\\(.*?\\\)|\\\[.*?\\\]|\\boxed\{[^{}]*\}|https?://\S+",
    re.DOTALL,
)


def name(code: str) -> str:
    """The English name of a language; the code where it is none of the report's."""
    return NAMES.get(code, code)


def named(prompt: str) -> set[str]:
    """Languages of the report that a prompt names."""
    text = prompt.casefold()
    return {code for code, names in _NAMED.items() if re.search(rf"(?<![a-z])(?:{names})", text)}


def prose(text: str) -> str:
    """A text without code, formulas and addresses."""
    return _NO_LANGUAGE.sub(" ", text)


def letters(text: str) -> int:
    """How many letters a text has."""
    return sum(char.isalpha() for char in text)


class LanguageMatch:
    """`model`: path of a fastText model; None: scripts alone. Raises ValueError where there is none at that path."""

    def __init__(self, model: str | Path | None = None) -> None:
        self._model: FastText | None = None
        if model is not None:
            from llama31.curate.fast_text.model import FastText

            self._model = FastText(model)

    def identify(self, text: str) -> str:
        """The language of a text; "" where nobody can tell."""
        from llama31.curate.scoring import language

        bare = prose(text)
        if self._model is None or letters(bare) < FEWEST_LETTERS:
            return ""
        code, _, probability = language.identify(self._model, bare)
        return code if probability >= SURE else ""

    def wanted(self, prompt: str, language: str | None = None) -> set[str]:
        """Languages in which a prompt may be answered; empty where any will do.

        `language`: what its record says. Of a prompt that asks for a translation and names no language that we know,
        nothing is known.
        """
        if language:
            return {language}
        asked = named(prompt)
        if not asked and _TRANSLATE.search(prompt):
            return set()
        own = self.identify(prompt)
        return asked | {own} if own else set()

    def is_in(self, text: str, wanted: Collection[str]) -> bool:
        """Whether a text is in one of these languages, or none can be told."""
        if not wanted or letters(prose(text)) == 0:
            return True
        if not self._in_script(text, wanted):
            return False
        found = self.identify(text)
        return not found or found in wanted

    def _in_script(self, text: str, wanted: Collection[str]) -> bool:
        if not set(wanted) <= NAMES.keys():
            return True
        counts = writing_systems.counted(prose(text))
        scripts = {SCRIPTS.get(code, "LATIN") for code in wanted}
        return sum(counts[script] for script in scripts) >= writing_systems.SHARE * counts.total()

    def matches(self, prompt: str, answer: str, language: str | None = None) -> bool:
        """Whether an answer is in a language that its prompt asks for."""
        return self.is_in(answer, self.wanted(prompt, language))
