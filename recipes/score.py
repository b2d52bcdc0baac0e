"""Rewards of answers that a file holds: a reward model as a judge of dialogs, of preferences, or of steps.

Example: python -m recipes.score input=held-out.jsonl output=scored.jsonl reward=runs/reward
"""

from __future__ import annotations

import os
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llama31 import config
from recipes import start

if TYPE_CHECKING:
    from llama31.judging.scored import ScoredRecord, StepScores


def main(run: config.Score) -> None:
    """Score every answer, write the records with what was found, and tell how often known labels are met."""
    from tqdm import tqdm

    from llama31.judging import score, scored
    from llama31.parallel import mesh

    entries = scored.read(run.input, run.steps, run.least_step)
    grid = mesh.create(run.parallel, run.cluster.timeout_s)
    judge = score.RewardScorer(run.reward, run.parallel, run.precision, grid)
    asked = [(place, rank) for place, entry in enumerate(entries) for rank in entry.dialogs]
    asked += [(place, scored.STEPS) for place, entry in enumerate(entries) if entry.steps is not None]
    rewards: list[dict[str, float | None]] = [{} for _ in entries]
    steps: list[StepScores] = [None for _ in entries]
    first = os.environ.get("RANK", "0") == "0"
    with tqdm(total=len(asked), desc="answers", disable=None if first else True) as bar:
        for begin in range(0, len(asked), run.chunk):
            some = asked[begin : begin + run.chunk]
            whole = [(place, rank) for place, rank in some if rank != scored.STEPS]
            scores = judge.readable([entries[place].dialogs[rank] for place, rank in whole], run.score_tokens)
            for (place, rank), reward in zip(whole, scores, strict=True):
                rewards[place][rank] = reward
            given = {place: record for place, _ in some if (record := entries[place].steps) is not None}
            for place, found in zip(given, judge.steps(list(given.values()), run.score_tokens), strict=True):
                steps[place] = found
            bar.update(len(some))
    if first:
        left_out = scored.write(Path(run.output), entries, rewards, steps, run.least_step)
        tell(run, entries, rewards, steps, left_out)
    mesh.close()


def tell(
    run: config.Score, entries: Sequence[ScoredRecord], rewards: Sequence[Mapping[str, float | None]],
    steps: Sequence[StepScores], left_out: Counter[str],
) -> None:  # fmt: skip
    """Say what was found."""
    from llama31.judging import calibration, scored

    known = [reward for of_record in rewards for reward in of_record.values() if reward is not None]
    asked = sum(len(entry.dialogs) + (entry.steps is not None) for entry in entries)
    lowest = [min(some) for some in steps if some is not None]
    mean = f", mean reward {statistics.fmean(known):.4f}" if known else ""
    mean += f", mean score of the lowest step {statistics.fmean(lowest):.4f}" if lowest else ""
    longer = asked - len(known) - len(lowest)
    left = f"; {longer:,} without one: longer than {run.score_tokens:,} tokens, or not finite" if longer else ""
    if none := sum(not entry.dialogs and entry.steps is None for entry in entries):
        left += f"; {none:,} records have no answer that the format can say"
    left += "".join(f"; {count:,} records {reason} are left out" for reason, count in sorted(left_out.items()))
    written = len(entries) - left_out.total()
    print(
        f"{asked - longer:,} answers of {len(entries):,} records, {written:,} in {run.output}{mean}{left}", flush=True
    )
    if table := scored.agreement(entries, rewards):
        print(calibration.text(table), flush=True)
    if table := scored.step_agreement(entries, steps):
        print(calibration.text(table, "steps"), flush=True)


if __name__ == "__main__":
    start(main, config.Score, "score")
