"""What an answer says, read strictly: whoever cannot be read is asked once more."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

# Of a reply such as "Here are the results:" the first line is part of it: only what was asked for can be announced.
_ASKED_FOR = "question|problem|message|request|query|summary|reply|prompt|persona|list|json|calls?|answer"
_PREFACE = re.compile(
    r"\A\s*(?:(?:sure|certainly|of course|okay|absolutely)\b[^\n]{0,40}?)?"
    rf"\bhere(?:'s|\u2019s| is| are)\b[^\n:]{{0,80}}\b(?:{_ASKED_FOR})\b[^\n]{{0,120}}:[*_ \t]*\n\s*",
    re.IGNORECASE,
)
_DECORATION = "*_`\"' \t\r"


def lines(answer: str, label: str) -> list[str]:
    """What stands behind `LABEL:` or `LABEL =` at the beginning of lines, in order, without what decorates it.

    Case does not matter; where nothing stands behind it, "".
    """
    marked = _marked(label)
    return [one[1].strip(_DECORATION) for row in answer.split("\n") if (one := marked.fullmatch(row))]


def last(answer: str, label: str) -> str | None:
    """What the last line `LABEL: X` says, or the line below it where X stands there; None where there is no such line.

    Without brackets around it and a full stop behind it.
    """
    marked, below = _marked(label), ""
    for row in reversed([row for row in answer.split("\n") if row.strip()]):
        if found := marked.fullmatch(row):
            return _bare(found[1]) or _bare(below)
        below = row
    return None


def number(answer: str, label: str, low: float, high: float) -> float:
    """N of the last line `LABEL: N`, behind which more may stand: `7/10`, `2 (some steps)`.

    Raises ValueError where there is none from `low` to `high`.
    """
    match = re.match(r"(\d+(?:\.\d+)?)(?![\d.,]*\d)", last(answer, label) or "")
    if match is None or not low <= float(match[1]) <= high:
        raise ValueError(f"no line {label}: {low} to {high}")
    return float(match[1])


def whole_number(answer: str, label: str, low: int, high: int) -> int:
    """As `number`, for whole ones alone."""
    found = number(answer, label, low, high)
    if not found.is_integer():
        raise ValueError(f"no whole number in the line {label}: {low} to {high}")
    return int(found)


def choice(names: Sequence[str], label: str = "Verdict") -> Callable[[str], str]:
    """A parser of answers that end with a line `Verdict: X`, X one of `names`, or say X alone. Case does not matter.

    The last such line counts. The parser raises ValueError where there is none, or its X is another.
    """
    known = {name.casefold(): name for name in names}

    def parse(answer: str) -> str:
        marked = last(answer, label)
        said = (_bare(answer) if marked is None else marked).casefold()
        if said not in known:
            raise ValueError(f"none of {', '.join(names)} is said")
        return known[said]

    return parse


def _marked(label: str) -> re.Pattern[str]:
    return re.compile(rf"[\W_]*{re.escape(label)}[*_`\"'()\[\]\s]*[:=](.*)", re.IGNORECASE)


def _bare(text: str) -> str:
    around = f"{_DECORATION}()[]$\n"
    return text.strip(around).rstrip(f"{around}.")


def without_preface(answer: str) -> str:
    """The answer without a first line such as `Here is the summary:`, which chat models write though nobody asked."""
    return _PREFACE.sub("", answer, count=1)


def said(answer: str, label: str | None = None) -> str:
    """The answer without white space around it, without a preface, `LABEL:` before it, or quotation marks or a fence
    around all of it.

    Raises ValueError where nothing is left.
    """
    text = without_preface(answer).strip()
    if label is not None:
        text = re.sub(rf"\A[*#_\s]*{re.escape(label)}[*_]*\s*:[*_\s]*", "", text, flags=re.IGNORECASE)
    if fenced := re.fullmatch(r"```\w*\n(.*?)\n?```", text, re.DOTALL):
        text = fenced[1].strip()
    if len(text) > 1 and text[0] == text[-1] == '"' and '"' not in text[1:-1]:
        text = text[1:-1].strip()
    if not text:
        raise ValueError("nothing is said")
    return text


def question(answer: str) -> str:
    """One question, in one paragraph that ends with a question mark. Raises ValueError for anything else."""
    text = re.sub(r"^q[:.]\s*", "", said(answer, "question"), flags=re.IGNORECASE).strip()
    if "\n\n" in text or not text.rstrip("\"'”)").endswith(("?", "\uff1f", "\u061f")):
        raise ValueError("no single question")
    return text
