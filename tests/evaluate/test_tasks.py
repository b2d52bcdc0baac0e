"""Task files: what a line means, how prompts are put together, and how a wrong line is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llama31 import config
from llama31.command import inputs
from llama31.config import ConfigError, Task
from llama31.evaluate import tasks
from tests.conftest import Command

LINES: list[dict[str, Any]] = [
    {"query": "The sky is", "choices": ["blue", "green"], "gold": 0},
    {"query": "Snow is", "choices": ["black", "white", "red"], "gold": "white"},
    {"query": "Grass is", "choices": ["green"], "gold": "0"},
]


def written(folder: Path, *lines: Any) -> str:
    path = folder / "task.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return str(path)


def test_gold_is_an_index_or_a_text(tmp_path: Path) -> None:
    result = tasks.read("t", Task(written(tmp_path, *LINES, "")))
    assert [example.gold for example in result] == [0, 1, 0] and result[2].line == 3
    assert result[1].context == "Snow is" and result[1].choices == ("black", "white", "red")
    assert len(tasks.read("t", Task(written(tmp_path, *LINES), limit=2))) == 2


def test_fields_within_fields_and_labels(tmp_path: Path) -> None:
    line = {"q": {"stem": "2 + 2"}, "choices": {"text": ["3", "4"], "label": ["A", "B"]}, "answer": "B"}
    task = Task(
        written(tmp_path, line),
        context="Question: {q.stem}\nAnswer:",
        choices="choices.text",
        labels="choices.label",
        gold="answer",
    )
    (result,) = tasks.read("arc", task)
    assert (result.context, result.choices, result.gold) == ("Question: 2 + 2\nAnswer:", ("3", "4"), 1)


def test_solved_examples_come_first_and_never_the_question_itself(tmp_path: Path) -> None:
    task = Task(written(tmp_path, *LINES), fewshot=2, description="Colours.\n\n", between="\n--\n")
    examples = tasks.read("t", task)
    first, _, last = tasks.prompts(examples, task)
    assert first.context == "Colours.\n\nSnow is white\n--\nGrass is green\n--\nThe sky is"
    assert last.context == "Colours.\n\nThe sky is blue\n--\nSnow is white\n--\nGrass is"
    assert first.continuations == (" blue", " green")


GOOD = LINES[0]


@pytest.mark.parametrize(
    ("line", "change", "message"),
    [
        ("{", {}, "tasks.t.path=FILE, line 2: no JSON"),
        ("[1]", {}, "tasks.t.path=FILE, line 2: list instead of an object; give a JSONL file"),
        ({"query": "x", "choices": [], "gold": 0}, {}, "tasks.t.choices=choices: FILE, line 2 has []; it has to be a"),
        ({"query": "x", "choices": ["a", ""], "gold": 0}, {}, 'has ["a", ""]; it has to be a list of texts, none of'),
        ({"query": "x", "choices": "ab", "gold": 0}, {}, 'tasks.t.choices=choices: FILE, line 2 has "ab"'),
        ({**GOOD, "gold": 2}, {}, "tasks.t.gold=gold: FILE, line 2 has 2; it has to be 0 to 1, or the text of a"),
        ({**GOOD, "gold": -1}, {}, "FILE, line 2 has -1"),
        ({**GOOD, "gold": "red"}, {}, 'FILE, line 2 has "red"'),
        ({**GOOD, "gold": True}, {}, "FILE, line 2 has true"),
        ({**GOOD, "gold": 0.0}, {}, "FILE, line 2 has 0.0"),
        ({"choices": ["a"], "gold": 0}, {}, "tasks.t.context=query: FILE, line 2 has no such field, but choices, gold"),
        ({**GOOD, "query": None}, {}, "tasks.t.context={query}: FILE, line 2 has null; it has to be a text"),
        (GOOD, {"gold": "answer"}, "tasks.t.gold=answer: FILE, line 1 has no such field, but query, choices, gold"),
        (GOOD, {"choices": "gold.text"}, "tasks.t.choices=gold.text: FILE, line 1 has no such field, but int"),
        (GOOD, {"labels": "query"}, 'tasks.t.labels=query: FILE, line 1 has "The sky is" for 2 choices'),
        (GOOD, {"fewshot": 2}, "tasks.t.fewshot=2: FILE has 2 examples, and none is shown to itself; give at most 1"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, line: Any, change: dict[str, Any], message: str) -> None:
    path = written(tmp_path, GOOD, line)
    with pytest.raises(ConfigError) as caught:
        tasks.read("t", Task(path, **change))
    assert message in str(caught.value).replace(path, "FILE")


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tasks.t.path=nowhere: cannot be read"):
        tasks.read("t", Task("nowhere"))
    with pytest.raises(ConfigError, match="it holds no examples; give a JSONL file"):
        tasks.read("t", Task(written(tmp_path, "")))


def test_all_is_found_before_torch(tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "hf" / name).touch()
    bad = {"a": Task("nowhere"), "b": Task(written(tmp_path, {"query": "x"}))}
    needle = config.Needle(kind="text", haystack="elsewhere.txt")
    run = config.Evaluate(checkpoint=str(tmp_path / "hf"), tasks=bad, needle=needle)
    run.data, run.tokenizer = config.Data(folder=""), config.Tokenizer(kind="huggingface", path="")
    with pytest.raises(ConfigError) as caught:
        inputs.check(run)
    assert [issue.key for issue in caught.value.issues] == ["needle.haystack", "tasks.a.path", "tasks.b.choices"]
    with pytest.raises(ConfigError, match="a run folder or a Hugging Face folder"):
        inputs.check(config.Evaluate(checkpoint=str(tmp_path), data=run.data, tokenizer=run.tokenizer))


def test_the_command_line(quick: Command, tmp_path: Path) -> None:
    words = ("-m", "recipes.evaluate", "checkpoint=nowhere", f"tasks.mine.path={written(tmp_path, GOOD)}")
    result = quick(*words, "tasks.mine.gold=answer", "needle.kind=tokens", "needle.asked=3")
    assert result.returncode == 2 and "needle.asked=3: more than needle.inserted=1; insert more" in result.stderr
    result = quick(*words, "tasks.mine.gold=answer")
    assert "checkpoint=nowhere: there is no such folder" in result.stderr
    assert "tasks.mine.gold=answer: " in result.stderr and "line 1 has no such field" in result.stderr
    result = quick("-m", "recipes.evaluate", "checkpoint=x", "tasks.mine.gold=answer")
    assert "tasks.mine.path: is required (JSONL file, one example per line)" in result.stderr
