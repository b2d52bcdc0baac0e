"""Labels of steps from outcomes: what a step-wise reward model learns from (Math-Shepherd, arXiv:2312.08935).

From the first k steps of a solution several continuations are drawn; the share of them that comes to the right answer
is the label of step k (Math-Shepherd's soft estimate; above 0 is its hard one). Where the share falls to 0, step k is
the first wrong one. Against a continuation's own step k that led to the right answer, behind the same k - 1 steps, it
is a pair, which `recipes.reward` trains on: the reward of a text is that of its last step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from llama31.dialogs import stepwise
from llama31.synth.mathematics import scoring, solutions
from llama31.synth.mathematics.solutions import Solution
from llama31.synth.pipeline.draw import ItemDraw

Right = Callable[[ItemDraw, Sequence[str]], Sequence[bool]]


@dataclass
class LabelledSteps:
    """Steps, their labels 0 to 1, whether the answer is right, and what came out right of each prefix of 0 to n - 1."""

    steps: Sequence[str]
    outcome: bool
    labels: list[float] = field(default_factory=list)
    led_right: list[list[str]] = field(default_factory=list)

    @property
    def first_wrong(self) -> int | None:
        """Place, from 0, of the first step after which nothing came out right; None of a solution that is right."""
        return None if self.outcome else next((place for place, label in enumerate(self.labels) if label == 0), None)

    def record(self, question: str, answer: str) -> dict[str, Any]:
        """As steps.jsonl has it."""
        return {"question": question, "answer": answer, "steps": list(self.steps), "labels": self.labels}

    def pair(self, question: str) -> dict[str, Any] | None:
        """The first wrong step against one that led to the right answer from where it was taken."""
        place = self.first_wrong
        if place is None or not self.led_right[place]:
            return None
        before = [*self.steps[:place]]
        good = solutions.next_step(stepwise.split(self.led_right[place][0])[0], place + 1)
        if solutions.same_text(good) == solutions.same_text(solutions.next_step(self.steps[place], place + 1)):
            return None  # right by what follows, and not by this step
        return {
            "prompt": [{"role": "user", "content": question}],
            "chosen": stepwise.numbered([*before, good]),
            "rejected": stepwise.numbered([*before, self.steps[place]]),
            "strength": "significantly_better",
            "step": place + 1,
        }


def labelled(
    draw: ItemDraw, question: str, solution: Solution, outcome: bool, known: Sequence[str], count: int, right: Right
) -> LabelledSteps | None:
    """The labels of a solution's steps by `count` continuations of each; None of one with a single step.

    outcome: whether its own answer is right, the label of its last step. known: right solutions, from the first step.
    Behind the first wrong step nothing is asked for: what follows is labelled 0.
    """
    steps = solution.steps
    if len(steps) < 2:
        return None
    made = LabelledSteps(steps, outcome, led_right=[list(known)])
    for end in range(1, len(steps)):
        drawn = scoring.continued(draw, question, steps[:end], count, right) if made.first_wrong is None else []
        made.labels.append(round(sum(good for _, good in drawn) / count, 4))
        made.led_right.append([text for text, good in drawn if good])
        draw.counts["continuations"] += len(drawn)
    made.labels.append(float(outcome))
    draw.counts["steps labelled"] += len(steps)
    return made
