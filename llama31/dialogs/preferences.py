"""Preferences: a prompt and two or three ranked answers -> ids and the pairs that are compared (report, section 4.2.1).

What a record is stands in `dialogs/__init__.py`. Ranks are edited > chosen > rejected. The annotators' strength is that
of chosen over rejected; a pair with the edited answer is a kind of its own. Answers that hardly differ teach nothing
(the report drops them), unless they differ in what they come to: of two long solutions that is the best there is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama31.config import STRENGTHS
from llama31.dialogs import columns
from llama31.dialogs.store import Example
from llama31.tokens import chat

EDITED = len(STRENGTHS)  # added to the record's strength: the kind of a pair with the edited answer
RANKS = ("edited", "chosen", "rejected")
# Why a record is left out; said behind the number of those.
EMPTY = "with an empty answer"
ALIKE = "whose answers hardly differ"
CONTRADICTORY = "whose edited answer is nearly the rejected one"
# What an answer may come to: numbers, options of a multiple choice, TeX results, verdicts.
_RESULT = re.compile(r"[-+]?\d+(?:[.,]\d+)*|\([a-z]\)|\\boxed\{[^{}]*\}|\b(?:yes|no|true|false)\b", re.IGNORECASE)


def encode(
    record: Mapping[str, Any], form: chat.Format, similarity: float, default: str | None = None
) -> Example | str:
    """The prompt, then its answers, the best first; or why the record is left out.

    Answers are near-equal, and no pair, where `alike`. An empty edited answer is none. `default` is the strength of a
    record that states none. Raises ValueError.
    """
    parsed = read(record)
    strength = default if record.get("strength") is None else record["strength"]
    if strength not in STRENGTHS:
        remedy = "" if strength else ", or data.sources.NAME.strength for records that state none"
        raise ValueError(f"strength: {strength!r}; give one of {', '.join(STRENGTHS)}{remedy}")
    if isinstance(parsed, str):
        return parsed
    prompt, (ranks, given) = parsed[0], map(list, zip(*parsed[1].items(), strict=True))
    answers = [form.encode(messages, bos=False) for messages in given]
    every = list(combinations(range(len(given)), 2))
    equal = [(i, j) for i, j in every if alike(given[i], given[j], answers[i], answers[j], similarity)]
    if len(equal) == len(every):
        return ALIKE
    if (0, 2) in equal:
        return CONTRADICTORY  # edited > chosen and chosen > rejected, of two texts
    kind = STRENGTHS.index(strength)
    pairs = [(i, j, kind + (EDITED if ranks[i] == "edited" else 0)) for i, j in every if (i, j) not in equal]
    first = form.encode(prompt)
    silent = np.zeros(len(first.tokens), np.int8)  # whatever assistants said before is prompt
    return Example([(first.tokens, silent), *((one.tokens, one.parts) for one in answers)], pairs)


def read(record: Mapping[str, Any]) -> tuple[list[chat.Message], dict[str, list[chat.Message]]] | str:
    """The prompt and its answers by rank, the best first; or why there is nothing to compare. Raises ValueError."""
    record = _apart(columns.preference(record))
    prompt = chat.read({**record, "messages": _prompt(record)})
    if prompt[-1].role == "assistant":
        raise ValueError("messages: the last one is an assistant's, and what answers it would be two in a row")
    missing = [rank for rank in RANKS[1:] if record.get(rank) is None]
    if missing:
        raise ValueError(f"{missing[0]}: missing; a preference has an answer 'chosen' and an answer 'rejected'")
    if any(_says_nothing(record[rank]) for rank in RANKS[1:]):
        return EMPTY
    ranks = RANKS[1:] if _says_nothing(record.get("edited")) else RANKS
    return prompt, {rank: _answer(record[rank], rank) for rank in ranks}


def _apart(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """A record whose answers are whole dialogs, as TRL and public sets have them: their prompt is what they share."""
    chosen, rejected = whole = [record.get(rank) for rank in RANKS[1:]]
    if not all(isinstance(one, list) and one and _role(one[0]) != "assistant" for one in whole):
        return record
    assert isinstance(chosen, list) and isinstance(rejected, list)
    most = min(len(chosen), len(rejected)) - 1  # the last is an answer, even where both are the same
    count = next((i for i in range(most) if chosen[i] != rejected[i]), most)
    shared = chosen[:count]
    if not shared:
        raise ValueError("chosen, rejected: dialogs of different prompts; give two that begin alike")
    users = [str(one.get("content") or "").strip() for one in shared if _role(one) == "user"]
    prompt, messages = record.get("prompt"), record.get("messages")
    if prompt is not None and prompt != shared and not (isinstance(prompt, str) and prompt.strip() in users):
        raise ValueError("prompt: not what chosen and rejected begin with; leave it out, or give the answers alone")
    if messages is not None and messages not in (shared, chosen):  # which ultrafeedback_binarized repeats there
        raise ValueError(
            "messages: neither what chosen and rejected begin with nor the chosen dialog; leave them out, or give the "
            "answers alone"
        )
    edited = record.get("edited")
    if isinstance(edited, list) and edited[:count] == shared:
        edited = edited[count:]
    return {**record, "messages": shared, "chosen": chosen[count:], "rejected": rejected[count:], "edited": edited}


def _role(given: Any) -> Any:
    return given.get("role") if isinstance(given, Mapping) else None


def _prompt(record: Mapping[str, Any]) -> Any:
    given = record.get("messages", record.get("prompt"))
    return [{"role": "user", "content": given}] if isinstance(given, str) else given


def _answer(given: Any, rank: str) -> list[chat.Message]:
    if isinstance(given, str):
        given = {"role": "assistant", "content": given}
    listed = given if isinstance(given, list) else [given]
    try:
        messages = [chat.message(one, place) for place, one in enumerate(listed)]
    except chat.OutsideFormat:
        raise
    except ValueError as error:
        raise ValueError(f"{rank}: {error}") from error
    if not messages or messages[0].role != "assistant" or messages[-1].role != "assistant":
        raise ValueError(f"{rank}: an answer begins and ends with an assistant's message")
    return messages


def _says_nothing(given: Any) -> bool:
    """Whether an answer is absent, or a message in it has neither text nor call: its end would be all to learn."""
    listed = given if isinstance(given, list) else [given]
    return not listed or any(
        _blank(one.get("content")) and _blank(one.get("refusal")) and not one.get("tool_calls")
        if _role(one) == "assistant"
        else _blank(one)
        for one in listed
    )


def _blank(content: Any) -> bool:
    """Whether a text is none: absent, white space, or a list of such parts."""
    if isinstance(content, list):
        return all(isinstance(part, Mapping) and "text" in part and _blank(part["text"]) for part in content)
    return content is None or (isinstance(content, str) and not content.strip())


def alike(
    one: Sequence[chat.Message], other: Sequence[chat.Message], ids: chat.Encoded, others: chat.Encoded, least: float
) -> bool:
    """Whether two answers hardly differ: their `agreement` is at least `least`, and they come to the same results."""
    return agreement(ids.tokens, others.tokens) >= least and _results(one) == _results(other)


def _results(answer: Sequence[chat.Message]) -> list[str]:
    """Numbers, options and verdicts of what the assistant says, in their order."""
    said = "\n".join(message.text() for message in answer if message.role == "assistant")
    return [match.casefold() for match in _RESULT.findall(said)]


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
