"""What is a source of data worth? Anneal a checkpoint with it and without, over several seeds, and compare.

Example: python -m recipes.probe name=worth init_from=runs/half 'candidates=[books]' model=8b data=own ...
All processes of torchrun work on one arm after another; `recipes.submit recipe=probe` makes each a job of one array.
"""

from __future__ import annotations

import gc
import json
from dataclasses import replace
from pathlib import Path

from llama31 import config
from llama31.evaluate import probe
from llama31.evaluate.probe import Arm
from llama31.runs import files
from recipes import start


def main(run: config.Probe) -> None:
    """Train the arms that remain; then, unless one arm alone was asked for, put all together."""
    from llama31.checkpoint import listing
    from llama31.parallel import mesh
    from llama31.parallel.collectives import on_all_ranks, on_first_rank, rank_of

    mesh.connect(run.cluster.timeout_s)
    source = str(listing.resolve(str(run.init_from)).resolve())  # a run may have a newer one by the next arm
    on_all_ranks(None, lambda: probe.refuse_others(run, source))
    left = on_first_rank(lambda: [] if run.collect else probe.remaining(run))
    stopped = any(not anneal(run, arm, source) for arm in left)  # any: none is begun after one that was stopped
    if rank_of(None) == 0 and run.arm is None and not stopped:
        collect(run)
    mesh.close()


def anneal(run: config.Probe, arm: Arm, source: str) -> bool:
    """Train an arm and write down what it scores; false where it was asked to stop before its end."""
    from llama31.checkpoint import publish
    from llama31.parallel.collectives import on_first_rank
    from llama31.plan import schedule
    from llama31.train import feeds, loop, setup

    annealing = replace(probe.pretraining(run, arm), init_from=source)
    with setup.placed(annealing) as place:
        text = feeds.TextFeed(annealing.data, annealing.schedule, place.replica, place.plans)
        saved = loop.fit(setup.setup(annealing, place, text))
    gc.collect()  # the model of this arm is garbage now, in circles
    if saved is None or publish.read_meta(saved).step < schedule.total_steps(run.schedule):
        return False
    scores = judge(run, saved)
    on_first_rank(lambda: probe.conclude(run, arm, source, scores))
    return True


def judge(run: config.Probe, saved: Path) -> dict[str, float]:
    """Scores of the tasks at a checkpoint."""
    if not run.tasks:
        return {}
    from llama31.engine import state
    from llama31.engine.pipeline import Forward
    from llama31.evaluate import choices
    from llama31.model import llama
    from llama31.parallel import mesh
    from llama31.tokens import tokenizers

    tokenizer, length = tokenizers.load(run.tokenizer), run.schedule.sequence_length
    asked = {name: choices.prepare(name, task, tokenizer, length) for name, task in run.tasks.items()}
    grid = mesh.create(run.parallel, run.cluster.timeout_s)
    chunks = llama.build(run.model, run.precision, run.parallel, grid)
    state.load_weights(saved, chunks, run.model, grid)
    forward, size = Forward(chunks, grid), run.parallel.micro_batch
    return {
        name: choices.summary(choices.judge(forward, task, size))[run.measure]["score"] for name, task in asked.items()
    }


def collect(run: config.Probe) -> None:
    """Print the table, and write it with JSON and a picture into the probe's folder."""
    from llama31.runs import plots

    comparison, folder = probe.collect(run), Path(run.folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = probe.table(comparison)
    files.write_whole(folder / "probe.json", json.dumps(comparison, indent=1) + "\n")
    files.write_whole(folder / "probe.md", text + "\n")
    print(text, flush=True)
    if intervals := probe.intervals(comparison):
        title = f"{run.name}: {run.share:.0%} of a candidate against the default data alone"
        print(f"drawn to {plots.draw_intervals(folder / 'probe.png', title, intervals, 'difference (with - without)')}")


if __name__ == "__main__":
    start(main, config.Probe, "probe")
