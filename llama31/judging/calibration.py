"""How often a reward model is right, and whether it knows: accuracy and calibration by strength of preference.

The objective takes sigmoid(reward of the better - reward of the worse) for the probability that annotators prefer the
better. Where that holds, of pairs that the model is sure of by 80 % it has 80 % right.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama31.dialogs.preferences import kind_name
from llama31.evaluate.confidence import proportion

BINS = 10  # of the model's sureness, 0.5 to 1


def table(margins: NDArray[np.floating[Any]], kinds: NDArray[np.integer[Any]]) -> dict[str, Any]:
    """Figures of each kind of pair that there is, and of `all`; ready for JSON.

    margins [p]: reward of the better minus that of the worse; kinds [p] as in `preferences.py`. Figures: pairs, those
    beside them whose margin is not finite, accuracy with half the width of its 95 % interval, mean margin, loss (-log
    sigmoid), the expected calibration error and the bins that it is a mean over, each with the mean sureness, the
    accuracy and the pairs. Kinds without a finite margin are left out, and without any there is nothing (`missing`).
    """
    names = np.array([kind_name(int(kind)) for kind in kinds])
    groups = {name: margins[names == name] for name in dict.fromkeys(kind_name(int(kind)) for kind in np.unique(kinds))}
    return {name: figures(values) for name, values in {**groups, "all": margins}.items() if np.isfinite(values).any()}


def missing(margins: NDArray[np.floating[Any]], fraction: float) -> str:
    """Why there is no table, and the remedy; `fraction` is that of the records held out."""
    if margins.size:
        return f"none of {margins.size:,} held-out pairs has a finite reward; see the loss of the run"
    return (
        "nothing tells how often the model is right: no held-out pair fits into a row; begin a run with "
        f"data.heldout_fraction above {fraction:g}, or with more records"
    )


def figures(margins: NDArray[np.floating[Any]]) -> dict[str, Any]:
    """Figures of pairs with these margins [p], of which at least one is finite."""
    given, margins = margins.size, margins[np.isfinite(margins)].astype(np.float64)
    right = (margins > 0) + 0.5 * (margins == 0)
    accuracy = proportion(right)
    sure = 1 / (1 + np.exp(-np.abs(margins)))
    places = np.minimum(((sure - 0.5) * 2 * BINS).astype(int), BINS - 1)
    bins = [
        {
            "sureness": float(sure[places == place].mean()),
            "accuracy": float(right[places == place].mean()),
            "pairs": int((places == place).sum()),
        }
        for place in np.unique(places)
    ]
    error = sum(one["pairs"] * abs(one["sureness"] - one["accuracy"]) for one in bins) / margins.size
    return {
        "pairs": int(margins.size),
        "not_finite": int(given - margins.size),
        "accuracy": accuracy.score,
        "accuracy_ci95": accuracy.ci95,
        "margin": float(margins.mean()),
        "loss": float(np.logaddexp(0, -margins).mean()),
        "calibration_error": error,
        "bins": bins,
    }


def text(calibration: dict[str, Any]) -> str:
    """The figures as lines."""
    lines = [f"{'pairs':>24} {'number':>8} {'accuracy':>9} {'margin':>8} {'calibration error':>18}"]
    for name, one in calibration.items():
        lines.append(
            f"{name:>24} {one['pairs']:>8,} {one['accuracy']:>9.2%} {one['margin']:>8.3f} "
            f"{one['calibration_error']:>18.3f}"
        )
    if calibration["all"]["not_finite"]:
        lines.append(f"{calibration['all']['not_finite']:,} more have no finite reward")
    return "\n".join(lines)
