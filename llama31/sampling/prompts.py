"""What is sampled for: dialogs that wait for an assistant, each once, by an id that outlives the order of the file."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llama31.dialogs import columns, store
from llama31.sampling import verifiers
from llama31.tokens import chat

# Keys of preferences and of other shapes that are no part of a prompt.
ANSWERS = ("chosen", "rejected", "edited", "strength", "prompt", "completion", "provenance", *columns.TURNS)
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


def identity(record: Mapping[str, Any], ids: Sequence[int]) -> str:
    """The record's own id, or one of the tokens that are read: keys that change none of them change nothing."""
    if isinstance(given := record.get("id"), str | int) and str(given):
        return str(given)
    return hashlib.sha256(np.asarray(ids, np.int32).tobytes()).hexdigest()[:16]


def read(
    given: str, form: chat.Format, limit: int | None = None, left_out: Counter[str] | None = None
) -> tuple[list[Prompt], int]:
    """Prompts of the files that `given` names, at most `limit`, and how many records only repeated an earlier one.

    A record is {"messages": [...]} or {"prompt": TEXT}, perhaps with id, tools, date, checks, safety. What assistants
    say at its end is left off, so that SFT's and the preferences' files serve too. The same tokens are the same prompt,
    whatever its ids; the first record counts.
    What the format cannot say is counted in `left_out` by its reason.

    Raises ValueError (key `prompts`) with file and line, for two prompts
    under one id, and for one prompt with two opinions on checks or safety.
    """
    files = store.files(given)
    if not files:
        raise ValueError(f"prompts={given}: no such file; give JSONL files, a folder or a glob")
    unique: dict[tuple[int, ...], tuple[str, Prompt]] = {}
    by_id: dict[str, str] = {}
    repeated = 0
    for place, _, prompt in store.records(files, "prompts", lambda record: _prompt(record, form), left_out):
        first, known = unique.setdefault(prompt.ids, (place, prompt))
        if known is not prompt:
            _agree(first, known, place, prompt)
            repeated += 1
        elif (other := by_id.setdefault(prompt.id, place)) != place:
            raise ValueError(f"prompts: {place}: id {prompt.id} stands for another prompt already, that of {other}")
        if limit is not None and len(unique) == limit:
            break
    if not unique:
        raise ValueError(f"prompts={given}: no record in it; give dialogs")
    return [prompt for _, prompt in unique.values()], repeated


def _agree(first: str, one: Prompt, place: str, other: Prompt) -> None:
    for key in ("checks", "safety"):
        values = [list(each.checks) if key == "checks" else each.record.get(key) for each in (one, other)]
        if values[0] != values[1]:
            raise ValueError(
                f"prompts: {place}: {key} are {values[1]}, and {values[0]} for the same prompt in {first}; "
                "only one could be kept: say the same twice, or leave one record out"
            )


def _prompt(record: dict[str, Any], form: chat.Format) -> Prompt:
    record = dict(columns.dialog(record))
    given = record.get("messages", record.get("prompt"))
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    while isinstance(given, list) and given and isinstance(given[-1], dict) and given[-1].get("role") == "assistant":
        given = given[:-1]
    kept = {key: value for key, value in record.items() if key not in ANSWERS} | {"messages": given}
    if (safety := kept.get("safety")) is not None and safety not in SAFETY:
        raise ValueError(f"safety={safety}: give one of {', '.join(SAFETY)}, or leave it out")
    wanted = kept.get("checks")
    if not isinstance(wanted, list | None) or any(isinstance(one.get("kind"), list | dict) for one in _objects(wanted)):
        raise ValueError(f'checks={json.dumps(wanted)[:80]}: give a list of {{"kind": NAME, "value": ...}}')
    messages = chat.read(kept)
    if messages[-1].role not in ("user", "ipython"):
        raise ValueError("a prompt ends with what a user or a tool says")
    ids = tuple(form.prompt(messages))
    return Prompt(identity(kept, ids), kept, messages, ids, verifiers.read(wanted))


def _objects(given: Any) -> list[dict[str, Any]]:
    return [one for one in given or () if isinstance(one, dict)]
