"""Solutions as steps and a final answer; which of them agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llama31.dialogs import stepwise
from llama31.synth.equality import final
from llama31.synth.equality.bounded import Comparer


@dataclass(frozen=True)
class Solution:
    """What a model wrote, and its final answer; None where it says none."""

    text: str
    answer: str | None

    @property
    def steps(self) -> list[str]:
        """Its steps, in order."""
        return stepwise.split(self.text)


def read(text: str) -> Solution:
    """A solution by its text."""
    return Solution(text.strip(), answer(text))


def answer(text: str) -> str | None:
    """The final answer of a text; None where it says none."""
    try:
        return final.answer(text)
    except ValueError:
        return None


def next_step(said: str, number: int) -> str:
    """The first step of what a model said when it was asked for that step. Raises ValueError where there is none."""
    parts = stepwise.split(said) if len(stepwise.STEP.findall(said)) > 1 else [said.strip()]
    text = stepwise.NUMBER.sub("", parts[0]).strip() if parts else ""
    if not text:
        raise ValueError("no step")
    return f"Step {number}: {text}"


def same_text(one: str) -> str:
    """What makes two texts the same: all but white space and case."""
    return " ".join(one.split()).casefold()


def grouped(comparer: Comparer, answers: Sequence[str]) -> list[list[int]]:
    """Places of answers that are the same, the largest group first; ties go to what came first.

    Each is compared with the first of a group, for what is the same is not always transitive (units).
    """
    groups: list[list[int]] = []
    for place, one in enumerate(answers):
        home = next((group for group in groups if comparer.equal(answers[group[0]], one)), None)
        if home is None:
            groups.append([place])
        else:
            home.append(place)
    return sorted(groups, key=lambda group: -len(group))
