"""Text that no file of UTF-8 can hold, as JSON lets it in: half of a surrogate pair, in an input or in an answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llama31.synth.pipeline import gather, items
from llama31.synth.pipeline.draw import ItemDraw
from llama31.synth.pipeline.items import SynthesisItem
from llama31.synth.pipeline.shard import Records
from tests.synth import scripted
from tests.synth.scripted import Scripted

HALF, INSTEAD = "\ud800", "\N{REPLACEMENT CHARACTER}"


@dataclass
class Echo:
    name: str = "echo"
    prompts: Sequence[str] = ()

    def make(self, item: SynthesisItem, draw: ItemDraw) -> Records:
        said = draw.answer([{"role": "user", "content": item.text}])["text"]
        if not item.text:
            draw.drop("empty")
        return {"dialogs": [{"messages": [{"role": "user", "content": item.text}], "said": said, **item.record}]}


def test_halves_of_pairs_are_replaced_wherever_they_come_from(tmp_path: Path) -> None:
    lines = [{"text": f"a{HALF}\0", "more": {HALF: [HALF]}}, {"text": "", "more": HALF}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = list(items.read(str(tmp_path / "in.jsonl"), "text"))
    scripted.run(tmp_path, Echo(), given, Scripted(lambda last, number: f"b{HALF}\0"))
    gather.gather(tmp_path, {})
    (record,) = map(json.loads, (tmp_path / "dialogs.jsonl").read_text("utf-8").splitlines())
    instead = record["text"][1:-1]
    assert set(instead) == {INSTEAD} and record["more"] == {instead: [instead]} and record["said"] == f"b{instead}\0"
