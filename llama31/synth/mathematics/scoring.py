"""How promising the first steps of a solution are: what guides a tree search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from llama31.dialogs import stepwise
from llama31.synth.mathematics import solutions
from llama31.synth.pipeline import parsing
from llama31.synth.pipeline.draw import REWARD, Dropped, ItemDraw

HIGHEST = 10


class StepScorer(Protocol):
    """A step-wise reward: 0 (it cannot lead to a right answer) to 1."""

    def score(self, draw: ItemDraw, question: str, steps: Sequence[str]) -> float: ...


def read_score(said: str) -> float:
    """`Score: N` of 0 to 10, as 0 to 1; the last such line counts. Raises ValueError."""
    return parsing.number(said, "score", 0, HIGHEST) / HIGHEST


@dataclass(frozen=True)
class JudgedSteps:
    """A model's own judgement, or that of a judge that is served: it writes its score.

    What cannot be read twice scores 0 and is counted.
    """

    model: str  # POLICY or JUDGE

    def score(self, draw: ItemDraw, question: str, steps: Sequence[str]) -> float:
        """See `StepScorer`."""
        shown = stepwise.numbered(steps)
        try:
            return draw.read(
                "mathematics/score", read_score, model=self.model, temperature=0, question=question, steps=shown
            )
        except Dropped:
            return 0.0


@dataclass(frozen=True)
class RewardedSteps:
    """The probability that the last step is right, of a step-wise reward model that is served."""

    def score(self, draw: ItemDraw, question: str, steps: Sequence[str]) -> float:
        """See `StepScorer`."""
        return float(draw.answer(stepwise.asked(question, steps), model=REWARD, temperature=0)["text"])

    def lowest(self, draw: ItemDraw, question: str, steps: Sequence[str]) -> float:
        """The lowest score of the steps."""
        return min(self.score(draw, question, steps[:end]) for end in range(1, len(steps) + 1))


@dataclass(frozen=True)
class RolledOutSteps:
    """The share of `count` continuations that come to an answer which `right` accepts."""

    count: int
    right: Callable[[ItemDraw, Sequence[str]], Sequence[bool]]

    def score(self, draw: ItemDraw, question: str, steps: Sequence[str]) -> float:
        """See `StepScorer`."""
        return sum(right for _, right in continued(draw, question, steps, self.count, self.right)) / self.count


def continued(
    draw: ItemDraw, question: str, steps: Sequence[str], count: int,
    right: Callable[[ItemDraw, Sequence[str]], Sequence[bool]],
) -> list[tuple[str, bool]]:  # fmt: skip
    """Continuations of a solution's first steps, and whether the answer of each is right; without one it is not."""
    texts = draw.several("mathematics/continue", count, question=question, steps=stepwise.numbered(steps))
    answers = [solutions.answer(text) for text in texts]
    judged = iter(right(draw, [one for one in answers if one is not None]))
    return [(text, one is not None and next(judged)) for text, one in zip(texts, answers)]
