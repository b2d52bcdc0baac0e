"""`task=translate_reasoning`: questions and solutions, translated by the model, with numbers and answer unchanged.

The report translates nothing else by machine (section 4.3.2): translations read like English put into other words, and
lose what names and habits mean. Mathematics loses little, and a program can check it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from llama31 import config
from llama31.synth.equality import final
from llama31.synth.equality.bounded import Comparer
from llama31.synth.multilingual import digits, languages
from llama31.synth.multilingual.languages import LanguageMatch
from llama31.synth.pipeline.draw import Dropped, ItemDraw
from llama31.synth.pipeline.items import SynthesisItem
from llama31.synth.pipeline.shard import DIALOGS, Records

PROMPT = "multilingual/translate"
_PARTS = re.compile(r"^\W*question\W*?:\s*(.*?)^\W*solution\W*?:\s*(.*)", re.IGNORECASE | re.MULTILINE | re.DOTALL)


def parts(said: str) -> tuple[str, str]:
    """`QUESTION:` and `SOLUTION:` of a translation. Raises ValueError where one is missing or empty."""
    found = _PARTS.search(said)
    if found is None or not found[1].strip(" *\n") or not found[2].strip(" *\n"):
        raise ValueError("not both parts")
    return found[1].strip(" *\n"), found[2].strip(" *\n")


def given(item: SynthesisItem) -> tuple[str, str]:
    """Question and solution of a record {question, solution}, or of a dialog of two messages; "" where it has none."""
    record = item.record
    if isinstance(record.get("question"), str) and isinstance(record.get("solution"), str):
        return record["question"].strip(), record["solution"].strip()
    messages = record.get("messages")
    listed = messages if isinstance(messages, list) and all(isinstance(one, Mapping) for one in messages) else []
    contents = [one.get("content") for one in listed]
    if [one.get("role") for one in listed] != ["user", "assistant"] or not all(
        isinstance(one, str) for one in contents
    ):
        return "", ""
    return contents[0].strip(), contents[1].strip()


@dataclass(frozen=True)
class TranslatedReasoning:
    """See the module."""

    settings: config.ReasoningTranslation
    comparer: Comparer
    match: LanguageMatch
    name: str = "translate_reasoning"
    prompts: Sequence[str] = (PROMPT,)

    def make(self, item: SynthesisItem, draw: ItemDraw) -> Records:
        """A dialog for each of the languages that are drawn."""
        question, solution = given(item)
        if not question or not solution:
            draw.drop("no question with a solution")
        try:
            answer = final.answer(solution)
        except ValueError:
            draw.drop("a solution without a final answer")
        chosen = draw.random.sample(
            list(self.settings.languages), min(self.settings.each, len(self.settings.languages))
        )
        dialogs = [self._translated(draw, question, solution, answer, code) for code in chosen]
        kept = [dialog for dialog in dialogs if dialog is not None]
        if not kept:
            draw.drop("no faithful translation")
        return {DIALOGS: kept}

    def _translated(
        self, draw: ItemDraw, question: str, solution: str, answer: str, code: str
    ) -> dict[str, Any] | None:
        """The dialog in that language; a translation that is not faithful is asked for again, with what is wrong."""
        remarks = ""
        for attempt in range(1 + self.settings.revisions):
            try:
                both = draw.read(
                    PROMPT, parts, language=languages.name(code), question=question, solution=solution, remarks=remarks
                )
            except Dropped:
                return None
            check = partial(self._wrong, question, solution, answer, both, code)
            wrong = draw.check("faithful", check, list(both), answer, code)
            if not wrong:
                draw.counts["translations mended"] += attempt > 0
                draw.counts[f"translations into {code}"] += 1
                messages = [{"role": "user", "content": both[0]}, {"role": "assistant", "content": both[1]}]
                return {"messages": messages, "language": code}
            draw.counts[f"translations with {wrong[0].partition(':')[0]}"] += 1
            remarks = "\n".join(f"- {one}" for one in wrong)
        return None

    def _wrong(self, question: str, solution: str, answer: str, both: tuple[str, str], code: str) -> list[str]:
        """What is wrong with a translation: numbers, the final answer, the language."""
        wrong = []
        for name, before, after in (("question", question, both[0]), ("solution", solution, both[1])):
            lost, new = digits.differences(before, after)
            if lost or new:
                said = [f"without {', '.join(lost[:10])}"] * bool(lost) + [f"with {', '.join(new[:10])} beyond"] * bool(
                    new
                )
                wrong.append(f"other numbers: the {name} came out {' and '.join(said)}")
            if not self.match.is_in(after, {code}):
                wrong.append(f"another language: the {name} is not in {languages.name(code)}")
        try:
            same = self.comparer.equal(final.answer(both[1]), answer)
        except ValueError:
            same = False
        return wrong if same else [*wrong, f"another answer: the final answer has to stay {answer}, in \\boxed{{}}"]
