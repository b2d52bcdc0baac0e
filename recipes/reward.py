"""Train a reward model on preferences: `torchrun ... -m recipes.reward name=reward model=8b init_from=runs/8b ...`.

In the end held-out pairs of every strength are ranked: calibration.json and calibration.png of the run folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from llama31 import config
from llama31.runs import files
from recipes import start

if TYPE_CHECKING:
    from llama31.train.training_state import State


def main(run: config.Reward) -> None:
    """Encode the preferences where that is not done yet, then train from where the run stands to its end."""
    from llama31.dialogs.feed import Rewarded
    from llama31.engine import preference
    from llama31.parallel import mesh
    from llama31.train import feeds, loop, setup

    with setup.placed(run) as place:
        collator = Rewarded(run.layout, tuple(run.data.strengths))
        pairs = feeds.preferences(run.data, run.tokenizer, run.schedule, collator)
        state = setup.setup(run, place, pairs)
        loop.fit(state, preference.RewardObjective())
        if state.finished:
            calibrate(run, state)
    mesh.close()


def calibrate(run: config.Reward, state: State) -> None:
    """How often the model ranks held-out pairs right, and how sure it is, by strength of preference. Collective."""
    from llama31.dialogs.feed import Rewarded
    from llama31.judging import calibration, score
    from llama31.runs import plots
    from llama31.train import feeds

    collator, length = Rewarded(run.layout, config.STRENGTHS), run.schedule.sequence_length
    every = feeds.preferences(run.data, run.tokenizer, run.schedule, collator, quiet=True)
    margins, kinds = score.margins(state.engine.forward, every, length, run.parallel.micro_batch)
    table = calibration.table(margins, kinds)
    if state.main and not table:
        print(f"calibration: {calibration.missing(margins, run.data.heldout_fraction)}", flush=True)
    elif state.main:
        folder = Path(run.folder)
        files.write_whole(folder / "calibration.json", json.dumps({"step": state.step, **table}, indent=1))
        drawn = plots.draw_calibration(folder / "calibration.png", f"{run.name} after {state.step:,} steps", table)
        print(f"{calibration.text(table)}\ncalibration: {drawn}", flush=True)


if __name__ == "__main__":
    start(main, config.Reward, "reward")
