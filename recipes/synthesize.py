"""Data that models write and programs check: prompts -> draw -> check -> revise -> keep (report, section 4.3).

Example: python -m recipes.synthesize task=factuality name=facts input=snippets.jsonl 'server.urls=[http://node1:8000/v1]'
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llama31 import config
from recipes import start


def main(run: config.Synthesize) -> None:
    """Make what is missing of the shards, then gather them. The same command goes on where it stopped."""
    from llama31.synth import tasks

    tasks.check_fields(run)
    capability = tasks.build(run)
    begun = tasks.opened(run, capability)
    if run.submit or run.dry_run:
        from llama31.slurm import synthesis

        missing = tasks.unfinished(run, begun)
        synthesis.submit(run, missing, tasks.is_gathered(run), sys.argv[1:], lambda text: print(text, flush=True))
        return
    if run.part != "gather":
        tasks.make(run, begun, capability, range(run.shards) if run.shard is None else [run.shard])
    if run.part != "make" and run.shard is None:
        tell(run, *tasks.finish(run, begun))


def tell(run: config.Synthesize, summary: Mapping[str, Any], page: Path) -> None:
    """Say what came out, and where it is."""
    missing = f"; {summary['missing']:,} have no result: run the same command again" if summary["missing"] else ""
    print(f"{summary['kept']:,} of {summary['items']:,} items kept{missing}")
    if others := summary.get("of_other_input"):
        print(
            f"  {others:>9,} results left out: their items are not in the input (they stay in {page.parent / 'shards'})"
        )
    for reason, count in summary["dropped"].items():
        print(f"  {count:>9,} dropped: {reason}")
    if any(reason.startswith("unfinished") for reason in summary["dropped"]):
        print(f"            unfinished: cut by sampling.max_new_tokens={run.sampling.max_new_tokens}, twice")
    for kind, count in summary["records"].items():
        print(f"  {count:>9,} records in {page.parent / kind}.jsonl")
    for name, count in summary["counts"].items():
        if name.startswith("kept: "):
            print(f"  {count:>9,} ({count / summary['kept']:.1%}) {name}")
    print(f"page: {page}")


if __name__ == "__main__":
    start(main, config.Synthesize, "synthesize")
