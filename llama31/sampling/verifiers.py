"""Instructions that a program can verify, in the manner of IFEval (Zhou et al. 2023, arXiv:2311.07911).

A prompt's record carries them: "checks": [{"kind": "max_words", "value": 20}, ...]. Kinds and wordings are ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llama31.sampling import refusals

WORD = re.compile(r"\w+(?:['\u2019\-]\w+)*")
_HIGHLIGHT = re.compile(r"(?<!\*)\*{1,2}[^\s*](?:[^*\n]*[^\s*])?\*{1,2}(?!\*)")  # *so* or **so**
_PLACEHOLDER = re.compile(r"\[[^\[\]\n]+\]")
_BULLET = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+\S", re.MULTILINE)
# A closing mark with what closes beside it; languages that write no spaces need none behind theirs.
_END = re.compile(r"(?:[.!?…।]+[\"'”’»)\]*_]*(?=\s|$))|[。！？]+[」』”’)]*")  # noqa: RUF001 - of all languages
_NEXT = re.compile(r"\S")
LOOK_BACK = 200  # characters before a mark that decide about it; a text of one long sentence is gone through once
# A full stop behind these ends no sentence: never, or before a number, or unless a capital follows.
_NEVER = re.compile(
    r"dr|mr|mrs|ms|prof|st|rev|gen|col|capt|lt|sgt|gov|sen|hon|messrs|mme|mlle|sra?|srta|dott|vs|cf|e\.g|i\.e|viz|"
    r"approx|z\.b|d\.h|bzw|p\.ej|p\.ex"
)
_BEFORE_NUMBERS = re.compile(r"no|nr|figs?|eqs?|vol|pp?|art|sec|ch")
_SELDOM = re.compile(r"etc|usw|inc|ltd|co|corp|jr|bros|[ap]\.m|u\.[skn]|ph\.d|b\.c|a\.d|est|dept|al|eds?|min|max|hrs?")


def words(text: str) -> list[str]:
    """The words of a text: letters and digits, with the hyphens and apostrophes inside."""
    return WORD.findall(text)


def sentences(text: str) -> list[str]:
    """The sentences of a text, by their closing marks.

    Decimals, initials, numbers of a list, common abbreviations, and marks before a small letter ("Why?" he asked; well
    ... yes) end none.
    """
    parts, begin, cased = [], 0, text != text.lower()
    for mark in _END.finditer(text):
        before, behind = text[max(begin, mark.start() - LOOK_BACK) : mark.start()], _NEXT.search(text, mark.end())
        if _ends(before, mark[0], behind[0] if behind else "", cased):
            parts.append(text[begin : mark.end()].strip())
            begin = mark.end()
    return [one for one in [*parts, text[begin:].strip()] if WORD.search(one)]


def _ends(before: str, mark: str, follows: str, cased: bool) -> bool:
    """Whether a closing mark ends a sentence; `cased`: small letters are told from capitals in this text.

    `follows` is the first character behind it that is no white space, "" at the end.
    """
    last = before.split()[-1].lstrip("(\"'\u201c\u2018[*") if before.split() else ""
    if mark == "." and follows:
        word, initial = last.casefold(), len(last) == 1 and last.isupper() and last != "I"
        if initial or _NEVER.fullmatch(word) or re.search(r"(?:^|\n)\s*\d+$", before):
            return False
        if _BEFORE_NUMBERS.fullmatch(word):
            return not follows.isdigit()
        if _SELDOM.fullmatch(word):
            return follows.isupper()
    return not (cased and follows.islower() and (len(mark) > 1 or mark == "\u2026"))


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


def _numbered(name: str, count: Callable[[str], int]) -> dict[str, tuple[type, Callable[[str, Any], bool]]]:
    """So many, at least, at most; an empty text has none of anything, and obeys none of these."""
    return {
        name: (int, lambda text, value: bool(text.strip()) and count(text) == value),
        f"min_{name}": (int, lambda text, value: bool(text.strip()) and count(text) >= value),
        f"max_{name}": (int, lambda text, value: bool(text.strip()) and count(text) <= value),
    }


# Kind -> (type of the value, whether a text obeys).
KINDS: dict[str, tuple[type, Callable[[str, Any], bool]]] = {
    "min_words": (int, lambda text, value: len(words(text)) >= value),
    "max_words": (int, lambda text, value: 0 < len(words(text)) <= value),
    **_numbered("sentences", lambda text: len(sentences(text))),
    **_numbered("paragraphs", lambda text: len(paragraphs(text))),
    **_numbered("bullets", lambda text: len(_BULLET.findall(text))),
    **_numbered("highlights", lambda text: len(_HIGHLIGHT.findall(text))),
    **_numbered("placeholders", lambda text: len(_PLACEHOLDER.findall(text))),
    **_numbered("capitals", lambda text: sum(word.isupper() for word in words(text))),
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


def read(record: Any) -> list[tuple[str, Any]]:
    """The checks of a record as (kind, value). Raises ValueError for one that is none."""
    checks = []
    for one in record or ():
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
        checks.append((kind, value))
    return checks


def broken(text: str, checks: Sequence[tuple[str, Any]]) -> list[str]:
    """Kinds of the checks that `text` does not obey."""
    return [kind for kind, value in checks if not KINDS[kind][1](text, value)]


def refuses(text: str, patterns: Sequence[re.Pattern[str]] = refusals.PATTERNS) -> bool:
    """Whether a text opens as a refusal does, or says nothing at all; `patterns` as `refusals.read` makes them."""
    opening = refusals.opening(text)
    return not text.strip() or any(pattern.search(opening) for pattern in patterns)
