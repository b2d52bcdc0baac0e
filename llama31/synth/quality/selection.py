"""Which dialogs are of high quality, and in what order they are kept (report, section 4.2.3).

Best is what the reward model ranks in its top quartile or what the judge gives all points. The two disagree often, and
the union of both recalls most (report). Unknown is no verdict: a dialog without a reward can be kept by the judge
alone, and the other way round.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama31.sampling import filters

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
BEST, NOT, UNKNOWN = "best", "not best", "unknown"
MIDDLE = 0.5  # of what is not known


def top(scores: Floats, share: float) -> tuple[Bools, float | None]:
    """Which scores are in the top `share` of the known ones (NaN: unknown), equal ones together, and from where on."""
    known = np.sort(scores[np.isfinite(scores)])
    if not len(known):
        return np.zeros(len(scores), np.bool_), None
    least = float(known[len(known) - math.ceil(share * len(known) - 1e-9)])
    return np.nan_to_num(scores, nan=-np.inf) >= least, least


def judged_share(answer: Mapping[str, Any]) -> float:
    """Share of the points that a judge gave; NaN where it gave none."""
    points = answer.get("points")
    return sum(points.values()) / len(points) if points else math.nan


def ranks(scores: Floats) -> Floats:
    """Share of the known scores that are lower, equal ones counted half: 0 to 1; NaN stays."""
    known = np.sort(scores[np.isfinite(scores)])
    if not len(known):
        return scores.copy()
    below, upto = np.searchsorted(known, scores, "left"), np.searchsorted(known, scores, "right")
    return np.where(np.isfinite(scores), (below + upto) / (2 * len(known)), np.nan)


def worth(quality: Sequence[Floats], difficulty: Sequence[Floats]) -> Floats:
    """Quality times difficulty [n], by which duplicates are kept (report): each the mean of what is known, 0 to 1.

    How several measures become one is not stated; where nothing is known it is in the middle.
    """
    return _mean(quality) * _mean(difficulty)


def _mean(measures: Sequence[Floats]) -> Floats:
    known = np.isfinite(measures)
    total = np.where(known, measures, 0.0).sum(0)
    return np.where(known.any(0), total / np.maximum(known.sum(0), 1), MIDDLE)


def disagreement(reward: Floats, best_reward: Bools, judged: Floats, best_judged: Bools) -> dict[str, Any]:
    """Counts by what both say, {reward: {judge: count}}; over those with both: agreement, and Cohen's kappa.

    Kappa is what they agree beyond chance: 0 for verdicts that know nothing of each other, 1 for the same ones. It is
    None where one of them always says the same.
    """
    first, second = _verdicts(reward, best_reward), _verdicts(judged, best_judged)
    names = (BEST, NOT, UNKNOWN)
    counts = {one: {other: int(((first == one) & (second == other)).sum()) for other in names} for one in names}
    both = np.isfinite(reward) & np.isfinite(judged)
    a, b = best_reward[both], best_judged[both]
    if not len(a):
        return {"counts": counts, "both": 0, "agreement": None, "kappa": None}
    agreement = float((a == b).mean())
    chance = float(a.mean() * b.mean() + (1 - a.mean()) * (1 - b.mean()))
    kappa = (agreement - chance) / (1 - chance) if chance < 1 else None
    return {"counts": counts, "both": len(a), "agreement": agreement, "kappa": kappa}


def _verdicts(scores: Floats, best: Bools) -> NDArray[np.str_]:
    return np.where(np.isfinite(scores), np.where(best, BEST, NOT), UNKNOWN)


def too_many_apologies(sorry: Bools, worths: Floats, share: float) -> NDArray[np.int64]:
    """Places of the apologising texts that go, those of the least worth, so that the others are at most `share`."""
    places = np.flatnonzero(sorry)
    allowed = filters.most_apologies(share, len(places), len(sorry) - len(places))
    return places[np.argsort(-worths[places], kind="stable")[allowed:]]
