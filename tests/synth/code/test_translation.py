"""Programs in two languages on the same inputs, with a model that translates rightly, wrongly, never, or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llama31 import config
from llama31.synth.code.running.bench import Bench
from llama31.synth.code.running.checking import MOST_OUTPUT, Checker
from llama31.synth.code.running.languages import LANGUAGES
from llama31.synth.code.translation import CodeTranslation
from tests.sandbox.plain import Plain
from tests.synth import scripted
from tests.synth.code.teacher import Teacher

PYTHON = """import sys

for line in sys.stdin:
    print(int(line) + 1)
"""
BASH = 'while read -r number; do\n    echo "$((number + 1))"\ndone\n'
OFF = BASH.replace("+ 1", "+ (number > 6 ? 2 : 1)")
INPUTS = "Three:\n```\n1\n2\n```\n```text\n7\n```\n```\n-4\n```\n"
KEYS = ("targets", "as_is", "repairs", "dialog")
ITEM = {"text": "x = 1\n", "language": "Python"}


def made(folder: Path, item: dict[str, Any] = ITEM, hidden: Sequence[str] = (), **given: Any) -> tuple[Any, Teacher]:
    """The result of one item, and the model; `given`: answers by prompt, and keys."""
    says = {"program": [f"```python\n{PYTHON}```"], "inputs": [INPUTS], "translate": [f"```bash\n{BASH}```"]}
    keys = config.TranslateCodeSynthesis(targets=["bash"])
    keys = replace(keys, **{name: value for name, value in given.items() if name in KEYS})
    teacher = Teacher(says | {name: value for name, value in given.items() if name not in KEYS})
    bench = Bench(lambda: Plain(frozenset(hidden)), ("python", "bash", "php"), say=lambda text: None)
    result = scripted.run(folder, CodeTranslation(keys, bench), scripted.items(item), teacher)["0"]
    return result, teacher


def test_a_translation_that_says_the_same_is_kept(tmp_path: Path) -> None:
    result, teacher = made(tmp_path)
    (record,) = result["records"]["dialogs"]
    asked, answered = record["messages"]
    assert (
        asked["content"].startswith("Translate this Python program to idiomatic Bash.") and PYTHON in asked["content"]
    )
    assert answered == {"role": "assistant", "content": f"```bash\n{BASH}```"}
    assert (record["program"], record["translation"], record["inputs"]) == (PYTHON, BASH, ["1\n2\n", "7\n", "-4\n"])
    assert result["counts"] == {"kept: right at once": 1, "kept: python to bash": 1}
    assert "main.sh" in teacher.heard["translate"][0][0]["content"]


def test_what_differs_goes_back_and_is_mended(tmp_path: Path) -> None:
    wrong, right = f"```bash\n{OFF}```\nIt prints 8, as it should.", f"Seven.\n```bash\n{BASH}```"
    result, teacher = made(tmp_path, translate=[wrong], mend_translation=[right])
    messages = result["records"]["dialogs"][0]["messages"]
    assert [one.get("weight") for one in messages] == [None, 0, None, None]
    told = messages[2]["content"]
    assert (
        "Standard input:\n```\n7\n```" in told and "```\n8\n```" in told and "```\n9\n```" in told and "-4" not in told
    )
    assert messages[3]["content"] == right and result["counts"]["kept: first wrong, then mended"] == 1
    heard = teacher.heard["mend_translation"][0]
    assert [one["role"] for one in heard] == ["user", "assistant", "user"] and heard[1]["content"] == wrong
    result, _ = made(tmp_path / "final", translate=[wrong], mend_translation=[right], dialog="final")
    assert [one["content"] for one in result["records"]["dialogs"][0]["messages"][1:]] == [right]


def test_one_that_is_never_right_is_dropped(tmp_path: Path) -> None:
    wrong = f"```bash\n{OFF}```"
    result, teacher = made(tmp_path, translate=[wrong], mend_translation=[wrong], repairs=2)
    assert result["dropped"] == "never the same outputs" and len(teacher.heard["mend_translation"]) == 2
    result, teacher = made(tmp_path / "syntax", translate=["```bash\nif\n```"], mend_translation=[wrong], repairs=1)
    assert "syntax error" in teacher.heard["mend_translation"][0][-1]["content"]


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("print(1)\n", "the original says the same of all inputs"),
        ("pass\n", "the original says the same of all inputs"),
        ("import sys\nprint(int(sys.stdin.read()) // 7)\nraise SystemExit(1)\n", "the original runs on too few inputs"),
        ("import time, sys\nprint(sys.stdin.read(), time.time_ns())\n", "the original runs on too few inputs"),
        ("print('a' * 30_000)\n", "the original runs on too few inputs"),
        ("print((\n", "the original runs on too few inputs"),
    ],
)
def test_originals_that_prove_nothing_are_dropped(tmp_path: Path, program: str, reason: str) -> None:
    result, teacher = made(tmp_path, program=[f"```python\n{program}```"])
    assert result["dropped"] == reason and "translate" not in teacher.heard


def test_inputs_that_fail_are_left_out(tmp_path: Path) -> None:
    result, _ = made(tmp_path, inputs=[INPUTS + "```\nno number\n```\n```\n7\n```\n"])
    assert result["records"]["dialogs"][0]["inputs"] == ["1\n2\n", "7\n", "-4\n"]
    assert result["counts"]["inputs without a steady output"] == 1
    result, _ = made(tmp_path / "few", inputs=["```\n1\n```"])
    assert result["dropped"] == "unparsed translate_code/inputs"


def test_records_may_be_programs_and_need_a_language(tmp_path: Path) -> None:
    result, teacher = made(tmp_path, {"text": PYTHON, "path": "tools/next.py"}, as_is=True)
    assert result["records"]["dialogs"][0]["program"] == PYTHON and "program" not in teacher.heard
    result, _ = made(tmp_path / "none", {"text": PYTHON, "path": "README"})
    assert result["dropped"].startswith("language unknown: give records a field `language`")
    result, _ = made(tmp_path / "sql", {"text": "SELECT 1;", "language": "sql"})
    assert result["dropped"] == "not run here: sql"


def test_missing_targets_are_counted(tmp_path: Path) -> None:
    result, teacher = made(tmp_path, hidden=["php"], targets=["php", "python"])
    assert result["dropped"] == "no language to translate to" and teacher.heard == {}
    assert result["counts"] == {"no tool chain for php: another language taken": 1}


def test_every_output_is_its_own() -> None:
    """Bytes that are no text, nothing at all, and much of it, each on its input; white space is what it was."""
    program = """import sys
given = sys.stdin.read()
if given == "late": import time; time.sleep(9)
sys.stdout.buffer.write({"bytes": b"\\xff 7 o= e=\\n", "none": b"", "many": b"x" * 30_000}[given])
"""
    ran = Checker(Plain()).outputs(LANGUAGES["python"], program, ["bytes", "late", "none", "many", "else"], 1)
    assert [one.failed for one in ran] == [
        "", "it did not end in time", "", f"it writes more than {MOST_OUTPUT} characters", "it fails",
    ]  # fmt: skip
    assert ran[0].stdout == "\N{REPLACEMENT CHARACTER} 7 o= e=\n" and "KeyError: 'else'" in ran[4].stderr
