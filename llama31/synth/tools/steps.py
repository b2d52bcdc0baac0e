"""What a model writes at a step: a thought, then one call or the answer.

    Thought: The two years are needed.        Thought: Both are known.
    Tool: brave_search                        Answer: 31 years lie between them.
    Input: opening of the Arholm lighthouse

The input of code_interpreter is a fenced block. Whatever stands behind a call is refused: a result that a model writes
itself is none.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from llama31.synth import labelled
from llama31.tokens import chat

_CODE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)\n?```", re.DOTALL)
_RESULT = re.compile(r"^[*#\s]*(?:observation|result|output|tool output)s?\**\s*:", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class ToolStep:
    """A call of `tool` with `given`, or an `answer`."""

    thought: str = ""
    tool: str = ""
    given: str = ""
    answer: str = ""

    def message(self, reasoning: bool = False) -> dict[str, Any]:
        """As a message of a record. `reasoning`: with the thought before code; a search has no room for one."""
        if not self.tool:
            return {"role": "assistant", "content": self.answer}
        name = chat.NEEDED[self.tool]
        call = {"type": "function", "function": {"name": self.tool, "arguments": {name: self.given}}}
        thought = {"content": self.thought} if reasoning and self.thought and self.tool == "code_interpreter" else {}
        return {"role": "assistant", **thought, "tool_calls": [call]}


def read(answer: str, tools: Collection[str]) -> ToolStep:
    """The step that an answer is. Raises ValueError for anything else, and for a tool that is not switched on."""
    found = labelled.parts(_quiet(answer), ("Thought", "Tool", "Input", "Answer"))
    parts: Mapping[str, str] = {label: _loud(text) for label, text in found}
    if len(parts) < len(found):
        raise ValueError("a part stands there twice")
    labels = [label for label, _ in found if label != "Thought"]
    if labels == ["Answer"]:
        if _RESULT.search(parts["Answer"]):
            raise ValueError("an answer with a result that no tool gave")
        return ToolStep(parts.get("Thought", ""), answer=parts["Answer"])
    if labels != ["Tool", "Input"]:
        raise ValueError("neither one call nor an answer")
    tool = parts["Tool"].strip("`* ")
    if tool not in tools:
        raise ValueError(f"no tool {tool[:40]} is switched on")
    given = _code(parts["Input"]) if tool == "code_interpreter" else _query(parts["Input"])
    return ToolStep(parts.get("Thought", ""), tool, given)


def _code(text: str) -> str:
    match = _CODE.fullmatch(text.strip())
    if match is None or "```" in match[1] or not match[1].strip():
        raise ValueError("one fenced block of code and nothing behind it was asked for")
    return match[1].strip("\n")


def _query(text: str) -> str:
    query = text.strip().strip("`").strip()
    if len(query) > 1 and query[0] == query[-1] == '"':
        query = query[1:-1]
    if not query or "\n" in query or '"' in query:  # which end it in Llama 3.1's format
        raise ValueError("one line without quotation marks was asked for")
    return query


def _quiet(answer: str) -> str:
    """Blocks of code with their lines marked, so that no label is found in them."""
    return _CODE.sub(lambda match: re.sub(r"^", "\0", match[0], flags=re.MULTILINE), answer.replace("\0", ""))


def _loud(text: str) -> str:
    return text.replace("\0", "")
