"""Intervals by bootstrap, for fits of few points.

Residuals are resampled, not points: five points to a parabola leave hardly any other five. They are scaled up for the
pull of their own point on the fit (leverage), and in each replication their spread is drawn too, as the square root of
freedom / chi-square: without it, intervals of few degrees of freedom are too narrow, as a normal's are beside
Student's t.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A value and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def shown(self, digits: Callable[[float], str] = "{:.3g}".format) -> str:
        """As text: value (low to high)."""
        return f"{digits(self.value)} ({digits(self.low)} to {digits(self.high)})"

    def holds(self, value: float) -> bool:
        """Whether `value` is inside."""
        return self.low <= value <= self.high

    def record(self) -> dict[str, float]:
        """For JSON."""
        return {"value": self.value, "low": self.low, "high": self.high}


def estimate(value: float, samples: Floats) -> Estimate:
    """The middle 95 % of `samples`, those that are no number left aside."""
    kept = samples[np.isfinite(samples)]
    low, high = np.quantile(kept, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(float(value), float(low), float(high))


def leverage(design: Floats) -> Floats:
    """How much each point [n] of a linear (or linearised) `design` [n, k] pulls the fit to itself, from 0 to 1."""
    basis, _ = np.linalg.qr(design)
    return np.asarray((basis**2).sum(axis=1))


def levelled(residuals: Floats, pulls: Floats) -> Floats:
    """Residuals [n] as large as the noise that they come from, by their `leverage`."""
    return residuals / np.sqrt(np.maximum(1 - pulls, 1e-6))


def noise(pool: Floats, freedom: int, shape: tuple[int, ...], rng: np.random.Generator) -> Floats:
    """Noise of `shape` [replications, ...], out of a `pool` of levelled residuals with `freedom` degrees of freedom."""
    drawn = rng.choice(pool - pool.mean(), size=shape)
    spread = np.sqrt(freedom / rng.chisquare(freedom, size=(shape[0], *[1] * (len(shape) - 1))))
    return np.asarray(drawn * spread)


@dataclass(frozen=True)
class Line:
    """y = intercept + slope x by least squares, with replications of both."""

    intercept: float
    slope: float
    intercepts: Floats
    slopes: Floats
    pool: Floats
    freedom: int

    def at(self, x: float) -> float:
        """The line at x."""
        return self.intercept + self.slope * x

    def all_at(self, x: float) -> Floats:
        """Every replication at x, [replications]."""
        return self.intercepts + self.slopes * x


def line(x: Floats, y: Floats, replications: int, rng: np.random.Generator) -> Line:
    """Through at least three points [n], its replications by resampled residuals."""
    design = np.stack([np.ones_like(x), x], axis=1)
    solve = np.linalg.pinv(design)
    fitted = solve @ y
    residuals = y - design @ fitted
    pool, freedom = levelled(residuals, leverage(design)), len(x) - 2
    again = fitted + noise(pool, freedom, (replications, len(x)), rng) @ solve.T
    return Line(float(fitted[0]), float(fitted[1]), again[:, 0], again[:, 1], pool, freedom)


def records(intervals: Mapping[str, Estimate]) -> dict[str, Any]:
    """Several of them for JSON."""
    return {name: one.record() for name, one in intervals.items()}
