"""What a parser, a linter, tests and inputs say of code. Nothing of it runs outside the sandbox.

No answer's own words about results count: what counts is what programs have written, and how they ended.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from llama31.sandbox.isolation import ProgramRunner
from llama31.sandbox.limits import Execution
from llama31.synth.code.running import results
from llama31.synth.code.running.languages import Language, Words, filled

MOST_CHARACTERS = 2000  # of a stream that feedback shows; the middle is left out
MOST_OUTPUT = 20_000  # bytes that a program may write of one input
_FOLDER = ["mkdir", "-p", "built"]
MALFORMED, EARLY = "malformed tests", "early exit"
_ENDED = {
    "timeout": "it did not end in time", "cpu": "it did not end in time", "memory": "it took too much memory",
    "output": "it wrote too much", "processes": "it started too many processes", "disk": "it wrote too large files",
    "killed": "it was killed",
}  # fmt: skip


@dataclass(frozen=True)
class CodeVerdict:
    """What the first step that failed has said, or that all passed.

    stage: parser, linter, malformed tests (without the lines that count), early exit (before they were through), or
    tests. problem: in a sentence. passed_tests: how many tests said that they passed.
    """

    passed: bool
    stage: str = "tests"
    problem: str = ""
    command: str = ""
    returncode: int = 0
    stdout: str = ""
    stderr: str = ""
    passed_tests: int = 0


@dataclass(frozen=True)
class Ran:
    """What a program made of one input. `failed`: why there is no result, "" where there is one."""

    returncode: int
    stdout: str
    stderr: str
    failed: str = ""


@dataclass(frozen=True)
class Checker:
    """Runs parsers, linters, tests and programs. `folders`: with tools, before those of the runner's own PATH."""

    runner: ProgramRunner
    folders: Sequence[str] = ()

    def _words(self, words: Words, file: str) -> list[str]:
        """A command, its tool by path where one of the folders has it: the first that the shell finds."""
        said = filled(words, file)
        if not self.folders or said[0].startswith("built/"):
            return said
        look = f'PATH={":".join(self.folders)}:$PATH exec "$@"'
        return ["/bin/sh", "-c", look, "sh", *said]

    def run(self, language: Language, files: Mapping[str, str], linters: Sequence[Words], least: int) -> CodeVerdict:
        """Parser, linters, and the tests where there are any: `least` have to pass, and fail without the solution."""
        if (rejected := self.read(language, files, linters)) is not None:
            return rejected
        if language.tests not in files:
            return CodeVerdict(True, "parser")
        verdict = self.test(language, files, least)
        if verdict.passed and self.test(language, {**files, language.solution: ""}, least).passed:
            problem = "The tests pass with an empty solution as well: they do not test it."
            return replace(verdict, passed=False, problem=problem)
        return verdict

    def read(self, language: Language, files: Mapping[str, str], linters: Sequence[Words]) -> CodeVerdict | None:
        """What the parser, or the first linter, has against the solution; None for nothing."""
        solution = {language.solution: files[language.solution]}
        for stage, words in [("parser", language.check), *(("linter", one) for one in linters)]:
            if words:
                command = self._words(words, language.solution)
                ended = self.runner.run(command, solution, build=[_FOLDER] if language.build else [])
                if ended.reason != "finished" or ended.returncode != 0:
                    why = _ENDED.get(ended.reason, "")
                    problem = f"The {stage} rejects the solution{': ' * bool(why)}{why}."
                    return _verdict(stage, problem, words, language.solution, ended)
        return None

    def test(self, language: Language, files: Mapping[str, str], least: int) -> CodeVerdict:
        """What the tests say. They pass where the program does, comes to their end, and `least` of them say so."""
        if problem := results.malformed(files[language.tests]):
            return CodeVerdict(False, MALFORMED, problem)
        marked, stage = results.marked(files[language.tests]), "tests"
        ended = self._program(language, language.tests, {**files, language.tests: marked.text})
        count = marked.passed(ended.stdout)
        if ended.reason != "finished" or ended.returncode != 0 or marked.failed(ended.stdout):
            problem = _ENDED.get(ended.reason, "it did not compile" if ended.reason == "build" else "")
            problem = f"The tests fail{': ' * bool(problem)}{problem}."
        elif not marked.done(ended.stdout):
            stage, problem = EARLY, f"The program ended before its tests had come to their last line, `{results.DONE}`."
        elif count < least:
            said = f"lines `{results.PASSED} NAME` whose NAME stands in the tests as it is"
            problem = f"{count} tests have passed ({said}), and at least {least} are needed."
        else:
            problem = ""
        ended = replace(ended, stdout=marked.plain(ended.stdout), stderr=marked.plain(ended.stderr))
        return _verdict(stage, problem, language.run, language.tests, ended, count)

    def _program(self, language: Language, file: str, files: Mapping[str, str], after: Words = ()) -> Execution:
        """Build a file of these, and run it, or `after`, a command that does."""
        build = [_FOLDER, *(self._words(words, file) for words in language.build)] if language.build else []
        return self.runner.run(after or self._words(language.run, file), files, build=build)

    def outputs(self, language: Language, program: str, inputs: Sequence[str], wait_s: int) -> list[Ran]:
        """What a program writes for each input; where it cannot be built, or all together take too much, no result."""
        run = self._words(language.run, language.program)
        given = {f"inputs/{number}": text for number, text in enumerate(inputs)}
        lines = ["sh", "-c", _EACH, "sh", str(len(inputs)), str(wait_s), str(MOST_OUTPUT + 1), *run]
        ended = self._program(language, language.program, {**given, language.program: program}, lines)
        found = [Ran(int(code), _decoded(out), _decoded(err)) for code, out, err in _LINE.findall(ended.stdout)]
        if ended.reason != "finished" or ended.returncode != 0 or len(found) != len(inputs):
            why = "it does not compile" if ended.reason == "build" else _ENDED.get(ended.reason, "it cannot be run")
            return [Ran(ended.returncode, shortened(ended.stdout), shortened(ended.stderr), why)] * len(inputs)
        return [_judged(one) for one in found]


