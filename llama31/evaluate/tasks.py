r"""Multiple-choice tasks as lines of JSON: read, judged, and turned into contexts and continuations. No torch.

A line is an object; keys say which of its fields are the question, the choices and the answer. Prompts are put
together as lm-evaluation-harness puts them together (description, solved examples, question; then the delimiter and
each choice), so that the numbers can be compared with those that people publish:

    {"query": "The sky is", "choices": ["blue", "green"], "gold": 0}
    tasks.arc.context="Question: {question}\nAnswer:"  tasks.arc.choices=choices.text  tasks.arc.labels=choices.label
"""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama31.config import ConfigError, Issue, Task

FIELD = re.compile(r"\{([A-Za-z_][\w.]*)\}")
PER_LINE = "give a JSONL file, one example per line"


@dataclass(frozen=True)
class TaskExample:
    """A question with its choices, of which `gold` is the index of the right one. `line` is that of the file."""

    context: str
    choices: tuple[str, ...]
    gold: int
    line: int


@dataclass(frozen=True)
class TaskPrompt:
    """What is put before the model: a context, and the continuations of which one is right."""

    context: str
    continuations: tuple[str, ...]


def read(name: str, task: Task) -> list[TaskExample]:
    """The examples of a task, at most `limit`. ConfigError names the first wrong line: key, file, line and remedy."""
    path, key = Path(task.path), f"tasks.{name}.path"
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise _wrong(key, task.path, f"cannot be read ({error})", PER_LINE) from error
    examples: list[TaskExample] = []
    for number, line in enumerate(lines, start=1):
        if line.strip() and (task.limit is None or len(examples) < task.limit):
            examples.append(_example(name, task, _object(line, key, f"{task.path}, line {number}"), number))
    if not examples:
        raise _wrong(key, task.path, "it holds no examples", PER_LINE)
    if task.fewshot >= len(examples):
        reason = f"{task.path} has {len(examples)} examples, and none is shown to itself"
        raise _wrong(f"tasks.{name}.fewshot", task.fewshot, reason, f"give at most {len(examples) - 1}")
    return examples


def prompts(examples: list[TaskExample], task: Task) -> list[TaskPrompt]:
    """The prompt of every example, with the first `fewshot` others of the file solved before it."""
    return [_prompt(example, examples, task) for example in examples]


def _prompt(example: TaskExample, examples: list[TaskExample], task: Task) -> TaskPrompt:
    def same(other: TaskExample) -> bool:
        return (other.context, other.choices, other.gold) == (example.context, example.choices, example.gold)

    shown = itertools.islice((other for other in examples if not same(other)), task.fewshot)
    solved = [f"{other.context}{task.delimiter}{other.choices[other.gold]}{task.between}" for other in shown]
    context = task.description + "".join(solved) + example.context
    return TaskPrompt(context, tuple(f"{task.delimiter}{choice}" for choice in example.choices))


def _wrong(key: str, value: Any, problem: str, remedy: str) -> ConfigError:
    return ConfigError([Issue(key, value, problem, remedy)])


def _object(line: str, key: str, where: str) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except ValueError as error:
        raise _wrong(key, where, f"no JSON ({error})", PER_LINE) from error
    if not isinstance(content, dict):
        raise _wrong(key, where, f"{type(content).__name__} instead of an object", PER_LINE)
    return content


def _example(name: str, task: Task, record: dict[str, Any], line: int) -> TaskExample:
    where = f"{task.path}, line {line}"
    context = FIELD.sub(lambda match: _text(f"tasks.{name}.context", match[1], record, where), task.context)
    key = f"tasks.{name}.choices"
    choices = _field(key, task.choices, record, where)
    if not isinstance(choices, list) or not choices or not all(isinstance(c, str) and c for c in choices):
        reason = f"{where} has {_shown(choices)}"
        raise _wrong(key, task.choices, reason, "it has to be a list of texts, none of them empty")
    return TaskExample(context, tuple(choices), _gold(name, task, record, choices, where), line)


def _gold(name: str, task: Task, record: dict[str, Any], choices: list[str], where: str) -> int:
    """The index of the right choice, which the field gives as such, or as a label, or as the choice's text."""
    key = f"tasks.{name}.gold"
    given = _field(key, task.gold, record, where)
    if task.labels:
        options = _labels(f"tasks.{name}.labels", task.labels, record, len(choices), where)
        allowed = f"one of {_shown(options)}"
    else:
        options, allowed = list(choices), f"0 to {len(choices) - 1}, or the text of a choice"
        index = int(given) if isinstance(given, str) and given.isdecimal() and given not in choices else given
        if isinstance(index, int) and not isinstance(index, bool) and 0 <= index < len(choices):
            return index
    if given in options and (task.labels or isinstance(given, str)):
        return options.index(given)
    raise _wrong(key, task.gold, f"{where} has {_shown(given)}", f"it has to be {allowed}")


def _labels(key: str, field: str, record: dict[str, Any], count: int, where: str) -> list[Any]:
    labels = _field(key, field, record, where)
    if not isinstance(labels, list) or len(labels) != count:
        reason = f"{where} has {_shown(labels)} for {count} choices"
        raise _wrong(key, field, reason, "it has to be a list of as many labels")
    return labels


def _text(key: str, field: str, record: dict[str, Any], where: str) -> str:
    value = _field(key, field, record, where)
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise _wrong(key, f"{{{field}}}", f"{where} has {_shown(value)}", "it has to be a text")
    return str(value)


def _field(key: str, field: str, record: dict[str, Any], where: str) -> Any:
    """The value of a field, dots leading into objects within."""
    value: Any = record
    for part in field.split("."):
        if not isinstance(value, dict) or part not in value:
            there = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
            raise _wrong(
                key, field, f"{where} has no such field, but {there or 'none'}", "name one that every line has"
            )
        value = value[part]
    return value


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
