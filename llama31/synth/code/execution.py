"""Solutions that pass tests, mended by what running them has said: execution feedback (report, section 4.3.1).

A random snippet -> a problem -> a solution that reasons in comments -> parser and linters -> tests that the model
writes -> all of it run. Where a step fails, problem, faulty solution and what was said go back, and the model mends
solution or tests, up to `repairs` times. Kept is what passes; the report found a fifth of it wrong at first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llama31 import config
from llama31.synth.code import blocks, review, snippets
from llama31.synth.code.blocks import fenced
from llama31.synth.code.running.bench import Bench
from llama31.synth.code.running.checking import CodeVerdict
from llama31.synth.code.running.languages import Language
from llama31.synth.code.running.specimens import specimen
from llama31.synth.pipeline.draw import ItemDraw
from llama31.synth.pipeline.items import SynthesisItem
from llama31.synth.pipeline.shard import DIALOGS, Records

PROBLEM, ASK, SOLVE, TESTS, FILES, MEND = (
    f"code/{name}" for name in ("problem", "ask", "solve", "tests", "files", "mend")
)


@dataclass
class Solving:
    """A problem under way: the files as they are by now, and what was said from the first solution on.

    mended: files that were changed after they had failed. given_by: the answer, by its place in `said`, that a file is
    from; the first tests are from none. An answer of which no file is left was faulty.
    """

    language: Language
    problem: str
    layout: str
    files: dict[str, str]
    said: list[dict[str, Any]]
    mended: set[str] = field(default_factory=set)
    given_by: dict[str, int] = field(default_factory=dict)

    @property
    def solution(self) -> str:
        """The solution as it is by now."""
        return self.files[self.language.solution]

    def take(self, files: Mapping[str, str]) -> None:
        """Files of the last answer, in the place of what had failed."""
        changed = {name for name, text in files.items() if text != self.files[name]}
        self.mended |= changed
        self.files |= files
        self.given_by |= dict.fromkeys(changed, len(self.said) - 1)

    def answer(self) -> str:
        """The solution as an answer of its own: the one that gave it where it was the first, else its code."""
        at_once = self.language.solution not in self.mended
        return self.said[0]["content"] if at_once else fenced(self.solution, self.language.name)


@dataclass(frozen=True)
class CodeExecution:
    """See the module."""

    settings: config.CodeSynthesis
    judging: config.ReviewCodeSynthesis
    bench: Bench
    name: str = "code"
    prompts: Sequence[str] = (PROBLEM, ASK, SOLVE, TESTS, FILES, MEND, *review.PROMPTS)

    def make(self, item: SynthesisItem, draw: ItemDraw) -> Records:
        """A dialog whose last solution passes its tests, with both files."""
        language = self.bench.choose(draw)
        snippet = snippets.cut(item, draw, self.settings.snippet_lines)
        problem = draw.read(PROBLEM, blocks.tagged("problem"), snippet=snippet, language=language.title)
        work = self._solved(draw, language, problem)
        for repair in range(self.settings.repairs + 1):
            verdict = self._checked(draw, work)
            if verdict.passed:
                break
            if repair == self.settings.repairs:
                draw.drop(f"never passed: {verdict.stage}")
            self._mend(draw, work, verdict)
        kept = "right at once" if not work.mended else "first wrong, then mended"
        kept = "tests alone mended" if work.mended == {language.tests} else kept
        messages = self._dialog(draw, work)
        draw.counts[f"kept: {kept}"] += 1
        draw.counts[f"kept in {language.name}"] += 1
        record = {"messages": messages, "language": language.name, "repairs": repair}
        return {DIALOGS: [{**record, "solution": work.solution, "tests": work.files[language.tests]}]}

    # --- its steps ---

    def _solved(self, draw: ItemDraw, language: Language, problem: str) -> Solving:
        """The first solution."""
        layout = draw.messages(FILES, **layout_fields(language))[-1]["content"]
        answer, files = draw.read(
            SOLVE, blocks.solution(language), problem=problem, language=language.title, layout=layout,
        )  # fmt: skip
        said = [{"role": "assistant", "content": answer}]
        return Solving(language, problem, layout, files, said, given_by={language.solution: 0})

    def _checked(self, draw: ItemDraw, work: Solving) -> CodeVerdict:
        """What the first step that fails has said; tests are written for a solution that the parser takes."""
        verdict = self.bench.check(draw, work.language, work.files, self.settings.least_tests)
        if not verdict.passed or work.language.tests in work.files:
            return verdict
        fields: dict[str, Any] = {"problem": work.problem, "solution": fenced(work.solution, work.language.name)}
        _, tests = draw.read(
            TESTS, blocks.tests(work.language), **fields, layout=work.layout, language=work.language.title,
            least=self.settings.least_tests,
        )  # fmt: skip
        work.files |= tests
        return self.bench.check(draw, work.language, work.files, self.settings.least_tests)

    def _mend(self, draw: ItemDraw, work: Solving, verdict: CodeVerdict) -> None:
        """Ask with all that was said before, and take over what the answer mends."""
        fields = {**told(verdict), **_tests_shown(work)}
        history = [*draw.messages(SOLVE, problem=work.problem, language=work.language.title, layout=work.layout)]
        answer, mended = draw.read(MEND, blocks.either(work.language), history=[*history, *work.said], **fields)
        work.said += [*draw.messages(MEND, **fields), {"role": "assistant", "content": answer}]
        known = {name: text for name, text in mended.items() if name in work.files}
        work.take(known)

    def _dialog(self, draw: ItemDraw, work: Solving) -> list[dict[str, Any]]:
        """What is kept of it: all turns, the faulty ones as context, or the problem and the final solution."""
        asked = draw.messages(ASK, problem=work.problem, language=work.language.title)
        final = work.answer() if self.settings.dialog == "final" else work.said[-1]["content"]
        if self.settings.with_judge:
            judged = self._judged(draw, work)
            final = final if judged is None else judged
        turns = [self._turn(work, number) for number in range(len(work.said) - 1)]
        return [*asked, *(turns if self.settings.dialog == "repairs" else []), {"role": "assistant", "content": final}]

    def _turn(self, work: Solving, number: int) -> dict[str, Any]:
        """A turn before the last; a faulty answer is context and not learned, unless the keys want it."""
        faulty = work.said[number]["role"] == "assistant" and number not in work.given_by.values()
        return {**work.said[number], **({"weight": 0} if faulty and not self.settings.learn_faulty else {})}

    def _judged(self, draw: ItemDraw, work: Solving) -> str | None:
        """None where the solution has a judge's two points, else a revision that has; it has to pass the same tests."""

        def holds(answer: str) -> str:
            try:
                _, files = blocks.solution(work.language)(answer)
            except ValueError as error:
                return f"The revised answer has {error}."
            verdict = self.bench.check(draw, work.language, {**work.files, **files}, self.settings.least_tests)
            if verdict.passed:
                work.files |= files
                return ""
            return "\n".join(filter(None, (verdict.problem, verdict.stdout, verdict.stderr)))

        answer = work.answer()
        revised = review.reviewed(draw, self.judging, work.problem, answer, holds)
        return revised if revised != answer else None


def layout_fields(language: Language) -> Mapping[str, Any]:
    """Fields of the prompt that says which files there are, with a small example of both."""
    example = specimen(language.name)
    shown = {"solution": language.solution, "tests": language.tests}
    examples = {f"{name}_example": fenced(example[file], language.name) for name, file in shown.items()}
    return {"language": language.name, **shown, **examples}


def _tests_shown(work: Solving) -> dict[str, Any]:
    """Fields of a prompt that shows the tests, where there are any, and says how files are called."""
    tests = work.files.get(work.language.tests)
    shown = fenced(tests, work.language.name) if tests else ""
    return {"tests": shown, "file": work.language.tests, "solution_file": work.language.solution}


def told(verdict: CodeVerdict) -> dict[str, Any]:
    """Fields of a prompt that tells what running code has said."""
    return {
        "stage": verdict.stage, "problem": verdict.problem, "command": verdict.command,
        "returncode": verdict.returncode, "stdout": fenced(verdict.stdout) if verdict.stdout.strip() else "",
        "stderr": fenced(verdict.stderr) if verdict.stderr.strip() else "",
    }  # fmt: skip
