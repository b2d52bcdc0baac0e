"""A dialog as it grows: what was said, called and returned, by whom it may be seen, and pairs of single messages."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llama31.synth.tools.function_calls import FunctionCall
from llama31.synth.tools.roles.apis import ApiFunction
from llama31.synth.tools.roles.messages import AssistantMessage
from llama31.synth.tools.trajectories import BETTER_BY_PROGRAM

SIMPLE, PARALLEL, NESTED, MISSING, NONE = "simple", "parallel", "nested", "missing", "none"


@dataclass
class FunctionTalk:
    """See the module. `memory`: what each call returns if it is made again; `kinds`: of its turns."""

    functions: Sequence[ApiFunction]
    messages: list[dict[str, Any]] = field(default_factory=list)
    memory: dict[str, str] = field(default_factory=dict)
    kinds: list[str] = field(default_factory=list)
    preferences: list[dict[str, Any]] = field(default_factory=list)

    @property
    def tools(self) -> list[dict[str, Any]]:
        """The functions as a record has them."""
        return [dict(one.definition.tool) for one in self.functions]

    def seen_by_user(self) -> str:
        """What was said, without calls and results."""
        return _told(one for one in self.messages if "tool_calls" not in one and one["role"] != "ipython")

    def whole(self) -> str:
        """Everything, in order."""
        return _told(self.messages)

    def calls_so_far(self) -> str:
        """Calls and results alone."""
        return _told(one for one in self.messages if "tool_calls" in one or one["role"] == "ipython")

    def sources(self) -> list[str]:
        """Texts from which an assistant's figures may be: what users said and APIs returned."""
        return [one["content"] for one in self.messages if one["role"] in ("user", "ipython")]

    def user(self, text: str) -> None:
        """The user says something."""
        self.messages.append({"role": "user", "content": text})

    def said(self, message: AssistantMessage) -> None:
        """The assistant writes a message."""
        self.messages.append(message.record())

    def returned(self, call: FunctionCall, text: str) -> None:
        """The API returns what it will return to the same call again, until a call changes what others return."""
        if any(one.changes for one in self.functions if one.name == call.name):
            self.memory.clear()
        self.memory[key(call)] = text
        self.messages.append({"role": "ipython", "content": text})

    def prefer(self, better: AssistantMessage, worse: AssistantMessage) -> None:
        """A pair of messages that could come next."""
        pair = {"chosen": better.record(), "rejected": worse.record(), "strength": BETTER_BY_PROGRAM}
        self.preferences.append({"messages": list(self.messages), "tools": self.tools, **pair})


def key(call: FunctionCall) -> str:
    """What tells one call from another: name and arguments, in whatever order."""
    return json.dumps([call.name, dict(call.arguments)], sort_keys=True, ensure_ascii=False)


def shape(calls: Sequence[tuple[FunctionCall, str]], said: str) -> str:
    """What calls of a turn were, each with its result: nested where one takes a value from an earlier result.

    `said`: what users said; a value that stands there was not taken from a result.
    """
    if len(calls) < 2:
        return SIMPLE if calls else NONE
    known: set[str] = set()
    for call, result in calls:
        taken = {value for value in leaves(call.arguments) if value.casefold() not in said.casefold()}
        if taken & known:
            return NESTED
        known |= {*leaves(json.loads(result))}
    return PARALLEL


def leaves(value: Any) -> Iterator[str]:
    """Texts and numbers within a value of JSON, as texts; what is shorter than two characters tells nothing."""
    if isinstance(value, Mapping):
        for one in value.values():
            yield from leaves(one)
    elif isinstance(value, list):
        for one in value:
            yield from leaves(one)
    elif isinstance(value, str | int | float) and not isinstance(value, bool) and len(str(value)) > 1:
        yield str(value)


def _told(messages: Any) -> str:
    lines = []
    for one in messages:
        if "tool_calls" in one:
            function = one["tool_calls"][0]["function"]
            lines.append(f"Assistant calls {function['name']}({json.dumps(function['arguments'], ensure_ascii=False)})")
        else:
            name = {"user": "User", "assistant": "Assistant", "ipython": "Returned"}[one["role"]]
            lines.append(f"{name}: {one['content']}")
    return "\n".join(lines) or "(nothing yet)"
