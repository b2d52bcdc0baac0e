"""Answers in labelled parts (`Question: ...`), in JSON, and what may not stand in a part. All raise ValueError."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from llama31.synth.pipeline import parsing

_FENCED = re.compile(r"```[\w+-]*\n(.*?)\n?```", re.DOTALL)
_ASIDE = re.compile(r"\b(?:this|the|given|above)\s+(?:passage|excerpt|text|chunk|section|snippet)\b", re.IGNORECASE)


def parts(answer: str, labels: Sequence[str]) -> list[tuple[str, str]]:
    """(label, text) of the parts of an answer, in order: each begins on a line with `LABEL:` and ends before the next.

    Labels may be a list, where the first is of one: `1. LABEL:`, `- LABEL:`. Then those that go on with it are labels
    too, by sign, number and indentation; all others in a list are text of their part. Raises ValueError for text before
    the first label, a preface apart, and for a part without text.
    """
    answer = parsing.without_preface(answer)
    mark = re.compile(
        rf"^([*#\s]*)(?:(\d{{1,3}})?([.)+\-\u2022])[ \t]*)?[*#]*({'|'.join(labels)})\**\s*:\**[ \t]*",
        re.IGNORECASE | re.MULTILINE,
    )
    found = _of_one_list(list(mark.finditer(answer)))
    if not found or answer[: found[0].start()].strip():
        raise ValueError(f"the answer does not begin with one of {', '.join(labels)}")
    ends = [one.start() for one in found[1:]] + [len(answer)]
    known = {label.casefold(): label for label in labels}
    result = [(known[one[4].casefold()], answer[one.end() : end].strip()) for one, end in zip(found, ends, strict=True)]
    if empty := [label for label, text in result if not text]:
        raise ValueError(f"{empty[0]}: nothing is said")
    return result


def _of_one_list(found: Sequence[re.Match[str]]) -> list[re.Match[str]]:
    """Labels that stand alone, and where the first is of a list those that go on with it."""
    kept, last = list[re.Match[str]](), None
    for one in found:
        begun, number, sign = one[1].rpartition("\n")[2].strip("*#"), int(one[2] or 0), one[3]
        if sign is None:
            kept.append(one)
        elif not kept or (last and last[:2] == (begun, sign) and number == last[2] + bool(one[2])):
            kept.append(one)
            last = begun, sign, number
    return kept


def json_value(answer: str) -> Any:
    """The JSON value that an answer is, behind a preface, or that its one fenced block is.

    Raises ValueError, for NaN and numbers beyond all bounds as well, which Python reads and JSON has not.
    """
    fenced = _FENCED.findall(answer)
    if len(fenced) > 1:
        raise ValueError("several blocks; one was asked for")
    try:
        value = json.loads(fenced[0] if fenced else parsing.without_preface(answer))
        json.dumps(value, allow_nan=False)
        return value
    except RecursionError as error:
        raise ValueError("JSON too deep to be read") from error


def speaks_of_excerpt(text: str) -> bool:
    """Whether a question points at an excerpt that whoever reads the whole document does not know of."""
    return bool(_ASIDE.search(text))
