"""A judge's two points, correctness and style: both are needed, and what is hard is revised until it has them.

Report, section 4.3.1: keeping perfect scores alone lost the hardest prompts, and benchmarks with them; so the answers
to those were revised until they passed. Which prompts those are the report does not state: here a judge says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llama31 import config
from llama31.dialogs import columns
from llama31.synth.code import snippets
from llama31.synth.pipeline import parsing
from llama31.synth.pipeline.draw import JUDGE, ItemDraw
from llama31.synth.pipeline.items import SynthesisItem
from llama31.synth.pipeline.shard import DIALOGS, Records

SCORE, REVISE, DIFFICULTY = "review_code/score", "review_code/revise", "review_code/difficulty"
PROMPTS = (SCORE, REVISE, DIFFICULTY)
POINTS = ("correctness", "style")
LEVELS = ("easy", "medium", "hard")


@dataclass(frozen=True)
class ReviewScore:
    """A point for correctness, a point for style, and what the judge said before."""

    correctness: int
    style: int
    reasons: str

    @property
    def points(self) -> int:
        """How many it has."""
        return self.correctness + self.style

    @property
    def perfect(self) -> bool:
        """Both points."""
        return self.points == len(POINTS)


def score(answer: str) -> ReviewScore:
    """What the last lines `Correctness: 0|1` and `Style: 0|1` say. Raises ValueError where one is missing."""
    points = {}
    for name in POINTS:
        said = parsing.last(answer, name)
        if said not in ("0", "1"):
            raise ValueError(f"no line `{name}: 0` or `{name}: 1`")
        points[name] = int(said)
    reasons = re.split(r"^\W*correctness\W*:", answer, flags=re.IGNORECASE | re.MULTILINE)[0].strip()
    return ReviewScore(points["correctness"], points["style"], reasons or "Nothing more was said.")


def reviewed(
    draw: ItemDraw,
    settings: config.ReviewCodeSynthesis,
    problem: str,
    answer: str,
    holds: Callable[[str], str] = lambda answer: "",
) -> str:  # fmt: skip
    """The answer, or a revision of it, that has both points; drops the item where it has none.

    holds: says what is wrong with a revision beside the judge, such as that its code fails its tests; "" for nothing.
    """
    given = _scored(draw, problem, answer)
    draw.counts[f"judged {given.points} of {len(POINTS)}"] += 1
    if given.perfect:
        return answer
    wrong = given.reasons
    for _ in range(settings.revisions if _worth_it(draw, settings, problem) else 0):
        answer = draw.ask(REVISE, problem=problem, answer=answer, reasons=wrong)
        wrong = holds(answer)
        if not wrong:
            given = _scored(draw, problem, answer)
            if given.perfect:
                draw.counts["revised until it had both points"] += 1
                return answer
            wrong = given.reasons
    draw.drop(f"judged below {len(POINTS)} of {len(POINTS)}")


def _scored(draw: ItemDraw, problem: str, answer: str) -> ReviewScore:
    return draw.read(SCORE, score, model=JUDGE, temperature=0, problem=problem, answer=answer)


def _worth_it(draw: ItemDraw, settings: config.ReviewCodeSynthesis, problem: str) -> bool:
    """Whether an answer to this problem is revised."""
    if settings.revise != "hardest":
        return settings.revise == "all"
    levels = parsing.choice(LEVELS, "Difficulty")
    level = draw.read(DIFFICULTY, levels, model=JUDGE, temperature=0, problem=problem)
    draw.counts[f"below 2 of 2, {level}"] += 1
    return level == LEVELS[-1]


@dataclass(frozen=True)
class CodeReview:
    """Dialogs about code, such as answers that a reward model chose: those whose last answer has both points."""

    settings: config.ReviewCodeSynthesis
    name: str = "review_code"
    prompts: Sequence[str] = PROMPTS

    def make(self, item: SynthesisItem, draw: ItemDraw) -> Records:
        """The dialog, its last answer as it is or revised."""
        messages = _messages(item.record)
        if messages is None:
            draw.drop("no dialog of texts that ends with an answer")
        said = "\n\n".join(f"{one['role']}: {one['content']}" for one in messages[:-1])
        problem = messages[0]["content"] if len(messages) == 2 else said
        answer = messages[-1]["content"]
        final = reviewed(draw, self.settings, snippets.readable(problem), snippets.readable(answer))
        last = {**messages[-1], "content": answer if final == snippets.readable(answer) else final}
        others = () if item.record.get("messages") is not None else columns.OF_DIALOGS  # which still say the old answer
        kept = {name: value for name, value in item.record.items() if name not in ("id", "provenance", *others)}
        return {DIALOGS: [{**kept, "messages": [*messages[:-1], last]}]}


def _messages(record: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The messages of a dialog, in whatever columns, if all are texts and the last is an assistant's answer to one."""
    messages = columns.dialog(record).get("messages")
    if not isinstance(messages, list) or len(messages) < 2:
        return None
    texts = all(isinstance(one, dict) and isinstance(one.get("content"), str) for one in messages)
    return messages if texts and messages[-1].get("role") == "assistant" else None
