"""A chat model that says what a test wants, without a server, and one item's program run with it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama31 import config
from llama31.sampling.answers import Answer
from llama31.synth.pipeline import shard
from llama31.synth.pipeline.chat_models import Drawn
from llama31.synth.pipeline.draw import JUDGE, POLICY, REWARD
from llama31.synth.pipeline.items import SynthesisItem
from llama31.synth.pipeline.prompt_files import PromptFiles
from llama31.synth.pipeline.shard import Capability, ItemShard

DEFAULTS = config.SynthesisSampling()
Says = Callable[[str, int], str | Answer]  # the last message, and the how-manieth request of the same -> an answer


@dataclass
class Scripted:
    """`says` answers; what was asked stands in `asked`. An answer may be an `Answer`, such as one cut at its limit."""

    says: Says
    name: str = "scripted"
    asked: list[Sequence[Mapping[str, Any]]] = field(default_factory=list)
    drawn: list[Drawn] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def reply(
        self, messages: Sequence[Mapping[str, Any]], drawn: Drawn, tools: Sequence[Mapping[str, Any]] = ()
    ) -> tuple[Answer, str]:
        last = str(messages[-1]["content"])
        with self._lock:
            number = sum(str(one[-1]["content"]) == last for one in self.asked)
            self.asked.append(messages)
            self.drawn.append(drawn)
        said = self.says(last, number)
        return (said if isinstance(said, Answer) else Answer(said, "stop")), self.name

    def close(self) -> None:
        """Nothing waits."""


def items(*records: Mapping[str, Any]) -> list[SynthesisItem]:
    """Items as they would be read of these records, each with an id of its number unless it has one."""
    return [
        SynthesisItem(
            str(record.get("id", number)), number, record, str(record.get("text", "")), f"line {number}",
            record.get("beside", {}),
        )
        for number, record in enumerate(records)
    ]  # fmt: skip


def run(
    folder: Path,
    capability: Capability,
    given: Sequence[SynthesisItem],
    model: Scripted,
    judge: Scripted | None = None,
    number: int = 0,
    count: int = 1,
    settings: config.SynthesisSampling = DEFAULTS,
    at_once: int = 4,
    requests: int = 4,
    reward: Scripted | None = None,
) -> dict[str, dict[str, Any]]:
    """Results by item, of one shard. With one request at a time several answers come in the order of the script."""
    from llama31.sampling.drawing import read_lines
    from llama31.synth.pipeline import journal

    one = ItemShard(folder, number, count)
    models = {POLICY: model, JUDGE: judge or model} | ({REWARD: reward} if reward else {})
    prompts = PromptFiles()
    prompts.check(capability.prompts)
    with shard.workshop(one.path, models, prompts, settings, requests) as shared:
        shard.run(one, capability, given, shared, at_once)
    return {line["item"]: line for line in read_lines(one.path / journal.RESULTS)}
