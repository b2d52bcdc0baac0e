"""The same program in a rarer language, checked by running both on the same inputs (report, section 4.3.1).

A snippet -> a program from standard input to standard output in the snippet's own language -> inputs -> what it makes
of them -> the program in the other language -> the same outputs, or what differs goes back, up to `repairs` times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llama31 import config
from llama31.synth.code import blocks, snippets
from llama31.synth.code.blocks import fenced
from llama31.synth.code.running.bench import Bench
from llama31.synth.code.running.checking import Ran, shortened
from llama31.synth.code.running.languages import LANGUAGES, Language
from llama31.synth.pipeline.draw import ItemDraw
from llama31.synth.pipeline.items import SynthesisItem
from llama31.synth.pipeline.shard import DIALOGS, Records

PROGRAM, INPUTS, TRANSLATE, MEND, ASK, FORM = (
    f"translate_code/{name}" for name in ("program", "inputs", "translate", "mend", "ask", "form")
)
EXAMPLES = 2  # inputs on which a faulty translation is shown what it should have said


@dataclass(frozen=True)
class ProgramCase:
    """An input and what the original makes of it."""

    given: str
    expected: str


@dataclass(frozen=True)
class CodeTranslation:
    """See the module."""

    settings: config.TranslateCodeSynthesis
    bench: Bench
    name: str = "translate_code"
    prompts: Sequence[str] = (PROGRAM, INPUTS, TRANSLATE, MEND, ASK, FORM)

    def make(self, item: SynthesisItem, draw: ItemDraw) -> Records:
        """A dialog of a program and its translation, which says the same on every input."""
        source = snippets.language_of(item, draw)
        if source.name not in self.bench.tools.linters:
            draw.drop(f"not run here: {source.name}")
        target = self._target(draw, source)
        program = self._program(item, draw, source)
        cases = self._cases(draw, source, program)
        fields: dict[str, Any] = {
            "source": source.title, "target": target.title, "program": fenced(program, source.name),
            "form": _form(draw, target),
        }  # fmt: skip
        answer, translated = draw.read(TRANSLATE, _answer(target), **fields)
        said, repair = [{"role": "assistant", "content": answer}], 0
        while wrong := self._wrong(draw, target, translated, cases):
            if repair == self.settings.repairs:
                draw.drop("never the same outputs")
            repair += 1
            feedback: dict[str, Any] = {"wrong": wrong, "target": target.title}
            answer, translated = draw.read(
                MEND, _answer(target), history=[*draw.messages(TRANSLATE, **fields), *said], **feedback
            )
            said += [*draw.messages(MEND, **feedback), {"role": "assistant", "content": answer}]
        draw.counts["kept: " + ("first wrong, then mended" if repair else "right at once")] += 1
        draw.counts[f"kept: {source.name} to {target.name}"] += 1
        asked = draw.messages(ASK, source=source.title, target=target.title, program=fields["program"])
        turns = [{**one, "weight": 0} if one["role"] == "assistant" else one for one in said[:-1]]
        kept = turns if self.settings.dialog == "repairs" else []
        files = {"program": program, "translation": translated, "inputs": [case.given for case in cases]}
        return {DIALOGS: [{"messages": [*asked, *kept, said[-1]], "language": target.name, "repairs": repair, **files}]}

    # --- its steps ---

    def _target(self, draw: ItemDraw, source: Language) -> Language:
        """A language that is not the source's; drops the item where none is left."""
        left = [name for name in self.settings.targets if name != source.name]
        for name in draw.random.sample(left, len(left)):
            if name in self.bench.tools.linters:
                return LANGUAGES[name]
            draw.counts[f"no tool chain for {name}: another language taken"] += 1
        draw.drop("no language to translate to")

    def _program(self, item: SynthesisItem, draw: ItemDraw, source: Language) -> str:
        """The item as a program: as it is, or what a model makes of a part of it."""
        if self.settings.as_is:
            return snippets.readable(item.text)
        snippet = snippets.cut(item, draw, self.settings.snippet_lines)
        return draw.read(
            PROGRAM, lambda answer: blocks.code(answer, source), snippet=snippet,
            language=source.title, form=_form(draw, source),
        )  # fmt: skip

    def _cases(self, draw: ItemDraw, source: Language, program: str) -> list[ProgramCase]:
        """Inputs on which the program says the same twice; drops the item where too few are left, or all give one
        output."""
        inputs = draw.read(
            INPUTS, lambda answer: _inputs(answer, self.settings.least_inputs), program=fenced(program, source.name),
            count=self.settings.inputs,
        )[: self.settings.inputs]  # fmt: skip
        once = self.bench.outputs(draw, source, program, inputs, self.settings.wait_s)
        twice = self.bench.outputs(draw, source, program, inputs, self.settings.wait_s)
        cases = [
            ProgramCase(given, _plain(one))
            for given, one, again in zip(inputs, once, twice)
            if not one.failed and not again.failed and _plain(one) == _plain(again)
        ]
        draw.counts["inputs without a steady output"] += len(inputs) - len(cases)
        if len(cases) < self.settings.least_inputs:
            draw.drop("the original runs on too few inputs")
        if len({case.expected for case in cases}) == 1:
            draw.drop("the original says the same of all inputs")
        return cases

    def _wrong(self, draw: ItemDraw, target: Language, program: str, cases: Sequence[ProgramCase]) -> str:
        """What a translation does otherwise than the original, on some of the inputs; "" for nothing."""
        ran = self.bench.outputs(draw, target, program, [case.given for case in cases], self.settings.wait_s)
        wrong = [(case, one) for case, one in zip(cases, ran) if one.failed or _plain(one) != case.expected]
        if wrong and len({one for _, one in wrong}) == 1 and wrong[0][1].failed:
            wrong = wrong[:1]  # it does not compile
        return "\n\n".join(_shown(case, one) for case, one in wrong[:EXAMPLES])


def _form(draw: ItemDraw, language: Language) -> str:
    return draw.messages(FORM, title=language.title, language=language.name, file=language.program)[-1]["content"]


def _answer(language: Language) -> Any:
    return lambda answer: (answer, blocks.code(answer, language))


def _inputs(answer: str, least: int) -> list[str]:
    """The texts of all fenced blocks, each once. Raises ValueError where they are fewer than `least`."""
    found = list(dict.fromkeys(block.text for block in blocks.blocks(answer)))
    if len(found) < least:
        raise ValueError(f"{len(found)} inputs")
    return found


def _plain(ran: Ran) -> str:
    """What it wrote, without white space at the ends of lines and of the whole."""
    return "\n".join(line.rstrip() for line in ran.stdout.split("\n")).strip("\n")


def _shown(case: ProgramCase, ran: Ran) -> str:
    """An input, what was expected and what came, as feedback says it."""
    parts = [("Standard input", case.given), ("Expected on standard output", case.expected)]
    parts += [("Written to standard output", ran.stdout), ("Written to standard error", ran.stderr)]
    shown = [f"{title}:\n{fenced(shortened(text))}" for title, text in parts if text.strip()]
    ended = f"Return code {ran.returncode}" + (f": {ran.failed}." if ran.failed else ".")
    return "\n\n".join([*shown, ended])
