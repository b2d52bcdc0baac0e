"""What is sampled for: dialogs that wait for an assistant, each once, by an id that outlives the order of the file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llama31.align import chat, checks, store

TOLD = ("messages", "tools", "builtin_tools", "date")  # keys of a record that decide what the model reads
ANSWERS = ("chosen", "rejected", "edited", "strength", "prompt", "provenance")  # of preferences, no part of a prompt
SAFETY = ("harmful", "borderline")


@dataclass(frozen=True)
class Prompt:
    """A dialog to go on with: its record (messages, tools, ...), its messages with the system's beginning, its ids."""

    id: str
    record: Mapping[str, Any]
    messages: Sequence[chat.Message]
    ids: tuple[int, ...]
    checks: Sequence[tuple[str, Any]]

    @property
    def asked(self) -> str:
        """What the last message says."""
        return self.messages[-1].text()

    def openai(self) -> tuple[dict[str, Any], ...]:
        """The messages as OpenAI's API takes them, calls and results included. What `tools` offers is not told twice.

        Environment and date stand in the system message, where any server reads them.
        """
        return chat.openai(chat.read({**self.record, "tools": None}))

    @property
    def tools(self) -> list[dict[str, Any]]:
        """The functions as the key `tools` of OpenAI's API takes them; empty where none are offered."""
        given = self.record.get("tools") or []
        bare = ({key: value for key, value in one.items() if key != "type"} for one in given)
        return [{"type": "function", "function": one.get("function", one)} for one in bare]


def identity(record: Mapping[str, Any]) -> str:
    """The record's own id, or one of its content."""
    if isinstance(given := record.get("id"), str | int) and str(given):
        return str(given)
    told = {key: record[key] for key in TOLD if record.get(key) is not None}
    return hashlib.sha256(json.dumps(told, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def read(given: str, form: chat.Format, limit: int | None = None) -> tuple[list[Prompt], int]:
    """Prompts of the files that `given` names, at most `limit`, and how many records only repeated an earlier one.

    A record is {"messages": [...]} or {"prompt": TEXT}, perhaps with id, tools, date, checks, safety. What assistants
    say at its end is left off, so that SFT's and the preferences' files serve too. Raises ValueError (key `prompts`)
    with file and line, and for two contents under one id.
    """
    files = store.files(given)
    if not files:
        raise ValueError(f"prompts={given}: no such file; give JSONL files, a folder or a glob")
    found: dict[str, Prompt] = {}
    repeated = 0
    for path in files:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    prompt = _prompt(json.loads(line), form)
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise ValueError(f"prompts: {path}:{number}: {error}") from error
                known = found.get(prompt.id)
                if known is not None and known.ids != prompt.ids:
                    raise ValueError(f"prompts: {path}:{number}: id {prompt.id} stands for another prompt already")
                repeated += known is not None
                found.setdefault(prompt.id, prompt)
                if limit is not None and len(found) == limit:
                    return list(found.values()), repeated
    if not found:
        raise ValueError(f"prompts={given}: no record in it; give dialogs")
    return list(found.values()), repeated


def _prompt(record: Any, form: chat.Format) -> Prompt:
    if not isinstance(record, dict):
        raise ValueError('a record is an object: {"messages": [...]} or {"prompt": TEXT}')
    given = record.get("messages", record.get("prompt"))
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    while isinstance(given, list) and given and given[-1].get("role") == "assistant":
        given = given[:-1]
    kept = {key: value for key, value in record.items() if key not in ANSWERS} | {"messages": given}
    if (safety := kept.get("safety")) is not None and safety not in SAFETY:
        raise ValueError(f"safety={safety}: give one of {', '.join(SAFETY)}, or leave it out")
    messages = chat.read(kept)
    if messages[-1].role not in ("user", "ipython"):
        raise ValueError("a prompt ends with what a user or a tool says")
    return Prompt(identity(kept), kept, messages, tuple(form.prompt(messages)), checks.read(kept.get("checks")))
