"""Answers about code, held against the code: which is kept, and by whose word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llama31 import config
from llama31.synth.code.backtranslation import CodeBacktranslation
from tests.synth import scripted
from tests.synth.code.teacher import Teacher

CODE = "def area(width, height):\n    if width < 0:\n        raise ValueError(width)\n    return width * height"
OTHER = CODE.replace("width * height", "height * width")
BROKEN = CODE.replace("< 0", "> 0")
ITEM = {"text": CODE, "language": "python"}


def fenced(text: str, before: str = "") -> str:
    return f"{before}```python\n{text}\n```"


def made(
    folder: Path, kind: str, given: dict[str, Sequence[str]], item: Any = ITEM, **keys: Any
) -> tuple[Any, Teacher]:
    settings = replace(config.BacktranslateSynthesis(kinds=[kind], candidates=3, least_lines=3), **keys)
    teacher = Teacher(given)
    result = scripted.run(folder, CodeBacktranslation(settings), scripted.items(item), teacher, at_once=1)["0"]
    return result, teacher


def numbered(*names: str) -> list[str]:
    return [f"Explanation {name}, with code:\n{fenced(CODE)}" for name in names]


def test_the_most_faithful_explanation_is_kept(tmp_path: Path) -> None:
    scores = [f"They differ.\nScore: {score}" for score in (3, 5, 4)]
    given = {"explain": numbered("a", "b", "c"), "rebuild": [fenced(OTHER)], "faithful": scores}
    result, teacher = made(tmp_path, "explain", given)
    (record,) = result["records"]["dialogs"]
    asked, answered = record["messages"]
    assert CODE in asked["content"] and "what this Python code does" in asked["content"]
    described = [heard[0]["content"] for heard in teacher.heard["rebuild"]]
    assert all("return width" not in one and "[code left out]" in one for one in described)
    best = next(one for one in "abc" if f"Explanation {one}" in described[1])  # they are drawn at once, in any order
    assert answered["content"] == numbered(best)[0]
    assert (record["score"], record["kind"], record["language"], record["original"]) == (5, "explain", "python", CODE)
    assert result["counts"] == {"explain: best score 5": 1}
    assert OTHER in teacher.heard["faithful"][0][0]["content"] and CODE in teacher.heard["faithful"][0][0]["content"]


def test_none_faithful_enough_or_none_at_all_is_dropped(tmp_path: Path) -> None:
    given = {"explain": numbered("a"), "rebuild": [fenced(OTHER)], "faithful": ["Score: 3"]}
    assert made(tmp_path / "low", "explain", given)[0]["dropped"] == "explain: none faithful enough"
    given = {"explain": numbered("a"), "rebuild": ["Score: 5, I would say."]}
    result, _ = made(tmp_path / "none", "explain", given)
    assert result["dropped"] == "explain: no answer led back to code"
    assert result["counts"]["an answer left out: unparsed backtranslate/rebuild"] == 3
    given = {"explain": numbered("a"), "rebuild": [fenced(OTHER)], "faithful": ["It is fine: 5 of 5 tests passed."]}
    assert made(tmp_path / "mute", "explain", given)[0]["dropped"] == "unparsed backtranslate/faithful"


def test_the_same_code_needs_no_judge(tmp_path: Path) -> None:
    given = {"explain": numbered("a"), "rebuild": [fenced(f'"""Areas."""\n{CODE}  # done')]}
    result, _ = made(tmp_path, "explain", given)
    assert result["records"]["dialogs"][0]["score"] == 5 and result["counts"]["led back to the same code"] == 3


DOCUMENTED = CODE.replace(
    ":\n    if", ':\n    """The area of a rectangle.\n\n    Raises ValueError.\n    """\n    if', 1
)


def test_documentation_leads_back_by_itself_and_changes_no_code(tmp_path: Path) -> None:
    changed = DOCUMENTED.replace("width * height", "height * width")
    given = {
        "document": [fenced(changed), fenced(CODE), fenced(DOCUMENTED, "Documented:\n")],
        "rebuild": [fenced(OTHER)], "faithful": ["Score: 4"],
    }  # fmt: skip
    result, teacher = made(tmp_path, "document", given)
    (record,) = result["records"]["dialogs"]
    assert record["messages"][1]["content"] == fenced(DOCUMENTED, "Documented:\n")
    assert result["counts"] == {
        "document: best score 4": 1, "documenting changed the code": 1, "nothing was documented": 1,
    }  # fmt: skip
    (described,) = teacher.heard["rebuild"]
    assert (
        "The area of a rectangle." in described[0]["content"] and "def area(width, height):" in described[0]["content"]
    )
    assert "raise ValueError(width)" not in described[0]["content"]


def test_a_planted_bug_is_found_and_mended(tmp_path: Path) -> None:
    planted = f"{fenced(BROKEN)}\n<symptom>Areas of ordinary rectangles raise an error.</symptom>"
    given = {
        "plant": [planted], "debug": [fenced(BROKEN), "No code.", fenced(OTHER, "The sign.\n")],
        "faithful": ["Score: 5"],
    }  # fmt: skip
    result, teacher = made(tmp_path, "debug", given)
    (record,) = result["records"]["dialogs"]
    asked, answered = record["messages"]
    assert BROKEN in asked["content"] and "ordinary rectangles" in asked["content"] and CODE not in asked["content"]
    assert answered["content"] == fenced(OTHER, "The sign.\n")
    assert result["counts"] == {"debug: best score 5": 1, "debugging changed nothing": 1, "debugging without code": 1}
    assert all(CODE not in heard[0]["content"] for heard in teacher.heard["debug"])
    given = {"plant": [planted.replace("> 0", "< 0")]}
    assert made(tmp_path / "none", "debug", given)[0]["dropped"] == "debug: no bug was planted"
    given = {"plant": [fenced(BROKEN)]}
    assert made(tmp_path / "mute", "debug", given)[0]["dropped"] == "unparsed backtranslate/plant"


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ({"text": "", "language": "python"}, "snippet: too few lines"),
        ({"text": "a = 1\n\n\n\n", "language": "python"}, "snippet: too few lines"),
        ({"text": "a = 1\n" * 4 + "b" * 500, "language": "python"}, "snippet: a line too long for code"),
        ({"text": CODE}, "language unknown: give records a field `language`, or files their endings"),
        ({"text": CODE, "language": 3, "path": "a.unknown"}, "language unknown: give records a field `language`"),
    ],
)
def test_what_is_no_snippet_is_dropped_by_name(tmp_path: Path, item: Any, reason: str) -> None:
    result, teacher = made(tmp_path, "explain", {}, item)
    assert result["dropped"].startswith(reason) and teacher.heard == {}


def test_a_snippet_begins_where_something_does_and_any_text_can_be_sent(tmp_path: Path) -> None:
    functions = [f"def f{number}(a):\r\n    return a + {number}\0\ud800\r\n\r\n" for number in range(400)]
    given = {"explain": numbered("a"), "rebuild": [fenced(OTHER)], "faithful": ["Score: 4"]}
    item = {"text": "".join(functions), "path": "a.py"}
    result, teacher = made(tmp_path, "explain", given, item, snippet_lines=6)
    original = result["records"]["dialogs"][0]["original"]
    assert original.startswith("def f") and len(original.splitlines()) in (5, 6) and original.isascii()
    assert original.count("\n\ndef f") >= 1 and "\r" not in original and "\0" not in original
    assert original in teacher.heard["explain"][0][0]["content"]
