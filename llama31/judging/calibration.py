"""How often a reward model is right, and whether it knows: accuracy and calibration by strength of preference.

The objective takes sigmoid(reward of the better - reward of the worse) for the probability that annotators prefer the
better. Where that holds, of pairs that the model is sure of by 80 % it has 80 % right. Of steps with labels it is
sigmoid(reward) that takes a step for right; their margin is the reward, or minus that of a wrong one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama31.dialogs.preferences import kind_name
from llama31.evaluate.confidence import proportion

BINS = 10  # of the model's sureness, 0.5 to 1
UNITS = {"preferences": "pairs", "steps": "steps"}  # what is counted, by the objective


def step_name(kind: int) -> str:
    """What the kind of a step is called, which is whether it is right."""
    return "right steps" if kind else "wrong steps"


def table(
    margins: NDArray[np.floating[Any]], kinds: NDArray[np.integer[Any]], name: Callable[[int], str] = kind_name
) -> dict[str, Any]:
    """Figures of each kind of pair, or of step, that there is, and of `all`; ready for JSON.

    margins [p]: reward of the better minus that of the worse; kinds [p] as in `preferences.py`, or those that `name`
    names. Figures: pairs (or steps), those beside them whose margin is not finite, accuracy with half the width of its
    95 % interval, mean margin, loss (-log sigmoid), the expected calibration error and the bins that it is a mean over,
    each with the mean sureness, the accuracy and the pairs. Kinds without a finite margin are left out, and without any
    there is nothing (`missing`).
    """
    names = np.array([name(int(kind)) for kind in kinds])
    groups = {one: margins[names == one] for one in dict.fromkeys(name(int(kind)) for kind in np.unique(kinds))}
    return {one: figures(values) for one, values in {**groups, "all": margins}.items() if np.isfinite(values).any()}


def missing(margins: NDArray[np.floating[Any]], fraction: float, unit: str = "pairs") -> str:
    """Why there is no table, and the remedy; `fraction` is that of the records held out."""
    if margins.size:
        return f"none of {margins.size:,} held-out {unit} has a finite reward; see the loss of the run"
    return (
        f"nothing tells how often the model is right: no held-out {unit[:-1]} fits into a row; begin a run with "
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


def text(calibration: dict[str, Any], unit: str = "pairs") -> str:
    """The figures as lines."""
    lines = [f"{unit:>24} {'number':>8} {'accuracy':>9} {'margin':>8} {'calibration error':>18}"]
    for name, one in calibration.items():
        lines.append(
            f"{name:>24} {one['pairs']:>8,} {one['accuracy']:>9.2%} {one['margin']:>8.3f} "
            f"{one['calibration_error']:>18.3f}"
        )
    if calibration["all"]["not_finite"]:
        lines.append(f"{calibration['all']['not_finite']:,} more have no finite reward")
    return "\n".join(lines)
