"""Which answers are kept: rules on length, end and form (report, section 4.2.3), then ranks by reward.

`why_not` judges one answer alone; `select` ranks what is left per prompt and balances over prompts.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llama31 import config
from llama31.sampling import verifiers, writing_systems

_APOLOGY = re.compile(
    r"\bi(?:['\u2019]m| am) (?:so |very |really )?sorry\b|\bi apologi[sz]e\b|\bmy apologies\b", re.IGNORECASE
)
_SPECIAL = re.compile(r"<\|[a-z0-9_]+\|>")
RUN = 4  # words of a run that may repeat


@dataclass(frozen=True)
class Candidate:
    """One answer to one prompt, k-th of K, with the line of the record that it came from."""

    prompt: str
    k: int
    text: str
    finish: str
    tokens: int | None
    record: Mapping[str, Any]


@dataclass(frozen=True)
class RankedAnswer:
    """A prompt's answers that passed, the best first, with their rewards."""

    prompt: str
    answers: Sequence[tuple[Candidate, float]]


@dataclass
class Selection:
    """What is kept, and how many answers (or prompts) were dropped for what."""

    best: list[RankedAnswer] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


def why_not(one: Candidate, asked: str, wanted: Sequence[tuple[str, Any]], filters: config.Filters) -> str | None:
    """Why an answer to the text `asked` is dropped; None where it passes. `wanted` are the checks of its prompt."""
    text = one.text.strip()
    count = len(text.split()) if one.tokens is None else one.tokens
    if not text:
        return "empty"
    if filters.finished and one.finish != "stop":
        return "unfinished"
    if count < filters.min_tokens:
        return "too short"
    if filters.max_tokens is not None and count > filters.max_tokens:
        return "too long"
    if _SPECIAL.search(text) or "\N{REPLACEMENT CHARACTER}" in text or _controls(text):
        return "garbage"
    if repetition(text) > filters.repeated_share:
        return "repeats itself"
    if (sign := overdone(text, filters.emoji_per_word, filters.exclamations_per_sentence)) is not None:
        return sign
    if filters.same_script and not writing_systems.as_asked(asked, text):
        return "another script"
    if filters.format and verifiers.broken(text, wanted):
        return "format"
    return None


def _controls(text: str) -> bool:
    return any(unicodedata.category(char) == "Cc" and char not in "\n\t\r" for char in text)


def repetition(text: str) -> float:
    """Share of the runs of four words that stood in the text before."""
    words = text.split()
    runs = [tuple(words[i : i + RUN]) for i in range(len(words) - RUN + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def overdone(text: str, emoji_per_word: float, exclamations_per_sentence: float) -> str | None:
    """What a text has too much of, beyond the first: emoji per word, or exclamation marks per sentence."""
    if emoji(text) - 1 > emoji_per_word * len(text.split()):
        return "emoji"
    if text.count("!") - 1 > exclamations_per_sentence * max(1, len(verifiers.sentences(text))):
        return "exclamation marks"
    return None


def emoji(text: str) -> int:
    """Pictures among the characters: symbols beyond U+2600, which mathematics and currencies do not use."""
    return sum(unicodedata.category(char) == "So" and ord(char) >= 0x2600 for char in text)


def apologises(text: str) -> bool:
    """Whether a text says sorry."""
    return _APOLOGY.search(text) is not None


def most_apologies(share: float, apologising: int, others: int) -> int:
    """How many of `apologising` texts may stay beside the others, for them to be at most that share of all."""
    return apologising if share >= 1 else min(apologising, math.floor(share * others / (1 - share)))


def normalised(text: str) -> str:
    """What makes two answers the same: letters and digits, whatever case and white space."""
    return " ".join(text.casefold().split())


def select(
    candidates: Mapping[str, Sequence[Candidate]],
    rewards: Mapping[tuple[str, int], float | None],
    asked: Mapping[str, str],
    wanted: Mapping[str, Sequence[tuple[str, Any]]],
    filters: config.Filters,
    foreign: Collection[tuple[str, int]] = (),
) -> Selection:
    """Rank the answers of every prompt by `rewards` and keep, over prompts, what the filters let through.

    `rewards` by (prompt, k), None where the reward model could not read the answer; `foreign`: answers in another
    language than was asked for, which have none. Ties go to the lower k, so the
    result is a function of what was drawn, not of the order in which it came in.
    """
    selection = Selection()
    for prompt, answers in candidates.items():
        kept, seen = [], set[str]()
        for one in sorted(answers, key=lambda one: one.k):
            reward = rewards.get((prompt, one.k))
            reason = why_not(one, asked[prompt], wanted.get(prompt, ()), filters)
            if reason is None and (prompt, one.k) in foreign:
                reason = "another language"
            if reason is None and filters.duplicates and normalised(one.text) in seen:
                reason = "duplicate"
            if reason is None and (reward is None or not math.isfinite(reward)):
                reason = "no reward"
            if reason is None and reward is not None:
                seen.add(normalised(one.text))
                kept.append((one, reward))
            else:
                selection.dropped[str(reason)] += 1
        if kept:
            selection.best.append(RankedAnswer(prompt, sorted(kept, key=lambda pair: (-pair[1], pair[0].k))))
        else:
            selection.dropped["prompts without an answer"] += 1
    _balance(selection, filters)
    return selection


def _balance(selection: Selection, filters: config.Filters) -> None:
    """The best rewards alone, and no more apologies than wanted."""
    ordered = sorted(selection.best, key=lambda one: -one.answers[0][1])
    keep = math.ceil(filters.keep_share * len(ordered))
    selection.dropped["prompts below keep_share"] += len(ordered) - keep
    sorry = [one for one in ordered[:keep] if apologises(one.answers[0][0].text)]
    allowed = most_apologies(filters.apologies_share, len(sorry), keep - len(sorry))
    gone = {one.prompt for one in [*ordered[keep:], *sorry[allowed:]]}
    selection.dropped["prompts that only apologise"] += len(sorry[allowed:])
    selection.best = [one for one in selection.best if one.prompt not in gone]
    selection.dropped = Counter({reason: count for reason, count in selection.dropped.items() if count})
