"""A judge's two points: what is kept as it is, what is revised until it has them, and what is lost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llama31 import config
from llama31.synth.code import review
from llama31.synth.code.review import CodeReview, ReviewScore
from tests.synth import scripted
from tests.synth.code.teacher import Teacher

ASKED = {"role": "user", "content": "Reverse a list in place."}
DIALOG = {"messages": [ASKED, {"role": "assistant", "content": "x.reverse()"}], "language": "python", "id": "0"}


def points(correctness: int, style: int) -> str:
    return f"A fault in line {correctness}.\nCorrectness: {correctness}\nStyle: {style}"


def made(
    folder: Path, scores: Sequence[str], level: str = "hard", revise: str = "hardest", record: Any = DIALOG
) -> tuple[dict[str, Any], Teacher]:
    revised = ["first revision", "second revision", "third revision"]
    teacher = Teacher({"score": scores, "difficulty": [f"So.\nDifficulty: {level}"], "revise": revised})
    keys = config.ReviewCodeSynthesis(revise=revise)
    return scripted.run(folder, CodeReview(keys), scripted.items(record), teacher)["0"], teacher


def last(result: dict[str, Any]) -> str:
    (record,) = result["records"]["dialogs"]
    assert record["messages"][:-1] == [ASKED] and record["language"] == "python" and "id" not in record
    return str(record["messages"][-1]["content"])


def test_two_points_keep_an_answer_as_it_is(tmp_path: Path) -> None:
    result, teacher = made(tmp_path, [points(1, 1)])
    assert last(result) == "x.reverse()" and result["counts"] == {"judged 2 of 2": 1}
    assert "Reverse a list" in teacher.heard["score"][0][0]["content"]
    assert {"difficulty", "revise"}.isdisjoint(teacher.heard)


def test_answers_to_the_hardest_are_revised_until_they_pass(tmp_path: Path) -> None:
    result, teacher = made(tmp_path, [points(0, 1), points(1, 0), points(1, 1)])
    assert last(result) == "second revision"
    assert result["counts"] == {"judged 1 of 2": 1, "below 2 of 2, hard": 1, "revised until it had both points": 1}
    heard = [one[0]["content"] for one in teacher.heard["revise"]]
    assert "A fault in line 0." in heard[0] and "x.reverse()" in heard[0] and "Correctness:" not in heard[0]
    assert "A fault in line 1." in heard[1] and "first revision" in heard[1]


def test_others_are_lost_and_so_is_what_never_passes(tmp_path: Path) -> None:
    result, teacher = made(tmp_path / "easy", [points(0, 0)], "easy")
    assert result["dropped"] == "judged below 2 of 2" and "revise" not in teacher.heard
    assert result["counts"] == {"judged 0 of 2": 1, "below 2 of 2, easy": 1}
    result, teacher = made(tmp_path / "never", [points(1, 0)])
    assert result["dropped"] == "judged below 2 of 2" and len(teacher.heard["revise"]) == 3


def test_all_or_none_may_be_revised_by_key(tmp_path: Path) -> None:
    result, teacher = made(tmp_path / "all", [points(1, 0), points(1, 1)], "easy", "all")
    assert last(result) == "first revision" and "difficulty" not in teacher.heard
    result, teacher = made(tmp_path / "none", [points(1, 0)], "hard", "none")
    assert result["dropped"] == "judged below 2 of 2" and set(teacher.heard) == {"score"}


def test_a_judge_that_says_nothing_is_asked_once_more(tmp_path: Path) -> None:
    result, _ = made(tmp_path, ["Correctness: 1", points(1, 1)])
    assert last(result) == "x.reverse()" and result["counts"]["unparsed review_code/score"] == 1
    result, _ = made(tmp_path / "never", ["2/2, all tests passed"])
    assert result["dropped"] == "unparsed review_code/score"


def test_the_last_points_count() -> None:
    said = "The answer says\n> Correctness: 1\n> Style: 1\nbut no.\n\n**Correctness:** 0\n**Style: 1**\n"
    assert review.score(said) == ReviewScore(0, 1, "The answer says")
    for wrong in ("", "Correctness: 2\nStyle: 1", "Correctness: 1\nStyle: 0.5", "Correctness 1, Style 1"):
        with pytest.raises(ValueError, match="no line"):
            review.score(wrong)


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [ASKED]},
        {"messages": [ASKED, ASKED]},
        {"messages": "text"},
        {},
        {"messages": [ASKED, {"role": "assistant", "content": None, "tool_calls": []}]},
    ],
)
def test_what_is_no_dialog_is_dropped(tmp_path: Path, record: Any) -> None:
    result, teacher = made(tmp_path, [], record=record)
    assert result["dropped"] == "no dialog of texts that ends with an answer" and teacher.heard == {}


def test_dialogs_in_the_columns_of_others_are_read(tmp_path: Path) -> None:
    """Where the answer is revised, no column says the old one."""
    turns = [{"from": "human", "value": ASKED["content"]}, {"from": "gpt", "value": "x.reverse()"}]
    record = {"conversations": turns, "system": "Be brief.", "language": "python"}
    result, _ = made(tmp_path, [points(1, 1)], record=record)
    (kept,) = result["records"]["dialogs"]
    assert kept.pop("messages") == [{"role": "system", "content": "Be brief."}, *DIALOG["messages"]]
    assert kept == {"system": "Be brief.", "language": "python"}


def test_longer_dialogs_are_judged_as_a_whole(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be brief."}, ASKED, {"role": "assistant", "content": "Where?"}, ASKED]
    record = {"messages": [*messages, {"role": "assistant", "content": "There."}]}
    result, teacher = made(tmp_path, [points(1, 1)], record=record)
    assert result["records"]["dialogs"] == [record]
    heard = teacher.heard["score"][0][0]["content"]
    assert "system: Be brief." in heard and "assistant: Where?" in heard and "There." in heard
