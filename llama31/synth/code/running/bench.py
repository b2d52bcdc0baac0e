"""Which languages work here, and checks of code as steps of an item's program."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from llama31.sandbox import homes
from llama31.sandbox.isolation import ProgramRunner
from llama31.synth.code.running.checking import Checker, CodeVerdict, Ran
from llama31.synth.code.running.languages import LANGUAGES, Language, Words
from llama31.synth.code.running.specimens import specimen
from llama31.synth.pipeline.draw import ItemDraw


@dataclass(frozen=True)
class ToolChains:
    """Linters by language that works here, and why the others do not."""

    checker: Checker
    linters: Mapping[str, Sequence[Words]]
    missing: Mapping[str, str]


@dataclass
class Bench:
    """Checks of code, in a sandbox that `opened` gives; it is opened, and each language tried, when it is first needed.

    wanted: languages. key: where they are named. folders: with tools, beside those of the sandbox's PATH. lint: whether
    linters have a say. say: told once which languages are skipped.
    """

    opened: Callable[[], ProgramRunner]
    wanted: Sequence[str]
    key: str = "code.languages"
    folders: Sequence[str] = ()
    lint: bool = True
    say: Callable[[str], None] = print
    _tools: ToolChains | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def tools(self) -> ToolChains:
        """What works here. Raises ValueError (of `key`) where nothing does, and what `opened` raises."""
        with self._lock:
            if self._tools is None:
                self._tools = self._tried(Checker(self.opened(), self.folders))
            return self._tools

    def _tried(self, checker: Checker) -> ToolChains:
        linters: dict[str, Sequence[Words]] = {}
        missing: dict[str, str] = {}
        for language in map(LANGUAGES.__getitem__, self.wanted):
            files = specimen(language.name)
            verdict = checker.read(language, files, []) or checker.test(language, files, least=2)
            if verdict.passed:
                tools = language.linters if self.lint else ()
                linters[language.name] = [words for words in tools if checker.read(language, files, [words]) is None]
            else:
                said = (verdict.stderr or verdict.stdout).strip()
                missing[language.name] = self._in_a_home(language) or f"{verdict.problem} {said[-300:]}".strip()
        if not linters:
            told = "; ".join(f"{name}: {why}" for name, why in missing.items())
            raise ValueError(
                f"{self.key}=[{','.join(self.wanted)}]: none of them works in the sandbox ({told}); install a tool "
                "chain under /usr, or name its folder in programs.readable"
            )
        for words in (words for found in linters.values() for words in found):
            self.say(f"linter: {words[0]}")
        for name, why in missing.items():
            self.say(f"skipped, for its tool chain does not work in the sandbox: {name}: {why}")
        return ToolChains(checker, linters, missing)

    def _in_a_home(self, language: Language) -> str:
        """Of a language that does not work: which of its programs the sandbox does not show, and what helps; or ""."""
        words = [language.check, language.run, *language.build]
        tools = [one[0] for one in words if one and not one[0].startswith("built/")]
        found = homes.hidden(tools, self.folders)
        if found is None:
            return ""
        return (
            f"{found} lies, or leads, into a home, which no sandbox shows; copy its tool chain to a folder "
            f"with {found.name} in its bin, as /opt/{language.name}, and give programs.readable=[/opt/{language.name}]"
        )

    def choose(self, draw: ItemDraw) -> Language:
        """A language for an item. Where one is missing here it is counted, and another taken."""
        name = draw.random.choice(list(self.wanted))
        if name in self.tools.missing:
            draw.counts[f"no tool chain for {name}: another language taken"] += 1
            name = draw.random.choice(sorted(self.tools.linters))
        return LANGUAGES[name]

    def check(self, draw: ItemDraw, language: Language, files: Mapping[str, str], least: int) -> CodeVerdict:
        """Parser, linters, and the tests where there are any: at least so many have to pass, and none without the
        solution. Recorded as a check of the item.
        """
        tools = self.tools
        linters = tools.linters[language.name]
        of = language.name, dict(files), least, [words[0] for words in linters]
        said: dict[str, Any] = draw.check(
            "code", lambda: asdict(tools.checker.run(language, files, linters, least)), *of
        )
        return CodeVerdict(**said)

    def outputs(
        self, draw: ItemDraw, language: Language, program: str, inputs: Sequence[str], wait_s: int
    ) -> list[Ran]:
        """What a program from standard input to standard output makes of each input, in one sandbox and one build.

        wait_s: seconds for each. A build that fails is a failure on every input.
        """
        checker = self.tools.checker
        of = language.name, program, list(inputs), wait_s
        said: list[dict[str, Any]] = draw.check(
            "outputs", lambda: [asdict(one) for one in checker.outputs(language, program, inputs, wait_s)], *of
        )
        return [Ran(**one) for one in said]
