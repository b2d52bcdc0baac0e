"""Several calls, each after the results of those before it, as in ReAct (Yao et al. 2023; report, section 4.3.5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llama31 import config
from llama31.synth.pipeline import parsing
from llama31.synth.pipeline.draw import ItemDraw
from llama31.synth.pipeline.items import SynthesisItem
from llama31.synth.pipeline.shard import Records
from llama31.synth.tools import interface, single, trajectories
from llama31.synth.tools.trajectories import ToolTask, Trajectories

QUERY = "tool_multi/query"


@dataclass(frozen=True)
class ToolMulti:
    """See the module."""

    settings: config.ToolMultiSynthesis
    steps: Trajectories
    name: str = "tool_multi"
    prompts: Sequence[str] = (QUERY, *trajectories.PROMPTS)

    def make(self, item: SynthesisItem, draw: ItemDraw) -> Records:
        """A dialog of two calls or more that worked, and pairs of its messages."""
        snippet = single.shown(item, draw, self.settings)
        tools = sorted(self.steps.tools)
        enabled = interface.switched_on(draw, self.steps.tools, draw.random.sample(tools, min(2, len(tools))))
        described = interface.described(self.steps.tools[name] for name in enabled)
        least = self.settings.least_calls
        question = draw.read(QUERY, parsing.said, snippet=snippet, tools=described, least=least)
        made = self.steps.make(draw, ToolTask(question, enabled, least, self.settings.most_calls))
        if sum(not result.failed for _, result in made.done) < least:
            draw.drop(f"fewer than {least} calls that worked")
        return single.records(made)
