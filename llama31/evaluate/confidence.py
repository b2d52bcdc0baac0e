"""How sure a score is: 95 % intervals of proportions, of token-weighted means and of paired differences. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Z95 = 1.96  # standard errors to either side that hold 95 % of a normal distribution


@dataclass(frozen=True)
class ScoreInterval:
    """A mean of `count` outcomes in [0, 1] and the half width of its 95 % interval."""

    score: float
    ci95: float
    count: int

    @property
    def low(self) -> float:
        return self.score - self.ci95

    def json(self) -> dict[str, float | int]:
        """The three numbers by name."""
        return {"score": self.score, "ci95": self.ci95, "count": self.count}


def proportion(outcomes: Any) -> ScoreInterval:
    """Outcomes in [0, 1], any shape -> their mean S and 1.96 sqrt(S (1 - S) / N), as in the Llama 3 report (5.1.1).

    The formula is of independent right or wrong answers; shares between them only make the interval too wide. At S = 0
    and S = 1 it gives 0, which says that the formula has nothing to say there. Raises ValueError without outcomes.
    """
    values = np.asarray(outcomes, np.float64).ravel()
    if not values.size:
        raise ValueError("a score of no outcomes: evaluate at least one example")
    mean = float(values.mean())
    return ScoreInterval(mean, Z95 * math.sqrt(max(mean * (1 - mean), 0.0) / values.size), int(values.size))


def mean_over(clusters: NDArray[Any], values: NDArray[Any], weights: NDArray[Any]) -> tuple[float, float | None]:
    """Mean of `values` [n] weighted by `weights` [n], and the half width of its 95 % interval over `clusters` [n].

    Values of one cluster (a document) resemble each other, so clusters are what varies: with m the mean and, by
    cluster, e the sum of w (x - m), the variance is k / (k - 1) sum e^2 / (sum w)^2 (the linearised variance of a
    ratio, Cochran, Sampling Techniques, 6.4). None for fewer than two clusters, of which no spread can be told.
    Raises ValueError where nothing has a weight.
    """
    kept = np.asarray(weights) > 0
    x, w = np.asarray(values, np.float64)[kept], np.asarray(weights, np.float64)[kept]
    total = w.sum()
    if not total:
        raise ValueError("a mean of nothing: every weight is 0")
    mean = float((w * x).sum() / total)
    _, members = np.unique(np.asarray(clusters)[kept], return_inverse=True)
    residuals = np.bincount(members, weights=w * (x - mean))
    k = residuals.size
    if k < 2:
        return mean, None
    return mean, Z95 * float(math.sqrt(k / (k - 1) * (residuals**2).sum()) / total)


def paired(differences: Sequence[float]) -> tuple[float, float | None]:
    """Mean of paired differences and the half width of its 95 % t-interval: t(0.975, n - 1) s / sqrt(n).

    None for a single difference, of which no spread can be told. Raises ValueError without any.
    """
    values = np.asarray(differences, np.float64)
    if not values.size:
        raise ValueError("a mean of no differences: finish at least one pair")
    mean = float(values.mean())
    if values.size < 2:
        return mean, None
    return mean, t_quantile(0.975, values.size - 1) * float(values.std(ddof=1)) / math.sqrt(values.size)


def t_quantile(share: float, freedom: int) -> float:
    """The number that Student's t with `freedom` >= 1 degrees stays below with probability `share` in [0.5, 1).

    The probability within +-t is a finite sum in the angle arctan(t / sqrt(freedom)) (Abramowitz and Stegun, 26.7.3
    and 26.7.4), which is bisected.
    """
    if not 0.5 <= share < 1 or freedom < 1:
        raise ValueError(f"a quantile of share={share}, freedom={freedom}: give 0.5 <= share < 1 and freedom >= 1")
    low, high = 0.0, math.pi / 2
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if _within(middle, freedom) < 2 * share - 1 else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _within(angle: float, freedom: int) -> float:
    """Probability that |t| is below sqrt(freedom) tan(angle)."""
    cosine, odd = math.cos(angle), freedom % 2
    term, total = (cosine if odd else 1.0), 0.0
    for power in range(2 + odd, freedom + 1, 2):
        total += term
        term *= cosine**2 * (power - 1) / power
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
