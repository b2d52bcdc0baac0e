"""Published data sets name their columns otherwise than we do: their records as ours, and any other record as it is.

Dialogs: ShareGPT's `conversations` (from, value; with system, function_call and observation), or these with role and
content; TRL's and OpenAI's `prompt` with `completion`. Preferences: OpenAI's `input`, `preferred_output` and
`non_preferred_output`; Anthropic's texts of "Human:" and "Assistant:"; `question` with `system`; `conversations` with
two answers. Steps with labels: TRL's `completions`. What such a record says beside them is kept. Tools may be JSON
text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

TURNS = ("conversations", "conversation")
OF_DIALOGS = (*TURNS, "prompt", "completion")  # in the place of `messages`
FROM = {"human": "user", "gpt": "assistant", "observation": "tool"}
_TURN = re.compile(r"\n\n(Human|Assistant):")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}


def dialog(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """A record whose `messages` are the dialog's, where it has one of the shapes above."""
    record = _with_tools(record)
    if record.get("messages") is not None:
        return record
    turns = next((record[key] for key in TURNS if key in record), None)
    if isinstance(turns, list) and turns:
        return {**record, "messages": _introduced([_turn(one) for one in turns], record.get("system"))}
    prompt, completion = record.get("prompt"), record.get("completion")
    if isinstance(prompt, str | list) and isinstance(completion, str | list):
        return {**record, "messages": [*_said(prompt, "user"), *_said(completion, "assistant")]}
    return record


def preference(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """A record with `chosen` and `rejected`, and `messages` or `prompt` unless they are whole dialogs."""
    record = _with_tools(record)
    given = record.get("input")
    if isinstance(given, Mapping) and "preferred_output" in record:
        answers = {"chosen": record["preferred_output"], "rejected": record.get("non_preferred_output")}
        return _with_tools({**record, **given, **answers})
    converted = {key: _answer(record[key]) for key in ("chosen", "rejected", "edited") if key in record}
    record = {**record, **converted}
    if all(record.get(key) is None for key in ("messages", "prompt")):
        if isinstance(turns := record.get("conversations"), list) and turns:
            return {**record, "messages": _introduced([_turn(one) for one in turns], record.get("system"))}
        if isinstance(asked := record.get("question"), str):
            return {**record, "messages": _introduced([{"role": "user", "content": asked}], record.get("system"))}
    return record


def stepwise(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """A record whose `steps` are those of an answer, where it has them as TRL's stepwise supervision does."""
    record = _with_tools(record)
    if "steps" not in record and isinstance(given := record.get("completions"), list):
        return {**record, "steps": given}
    return record


def _with_tools(record: Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(tools := record.get("tools"), str):
        return record
    try:
        return {**record, "tools": json.loads(tools) if tools.strip() else None}
    except ValueError:
        return record  # what is wrong with it is told where tools are read


def _said(given: str | list[Any], role: str) -> list[Any]:
    return [{"role": role, "content": given}] if isinstance(given, str) else given


def _introduced(messages: list[Any], system: Any) -> list[Any]:
    return [{"role": "system", "content": system}, *messages] if isinstance(system, str) and system else messages


def _turn(one: Any) -> Any:
    """ShareGPT's turn as a message; any other as it is."""
    if not isinstance(one, Mapping) or "from" not in one or "role" in one:
        return one
    rest = {key: value for key, value in one.items() if key not in ("from", "value")}
    role, said = one["from"], one.get("value")
    if role == "function_call":
        return {**rest, "role": "assistant", "tool_calls": _calls(said)}
    return {**rest, "role": FROM.get(role, role) if isinstance(role, str) else role, "content": said}


def _calls(said: Any) -> list[Any]:
    try:
        calls = json.loads(said)
    except (TypeError, ValueError):
        calls = said
    return calls if isinstance(calls, list) else [calls]


def _answer(given: Any) -> Any:
    if isinstance(given, str) and given.startswith("\n\nHuman:"):
        pieces = _TURN.split(given)[1:]
        return [
            {"role": _SPEAKERS[who], "content": text.strip()}
            for who, text in zip(pieces[::2], pieces[1::2], strict=True)
        ]
    return [_turn(one) for one in given] if isinstance(given, list) else _turn(given)
