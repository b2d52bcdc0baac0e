"""A tree of steps for hard questions: Monte-Carlo tree search guided by a step-wise reward (report, section 4.3.3).

Each simulation goes from the question down to a leaf by UCT (Kocsis and Szepesvari 2006), draws next steps there,
scores each, and adds the scores to all nodes above. A branch ends where a step says the final answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from llama31.dialogs import stepwise
from llama31.synth.mathematics import solutions
from llama31.synth.mathematics.scoring import StepScorer
from llama31.synth.mathematics.solutions import Solution
from llama31.synth.pipeline.draw import ItemDraw


@dataclass
class Branch:
    """A node: the steps so far, how often it was visited, and the sum of the scores below it."""

    steps: tuple[str, ...] = ()
    parent: Branch | None = None
    children: list[Branch] = field(default_factory=list)
    visits: int = 0
    total: float = 0.0
    ended: bool = False  # nothing is left to try below it
    answer: str | None = None

    @property
    def mean(self) -> float:
        """Mean score below it."""
        return self.total / self.visits if self.visits else 0.0

    def add(self, score: float) -> None:
        """A score, for it and all above it."""
        node: Branch | None = self
        while node is not None:
            node.visits += 1
            node.total += score
            node = node.parent

    def end(self) -> None:
        """Nothing is left below; so it may be of those above it."""
        node: Branch | None = self
        while node is not None and (node is self or all(child.ended for child in node.children)):
            node.ended = True
            node = node.parent

    def best_child(self, exploration: float) -> Branch:
        """The child with the highest upper bound of its mean, among those with something left to try."""
        log = math.log(max(self.visits, 1))
        left = [child for child in self.children if not child.ended]
        return max(left, key=lambda child: child.mean + exploration * math.sqrt(log / child.visits))


@dataclass(frozen=True)
class StepTreeSearch:
    """`simulations` expansions of `width` next steps each; branches of at most `depth` steps."""

    scorer: StepScorer
    simulations: int
    width: int
    depth: int
    exploration: float

    def run(
        self, draw: ItemDraw, question: str, right: Callable[[str], bool] | None = None, enough: int = 1
    ) -> list[tuple[Solution, float]]:
        """Solutions that were reached, each with its score, the best first; of the same score the first.

        right: whether a final answer is; then it is the score of a solution, and the search ends with `enough` of them.
        """
        root, found = Branch(), list[Branch]()
        for _ in range(self.simulations):
            if root.ended or (right and sum(one.mean == 1 for one in found) >= enough):
                break
            leaf = self._leaf(root)
            children = list(self._children(draw, question, leaf))
            for child in children:
                score = self._score(draw, question, child, right)
                leaf.children.append(child)
                child.add(score)
                found += [child] if child.answer is not None else []
            for child in leaf.children or [leaf]:
                if child.answer is not None or len(child.steps) >= self.depth or not children:
                    child.end()
        draw.counts["searches"] += 1
        draw.counts["nodes searched"] += root.visits
        ranked = sorted(found, key=lambda one: -one.mean)
        return [(Solution(stepwise.numbered(one.steps), one.answer), one.mean) for one in ranked]

    def _leaf(self, root: Branch) -> Branch:
        node = root
        while node.children:
            node = node.best_child(self.exploration)
        return node

    def _children(self, draw: ItemDraw, question: str, leaf: Branch) -> Iterator[Branch]:
        """Next steps, each once; what cannot be read is left out and counted."""
        number, seen = len(leaf.steps) + 1, set[str]()
        shown = stepwise.numbered(leaf.steps)
        for said in draw.several("mathematics/next_step", self.width, question=question, steps=shown, number=number):
            try:
                step = solutions.next_step(said, number)
            except ValueError:
                draw.counts["steps without text"] += 1
                continue
            if solutions.same_text(step) not in seen:
                seen.add(solutions.same_text(step))
                yield Branch((*leaf.steps, step), leaf, answer=solutions.answer(step))

    def _score(self, draw: ItemDraw, question: str, child: Branch, right: Callable[[str], bool] | None) -> float:
        if child.answer is not None and right is not None:
            return float(right(child.answer))
        return self.scorer.score(draw, question, child.steps)


PROMPTS: Sequence[str] = ("mathematics/next_step",)
