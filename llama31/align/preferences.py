"""Preferences: a prompt and two or three ranked answers -> ids and the pairs that are compared (report, section 4.2.1).

What a record is stands in `align/__init__.py`. Ranks are edited > chosen > rejected. The annotators' strength is that
of chosen over rejected; a pair with the edited answer is a kind of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama31.align import chat
from llama31.align.store import Example
from llama31.validate import STRENGTHS

EDITED = len(STRENGTHS)  # added to the record's strength: the kind of a pair with the edited answer
RANKS = ("edited", "chosen", "rejected")


def encode(record: Mapping[str, Any], form: chat.Format, similarity: float) -> Example | None:
    """The prompt, then its answers, the best first; None where no two of them differ enough.

    Answers are near-equal, and no pair, where `agreement` is at least `similarity`. Raises ValueError.
    """
    prompt = chat.read({**record, "messages": _prompt(record)})
    if prompt[-1].role == "assistant":
        raise ValueError("messages: the last one is an assistant's, and what answers it would be two in a row")
    strength = record.get("strength")
    if strength not in STRENGTHS:
        raise ValueError(f"strength: {strength!r}; give one of {', '.join(STRENGTHS)}")
    missing = [rank for rank in RANKS[1:] if record.get(rank) is None]
    if missing:
        raise ValueError(f"{missing[0]}: missing; a preference has an answer 'chosen' and an answer 'rejected'")
    given = [(rank, _answer(record[rank], rank)) for rank in RANKS if record.get(rank) is not None]
    first = form.encode(prompt)
    answers = [form.encode(messages, bos=False) for _, messages in given]
    pairs = [
        (i, j, STRENGTHS.index(strength) + (EDITED if given[i][0] == "edited" else 0))
        for i, j in combinations(range(len(given)), 2)
        if agreement(answers[i].tokens, answers[j].tokens) < similarity
    ]
    if not pairs:
        return None
    silent = np.zeros(len(first.tokens), np.int8)  # whatever assistants said before is prompt
    return Example([(first.tokens, silent), *((one.tokens, one.parts) for one in answers)], pairs)


def _prompt(record: Mapping[str, Any]) -> Any:
    given = record.get("messages", record.get("prompt"))
    return [{"role": "user", "content": given}] if isinstance(given, str) else given


def _answer(given: Any, rank: str) -> list[chat.Message]:
    if isinstance(given, str):
        given = {"role": "assistant", "content": given}
    listed = given if isinstance(given, list) else [given]
    try:
        messages = [chat.message(one, place) for place, one in enumerate(listed)]
    except ValueError as error:
        raise ValueError(f"{rank}: {error}") from error
    if not messages or messages[0].role != "assistant" or messages[-1].role != "assistant":
        raise ValueError(f"{rank}: an answer begins and ends with an assistant's message")
    return messages


def agreement(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Share of the pairs of neighbouring tokens that both have, 0 to 1: Dice's coefficient of two bags."""
    bags = [Counter(zip(ids[:-1].tolist(), ids[1:].tolist())) for ids in (one, other)]
    return 2 * (bags[0] & bags[1]).total() / max(1, bags[0].total() + bags[1].total())


def kind_name(kind: int) -> str:
    """What a pair's kind is called: the strength, or edited."""
    return "edited" if kind >= EDITED else STRENGTHS[kind]


def wanted(kinds: NDArray[Any], strengths: Sequence[str]) -> NDArray[np.bool_]:
    """Whether each pair is of a record whose strength is one of `strengths`."""
    return np.isin(kinds % EDITED, [STRENGTHS.index(strength) for strength in strengths])
