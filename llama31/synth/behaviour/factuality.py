"""A model that knows what it knows (report, section 4.3.6): refusals of what it would answer at length and wrongly.

snippet of the pre-training text -> question -> answers -> each judged with the snippet: right? informative? -> where
answers are informative and wrong again and again, a refusal; where they are right again and again, a right answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llama31 import config
from llama31.synth.pipeline import parsing
from llama31.synth.pipeline.draw import JUDGE, ItemDraw
from llama31.synth.pipeline.items import SynthesisItem
from llama31.synth.pipeline.shard import DIALOGS, Records

VERDICT = parsing.choice(("yes", "no"))


@dataclass(frozen=True)
class Factuality:
    """See the module."""

    settings: config.FactualitySynthesis
    name: str = "factuality"
    prompts: Sequence[str] = tuple(
        f"factuality/{name}" for name in ("question", "answer", "correct", "informative", "refusal")
    )

    def make(self, item: SynthesisItem, draw: ItemDraw) -> Records:
        """One dialog, of a refusal or of a right answer."""
        snippet = item.text[: self.settings.characters].strip()
        if not snippet:
            draw.drop("empty")
        question = draw.read("factuality/question", parsing.question, snippet=snippet)
        answers = draw.several("factuality/answer", self.settings.answers, question=question)
        if len(answers) < self.settings.answers / 2:
            draw.drop("too few answers that end")
        judged = [(one, *self._judged(draw, snippet, question, one)) for one in answers]
        right = [one for one, correct, _ in judged if correct]
        informative_and_wrong = sum(informative and not correct for _, correct, informative in judged)
        draw.counts["answers"] += len(answers)
        draw.counts["right answers"] += len(right)
        if informative_and_wrong >= self.settings.consistent * len(answers):
            draw.counts["refusals"] += 1
            return {DIALOGS: [_dialog(question, draw.read("factuality/refusal", parsing.said, question=question))]}
        if self.settings.keep_right and len(right) >= self.settings.consistent * len(answers):
            return {DIALOGS: [_dialog(question, draw.random.choice(right))]}
        draw.drop("neither right nor wrong with consistency")

    def _judged(self, draw: ItemDraw, snippet: str, question: str, answer: str) -> tuple[bool, bool]:
        """Whether an answer is right by the snippet, and whether it says anything; what is right does."""
        fields: dict[str, Any] = {"question": question, "answer": answer}
        if draw.read("factuality/correct", VERDICT, model=JUDGE, temperature=0, snippet=snippet, **fields) == "yes":
            return True, True
        return False, draw.read("factuality/informative", VERDICT, model=JUDGE, temperature=0, **fields) == "yes"


def _dialog(question: str, answer: str) -> dict[str, object]:
    return {
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer.strip()}],
    }
