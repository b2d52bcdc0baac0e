"""Whether scores are probabilities, how well they part good from bad, and the threshold that keeps a wanted share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llama31.runs import plots
from llama31.runs.plots import Panel, Trace

BINS = 10
Numbers = NDArray[np.float64]


def figures(scores: ArrayLike, targets: ArrayLike, bins: int = BINS) -> dict[str, Any]:
    """Figures of scores [n], 0 to 1, against targets [n], 0 to 1; ready for JSON.

    `calibration_error`: expected calibration error over bins of equal width, weighted by what is in them (Guo et al.
    2017); `brier`: mean squared error; `auc`: how often a good one, of target 1/2 or more, is scored above a bad one,
    ties half (None where there is but one kind); `accuracy` at 0.5; `share`: mean of the targets; `bins` that hold
    something, each with mean score, mean target and `documents`. Raises ValueError for none, and for scores outside.
    """
    given, wanted = _numbers("scores", scores), _numbers("targets", targets)
    if not given.size or given.size != wanted.size:
        raise ValueError(f"scores={given.size}, targets={wanted.size}: give as many of both, and at least one")
    places = np.minimum((given * bins).astype(int), bins - 1)
    filled = [
        {
            "score": float(given[places == place].mean()),
            "target": float(wanted[places == place].mean()),
            "documents": int((places == place).sum()),
        }
        for place in np.unique(places)
    ]
    error = sum(one["documents"] * abs(one["score"] - one["target"]) for one in filled) / given.size
    return {
        "documents": int(given.size),
        "share": float(wanted.mean()),
        "accuracy": float(((given >= 0.5) == (wanted >= 0.5)).mean()),
        "auc": auc(given, wanted),
        "brier": float(((given - wanted) ** 2).mean()),
        "calibration_error": float(error),
        "bins": filled,
    }


def of_classes(said: Sequence[tuple[str, float]], right: Sequence[str]) -> dict[str, Any]:
    """Figures of the likeliest class of each document and its probability, against the right ones; ready for JSON.

    Those of `figures` for whether it is the right one, `accuracy` as well, and `by_class` of each that is right:
    `documents`, and `accuracy` among them. Raises ValueError for none.
    """
    hits = [name == wanted for (name, _), wanted in zip(said, right, strict=True)]
    judged = figures([sure for _, sure in said], hits)
    by_class = {
        wanted: {
            "documents": right.count(wanted),
            "accuracy": sum(hit for hit, one in zip(hits, right) if one == wanted) / right.count(wanted),
        }
        for wanted in sorted(set(right))
    }
    return judged | {"accuracy": sum(hits) / len(hits), "by_class": by_class}


def auc(scores: ArrayLike, targets: ArrayLike) -> float | None:
    """Share of pairs of a good and a bad one, of target 1/2 or more and less, that are scored in this order; ties half.

    By ranks (Mann and Whitney 1947), equal scores sharing the mean of theirs. None without a pair.
    """
    given, good = np.asarray(scores, np.float64), np.asarray(targets, np.float64) >= 0.5
    pairs = int(good.sum()) * int((~good).sum())
    if not pairs:
        return None
    _, inverse, counts = np.unique(given, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[good].sum() - good.sum() * (good.sum() + 1) / 2) / pairs)


def threshold(scores: ArrayLike, share: float) -> tuple[float, float]:
    """The highest threshold that keeps at least `share` of documents with these scores [n], and what it keeps.

    A document is kept whose score is at least the threshold. Where many scores are equal, more are kept.
    """
    given = _numbers("scores", scores)
    if not 0 < share <= 1 or not given.size:
        raise ValueError(f"share={share} of {given.size} documents: give a share above 0, at most 1, and scores")
    ordered = np.sort(given)[::-1]
    found = float(ordered[_count(share, given.size) - 1])
    return found, float((given >= found).mean())


def _count(share: float, size: int) -> int:
    """How many are a share of `size`, rounded up; what is a whole number but for the last bits stays it."""
    return min(size, max(1, math.ceil(share * size - 1e-9 * size)))


def scale(logits: ArrayLike, targets: ArrayLike, steps: int = 50) -> tuple[float, float]:
    """Slope and intercept that make sigmoid(slope * logit + intercept) likeliest for targets [n], 0 to 1 (Platt 1999).

    By Newton's method, with a prior of one good and one bad document, so that parted ones stay finite: Platt's targets.
    (1, 0) where targets are all alike, for nothing can be learned of them.
    """
    x, y = np.asarray(logits, np.float64), np.asarray(targets, np.float64)
    good = float((y >= 0.5).sum())
    bad = y.size - good
    if not good or not bad:
        return 1.0, 0.0
    y = y * (good + 1) / (good + 2) + (1 - y) / (bad + 2)
    centre, spread = float(x.mean()), float(x.std()) or 1.0
    features = np.stack([(x - centre) / spread, np.ones_like(x)], 1)
    weights = np.zeros(2)
    for _ in range(steps):
        p = sigmoid(features @ weights)
        gradient = features.T @ (p - y)
        hessian = (features * (p * (1 - p))[:, None]).T @ features + 1e-6 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        weights -= step * min(1.0, 2.0 / max(1e-12, float(np.abs(step).max())))
        if np.abs(step).max() < 1e-9:
            break
    slope = float(weights[0]) / spread
    return slope, float(weights[1]) - slope * centre


def temperature(logits: ArrayLike, classes: ArrayLike) -> float:
    """What to divide logits [n, k] by, so that softmax makes the right classes [n] likeliest (Guo et al. 2017).

    The loss is convex in 1 / temperature; it is narrowed down by thirds between 1/20 and 20.
    """
    x, right = np.asarray(logits, np.float64), np.asarray(classes, np.int64)

    def loss(inverse: float) -> float:
        scaled = x * inverse
        return float((np.logaddexp.reduce(scaled, 1) - scaled[np.arange(len(right)), right]).mean())

    low, high = 0.05, 20.0
    for _ in range(100):
        left, middle = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, middle) if loss(left) <= loss(middle) else (left, high)
    return 2 / (low + high)


def sigmoid(x: Numbers) -> Numbers:
    """1 / (1 + exp(-x)) without overflow."""
    return np.exp(-np.logaddexp(0, -x))


def reliability(path: str | Path, title: str, by_name: Mapping[str, Mapping[str, Any]]) -> Path:
    """Draw `figures` by their names: mean target against mean score, and how many documents have which score."""
    diagonal = Trace([0, 1], [0, 1], "as likely as it says", "dashed", colour=7)
    lines, counts = [diagonal], []
    for number, (name, one) in enumerate(by_name.items()):
        x, y = ([each[key] for each in one["bins"]] for key in ("score", "target"))
        lines.append(Trace(x, y, f"{name}: error {one['calibration_error']:.3f}", "line", number))
        lines.append(Trace(x, y, "", "points", number))
        shares = [each["documents"] / one["documents"] for each in one["bins"]]
        counts.append(Trace(x, shares, f"{name}: {one['documents']:,} documents", "line", number))
    return plots.draw_panels(
        path,
        title,
        [
            Panel("reliability", "score", "share that is good", lines),
            Panel("scores", "score", "share of the documents", counts),
        ],
    )


def _numbers(name: str, given: ArrayLike) -> Numbers:
    values = np.asarray(given, np.float64).ravel()
    if not np.isfinite(values).all() or (values < 0).any() or (values > 1).any():
        raise ValueError(f"{name}: they go from 0 to 1, and there is one outside, or none at all; give probabilities")
    return values
