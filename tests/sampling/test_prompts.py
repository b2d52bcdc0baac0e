"""Prompts are told apart by the tokens that a model reads, and a record that is none is named by file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llama31.sampling import prompts
from llama31.tokens import chat
from tests.sampling.scripted import Bytes

FORM = chat.Format(Bytes())
SHORT = [{"kind": "max_words", "value": 20}]


def write(path: Path, *records: Any) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_the_same_tokens_are_the_same_prompt(tmp_path: Path) -> None:
    hello = {"role": "user", "content": "Hello"}
    same: list[dict[str, Any]] = [
        {"prompt": "Hello"},
        {"messages": [hello], "tools": []},
        {"messages": [{**hello, "name": "me", "content": " Hello\n"}], "date": ""},
        {"messages": [{**hello, "content": [{"type": "text", "text": "Hello"}]}], "checks": []},
        {"messages": [hello], "id": "mine"},
    ]
    other = {"messages": [hello], "builtin_tools": []}  # switches the interpreter on
    result, repeated = prompts.read(write(tmp_path / "a.jsonl", *same, other), FORM)
    assert repeated == len(same) - 1 and len(result) == 2 and len({one.id for one in result}) == 2
    for number, record in enumerate(same[:-1]):
        [alone], _ = prompts.read(write(tmp_path / f"{number}.jsonl", record), FORM)
        assert (alone.id, alone.ids) == (result[0].id, result[0].ids)
    first, _ = prompts.read(write(tmp_path / "b.jsonl", same[-1], same[0]), FORM)
    assert [one.id for one in first] == ["mine"]


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ({}, {"checks": SHORT}, r"b.jsonl, line 1: checks are \[\('max_words', 20\)\], and \[\] .* in .*a.jsonl.* 2; "),
        ({"checks": SHORT}, {"checks": [{"kind": "max_words", "value": 3}]}, r"b.jsonl, line 1: checks are .*a.jsonl"),
        ({"safety": "harmful"}, {}, r"b.jsonl, line 1: safety are None, and harmful .*a.jsonl.* 2; .*leave one"),
    ],
)
def test_one_prompt_has_one_opinion_of_its_answers(
    one: dict[str, Any], other: dict[str, Any], said: str, tmp_path: Path
) -> None:
    write(tmp_path / "a.jsonl", {"prompt": "Bye"}, {"prompt": "Hello", **one})
    write(tmp_path / "b.jsonl", {"prompt": "Hello", "tools": [], **other})
    with pytest.raises(ValueError, match=said):
        prompts.read(str(tmp_path), FORM)
    write(tmp_path / "b.jsonl", {"prompt": "Hello", "tools": [], **one})
    assert len(prompts.read(str(tmp_path), FORM)[0]) == 2


def test_two_prompts_under_one_id_are_named_both(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", {"id": 1, "prompt": "x"}, {"id": "1", "prompt": "y"})
    with pytest.raises(ValueError, match=r"a.jsonl, line 2: id 1 stands for another prompt already, that of .*line 1"):
        prompts.read(file, FORM)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"messages": ["hi"]}, r'messages\[0\]: give an object whose role is one of .*; it is "hi"'),
        ({"messages": [3]}, r"messages\[0\]: give an object .*; it is 3"),
        ({"messages": "hi", "tools": 3}, "tools: give a list of JSON objects; it is 3"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, r'role is \["user"\]'),
        ({"prompt": "x", "builtin_tools": [["x"]]}, "builtin_tools: give a list"),
        ({"prompt": "x", "checks": 3}, 'checks=3: give a list of {"kind"'),
        ({"prompt": "x", "checks": [{"kind": ["x"]}]}, 'checks=.*: give a list of {"kind"'),
        ({"prompt": "x", "checks": ["x"]}, 'checks: "x": give {kind, value}'),
        ({"prompt": "x", "safety": ["harmful"]}, "safety=.*: give one of harmful, borderline"),
        ({"prompt": None}, "a dialog is"),
        ({"prompt": ["x"]}, 'it is "x"'),
    ],
)
def test_what_is_no_prompt_is_named(record: Any, said: str, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", {"prompt": "good"}, record)
    with pytest.raises(ValueError, match=f"a.jsonl, line 2: .*{said}"):
        prompts.read(file, FORM)
