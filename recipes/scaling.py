"""Scaling laws, from the small runs to what they say of a large one.

Example: python -m recipes.scaling task=ladder 'ladder.arguments=data=mine tokenizer=llama3'
Example: python -m recipes.scaling task=fit fit.input=runs.csv picture=fit.png
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama31 import config
from recipes import start

if TYPE_CHECKING:
    from llama31.runs.plots import Panel


def main(run: config.Scaling) -> None:
    """Do what `run.task` says: plan small runs, or fit what they measured."""
    from llama31.runs import plots

    plots.check(run.picture)
    if run.task == "ladder":
        ladder(run)
    elif run.task == "fit":
        fit(run)
    elif run.task == "forecast":
        forecast(run)
    else:
        mix(run)


def ladder(run: config.Scaling) -> None:
    """The cost of all runs first; then their configs and a Slurm array per budget."""
    from llama31.scaling import ladder, scripts

    given, site = run.ladder, ladder.site_of(run.ladder, run.hardware, run.precision)
    rungs = ladder.rungs(given, site)
    print(scripts.table(rungs, given, site), flush=True)
    if not given.dry_run:
        paths = scripts.write(rungs, given, run.precision)
        missing = " ".join(f"{key}=..." for key in scripts.lacking(rungs[0], given))
        print("\nconfigs and scripts are there; submit:")
        print("\n".join(f"sbatch {shlex.quote(str(path))} {missing}".rstrip() for path in paths))


def fit(run: config.Scaling) -> None:
    """IsoFLOP curves, the power law, and the parametric law beside it."""
    import numpy as np

    from llama31.scaling import isoflop, observations, parametric

    given, rng = run.fit, np.random.default_rng(run.seed)
    trained = observations.trained(given)
    law = isoflop.fit(trained, given, run.replications, rng)
    print(isoflop.summary(law))
    record, kept = law.record(), [one for curve in law.curves for one in curve.runs]
    if len(kept) >= parametric.RUNS:
        formula = parametric.fit(
            kept, given.target_flops, law.flops_per_parameter_token, given.huber, run.replications, rng
        )
        print(parametric.summary(formula, law.alpha))
        record["parametric"] = formula.record()
    title = f"{law.tokens.value:.3g} tokens at {law.target:.3g} FLOPs"
    finish(run, record, title, isoflop.panels(law))


def forecast(run: config.Scaling) -> None:
    """Likelihood of right answers, and accuracy."""
    import numpy as np

    from llama31.scaling import forecast

    given = run.forecast
    made = forecast.fit(forecast.read(given), given, run.replications, np.random.default_rng(run.seed))
    print(forecast.summary(made))
    title = f"accuracy {made.accuracy.value:.1%} at {made.target:.3g} FLOPs"
    finish(run, made.record(), title, forecast.panels(made))


def mix(run: config.Scaling) -> None:
    """The proposed mixture."""
    import numpy as np

    from llama31.scaling import mixing

    made = mixing.propose(mixing.read(run.mix), run.mix, run.replications, np.random.default_rng(run.seed))
    print(mixing.summary(made))
    finish(run, made.record(), f"mixture out of {len(made.tried.shares)} small runs", mixing.panels(made))


def finish(run: config.Scaling, record: dict[str, Any], title: str, panels: Sequence[Panel]) -> None:
    """Write the figures and draw the picture, where asked."""
    from llama31.runs import files, plots

    if run.output is not None:
        files.write_whole(Path(run.output), json.dumps(record, indent=1, allow_nan=False) + "\n")
        print(f"figures: {run.output}")
    if run.picture is not None:
        print(f"drawn to {plots.draw_panels(run.picture, title, panels)}")


if __name__ == "__main__":
    start(main, config.Scaling, "scaling")
