"""The capability of a task, made of its keys: which tools there are, and what stands behind them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama31 import config
from llama31.sandbox.isolation import ProgramRunner
from llama31.synth.pipeline.shard import Capability
from llama31.synth.tools.files import ToolFiles
from llama31.synth.tools.function_calls import FunctionCalls
from llama31.synth.tools.interface import ChatTool
from llama31.synth.tools.multi import ToolMulti
from llama31.synth.tools.services.answered import AnsweredQueries
from llama31.synth.tools.services.brave import BraveSearch
from llama31.synth.tools.services.client import PaidClient
from llama31.synth.tools.services.wolfram import WolframAlpha
from llama31.synth.tools.single import ToolSingle
from llama31.synth.tools.stand_ins import search
from llama31.synth.tools.stand_ins.algebra import AlgebraAnswers
from llama31.synth.tools.stand_ins.interpreter import CodeInterpreter
from llama31.synth.tools.trajectories import Trajectories


@dataclass(frozen=True)
class ServiceAccess:
    """Services that tools may ask, and the run whose folder has their answers: of all shards, or of one alone."""

    settings: config.ToolServices
    folder: Path
    shard: int | None = None
    shards: int = 1

    def client(self, name: str) -> PaidClient:
        """The service of that name; it is not asked before a tool is called."""
        settings: config.PaidService = getattr(self.settings, name)
        answers = AnsweredQueries(self.folder, name, settings.max_requests, self.shard, self.shards)
        return PaidClient(name, settings, HEADERS[name], answers)


HEADERS: Mapping[str, Callable[[str], Mapping[str, str]]] = {
    "brave": lambda key: {"X-Subscription-Token": key, "Accept": "application/json"},
    "wolfram": lambda key: {"Authorization": f"Bearer {key}"},
}


def build(
    task: str, settings: config.ToolsSynthesis, sandbox: Callable[[], ProgramRunner], services: ServiceAccess
) -> Capability:
    """tool_single, tool_multi or tool_files. Raises ValueError (key `index`), SandboxUnavailable."""
    tools: dict[str, ChatTool] = {}
    if settings.interpreter or task == "tool_files":
        tools["code_interpreter"] = CodeInterpreter(sandbox(), settings.python)
    if settings.algebra and task != "tool_files":
        asked = settings.wolfram == "wolfram"
        tools["wolfram_alpha"] = WolframAlpha(services.client("wolfram")) if asked else AlgebraAnswers()
    if settings.search == "brave" and task != "tool_files":
        tools["brave_search"] = BraveSearch(services.client("brave"), settings.hits)
    elif settings.index is not None and task != "tool_files":
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
