"""What the assistant writes: one call, or a reply to the user.

    Call: {"name": "find_ferries", "arguments": {"day": "Monday"}}          Reply: On which day do you want to travel?

Anything behind the call is refused, and a reply that has what looks like a call or a result: results come from APIs.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from llama31.synth import labelled
from llama31.synth.tools.function_calls import FunctionCall
from llama31.tokens import chat

_RESULT = re.compile(
    r"^[*#\s>]*(?:(?:tool|function|api)[ _])?(?:observation|result|output|response|return(?:s|ed)?)s?\**\s*:|^\s*->",
    re.IGNORECASE | re.MULTILINE,
)
_MACHINE = re.compile(r"^\s*[\[{]|```|<\|\w+\|>|\"(?:arguments|parameters)\"\s*:", re.MULTILINE)


@dataclass(frozen=True)
class AssistantMessage:
    """A call, or a reply."""

    call: FunctionCall | None = None
    reply: str = ""

    def record(self) -> dict[str, Any]:
        """As a message of a record."""
        return self.call.message() if self.call else {"role": "assistant", "content": self.reply}

    def written(self) -> str:
        """As the assistant has to write it."""
        if self.call is None:
            return f"Reply: {self.reply}"
        said = {"name": self.call.name, "arguments": dict(self.call.arguments)}
        return f"Call: {json.dumps(said, ensure_ascii=False)}"


def read(answer: str) -> AssistantMessage:
    """The message that an answer is. Raises ValueError for anything else."""
    found = labelled.parts(answer, ("Call", "Reply"))
    if len(found) != 1:
        raise ValueError("neither one call nor one reply")
    ((label, text),) = found
    if label == "Call":
        return AssistantMessage(_call(text))
    if _RESULT.search(text) or _MACHINE.search(text):
        raise ValueError("a reply with what looks like a call or a result")
    return AssistantMessage(reply=text)


def _call(text: str) -> FunctionCall:
    given = labelled.json_value(text)
    if not isinstance(given, dict) or given.keys() != {"name", "arguments"}:
        raise ValueError("no call with name and arguments")
    name, arguments = given["name"], given["arguments"]
    if not isinstance(name, str) or not name.strip() or name in chat.BUILTIN or not isinstance(arguments, dict):
        raise ValueError("no call of a function")
    return FunctionCall(name, arguments)
