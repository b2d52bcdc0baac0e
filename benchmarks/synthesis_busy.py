"""How busy synthesis keeps its servers: the share of time with fewer requests under way than they take.

    python -m benchmarks.synthesis_busy [ITEMS [REQUESTS]]

A server on this machine answers after a time of its own, drawn evenly from 0.1 to 0.5 s, and works on any number of
requests at once; task=factuality asks it of ITEMS snippets, REQUESTS under way at most. Beside it the same items one
after the other with answers drawn together, as a program without an overlap of items would do.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.serving import JsonAnswers, served
from llama31 import config
from llama31.command import entry
from llama31.synth import tasks
from llama31.synth.pipeline import items, shard
from llama31.synth.pipeline.chat_models import ServedModel
from llama31.synth.pipeline.draw import JUDGE, POLICY
from llama31.synth.pipeline.shard import ItemShard

SHORTEST_S, LONGEST_S = 0.1, 0.5


class _Answers(JsonAnswers):
    """A question to whoever wants one, no to judges, a sentence to the others."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send({"data": [{"id": "stand-in"}]})

    def do_POST(self) -> None:
        body = self.read()
        asked = body["messages"][-1]["content"]
        time.sleep(random.Random(f"{asked}{body.get('seed')}").uniform(SHORTEST_S, LONGEST_S))
        text = "What is it?" if "Write one question" in asked else "Verdict: no" if "judge" in asked else "A stone."
        self.send({"choices": [{"index": 0, "finish_reason": "stop", "message": {"content": text}}]})


def measure(url: str, folder: Path, count: int, requests: int, at_once: int | None) -> tuple[float, float, int]:
    """Share of time that was short, seconds, and requests."""
    given = folder / "given.jsonl"
    given.write_text("".join(json.dumps({"text": f"Snippet {number}."}) + "\n" for number in range(count)))
    words = ["task=factuality", "name=b", f"folder={folder / 'made'}", f"input={given}"]
    run = entry.compose(config.Synthesize, "synthesize", [*words, "factuality.answers=4"])
    capability = tasks.build(run)
    begun = tasks.opened(run, capability)
    server = config.Server(urls=[url], concurrency=requests)
    model, one = ServedModel(server), ItemShard(begun.path, 0, 1)
    begin = time.perf_counter()
    with shard.workshop(one.path, {POLICY: model, JUDGE: model}, begun.prompts, run.sampling, requests) as shared:
        read = items.read(str(given), "text")
        wanted = at_once or shard.AHEAD * requests
        shard.run(one, capability, read, shared, wanted, drained=lambda: model.occupancy.count(False))
    return model.occupancy.short_share, time.perf_counter() - begin, model.occupancy.requests


def main(count: int = 400, requests: int = 32) -> None:
    """Print a row for each way."""
    ideal = requests / ((SHORTEST_S + LONGEST_S) / 2)
    print(f"| items at work | requests | of the server's {ideal:.0f} a second | time with fewer than {requests} |")
    print("|---|---|---|---|")
    for at_once, number in ((None, count), (1, max(1, count // 40))):
        with served(_Answers) as address, tempfile.TemporaryDirectory() as folder:
            share, seconds, asked = measure(f"{address}/v1", Path(folder), number, requests, at_once)
        print(
            f"| {at_once or shard.AHEAD * requests} | {asked} | {asked / seconds / ideal:.1%} | {share:.1%} |",
            flush=True,
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
