"""Data that models write and programs check: prompts -> draw -> check -> revise -> keep (report, section 4.3).

Example: python -m recipes.synthesize task=code name=first input=snippets.jsonl 'server.urls=[http://node1:8000/v1]'
"""

from __future__ import annotations

from llama31 import config
from recipes import start


def main(run: config.Synthesize) -> None:
    """Make what is missing of the shards, then gather them. The same command goes on where it stopped."""
    from llama31.synth import tasks

    capability = tasks.build(run)
    begun = tasks.opened(run, capability)
    if run.part != "gather":
        tasks.make(run, begun, capability, range(run.shards) if run.shard is None else [run.shard])
    if run.part != "make" and run.shard is None:
        summary = tasks.finish(run, begun)
        print(f"{summary['kept']:,} of {summary['items']:,} items kept; records: {summary['records']}")


if __name__ == "__main__":
    start(main, config.Synthesize, "synthesize")
