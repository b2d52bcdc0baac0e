"""One call and its answer; and easy messages with tools on that need none (report, section 4.3.5).

snippet -> a question for a tool -> call -> result -> answer -> judged. The report dropped 30 % of such trajectories.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llama31 import config
from llama31.synth.pipeline import parsing
from llama31.synth.pipeline.draw import ItemDraw
from llama31.synth.pipeline.items import SynthesisItem
from llama31.synth.pipeline.shard import DIALOGS, PREFERENCES, Records
from llama31.synth.tools import interface, trajectories
from llama31.synth.tools.trajectories import ToolTask, Trajectories, Trajectory

QUERY, EASY = "tool_single/query", "tool_single/easy"


@dataclass(frozen=True)
class ToolSingle:
    """See the module."""

    settings: config.ToolSingleSynthesis
    steps: Trajectories
    name: str = "tool_single"
    prompts: Sequence[str] = (QUERY, EASY, *trajectories.PROMPTS)

    def make(self, item: SynthesisItem, draw: ItemDraw) -> Records:
        """A dialog, and pairs of its messages."""
        snippet = shown(item, draw, self.settings)
        if draw.random.random() < self.settings.unused:
            question = draw.read(EASY, parsing.said, snippet=snippet)
            enabled = interface.switched_on(draw, self.steps.tools, draw.random.sample(sorted(self.steps.tools), 1))
            draw.counts["messages that need no tool"] += 1
            return records(self.steps.make(draw, ToolTask(question, enabled, 0, 0, figures=False)))
        tool = draw.random.choice(sorted(self.steps.tools))
        draw.counts[f"questions for {tool}"] += 1
        about = self.steps.tools[tool]
        question = draw.read(QUERY, parsing.said, snippet=snippet, tool=tool, purpose=about.purpose, form=about.form)
        enabled = interface.switched_on(draw, self.steps.tools, [tool])
        return records(self.steps.make(draw, ToolTask(question, enabled, 1, 1)))


def shown(item: SynthesisItem, draw: ItemDraw, settings: config.ToolsSynthesis) -> str:
    """What of an item's text a prompt shows; dropped where it has none."""
    snippet = item.text[: settings.characters].strip()
    if not snippet:
        draw.drop("empty")
    return snippet


def records(made: Trajectory) -> Records:
    """The dialog, and pairs of single messages of it."""
    return {DIALOGS: [made.record()], PREFERENCES: made.preferences}
