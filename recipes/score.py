"""Rewards of answers that a file holds: a reward model as a judge of dialogs, or of preferences.

Example: python -m recipes.score input=held-out.jsonl output=scored.jsonl reward=runs/reward
"""

from __future__ import annotations

import os
import statistics
from pathlib import Path

from llama31 import config
from recipes import start


def main(run: config.Score) -> None:
    """Score every answer, write the records with their rewards, and tell how often preferences are ranked right."""
    from tqdm import tqdm

    from llama31.judging import calibration, score, scored
    from llama31.parallel import mesh

    entries = scored.read(run.input)
    grid = mesh.create(run.parallel, run.cluster.timeout_s)
    judge = score.RewardScorer(run.reward, run.parallel, run.precision, grid)
    asked = [(place, rank) for place, entry in enumerate(entries) for rank in entry.dialogs]
    rewards: list[dict[str, float | None]] = [{} for _ in entries]
    first = os.environ.get("RANK", "0") == "0"
    with tqdm(total=len(asked), desc="answers", disable=None if first else True) as bar:
        for begin in range(0, len(asked), run.chunk):
            some = asked[begin : begin + run.chunk]
            scores = judge.readable([entries[place].dialogs[rank] for place, rank in some], run.score_tokens)
            for (place, rank), reward in zip(some, scores, strict=True):
                rewards[place][rank] = reward
            bar.update(len(some))
    if first:
        scored.write(Path(run.output), entries, rewards)
        known = [reward for of_record in rewards for reward in of_record.values() if reward is not None]
        mean = f", mean reward {statistics.fmean(known):.4f}" if known else ""
        longer = len(asked) - len(known)
        left = f"; {longer:,} without one: longer than {run.score_tokens:,} tokens, or not finite" if longer else ""
        if none := sum(not entry.dialogs for entry in entries):
            left += f"; {none:,} records have no answer that the format can say"
        print(f"{len(known):,} answers of {len(entries):,} records in {run.output}{mean}{left}", flush=True)
        if table := scored.agreement(entries, rewards):
            print(calibration.text(table), flush=True)
    mesh.close()


if __name__ == "__main__":
    start(main, config.Score, "score")
