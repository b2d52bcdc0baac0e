"""Explaining, documenting and mending code, held against the code itself by going back to it (report, section 4.3.1).

A snippet -> several answers -> from each the code again, without the original in sight -> a judge says how faithful it
is to the original -> the best answer, if it is good enough.

    explain    code from its explanation
    document   code from its documentation alone; the documented code has to be the original but for comments
    debug      a bug is planted; the mended code of an answer is held against the original
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llama31 import config
from llama31.synth.code import blocks, comments, snippets
from llama31.synth.code.blocks import fenced
from llama31.synth.code.running.languages import Language
from llama31.synth.pipeline import parsing
from llama31.synth.pipeline.draw import JUDGE, Dropped, ItemDraw
from llama31.synth.pipeline.items import SynthesisItem
from llama31.synth.pipeline.shard import DIALOGS, Records

EXPLAIN, DOCUMENT, PLANT, DEBUG, REBUILD, FAITHFUL = (
    f"backtranslate/{name}" for name in ("explain", "document", "plant", "debug", "rebuild", "faithful")
)
ASK = {kind: f"backtranslate/ask_{kind}" for kind in config.BACKTRANSLATIONS}
SCORES = ("1", "2", "3", "4", "5")


@dataclass(frozen=True)
class OriginalCode:
    """A snippet and its language; of `debug` also the code with a bug, and what goes wrong with it."""

    code: str
    language: Language
    broken: str = ""
    symptom: str = ""


@dataclass(frozen=True)
class CodeBacktranslation:
    """See the module."""

    settings: config.BacktranslateSynthesis
    name: str = "backtranslate"
    prompts: Sequence[str] = (EXPLAIN, DOCUMENT, PLANT, DEBUG, REBUILD, FAITHFUL, *ASK.values())

    def make(self, item: SynthesisItem, draw: ItemDraw) -> Records:
        """A dialog about the snippet: the answer from which the original could best be had again."""
        language = snippets.language_of(item, draw)
        kind = draw.random.choice(self.settings.kinds)
        original = OriginalCode(
            snippets.cut(item, draw, self.settings.snippet_lines, self.settings.least_lines), language
        )
        if kind == "debug":
            original = self._broken(draw, original)
        back = {"explain": self._explained, "document": self._documented, "debug": self._debugged}[kind]
        scored = [(self._score(draw, original, code), answer) for answer, code in back(draw, original)]
        if not scored:
            draw.drop(f"{kind}: no answer led back to code")
        score, answer = max(scored, key=lambda one: one[0])  # the first of the best
        draw.counts[f"{kind}: best score {score}"] += 1
        if score < self.settings.least_score:
            draw.drop(f"{kind}: none faithful enough")
        asked = draw.messages(ASK[kind], **self._shown(original))
        answered = {"role": "assistant", "content": answer}
        record = {"messages": [*asked, answered], "kind": kind, "language": language.name, "score": score}
        return {DIALOGS: [{**record, "original": original.code}]}

    # --- its steps: answers, and the code that each leads back to ---

    def _explained(self, draw: ItemDraw, original: OriginalCode) -> Iterator[tuple[str, str]]:
        for answer in self._answers(draw, EXPLAIN, original):
            yield from self._rebuilt(draw, original, answer, blocks.prose(answer))

    def _documented(self, draw: ItemDraw, original: OriginalCode) -> Iterator[tuple[str, str]]:
        for answer in self._answers(draw, DOCUMENT, original):
            code = _code(answer, original.language)
            if code is None or not comments.same_code(original.code, code, original.language):
                draw.counts["documenting changed the code"] += 1
                continue
            said = comments.split(code, original.language).documentation
            if said == comments.split(original.code, original.language).documentation:
                draw.counts["nothing was documented"] += 1
                continue
            yield from self._rebuilt(draw, original, answer, said)

    def _debugged(self, draw: ItemDraw, original: OriginalCode) -> Iterator[tuple[str, str]]:
        for answer in self._answers(draw, DEBUG, original):
            if (code := _code(answer, original.language)) is None:
                draw.counts["debugging without code"] += 1
            elif comments.same_code(original.broken, code, original.language):
                draw.counts["debugging changed nothing"] += 1
            else:
                yield answer, code

    def _broken(self, draw: ItemDraw, original: OriginalCode) -> OriginalCode:
        """The original with a bug; drops the item where nothing was changed."""
        shown: dict[str, Any] = {
            "code": fenced(original.code, original.language.name),
            "language": original.language.title,
        }
        broken, symptom = draw.read(PLANT, _planted(original.language), **shown)
        if comments.same_code(broken, original.code, original.language):
            draw.drop("debug: no bug was planted")
        return OriginalCode(original.code, original.language, broken, symptom)

    def _answers(self, draw: ItemDraw, prompt: str, original: OriginalCode) -> list[str]:
        return draw.several(prompt, self.settings.candidates, **self._shown(original))

    def _shown(self, original: OriginalCode) -> dict[str, Any]:
        """Fields of a prompt that shows the code: of `debug` the broken one, with what goes wrong."""
        shown: dict[str, Any] = {"code": fenced(original.broken or original.code, original.language.name)}
        symptom = {"symptom": original.symptom} if original.broken else {}
        return {**shown, **symptom, "language": original.language.title}

    def _rebuilt(
        self, draw: ItemDraw, original: OriginalCode, answer: str, description: str
    ) -> Iterator[tuple[str, str]]:
        """The answer and the code that a description leads to; nothing where none comes, which is counted."""
        language = original.language
        try:
            code = draw.read(
                REBUILD, lambda text: blocks.code(text, language), description=description,
                language=language.title,
            )  # fmt: skip
        except Dropped as reason:
            draw.counts[f"an answer left out: {reason}"] += 1
        else:
            yield answer, code

    def _score(self, draw: ItemDraw, original: OriginalCode, code: str) -> int:
        """How faithful the code is to the original, by a program where both are the same, else by the judge."""
        if comments.same_code(original.code, code, original.language):
            draw.counts["led back to the same code"] += 1
            return len(SCORES)
        shown: dict[str, Any] = {"original": fenced(original.code, original.language.name), "code": fenced(code)}
        return int(draw.read(FAITHFUL, parsing.choice(SCORES, "Score"), model=JUDGE, temperature=0, **shown))


def _code(answer: str, language: Language) -> str | None:
    """The longest block in this language; None where there is none."""
    try:
        return blocks.code(answer, language)
    except ValueError:
        return None


def _planted(language: Language) -> Callable[[str], tuple[str, str]]:
    """A parser: the code with a bug, and what a user sees of it."""
    symptom = blocks.tagged("symptom")
    return lambda answer: (blocks.code(answer, language), symptom(answer))