# For each input a line with the return code, standard output and error; 124 is `timeout`'s.
_EACH = """
count=$1 wait=$2 most=$3; shift 3; number=0
while [ $number -lt $count ]; do
    timeout $wait "$@" < inputs/$number > inputs/.out 2> inputs/.err; code=$?
    echo "$code o$(head -c $most inputs/.out | base64 -w0) e$(head -c $most inputs/.err | base64 -w0)"
    number=$((number + 1))
done
"""
_LINE = re.compile(r"^(\d+) o([\w+/=]*) e([\w+/=]*)$", re.MULTILINE)


def _decoded(text: str) -> str:
    return base64.b64decode(text).decode("utf-8", "replace")


def _judged(one: Ran) -> Ran:
    failed = "it did not end in time" if one.returncode == 124 else "it fails" if one.returncode else ""
    if len(one.stdout) > MOST_OUTPUT:
        failed = f"it writes more than {MOST_OUTPUT} characters"
    return Ran(one.returncode, one.stdout, shortened(one.stderr), failed)


def _verdict(stage: str, problem: str, words: Words, file: str, ended: Execution, count: int = 0) -> CodeVerdict:
    command = " ".join(filled(words, file)[:1] if stage in ("parser", "linter") else filled(words, file))
    return CodeVerdict(
        not problem, stage, problem, command, ended.returncode, shortened(ended.stdout), shortened(ended.stderr), count
    )


def shortened(text: str, most: int = MOST_CHARACTERS) -> str:
    """The beginning and the end of a text, and how much was left out between them."""
    if len(text) <= most:
        return text
    left = len(text) - most
    return f"{text[: most // 2]}\n[{left} characters left out]\n{text[-(most - most // 2) :]}"
