"""Instructions that a program can verify, in the manner of IFEval (Zhou et al. 2023, arXiv:2311.07911).

A prompt's record carries them: "checks": [{"kind": "max_words", "value": 20}, ...]. Kinds and wordings are ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

WORD = re.compile(r"\w+(?:['\u2019\-]\w+)*")
_BULLET = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+\S", re.MULTILINE)
_SENTENCE = re.compile(r"[^.!?…।。！？]*[.!?…।。！？]+|[^.!?…।。！？\s][^.!?…।。！？]*$")  # noqa: RUF001 - of all languages


def words(text: str) -> list[str]:
    """The words of a text: letters and digits, with the hyphens and apostrophes inside."""
    return WORD.findall(text)


def sentences(text: str) -> list[str]:
    """The sentences of a text, by their closing marks."""
    return [found.strip() for found in _SENTENCE.findall(text) if WORD.search(found)]


def paragraphs(text: str) -> list[str]:
    """What blank lines separate."""
    return [part for part in re.split(r"\n\s*\n", text.strip()) if part.strip()]


def _is_json(text: str) -> bool:
    bare = re.fullmatch(r"\s*```(?:json)?\s*\n(.*?)\n```\s*", text, re.DOTALL)
    try:
        return isinstance(json.loads(bare[1] if bare else text), dict | list)
    except ValueError:
        return False


def _has(text: str, keyword: str) -> int:
    return len(re.findall(rf"(?<!\w){re.escape(keyword)}(?!\w)", text, re.IGNORECASE))


def _cased(text: str, upper: bool) -> bool:
    return any(char.isalpha() for char in text) and text == (text.upper() if upper else text.lower())


# Kind -> (type of the value, whether a text obeys).
KINDS: dict[str, tuple[type, Callable[[str, Any], bool]]] = {
    "min_words": (int, lambda text, value: len(words(text)) >= value),
    "max_words": (int, lambda text, value: 0 < len(words(text)) <= value),
    "sentences": (int, lambda text, value: len(sentences(text)) == value),
    "paragraphs": (int, lambda text, value: len(paragraphs(text)) == value),
    "bullets": (int, lambda text, value: len(_BULLET.findall(text)) == value),
    "json": (bool, lambda text, value: _is_json(text) == value),
    "uppercase": (bool, lambda text, value: _cased(text, True) == value),
    "lowercase": (bool, lambda text, value: _cased(text, False) == value),
    "keyword": (str, lambda text, value: _has(text, value) > 0),
    "forbidden": (str, lambda text, value: bool(text.strip()) and _has(text, value) == 0),
    "starts_with": (str, lambda text, value: text.strip().startswith(value)),
    "ends_with": (str, lambda text, value: text.strip().endswith(value)),
    "no_comma": (bool, lambda text, value: bool(text.strip()) and ("," not in text) == value),
    "quoted": (bool, lambda text, value: bool(re.fullmatch(r'\s*".*"\s*', text, re.DOTALL)) == value),
    "title": (bool, lambda text, value: bool(re.search(r"<<[^<>\n]+>>", text)) == value),
    "matches": (str, lambda text, value: re.fullmatch(value, text.strip(), re.DOTALL) is not None),
}  # fmt: skip


def read(given: Any) -> list[tuple[str, Any]]:
    """The checks of a record as (kind, value). Raises ValueError for one that is none."""
    found = []
    for one in given or ():
        kind, value = (one.get("kind"), one.get("value", True)) if isinstance(one, Mapping) else (None, None)
        if kind not in KINDS:
            raise ValueError(f"checks: {json.dumps(one)[:80]}: give {{kind, value}}, a kind of {', '.join(KINDS)}")
        wanted = KINDS[kind][0]
        if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
            raise ValueError(f"checks: {kind}={value!r}: give {'a whole number' if wanted is int else wanted.__name__}")
        if kind == "matches":
            try:
                re.compile(str(value))
            except re.error as error:
                raise ValueError(f"checks: matches={value!r}: no regular expression ({error})") from error
        found.append((kind, value))
    return found


def broken(text: str, checks: Sequence[tuple[str, Any]]) -> list[str]:
    """Kinds of the checks that `text` does not obey."""
    return [kind for kind, value in checks if not KINDS[kind][1](text, value)]


# Openings of a refusal. The report judges refusals by a model; patterns are ours, and of English alone.
_REFUSAL = re.compile(
    r"\b(?:i(?:['\u2019]m| am) (?:sorry|afraid|unable|not able|not (?:comfortable|going to))"
    r"|i (?:can(?:['\u2019]t|not| not)|won['\u2019]t|will not|must (?:decline|refuse)|decline to|refuse to)"
    r"|(?:sorry|apologies),? (?:but )?i (?:can|am|['\u2019]m)|as an ai\b|against my (?:guidelines|principles))",
    re.IGNORECASE,
)
OPENING_CHARS = 200


def refuses(text: str) -> bool:
    """Whether a text opens as a refusal does, or says nothing at all."""
    return not text.strip() or _REFUSAL.search(text[:OPENING_CHARS]) is not None
