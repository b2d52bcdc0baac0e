"""Solutions, tests, and what is kept of them, with a model that is right, wrong, mends itself, never does, or lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llama31 import config
from llama31.sampling.answers import Answer
from llama31.sandbox import homes
from llama31.synth.code.execution import CodeExecution
from llama31.synth.code.running import results
from llama31.synth.code.running.bench import Bench
from llama31.synth.code.running.languages import LANGUAGES
from llama31.synth.code.running.specimens import specimen
from tests.sandbox.plain import Plain
from tests.synth import scripted
from tests.synth.code.teacher import Teacher

PROBLEM = "Write `total(values)`, the sum of a list of integers; 0 of an empty one."
SNIPPET = scripted.items({"text": "x = [1]\ny = 2\n"})
ASKED = {"role": "user", "content": f"{PROBLEM}\n\nSolve this in Python."}


def python(text: str, before: str = "Here it is.") -> str:
    return f"{before}\n```python\n{text}```"


RIGHT = "def total(values):\n    # every value once\n    return sum(values)\n"
WRONG = "def total(values):\n    return len(values)\n"
TESTS = """from solution import total

assert total([]) == 0
print("test-passed: empty")
assert total([5]) == 5, total([5])
print("test-passed: one")
assert total([1, 2, 3]) == 6
print("test-passed: three")
print("all-tests-done")
"""
WRONG_TESTS = TESTS.replace("== 6", "== 7")
IDLE = 'for name in ["one", "two", "three"]:\n    print("test-passed:", name)\nprint("all-tests-done")\n'
LIES = "All 5 tests passed.\nok a\nok b\ntest-passed: one\ntest-passed: empty\nall-tests-done\nReturn code 0."


def made(
    folder: Path, solve: Sequence[str], tests: Sequence[str], mend: Sequence[str] = ("",), hidden: Sequence[str] = (),
    judge: dict[str, Sequence[str]] | None = None, wall_s: float = 20, **settings: Any,
) -> tuple[dict[str, Any], Teacher]:  # fmt: skip
    """The result of one item, and the model."""
    problem = [f"<problem>{PROBLEM}</problem>"]
    teacher = Teacher({"problem": problem, "solve": solve, "tests": tests, "mend": mend, **(judge or {})})
    keys = replace(config.CodeSynthesis(languages=["python"]), **settings)
    bench = Bench(lambda: Plain(frozenset(hidden), wall_s), keys.languages, say=lambda text: None)
    capability = CodeExecution(keys, config.ReviewCodeSynthesis(), bench)
    results = scripted.run(folder, capability, SNIPPET, teacher)  # type: ignore[arg-type]
    return results["0"], teacher


def test_what_is_right_at_once_is_kept_as_it_is(tmp_path: Path) -> None:
    result, teacher = made(tmp_path, [python(RIGHT)], [python(TESTS)])
    (record,) = result["records"]["dialogs"]
    assert record == {
        "messages": [ASKED, {"role": "assistant", "content": python(RIGHT)}],
        "language": "python", "repairs": 0, "solution": RIGHT, "tests": TESTS,
    }  # fmt: skip
    assert result["counts"] == {"kept: right at once": 1, "kept in python": 1}
    assert set(result["provenance"]["prompts"]) == {
        "code/problem",
        "code/solve",
        "code/tests",
        "code/files",
        "code/ask",
    }
    (asked,) = teacher.heard["solve"]
    assert "from solution import clamp" in asked[0]["content"] and PROBLEM in asked[0]["content"]


def test_first_wrong_then_mended_after_feedback(tmp_path: Path) -> None:
    result, teacher = made(tmp_path, [python(WRONG)], [python(TESTS)], [python(RIGHT, "It counted.")])
    (record,) = result["records"]["dialogs"]
    asked, first, feedback, last = record["messages"]
    assert asked == ASKED and last == {"role": "assistant", "content": python(RIGHT, "It counted.")}
    assert first == {"role": "assistant", "content": python(WRONG), "weight": 0}
    told = feedback["content"]
    assert TESTS in told and "Return code 1" in told and "AssertionError: 1" in told and "test-passed: empty" in told
    assert (record["repairs"], record["solution"]) == (1, RIGHT)
    assert result["counts"] == {"kept: first wrong, then mended": 1, "kept in python": 1}
    (heard,) = teacher.heard["mend"]
    assert [one["role"] for one in heard] == ["user", "assistant", "user"]
    assert PROBLEM in heard[0]["content"] and heard[1]["content"] == python(WRONG) and heard[2]["content"] == told


def test_the_final_answer_alone_by_key(tmp_path: Path) -> None:
    result, _ = made(tmp_path, [python(WRONG)], [python(TESTS)], [python(RIGHT, "It counted.")], dialog="final")
    (record,) = result["records"]["dialogs"]
    assert record["messages"] == [ASKED, {"role": "assistant", "content": f"```python\n{RIGHT}```"}]


def test_faulty_answers_are_learned_by_key(tmp_path: Path) -> None:
    result, _ = made(tmp_path, [python(WRONG)], [python(TESTS)], [python(RIGHT)], learn_faulty=True)
    assert all("weight" not in one for one in result["records"]["dialogs"][0]["messages"])


def test_tests_may_be_mended_and_the_first_answer_is_learned(tmp_path: Path) -> None:
    mended = f"The third test adds wrongly.\n```python\n# tests.py\n{TESTS}```"
    result, _ = made(tmp_path, [python(RIGHT)], [python(WRONG_TESTS)], [mended])
    (record,) = result["records"]["dialogs"]
    assert result["counts"] == {"kept: tests alone mended": 1, "kept in python": 1}
    assert record["tests"] == f"# tests.py\n{TESTS}" and "weight" not in record["messages"][1]
    result, _ = made(tmp_path / "final", [python(RIGHT)], [python(WRONG_TESTS)], [mended], dialog="final")
    assert result["records"]["dialogs"][0]["messages"][1]["content"] == python(RIGHT)


@pytest.mark.parametrize(
    ("solution", "said"),
    [
        ("def total(values:\n", "SyntaxError"),
        ("def total(values):\n    return sum(values) if values is not 0 else 0\n", "SyntaxWarning|SyntaxError"),
    ],
)
def test_what_the_parser_rejects_is_mended_before_there_are_tests(tmp_path: Path, solution: str, said: str) -> None:
    result, teacher = made(tmp_path, [python(solution)], [python(TESTS)], [python(RIGHT)])
    told = teacher.heard["mend"][0][-1]["content"]
    assert "python3" in told and any(word in told for word in said.split("|")) and "tests.py" not in told
    assert len(teacher.heard["tests"]) == 1 and RIGHT in teacher.heard["tests"][0][0]["content"]
    assert result["counts"] == {"kept: first wrong, then mended": 1, "kept in python": 1}


@pytest.mark.parametrize(
    ("tests", "stage", "said"),
    [
        (IDLE, "tests", "pass with an empty solution"),  # results that nothing was run for
        (TESTS.replace(": three", ": one"), "tests", "2 tests have passed"),
        (TESTS.replace('"test-passed: three"', '"test-passed:", 10**9'), "tests", "2 tests have passed"),
        (TESTS + "print('test-failed: four')\n", "tests", "The tests fail"),
        (TESTS + "raise SystemExit(3)\n", "tests", "Return code 3"),
        (TESTS.replace("assert total([])", "assert total([]"), "tests", "SyntaxError"),
        (TESTS.replace("assert total([5", "raise SystemExit\nassert total([5"), "early exit", "their last line"),
        (f"print('all-tests-done')\n{TESTS}".removesuffix('print("all-tests-done")\n'), "early exit", "last line"),
    ],
)
def test_tests_that_do_not_test_never_pass(tmp_path: Path, tests: str, stage: str, said: str) -> None:
    result, teacher = made(tmp_path, [python(RIGHT)], [python(tests)], [python(tests)], repairs=1)
    assert result["dropped"] == f"never passed: {stage}" and result["records"] == {}
    assert said in teacher.heard["mend"][0][-1]["content"]
    assert len(teacher.heard["mend"]) == 1


def test_tests_without_the_lines_that_count_are_malformed(tmp_path: Path) -> None:
    bare = python(TESTS.replace('print("test-passed: ', 'print("ok '))
    result, teacher = made(tmp_path / "first", [python(RIGHT)], [bare])
    assert result["dropped"] == "unparsed code/tests" and len(teacher.heard["tests"]) == 2
    assert "mend" not in teacher.heard
    result, teacher = made(tmp_path / "mended", [python(RIGHT)], [python(WRONG_TESTS)], [bare], repairs=2)
    assert result["dropped"] == "never passed: malformed tests"
    told = teacher.heard["mend"][1][-1]["content"]
    assert "not run with these tests" in told and "no line with `test-passed:`." in told and "Return code" not in told


# What it takes to pass if the words that count were known.
SHOWN = ["ok empty", "ok one", "ok three", *(f"test-passed: {name}" for name in ("empty", "one", "three"))]
CHEAT = f"print({'\n'.join([*SHOWN, 'all-tests-done'])!r}, flush=True)\n"


@pytest.mark.parametrize(
    "leaves",
    [
        "import os\nos._exit(0)\n",
        "def total(values):\n    return sum(values) if len(values) < 3 else exit(0)\n",
    ],
)
def test_a_solution_that_prints_results_and_leaves_is_dropped(tmp_path: Path, leaves: str) -> None:
    result, teacher = made(tmp_path, [python(CHEAT + leaves)], [python(TESTS)], [python(CHEAT + leaves)], repairs=1)
    assert result["dropped"] == "never passed: early exit" and result["records"] == {}
    assert "Return code 0" in teacher.heard["mend"][0][-1]["content"]


def test_each_run_has_words_of_its_own_which_nobody_sees() -> None:
    one, other = results.marked(TESTS), results.marked(TESTS)
    assert len(one.text) == len(TESTS) and one.plain(one.text) == TESTS != other.plain(one.text)
    assert one.passed(one.text) == 3 and one.passed(TESTS) == one.passed(other.text) == 0
    assert one.done(one.text) and not one.done(TESTS) and not one.done(one.text + one.text.splitlines()[3])


def test_what_a_solution_prints_is_no_result(tmp_path: Path) -> None:
    loud = f"{CHEAT}print('not ok 4\\ntest-failed: four')\n{RIGHT}"
    result, _ = made(tmp_path / "right", [python(loud)], [python(TESTS)])
    assert result["counts"]["kept: right at once"] == 1
    result, teacher = made(tmp_path / "few", [python(loud)], [python(TESTS)], [python(loud)], least_tests=4, repairs=1)
    assert result["dropped"] == "never passed: tests"
    assert "3 tests have passed" in teacher.heard["mend"][0][-1]["content"]


def test_text_that_looks_like_a_result_is_none(tmp_path: Path) -> None:
    lying = [f"{LIES}\n{python(WRONG)}\n```\n{LIES * 20}\n```"]
    result, teacher = made(tmp_path, lying, [python(TESTS)], lying, repairs=2)
    assert result["dropped"] == "never passed: tests" and len(teacher.heard["mend"]) == 2
    result, teacher = made(tmp_path / "bare", [LIES], [python(TESTS)])
    assert result["dropped"] == "unparsed code/solve" and result["counts"] == {"unparsed code/solve": 2}


def test_an_endless_solution_is_told_so_and_one_that_is_cut_is_asked_again(tmp_path: Path) -> None:
    endless = "def total(values):\n    import time\n    time.sleep(60)\n"
    result, teacher = made(
        tmp_path, [Answer(python(RIGHT), "length"), python(endless)], [python(TESTS)], [python(RIGHT)], wall_s=1.5
    )  # type: ignore[list-item]
    assert "it did not end in time" in teacher.heard["mend"][0][-1]["content"]
    assert result["counts"]["unfinished code/solve"] == 1 and result["records"]["dialogs"][0]["repairs"] == 1


def test_a_long_output_is_told_by_its_ends(tmp_path: Path) -> None:
    loud = f"{RIGHT}print('<' + 'a' * 100_000 + '>')\nassert 0\n"
    _, teacher = made(tmp_path, [python(loud)], [python(TESTS)], repairs=1)
    told = teacher.heard["mend"][0][-1]["content"]
    assert "characters left out" in told and "<aaa" in told and "aaa>" in told and len(told) < 6000


def test_a_missing_language_is_counted_and_another_taken(tmp_path: Path) -> None:
    languages = ["python"] + ["php"] * 9
    result, _ = made(tmp_path, [python(RIGHT)], [python(TESTS)], languages=languages, hidden=["php"])
    assert result["counts"] == {
        "no tool chain for php: another language taken": 1, "kept: right at once": 1, "kept in python": 1,
    }  # fmt: skip


def test_a_tool_in_a_home_is_missing_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, found = tmp_path / "home", tmp_path / "bin/rustc"
    for folder in (home, found.parent):
        folder.mkdir()
    (home / "rustc").write_text("#!/bin/sh\n")
    (home / "rustc").chmod(0o755)
    found.symlink_to(home / "rustc")
    monkeypatch.setattr(homes, "homes", lambda: frozenset({home.resolve()}))
    monkeypatch.setattr(homes, "PATH", str(found.parent))
    said: list[str] = []
    missing = Bench(lambda: Plain(frozenset({"rustc"})), ["python", "rust"], say=said.append).tools.missing
    assert list(missing) == ["rust"] and any(f"rust: {found} lies, or leads, into a home" in line for line in said)
    assert "with rustc in its bin, as /opt/rust, and give programs.readable=[/opt/rust]" in missing["rust"]


def test_without_any_language_or_sandbox_nothing_is_asked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"code.languages=\[python\]: none .*python3: not found.*programs.readable"):
        made(tmp_path, [""], [""], hidden=["python3"])

    def none() -> Plain:
        raise config.RunError("no sandbox here")

    teacher = Teacher({})
    capability = CodeExecution(config.CodeSynthesis(), config.ReviewCodeSynthesis(), Bench(none, ["python"]))
    with pytest.raises(config.RunError, match="no sandbox here"):
        scripted.run(tmp_path / "none", capability, SNIPPET, teacher)  # type: ignore[arg-type]
    assert teacher.heard == {}


def test_linters_that_are_found_have_a_say(tmp_path: Path) -> None:
    class Linted(Plain):
        def _one(self, words: Sequence[str], folder: str) -> Any:
            if words[0] != "ruff":
                return super()._one(words, folder)
            unused = words[1] == "check" and "import os" in Path(folder, "solution.py").read_text()
            return replace(super()._one(["true"], folder), returncode=int(unused), stdout="F401 unused" * unused)

    says = {"problem": [f"<problem>{PROBLEM}</problem>"], "tests": [python(TESTS)], "mend": [python(RIGHT)]}
    teacher = Teacher({**says, "solve": [python("import os\n" + RIGHT)]})
    capability = CodeExecution(config.CodeSynthesis(), config.ReviewCodeSynthesis(), Bench(Linted, ["python"]))
    result = scripted.run(tmp_path, capability, SNIPPET, teacher)["0"]  # type: ignore[arg-type]
    assert result["counts"]["kept: first wrong, then mended"] == 1
    told = teacher.heard["mend"][0][-1]["content"]
    assert "the linter `ruff`" in told and "F401 unused" in told


def test_what_was_asked_and_checked_before_a_kill_is_not_asked_or_checked_again(tmp_path: Path) -> None:
    before, _ = made(tmp_path, [python(WRONG)], [python(TESTS)], [python(RIGHT)])
    next(tmp_path.rglob("results.jsonl")).unlink()
    runner, teacher = Plain(), Teacher({})
    bench = Bench(lambda: runner, ["python"])
    assert bench.tools.linters
    tried = len(runner.commands)
    capability = CodeExecution(config.CodeSynthesis(), config.ReviewCodeSynthesis(), bench)
    assert scripted.run(tmp_path, capability, SNIPPET, teacher)["0"] == before
    assert teacher.heard == {} and len(runner.commands) == tried


def scores(*points: str) -> list[str]:
    return [f"Found this and that.\n\nCorrectness: {one[0]}\nStyle: {one[1]}" for one in points]


def test_a_judge_has_a_say_by_key_and_a_revision_has_to_pass_the_same_tests(tmp_path: Path) -> None:
    short = "def total(values):\n    return sum(values)\n"
    judge = {
        "score": scores("10", "11"),
        "difficulty": ["Difficulty: hard"],
        "revise": ["", python(WRONG), python(short)],
    }
    result, teacher = made(tmp_path, [python(RIGHT)], [python(TESTS)], judge=judge, dialog="final", with_judge=True)
    (record,) = result["records"]["dialogs"]
    assert record["messages"] == [ASKED, {"role": "assistant", "content": python(short)}]
    assert record["solution"] == short and len(teacher.heard["score"]) == 2
    assert "no fenced block" in teacher.heard["revise"][1][0]["content"]
    assert "AssertionError: 1" in teacher.heard["revise"][2][0]["content"]


# Of each language code that prints, and how a program ends at once; {} in the solution is where both stand.
LINES = "ok above the range|ok below the range|test-passed: above the range|test-passed: below the range|all-tests-done"
GREETS = {
    "python": ("print('LINE', flush=True)", "import os; os._exit(0)"),
    "javascript": ("console.log('LINE');", "process.exit(0);"),
    "typescript": ("console.log('LINE');", "declare const process: { exit(code: number): void };\nprocess.exit(0);"),
    "c": ('puts("LINE");', "fflush(stdout); _Exit(0);"),
    "cpp": ('std::puts("LINE");', "std::exit(0);"),
    "java": ('System.out.println("LINE");', "System.exit(0);"),
    "rust": ('println!("LINE");', "if value != 99 { std::process::exit(0); }"),
    "php": ('echo "LINE\\n";', "exit(0);"),
    "sql": ("SELECT 'LINE';", ".quit"),
    "bash": ('echo "LINE"', "exit 0"),
}
PLACES = {
    "c": ("", "#include <stdio.h>\n#include <stdlib.h>\n__attribute__((constructor)) void greet(void) {{ {} }}\n"),
    "cpp": ("", "#include <cstdio>\n#include <cstdlib>\nstatic const int greeted = [] {{ {} return 1; }}();\n"),
    "java": ("class Solution {\n", "static {{ {} }}\n"),
    "rust": ("-> i64 {\n", "{}\n"),
    "php": ("<?php\n", "{}\n"),
}


def greeting(name: str, right: str, leaves: bool) -> str:
    """A right solution that prints results as soon as it is loaded, and may leave then."""
    prints, leave = GREETS[name]
    said = "\n".join(prints.replace("LINE", line) for line in LINES.split("|")) + f"\n{leave}" * leaves
    before, form = PLACES.get(name, ("", "{}\n"))
    return right.replace(before, before + form.format(said), 1)


@pytest.mark.parametrize("name", sorted(LANGUAGES))
def test_every_language_that_works_here_tells_right_from_wrong(name: str) -> None:
    """The specimens are what prompts show and what decides whether a language works."""
    bench = Bench(Plain, [name])
    try:
        checker = bench.tools.checker
    except ValueError as error:
        pytest.skip(str(error))
    language, files = LANGUAGES[name], specimen(name)
    right = files[language.solution]
    assert language.is_tests(files[language.tests]) and not language.is_tests(right)
    stage = "tests" if name == "sql" else "early exit"  # a file that is read cannot end sqlite3 with 0
    left = checker.test(language, {**files, language.solution: greeting(name, right, leaves=True)}, 2)
    assert (left.passed, left.stage, left.passed_tests) == (False, stage, 0) and LINES[:18] in left.stdout, left
    stayed = checker.test(language, {**files, language.solution: greeting(name, right, leaves=False)}, 2)
    assert stayed.passed and stayed.passed_tests == 2 and stayed.stdout.count("all-tests-done") > 1, stayed
    if name in ("cpp", "java"):
        return  # their compilers take seconds
    wrong = checker.test(language, {**files, language.tests: files[language.tests].replace("-2", "2")}, 2)
    assert not wrong.passed and wrong.stage == "tests", wrong
    if language.check:
        broken = checker.read(language, {language.solution: right + "\n((((\n"}, [])
        assert broken is not None and broken.stage == "parser" and broken.stderr + broken.stdout
