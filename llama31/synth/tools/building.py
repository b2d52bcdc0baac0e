"""The capability of a task, made of its keys: which tools there are, and what stands behind them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llama31 import config
from llama31.sandbox.isolation import ProgramRunner
from llama31.synth.pipeline.shard import Capability
from llama31.synth.tools.files import ToolFiles
from llama31.synth.tools.function_calls import FunctionCalls
from llama31.synth.tools.interface import ChatTool
from llama31.synth.tools.multi import ToolMulti
from llama31.synth.tools.single import ToolSingle
from llama31.synth.tools.stand_ins import search
from llama31.synth.tools.stand_ins.algebra import AlgebraAnswers
from llama31.synth.tools.stand_ins.interpreter import CodeInterpreter
from llama31.synth.tools.trajectories import Trajectories


def build(task: str, settings: config.ToolsSynthesis, sandbox: Callable[[], ProgramRunner]) -> Capability:
    """tool_single, tool_multi or tool_files. Raises ValueError (key `index`), SandboxUnavailable."""
    tools: dict[str, ChatTool] = {}
    if settings.interpreter or task == "tool_files":
        tools["code_interpreter"] = CodeInterpreter(sandbox(), settings.python)
    if settings.algebra and task != "tool_files":
        tools["wolfram_alpha"] = AlgebraAnswers()
    if settings.index is not None and task != "tool_files":
        tools["brave_search"] = search.read(settings.index, settings.hits)
    if not tools:
        raise ValueError(f"{task}: no tool is switched on; give {task}.index=FILES, or {task}.interpreter=true")
    steps, given = Trajectories(tools, settings.candidates, settings.reasoning), _given(settings)
    if task == "tool_single":
        return ToolSingle(given, steps)
    return ToolMulti(given, steps) if task == "tool_multi" else ToolFiles(given, steps)


def _given(settings: config.ToolsSynthesis) -> Any:
    return settings


def functions(settings: config.FunctionCallsSynthesis, sandbox: Callable[[], ProgramRunner]) -> Capability:
    """function_calls. Raises SandboxUnavailable."""
    return FunctionCalls(settings, sandbox())
