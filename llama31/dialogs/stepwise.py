"""Solutions in steps -> what a step-wise reward is read of: ids, and the label of each step (report, section 4.3.3).

The reward of step k is that of a dialog: what is asked, and an assistant's message of the first k steps, read at its
termination. So a server of chat messages is asked for it by messages, pairs of steps (`dialogs/preferences.py`) are
rewarded alike, and nothing marks the end of a step but what ends a message anyway. A record has the whole dialog once,
and of each earlier step the few tokens that its dialog has otherwise: the termination, and what a tokenizer writes
otherwise at the end of a text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama31.dialogs import columns
from llama31.dialogs.store import Example
from llama31.tokens import chat

STEP = re.compile(r"^\W*step\s+\d+\b", re.IGNORECASE | re.MULTILINE)
NUMBER = re.compile(r"^\W*step\s+\d+[\s*]*[:.)]?[\s*]*", re.IGNORECASE)  # a backslash behind it is the step's
RIGHT = 0.5  # the least label of a step that counts as right
EMPTY = "with an empty step"  # why a record is left out; said behind the number of those
ASKED = ("messages", "prompt", "question")  # keys of what is asked, the first that is there


def split(text: str) -> list[str]:
    """A text's steps: what begins with `Step 1`, `Step 2` ...; without such marks its paragraphs, or its lines."""
    marks = [match.start() for match in STEP.finditer(text)]
    if len(marks) > 1:
        parts = [text[begin:end] for begin, end in zip([0, *marks[1:]], [*marks[1:], len(text)])]
    else:
        parts = re.split(r"\n\s*\n", text)
        parts = parts if len([part for part in parts if part.strip()]) > 1 else text.split("\n")
    return [part.strip() for part in parts if part.strip()]


def joined(parts: Sequence[str]) -> str:
    """Steps as a text."""
    return "\n\n".join(parts)


def numbered(parts: Sequence[str]) -> str:
    """Steps as a text, each with its number, whatever number it had."""
    return joined([f"Step {number}: {NUMBER.sub('', part)}" for number, part in enumerate(parts, start=1)])


def said(steps: Sequence[str]) -> dict[str, str]:
    """The assistant's message whose reward is that of the last of `steps`, as records and servers have it."""
    return {"role": "assistant", "content": numbered(steps)}


def asked(question: str, steps: Sequence[str]) -> tuple[dict[str, Any], ...]:
    """The messages by which a server is asked for the score of the last of `steps`, with the tokens of `encode`."""
    return chat.openai(chat.read({"messages": [{"role": "user", "content": question}, said(steps)]}))


@dataclass(frozen=True)
class StepRecord:
    """What is asked, the steps of an answer, and the label of each, 0 to 1; None where the record has no labels."""

    prompt: Sequence[chat.Message]
    steps: Sequence[str]
    labels: Sequence[float] | None

    @property
    def empty(self) -> bool:
        """Whether a step says nothing."""
        return not all(NUMBER.sub("", step).strip() for step in self.steps)


def read(record: Mapping[str, Any]) -> StepRecord:
    """A record with `steps` and, where a model learns from it, `labels`. Raises ValueError."""
    record = columns.stepwise(record)
    given = next((record[key] for key in ASKED if record.get(key) is not None), None)
    if given is None:
        raise ValueError(f"{ASKED[-1]}: missing; give what the steps answer, as {', '.join(ASKED)}")
    asked = [{"role": "user", "content": given}] if isinstance(given, str) else given
    prompt = chat.read({**record, "messages": asked})
    if prompt[-1].role == "assistant":
        raise ValueError("messages: the last one is an assistant's, and what answers it would be two in a row")
    steps, labels = record.get("steps"), record.get("labels")
    if not isinstance(steps, list) or not steps or not all(isinstance(step, str) for step in steps):
        raise ValueError("steps: give a list of texts, at least one")
    if labels is None:
        return StepRecord(prompt, steps, None)
    if not isinstance(labels, list) or len(labels) != len(steps):
        many = f"{len(labels)} labels" if isinstance(labels, list) else "no list"
        raise ValueError(f"labels: {many} for {len(steps)} steps; give one for each")
    wrong = [one for one in labels if not isinstance(one, int | float) or not 0 <= one <= 1]
    if wrong:
        raise ValueError(f"labels: {wrong[0]!r}; give numbers of 0 (wrong) to 1 (right), or false and true")
    return StepRecord(prompt, steps, [float(one) for one in labels])


def encode(record: Mapping[str, Any], form: chat.Format) -> Example | str:
    """A solution's steps as `sequences` has them, and their labels; or why it is left out. Raises ValueError."""
    parsed = read(record)
    if parsed.labels is None:
        raise ValueError("labels: missing; give one for each step, 0 (wrong) to 1 (right)")
    if parsed.empty:
        return EMPTY
    tokens, prefixes = sequences(parsed.prompt, parsed.steps, form)
    silent = [(one, np.zeros(len(one), np.int8)) for one in tokens]
    return Example(silent, labels=list(parsed.labels), prefixes=prefixes)


def sequences(
    prompt: Sequence[chat.Message], steps: Sequence[str], form: chat.Format
) -> tuple[list[NDArray[np.int32]], list[int]]:
    """Of each step the tokens that its dialog has behind a prefix of the whole dialog, and that prefix's length.

    The last step's dialog is the whole one: all of its tokens, behind a prefix of 0.
    """
    before = form.encode(prompt).tokens
    every = [
        np.concatenate([before, form.encode([chat.message(said(steps[:end]))], bos=False).tokens])
        for end in range(1, len(steps) + 1)
    ]
    shared = [_common(one, every[-1]) for one in every[:-1]]
    return [*(one[size:] for one, size in zip(every, shared)), every[-1]], [*shared, 0]


def _common(one: NDArray[Any], other: NDArray[Any]) -> int:
    """Tokens that both begin with."""
    least = min(len(one), len(other))
    differ = np.nonzero(one[:least] != other[:least])[0]
    return int(differ[0]) if differ.size else least
