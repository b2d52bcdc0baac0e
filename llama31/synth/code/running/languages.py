"""Languages that a problem may be solved in: file names, how a parser, a linter and tests are run, by which tools.

Of each the solution is a file that the tests include or import; the tests are a program of their own, which prints
`test-passed: NAME` for each test that passes, `all-tests-done` at its end, and fails as a whole where one test does.
Tools are found inside the sandbox.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

Words = Sequence[str]
# Of sources and what is built of them: {file}, and {stem}, its name without the ending.
_PYTHON = "import pathlib, sys; compile(pathlib.Path(sys.argv[1]).read_bytes(), sys.argv[1], 'exec')"
_RUFF = ("ruff", "check", "--isolated", "--no-cache", "--quiet", "--output-format=concise", "--select=E9,F", "{file}")
_WARNINGS = ("-O1", "-Wall", "-Wextra", "-Wno-unused-function", "-Werror", "-fsyntax-only")
# One thread to collect garbage and the quick compiler alone: these programs are short, and memory is bounded.
_JVM = ("-Xmx512m", "-Xss16m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
_JAVAC = ("javac", *(f"-J{word}" for word in _JVM), "-encoding", "utf-8", "-proc:none", "-d", "built")
_LINT = "-Xlint:cast,divzero,empty,fallthrough,finally,overrides,rawtypes,static,unchecked"
_TSC = ("tsc", "--strict", "--target", "es2020", "--module", "commonjs", "--skipLibCheck")


@dataclass(frozen=True)
class Language:
    """How a language is written down, checked and run.

    tags: behind fences. suffixes: of files in it. test_mark: what tests hold and solutions do not.
    check: its parser, or a compiler that warns; () where none can read a solution alone. linters: those that are found
    are used. build, run: of a program, the tests or another one; `program` is the file of that other one.
    """

    name: str
    title: str
    tags: frozenset[str]
    suffixes: tuple[str, ...]
    solution: str
    tests: str
    program: str
    test_mark: str
    check: Words
    run: Words
    build: Sequence[Words] = ()
    linters: Sequence[Words] = ()

    def is_tests(self, text: str) -> bool:
        """Whether it looks like tests: it includes the solution."""
        return re.search(self.test_mark, text, re.MULTILINE) is not None


def _language(
    name: str, title: str, tags: str, suffixes: str, mark: str, check: Words, run: Words, build: Sequence[Words] = (),
    linters: Sequence[Words] = (), names: tuple[str, str, str] = ("solution", "tests", "main"),
) -> Language:  # fmt: skip
    endings = tuple(suffixes.split())
    solution, tests, program = (each + endings[0] for each in names)
    return Language(
        name, title, frozenset(tags.split()), endings, solution, tests, program, mark, check, run, build, linters
    )


_ALL = (
    _language(
        "python", "Python", "python py python3", ".py .pyw", r"^\s*(from|import) solution\b",
        ("python3", "-B", "-W", "error::SyntaxWarning", "-c", _PYTHON, "{file}"), ("python3", "-B", "{file}"),
        linters=(_RUFF,),
    ),
    _language(
        "javascript", "JavaScript", "javascript js node nodejs", ".js .mjs .cjs", r"""['"]\./solution(\.js)?['"]""",
        ("node", "--check", "{file}"), ("node", "{file}"),
    ),
    _language(
        "typescript", "TypeScript", "typescript ts", ".ts .mts .cts", r"""['"]\./solution['"]""",
        (*_TSC, "--noEmit", "{file}"), ("node", "built/{stem}.js"), ((*_TSC, "--outDir", "built", "{file}"),),
    ),
    _language(
        "c", "C", "c h", ".c .h", r'#include\s+"solution\.c"', ("gcc", "-std=c17", *_WARNINGS, "{file}"),
        ("built/program",), (("gcc", "-std=c17", "-O1", "-o", "built/program", "{file}", "-lm"),),
    ),
    _language(
        "cpp", "C++", "cpp c++ cc cxx hpp", ".cpp .cc .cxx .hpp .hh", r'#include\s+"solution\.cpp"',
        ("g++", "-std=c++20", *_WARNINGS, "{file}"), ("built/program",),
        (("g++", "-std=c++20", "-O1", "-o", "built/program", "{file}"),),
    ),
    _language(
        "java", "Java", "java", ".java", r"\bclass Tests\b", (*_JAVAC, _LINT, "-Werror", "{file}"),
        ("java", *_JVM, "-cp", "built", "{stem}"), ((*_JAVAC, "-nowarn", "{file}"),),
        names=("Solution", "Tests", "Main"),
    ),
    _language(
        "rust", "Rust", "rust rs", ".rs", r"^\s*mod solution;",
        ("rustc", "--edition=2021", "--crate-type=lib", "--emit=metadata", "-D", "warnings", "-A", "dead_code",
         "{file}"),
        ("built/program",), (("rustc", "--edition=2021", "-A", "warnings", "-o", "built/program", "{file}"),),
    ),
    _language(
        "php", "PHP", "php", ".php", r"['\"]/?solution\.php['\"]", ("php", "-l", "{file}"),
        ("php", "-d", "display_errors=stderr", "{file}"),
    ),
    _language(
        "sql", "SQL", "sql sqlite sqlite3", ".sql", r"^\.read solution\.sql", (),
        ("sqlite3", "-batch", "-bail", ":memory:", ".read {file}"),
    ),
    _language(
        "bash", "Bash", "bash sh shell", ".sh .bash", r"^\s*(source|\.) .*solution\.sh", ("bash", "-n", "{file}"),
        ("bash", "{file}"), linters=(("shellcheck", "--shell=bash", "--severity=warning", "{file}"),),
    ),
)  # fmt: skip
LANGUAGES = {language.name: language for language in _ALL}
_BY_SUFFIX = {suffix: language.name for language in _ALL for suffix in language.suffixes}
_BY_TAG = {tag: language.name for language in _ALL for tag in language.tags}


def named(text: str) -> str | None:
    """The language that a record's field, a fence's tag or a file's name means; None for another."""
    return _BY_TAG.get(text.strip().lower()) or next(
        (name for suffix, name in _BY_SUFFIX.items() if text.lower().endswith(suffix)), None
    )


def filled(words: Words, file: str) -> list[str]:
    """A command with {file} and {stem} in it replaced."""
    stem = file.rpartition(".")[0]
    return [word.replace("{file}", file).replace("{stem}", stem) for word in words]
