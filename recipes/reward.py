"""Train a reward model on preferences: `torchrun ... -m recipes.reward name=reward model=8b init_from=runs/8b ...`.

With objective=steps it learns from labels of steps. In the end held-out pairs of every strength are ranked, or held-out
steps judged: calibration.json and calibration.png of the run folder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llama31 import config
from llama31.runs import files
from recipes import start

if TYPE_CHECKING:
    from llama31.dialogs.feed import DialogFeed
    from llama31.train.training_state import State


def main(run: config.Reward) -> None:
    """Encode the data where that is not done yet, then train from where the run stands to its end."""
    from llama31.engine import preference
    from llama31.parallel import mesh
    from llama31.train import loop, setup

    with setup.placed(run) as place:
        state = setup.setup(run, place, data(run, run.data.strengths))
        stepwise = run.objective == "steps"
        loop.fit(state, preference.StepObjective() if stepwise else preference.RewardObjective())
        if state.finished:
            calibrate(run, state)
    mesh.close()


def data(run: config.Reward, strengths: Sequence[str], quiet: bool = False) -> DialogFeed:
    """What the run learns from; of preferences those of `strengths`. Collective."""
    from llama31.dialogs.feed import Rewarded, Stepwise
    from llama31.train import feeds

    given = run.data, run.tokenizer, run.schedule
    if run.objective == "steps":
        return feeds.steps(*given, Stepwise(run.layout, run.hard_above), quiet)
    return feeds.preferences(*given, Rewarded(run.layout, tuple(strengths)), quiet)


def calibrate(run: config.Reward, state: State) -> None:
    """How often the model is right of held-out pairs, by strength, or of steps, and how sure it is. Collective."""
    from llama31.judging import calibration, score
    from llama31.runs import plots

    every, unit = data(run, config.STRENGTHS, quiet=True), calibration.UNITS[run.objective]
    given = state.engine.forward, every, run.schedule.sequence_length, run.parallel.micro_batch
    if run.objective == "steps":
        margins, kinds = score.step_margins(*given)
        table = calibration.table(margins, kinds, calibration.step_name)
    else:
        margins, kinds = score.margins(*given)
        table = calibration.table(margins, kinds)
    if state.main and not table:
        print(f"calibration: {calibration.missing(margins, run.data.heldout_fraction, unit)}", flush=True)
    elif state.main:
        folder = Path(run.folder)
        files.write_whole(folder / "calibration.json", json.dumps({"step": state.step, **table}, indent=1))
        drawn = plots.draw_calibration(
            folder / "calibration.png", f"{run.name} after {state.step:,} steps", table, unit
        )
        print(f"{calibration.text(table, unit)}\ncalibration: {drawn}", flush=True)


if __name__ == "__main__":
    start(main, config.Reward, "reward")
