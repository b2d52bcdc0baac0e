"""Questions from mathematical text (report, section 4.3.3): `task=questions`, and where `task=mathematics` begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llama31 import config
from llama31.dialogs import stepwise
from llama31.synth.mathematics import solutions
from llama31.synth.pipeline import parsing
from llama31.synth.pipeline.draw import JUDGE, ItemDraw
from llama31.synth.pipeline.items import SynthesisItem
from llama31.synth.pipeline.shard import Records

NONE = "NONE"
VERDICT = parsing.choice(("yes", "no"))
PROMPTS = ("mathematics/question", "mathematics/complete")
QUESTIONS = "questions"  # kind of record


@dataclass(frozen=True)
class MathematicsQuestions:
    """Records {"question": TEXT}: what `task=mathematics` takes as its input."""

    settings: config.QuestionsSynthesis
    name: str = "questions"
    prompts: Sequence[str] = PROMPTS

    def make(self, item: SynthesisItem, draw: ItemDraw) -> Records:
        """The questions of a text."""
        return {QUESTIONS: [{"question": one} for one in of_text(item, draw, self.settings)]}


def of_text(item: SynthesisItem, draw: ItemDraw, settings: config.QuestionsSynthesis) -> list[str]:
    """Questions that a text gives rise to, each complete in itself as a judge finds, none twice."""
    text = item.text.strip()[: settings.characters]
    if not text:
        draw.drop("empty")
    found: list[str] = []
    for _ in range(settings.per_text):
        asked = draw.read(
            "mathematics/question",
            lambda answer: parsing.said(answer, "problem"),
            text=text,
            before=stepwise.joined(found),
        )
        if asked.strip(".*` ").upper() == NONE:
            draw.counts["nothing more to ask"] += 1
            break
        if solutions.same_text(asked) in map(solutions.same_text, found):
            draw.counts["questions repeated"] += 1
        elif draw.read("mathematics/complete", VERDICT, model=JUDGE, temperature=0, question=asked) == "yes":
            found.append(asked)
        else:
            draw.counts["questions incomplete"] += 1
    if not found:
        draw.drop("no question")
    return found
