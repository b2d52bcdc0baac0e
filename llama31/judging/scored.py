"""Files of dialogs, preferences or steps, and their answers' rewards: what `recipes.score` reads, writes and tells."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from llama31.dialogs import columns, preferences, stepwise, store
from llama31.dialogs.stepwise import StepRecord
from llama31.judging import calibration
from llama31.runs import files
from llama31.tokens import chat

Rewards = Mapping[str, float | None]
StepScores = Sequence[float] | None
_PAIR = {"chosen", "rejected", "preferred_output"}  # keys of preferences
STEPS = "steps"  # in the place of a rank, where the answer is scored by its steps
WHOLE = ""  # name of the one answer of a dialog, which is its last message


@dataclass(frozen=True)
class ScoredRecord:
    """A record and its dialogs: the whole one, or the prompt with each of the ranked answers, the best first.

    A preference with an empty answer has none, nor has what the format cannot say (`chat.OutsideFormat`), nor has a
    record whose answer is scored by its `steps`.
    """

    record: Mapping[str, Any]
    dialogs: Mapping[str, Sequence[chat.Message]]
    steps: StepRecord | None = None


def read(given: str, by_steps: bool = False, least_step: float | None = None) -> list[ScoredRecord]:
    """The records of the files that `given` names. Raises ValueError (key `input`) with file and line.

    by_steps: the answers of dialogs are split into steps. Where there is a `least_step`, all records have to have them.
    """
    paths = store.files(given)
    if not paths:
        raise ValueError(f"input={given}: no such file; give JSONL files, a folder or a glob")

    def entry(record: dict[str, Any]) -> ScoredRecord:
        made = _entry(record, by_steps)
        if least_step is not None and made.dialogs:
            raise ValueError(
                f"least_step={least_step}: this answer is not scored by steps; give steps=true, and no preferences"
            )
        return made

    entries = [entry for _, _, entry in store.records(paths, "input", entry)]
    if not entries:
        raise ValueError(f"input={given}: no record in it; give dialogs, preferences or steps")
    return entries


def _entry(record: dict[str, Any], by_steps: bool) -> ScoredRecord:
    try:
        if isinstance(columns.stepwise(record).get("steps"), list) and not _PAIR & set(record):
            return ScoredRecord(record, {}, stepwise.read(record))
        dialogs = _dialogs(record)
    except chat.OutsideFormat:
        return ScoredRecord(record, {})
    if not by_steps or WHOLE not in dialogs:
        return ScoredRecord(record, dialogs)
    *prompt, answer = dialogs[WHOLE]
    steps = stepwise.split(answer.content)
    return ScoredRecord(record, {}, StepRecord(prompt, steps, None) if prompt and steps and not answer.call else None)


def _dialogs(record: dict[str, Any]) -> dict[str, Sequence[chat.Message]]:
    if _PAIR & set(record):
        parsed = preferences.read(record)
        prompt, answers = ([], {}) if isinstance(parsed, str) else parsed
        return {rank: [*prompt, *answer] for rank, answer in answers.items()}
    messages = chat.read(columns.dialog(record))
    if messages[-1].role != "assistant":
        raise ValueError("messages: the last one is no assistant's; a reward is for an answer")
    return {WHOLE: messages}


def write(
    path: Path, entries: Sequence[ScoredRecord], rewards: Sequence[Rewards], scores: Sequence[StepScores],
    least_step: float | None = None,
) -> Counter[str]:  # fmt: skip
    """The records in their order, each with its `reward`, `rewards` by rank or `step_scores`; null where there is none.

    Where there is a `least_step`, records are left out: returns how many, by reason.
    """
    lines, left_out = list[str](), Counter[str]()
    for entry, rewards_of, steps in zip(entries, map(_finite, rewards), scores, strict=True):
        if least_step is not None and (steps is None or min(steps) < least_step):
            left_out["without scores" if steps is None else f"with a step below {least_step:g}"] += 1
            continue
        one: dict[str, Any] = {"reward": rewards_of[WHOLE]} if WHOLE in rewards_of else {"rewards": dict(rewards_of)}
        one = {"step_scores": steps} if entry.steps is not None else one
        lines.append(json.dumps({**entry.record, **one}, ensure_ascii=False) + "\n")
    files.write_whole(path, "".join(lines))
    return left_out


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


def step_agreement(entries: Sequence[ScoredRecord], scores: Sequence[StepScores]) -> dict[str, Any]:
    """How often steps with labels are judged right: figures of right and of wrong ones, and of all."""
    margins, kinds = list[float](), list[int]()
    for entry, steps in zip(entries, scores, strict=True):
        if entry.steps is not None and entry.steps.labels is not None and steps is not None:
            right = [label >= stepwise.RIGHT for label in entry.steps.labels]
            logits = [_logit(score) for score in steps]
            margins += [logit if good else -logit for logit, good in zip(logits, right)]
            kinds += right
    return calibration.table(np.array(margins), np.array(kinds), calibration.step_name) if margins else {}


def _logit(score: float) -> float:
    return math.log(score / (1 - score)) if 0 < score < 1 else math.copysign(math.inf, score - 0.5)
