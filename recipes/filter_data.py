"""Which dialogs are worth learning from: rules, benchmarks, topic, difficulty, quality, meaning (report, 4.2.3).

Example: python -m recipes.filter_data name=first input=scored.jsonl 'judge.urls=[http://node1:8000/v1]' ...
"""

from __future__ import annotations

import sys

from llama31 import config
from recipes import start


def main(run: config.FilterData) -> None:
    """Ask the judge what is missing, then select. The same command goes on where it stopped."""
    from llama31.synth.quality import asking, filtering, page

    programs = asking.Programs(run.rules, run.decontamination)
    filtering.check_rewards(run)
    if run.submit or run.dry_run:
        from llama31.slurm import synthesis

        missing = asking.unfinished(run, programs)
        synthesis.submit(run, missing, filtering.is_selected(run), sys.argv[1:], lambda text: print(text, flush=True))
        return
    if run.part != "gather":
        asking.ask(run, programs, range(run.shards) if run.shard is None else [run.shard])
    if run.part != "make" and run.shard is None:
        summary = filtering.select(run, programs)
        for step in summary["steps"]:
            print(f"{step['step']}: {step['left']:,} left of {step['in']:,}")
        print(f"{summary['kept']:,} of {summary['records']:,} dialogs kept; {run.folder}/{page.NAME}")


if __name__ == "__main__":
    start(main, config.FilterData, "filter_data")
