"""`task=mathematics`: question -> several solutions -> the right ones, by reference or majority -> judged by the model.

What else is made of them: pairs of right and wrong ones, steps with labels, a search where few are right, and wrong
ones mended (report, section 4.3.3).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llama31 import config
from llama31.sandbox.isolation import ProgramRunner
from llama31.synth.equality.bounded import Comparer
from llama31.synth.mathematics import corrections, programs, questions, rollouts, search, solutions
from llama31.synth.mathematics.scoring import JudgedSteps, RewardedSteps, RolledOutSteps, StepScorer
from llama31.synth.mathematics.search import StepTreeSearch
from llama31.synth.mathematics.solutions import Solution
from llama31.synth.pipeline import parsing
from llama31.synth.pipeline.draw import JUDGE, POLICY, Dropped, ItemDraw
from llama31.synth.pipeline.items import SynthesisItem
from llama31.synth.pipeline.shard import DIALOGS, PREFERENCES, Records

STEPS, STEP_PAIRS, CORRECTIONS = "steps", "step_preferences", "corrections"  # kinds of records
VERDICT = parsing.choice(("correct", "incorrect"))
Made = defaultdict[str, list[Mapping[str, Any]]]


@dataclass(frozen=True)
class DrawnSolution:
    """A solution, its messages as a record has them, and where it is from: drawn, or search."""

    solution: Solution
    messages: Sequence[Mapping[str, Any]]
    origin: str = "drawn"
    further: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Mathematics:
    """See the module. `comparer` judges answers; `runner` runs Python, where solutions have it."""

    settings: config.MathematicsSynthesis
    asking: config.QuestionsSynthesis
    comparer: Comparer
    runner: ProgramRunner | None = None
    name: str = "mathematics"

    @property
    def prompts(self) -> Sequence[str]:
        """Names of all that may be sent."""
        form = programs.PROMPTS if self.runner else ("mathematics/solve", "mathematics/continue", "mathematics/score")
        return (*questions.PROMPTS, *form, *search.PROMPTS, *corrections.PROMPTS, "mathematics/verify")

    def make(self, item: SynthesisItem, draw: ItemDraw) -> Records:
        """All that is made of an item: a record with a question, or a text that gives rise to several."""
        question, reference = (str(item.record.get(key) or "").strip() for key in ("question", "answer"))
        made, reasons = Made(list), list[str]()
        for asked in [question] if question else questions.of_text(item, draw, self.asking):
            try:
                records = self._solved(draw, asked, reference if question else "")
            except Dropped as error:
                reasons.append(str(error))
            else:
                for kind, several in records.items():
                    made[kind] += several
        for reason in reasons if made else reasons[1:]:
            draw.counts[f"questions: {reason}"] += 1
        if not made:
            draw.drop(reasons[0])
        return made

    def _solved(self, draw: ItemDraw, question: str, reference: str) -> Records:
        """What a question gives, by kind. Raises Dropped."""
        drawn = self._drawn(draw, question)
        truth = reference or self._majority(draw, drawn)
        good = self._right(draw, drawn, truth)
        reached: list[DrawnSolution] = []
        if self.runner is None and sum(good) < self.settings.search.below * self.settings.answers:
            known, (truth, reached) = truth, self._searched(draw, question, truth)
            good = good if known else self._right(draw, drawn, truth)
        if not truth:
            draw.drop("no majority")
        found = [*(one for one, right in zip(drawn, good) if right), *reached]
        draw.counts["questions solved"] += bool(found)
        kept = self._verified(draw, question, found)
        wrong = [one for one, right in zip(drawn, good) if not right and one.solution.answer is not None]
        made: dict[str, list[Mapping[str, Any]]] = {DIALOGS: [self._dialog(question, one, truth) for one in kept]}
        if kept and wrong:
            made[PREFERENCES] = [self._pair(question, kept[0], wrong[0])]
        if self.runner is None:
            made |= self._steps(draw, question, truth, kept, wrong)
        made = {kind: records for kind, records in made.items() if records}
        if not made:
            draw.drop("not verified" if found else "no right solution")
        return made

    # --- drawing ---

    def _drawn(self, draw: ItemDraw, question: str) -> list[DrawnSolution]:
        if self.runner is not None:
            runs = [
                programs.solved(draw, self.runner, question, self.settings.python.turns)
                for _ in range(self.settings.answers)
            ]
            return [
                DrawnSolution(Solution(one.text, one.answer), one.messages, further={"builtin_tools": []})
                for one in runs
                if one is not None
            ]
        texts = draw.several("mathematics/solve", self.settings.answers, question=question)
        found = [solutions.read(text) for text in texts]
        draw.counts["solutions without an answer"] += sum(one.answer is None for one in found)
        return [DrawnSolution(one, [{"role": "assistant", "content": one.text}]) for one in found]

    def _majority(self, draw: ItemDraw, drawn: Sequence[DrawnSolution]) -> str:
        """The answer of the largest group of solutions, if it is large enough; "" otherwise."""
        answers = [one.solution.answer for one in drawn if one.solution.answer is not None]
        groups = draw.check("groups", lambda: solutions.grouped(self.comparer, answers), answers) if answers else []
        enough = bool(groups) and len(groups[0]) >= max(2, self.settings.majority * self.settings.answers)
        return answers[groups[0][0]] if enough else ""

    def _judge(self, draw: ItemDraw, answers: Sequence[str], truth: str) -> list[bool]:
        """Whether each answer is the right one."""
        verdicts: list[str] = draw.check(
            "right", lambda: [self.comparer.verdict(one, truth) for one in answers], list(answers), truth
        )
        draw.counts["comparisons undecided"] += verdicts.count("undecided")
        return [one == "equal" for one in verdicts]

    def _right(self, draw: ItemDraw, drawn: Sequence[DrawnSolution], truth: str) -> list[bool]:
        if not truth:
            return [False] * len(drawn)
        judged = iter(
            self._judge(draw, [one.solution.answer for one in drawn if one.solution.answer is not None], truth)
        )
        good = [one.solution.answer is not None and next(judged) for one in drawn]
        draw.counts["solutions"] += len(drawn)
        draw.counts["right solutions"] += sum(good)
        return good

    def _searched(self, draw: ItemDraw, question: str, truth: str) -> tuple[str, list[DrawnSolution]]:
        """What a search reaches: where the answer is known what comes to it, else what most of the reward agrees on."""
        wanted = self.settings.search
        if not truth and wanted.scorer == "rollouts":
            return "", []  # continuations cannot be judged
        tree = StepTreeSearch(self._scorer(truth), wanted.simulations, wanted.width, wanted.depth, wanted.exploration)
        right = (lambda answer: self._judge(draw, [answer], truth)[0]) if truth else None
        reached = tree.run(draw, question, right, self.settings.keep)
        if truth:
            reached = [(one, score) for one, score in reached if score == 1]
        else:
            truth, reached = self._most_reward(draw, reached)
        draw.counts["questions solved by search"] += bool(reached)
        return truth, [
            DrawnSolution(one, [{"role": "assistant", "content": one.text}], "search", {"reward": score})
            for one, score in reached
        ]

    def _scorer(self, truth: str) -> StepScorer:
        wanted = self.settings.search
        if wanted.scorer == "rollouts":
            return RolledOutSteps(wanted.rollouts, lambda draw, answers: self._judge(draw, answers, truth))
        if wanted.scorer == "reward":
            return RewardedSteps()
        return JudgedSteps(JUDGE if wanted.scorer == "judge" else POLICY)

    def _most_reward(
        self, draw: ItemDraw, reached: Sequence[tuple[Solution, float]]
    ) -> tuple[str, list[tuple[Solution, float]]]:
        """The answer that gathers the needed share of all reward, and its solutions."""
        answers = [str(one.answer) for one, _ in reached]
        groups = draw.check("groups", lambda: solutions.grouped(self.comparer, answers), answers) if answers else []
        sums = [sum(reached[place][1] for place in group) for group in groups]
        if not sums or max(sums) <= self.settings.majority * sum(sums) or max(sums) == 0:
            return "", []
        best = groups[sums.index(max(sums))]
        return answers[best[0]], [reached[place] for place in best]

    # --- keeping ---

    def _verified(self, draw: ItemDraw, question: str, found: Sequence[DrawnSolution]) -> list[DrawnSolution]:
        """The first of the right solutions that the model finds correct each time, and each step the reward model."""
        kept: list[DrawnSolution] = []
        unique: dict[str, DrawnSolution] = {}
        for one in found:
            unique.setdefault(solutions.same_text(one.solution.text), one)
        draw.counts["right solutions repeated"] += len(found) - len(unique)
        for one in unique.values():
            if len(kept) == self.settings.keep:
                break
            if not all(self._finds_correct(draw, question, one.solution) for _ in range(self.settings.verifications)):
                draw.counts["right solutions not verified"] += 1
            elif self._has_wrong_step(draw, question, one.solution):
                draw.counts["right solutions with a wrong step"] += 1
            else:
                kept.append(one)
        return kept

    def _has_wrong_step(self, draw: ItemDraw, question: str, solution: Solution) -> bool:
        """Whether the step-wise reward model, where it is asked, finds a step wrong."""
        least = self.settings.least_step
        return least is not None and RewardedSteps().lowest(draw, question, solution.steps) < least

    def _finds_correct(self, draw: ItemDraw, question: str, solution: Solution) -> bool:
        try:
            said = draw.read("mathematics/verify", VERDICT, question=question, solution=solution.text)
        except Dropped:
            return False
        return said == "correct"

    def _dialog(self, question: str, one: DrawnSolution, truth: str) -> dict[str, Any]:
        messages = [{"role": "user", "content": question}, *one.messages]
        return {**one.further, "messages": messages, "answer": truth, "origin": one.origin}

    def _pair(self, question: str, good: DrawnSolution, bad: DrawnSolution) -> dict[str, Any]:
        answers = {"chosen": list(good.messages), "rejected": list(bad.messages)}
        tools = {key: value for key, value in good.further.items() if key == "builtin_tools"}
        prompt = [{"role": "user", "content": question}]
        return {**tools, "messages": prompt, **answers, "strength": "significantly_better"}

    def _steps(
        self, draw: ItemDraw, question: str, truth: str, kept: Sequence[DrawnSolution], wrong: Sequence[DrawnSolution]
    ) -> dict[str, list[Mapping[str, Any]]]:
        """Labels of steps, pairs of them, and wrong solutions mended."""

        def right(draw: ItemDraw, answers: Sequence[str]) -> Sequence[bool]:
            return self._judge(draw, answers, truth) if answers else []

        made: dict[str, list[Mapping[str, Any]]] = {STEPS: [], STEP_PAIRS: [], CORRECTIONS: []}
        places: dict[str, int | None] = {}
        chosen = [*((one.solution, False) for one in wrong), *((one.solution, True) for one in kept)]
        known = [one.solution.text for one in kept]
        for one, outcome in chosen[: self.settings.labelled]:
            labels = rollouts.labelled(draw, question, one, outcome, known, self.settings.rollouts, right)
            if labels is not None:
                places[one.text] = labels.first_wrong
                made[STEPS].append(labels.record(question, truth))
                made[STEP_PAIRS] += [pair] if (pair := labels.pair(question)) else []
        for one in [each.solution for each in wrong[: self.settings.corrections]]:
            dialog = corrections.mended(
                draw, question, one, lambda answer: right(draw, [answer])[0], places.get(one.text)
            )
            made[CORRECTIONS] += [dialog] if dialog else []
        return made
