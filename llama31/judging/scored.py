"""Files of dialogs or preferences, and the rewards of their answers: what `recipes.score` reads, writes and tells."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from llama31.dialogs import columns, preferences, store
from llama31.judging import calibration
from llama31.runs import files
from llama31.tokens import chat

Rewards = Mapping[str, float | None]
WHOLE = ""  # name of the one answer of a dialog, which is its last message


@dataclass(frozen=True)
class ScoredRecord:
    """A record and its dialogs: the whole one, or the prompt with each of the ranked answers, the best first.

    A preference with an empty answer has none, nor has what the format cannot say (`chat.OutsideFormat`).
    """

    record: Mapping[str, Any]
    dialogs: Mapping[str, Sequence[chat.Message]]


def read(given: str) -> list[ScoredRecord]:
    """The records of the files that `given` names. Raises ValueError (key `input`) with file and line."""
    paths = store.files(given)
    if not paths:
        raise ValueError(f"input={given}: no such file; give JSONL files, a folder or a glob")
    entries = [entry for _, _, entry in store.records(paths, "input", _entry)]
    if not entries:
        raise ValueError(f"input={given}: no record in it; give dialogs or preferences")
    return entries


def _entry(record: dict[str, Any]) -> ScoredRecord:
    try:
        return ScoredRecord(record, _dialogs(record))
    except chat.OutsideFormat:
        return ScoredRecord(record, {})


def _dialogs(record: dict[str, Any]) -> dict[str, Sequence[chat.Message]]:
    if {"chosen", "rejected", "preferred_output"} & set(record):
        parsed = preferences.read(record)
        prompt, answers = ([], {}) if isinstance(parsed, str) else parsed
        return {rank: [*prompt, *answer] for rank, answer in answers.items()}
    messages = chat.read(columns.dialog(record))
    if messages[-1].role != "assistant":
        raise ValueError("messages: the last one is no assistant's; a reward is for an answer")
    return {WHOLE: messages}


def write(path: Path, entries: Sequence[ScoredRecord], rewards: Sequence[Rewards]) -> None:
    """The records in their order, each with its `reward`, or its `rewards` by rank; null where there is none."""
    scores = (
        {"reward": rewards_of[WHOLE]} if WHOLE in rewards_of else {"rewards": dict(rewards_of)}
        for rewards_of in map(_finite, rewards)
    )
    lines = (
        json.dumps({**entry.record, **one}, ensure_ascii=False) + "\n"
        for entry, one in zip(entries, scores, strict=True)
    )
    files.write_whole(path, "".join(lines))


def _finite(rewards: Rewards) -> Rewards:
    return {name: value if value is not None and math.isfinite(value) else None for name, value in rewards.items()}


def agreement(entries: Sequence[ScoredRecord], rewards: Sequence[Rewards]) -> dict[str, Any]:
    """How often the preferences are ranked right: figures (`calibration.figures`) by strength, and of all pairs.

    A pair with the edited answer is a kind of its own; pairs without two rewards are left out.
    """
    margins: defaultdict[str, list[float]] = defaultdict(list)
    for entry, rewards_of in zip(entries, map(_finite, rewards), strict=True):
        for better, worse in combinations(rewards_of, 2):
            high, low = rewards_of[better], rewards_of[worse]
            if high is not None and low is not None:
                kind = "edited" if better == "edited" else str(entry.record.get("strength") or "not stated")
                margins[kind].append(high - low)
    every = [margin for some in margins.values() for margin in some]
    groups = {**margins, "all": every} if every else {}
    return {name: calibration.figures(np.array(some)) for name, some in groups.items()}
