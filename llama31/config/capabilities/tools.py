"""Keys of tool_single, tool_multi, tool_files and function_calls."""

from __future__ import annotations

from dataclasses import dataclass

from llama31.config.keys import key


@dataclass
class ToolsSynthesis:
    """Which tools there are, and how dialogs that call them are drawn (report, section 4.3.5). Numbers are ours."""

    index: str | None = key(None, "pages with title, url and text that brave_search finds; null: no search")
    hits: int = key(3, "passages that a search gives", low=1)
    algebra: bool = key(True, "wolfram_alpha, by sympy")
    interpreter: bool = key(True, "code_interpreter, in the sandbox (keys `programs`)")
    python: list[str] = key(["python3", "-I"], "command that starts Python in the sandbox")
    candidates: int = key(2, "messages drawn at each step; with more than one, pairs of them are kept", low=1)
    reasoning: bool = key(
        False, "a thought stands before code in its message, as in ReAct; servers find a call that stands alone"
    )
    characters: int = key(4000, "characters of a snippet that are shown", low=1)


@dataclass
class ToolSingleSynthesis(ToolsSynthesis):
    """One call and its answer, and easy messages that need none."""

    unused: float = key(0.1, "share of easy messages, with tools on", low=0, high=1)


@dataclass
class ToolMultiSynthesis(ToolsSynthesis):
    """Several calls, each after the results of those before it."""

    least_calls: int = key(2, "calls that work, at least (report: 2)", low=1)
    most_calls: int = key(6, "calls at most", low=1)


@dataclass
class ToolFilesSynthesis(ToolsSynthesis):
    """Questions on an attached file."""

    characters: int = key(20_000, "longest text of a file", low=1)
    preview_lines: int = key(10, "lines of a table that the prompt shows", low=1)
    most_bytes: int = key(5_000_000, "longest file", low=1)
    most_calls: int = key(4, "calls at most", low=1)


@dataclass
class FunctionCallsSynthesis:
    """Calls of functions that are mined from Python code (report, section 4.3.5). Numbers are ours."""

    functions: int = key(4, "functions of a module that are offered, at most", low=1)
    candidates: int = key(2, "draws of the calls; one that breaks its definition becomes the worse of a pair", low=1)
    python: list[str] = key(["python3", "-I"], "command that starts Python in the sandbox")
