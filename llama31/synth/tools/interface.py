"""What a tool is: a name, what it is good for, and a result for the text that it is called with.

The names are those of Llama 3.1's built-in tools (`chat.BUILTIN`). What stands behind one may be the service itself
or a stand-in; a class with these four attributes and `call` is enough.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from llama31.synth.pipeline.draw import ItemDraw
from llama31.tokens import chat

MOST_CHARACTERS = 4000  # of a result; what is longer is cut, and says so (ours)
ATTACHED = Mapping[str, bytes]  # files by name, which a tool may read


@dataclass(frozen=True)
class ToolResult:
    """What a tool said, and whether it could not do what it was called for."""

    text: str
    failed: bool = False


class ChatTool(Protocol):
    """A tool. `form`: how its input is written; `fingerprint` tells it from another of the same name.

    Called by several threads at once.
    """

    @property
    def name(self) -> str: ...

    @property
    def purpose(self) -> str: ...

    @property
    def form(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    def call(self, given: str, before: Sequence[str], files: ATTACHED) -> ToolResult:
        """The result for `given`, after the inputs `before` of the same dialog; never raises for what a model wrote."""
        ...


class OutsideTool:
    """A `ChatTool` whose calls wait for a machine elsewhere: no core is held meanwhile."""


def cut(text: str) -> str:
    """A result of at most so many characters, beginning and end, with how many are missing between them."""
    missing = len(text) - MOST_CHARACTERS
    if missing <= 0:
        return text
    half = MOST_CHARACTERS // 2
    return f"{text[:half]}\n[... {missing} characters ...]\n{text[-half:]}"


def use(draw: ItemDraw, tool: ChatTool, given: str, before: Sequence[str], files: ATTACHED) -> ToolResult:
    """The result of a call, as a check: it is recorded, and takes its turn on the cores where it needs one."""
    contents = {name: hashlib.sha256(content).hexdigest()[:16] for name, content in sorted(files.items())}

    def run() -> dict[str, Any]:
        result = tool.call(given, before, files)
        return {"text": cut(result.text), "failed": result.failed}

    core = not isinstance(tool, OutsideTool)
    of = (tool.fingerprint, given, list(before), contents)
    return ToolResult(**draw.check(f"tool {tool.name}", run, *of, core=core))


def switched_on(draw: ItemDraw, tools: Mapping[str, ChatTool], needed: Iterable[str] = ()) -> list[str]:
    """The tools of a dialog: those that it needs, code_interpreter, and some of the others, drawn.

    Llama 3.1's environment has code_interpreter with all others (`chat.introduced`).
    """
    wanted = {*needed, *(name for name in tools if name == "code_interpreter")}
    return [name for name in chat.BUILTIN if name in tools and (name in wanted or draw.random.random() < 0.5)]


def described(tools: Iterable[ChatTool]) -> str:
    """The tools as a prompt tells them."""
    return "\n".join(f"- {tool.name}: {tool.purpose} Input: {tool.form}" for tool in tools)
