"""A cross-check of the IsoFLOP law: loss as a formula, L = E + A / N^a + B / D^b (Hoffmann et al. 2022, approach 3).

The formula is fitted to all runs at once, by a Huber loss of logarithms, and gives its own optimum in closed form: with
C = k N D, tokens = (C / k)^(a / (a + b)) / G and G = (a A / (b B))^(1 / (a + b)). Besiroglu et al. 2024 found three
faults in the published fit, which are avoided here: losses are summed, not averaged, and the search goes on until it
stands still; intervals come from resampled runs; coefficients are printed with the digits that predictions take.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llama31.scaling import resampling
from llama31.scaling.observations import Trained
from llama31.scaling.resampling import Estimate, Floats, estimate

RUNS = 8  # five coefficients, and a few runs to contradict them
STARTS = 6  # of the grid, the best ones
RESAMPLED = 200  # replications at most: each is a search of its own
LEAST, MOST = 0.02, 3.0  # of both exponents: beyond, a term says nothing
NAMES = ("E", "A", "a", "B", "b")


@dataclass(frozen=True)
class Formula:
    """The coefficients, and what they say of `target` FLOPs."""

    coefficients: dict[str, Estimate]
    exponent: Estimate  # a / (a + b), of tokens over FLOPs: the law's alpha
    target: float
    tokens: Estimate
    loss: Estimate  # at those tokens
    error: float  # root mean square of ln(loss / formula)
    stuck: list[str]  # exponents at the end of what is searched

    def record(self) -> dict[str, Any]:
        """For JSON."""
        figures = {**self.coefficients, "alpha": self.exponent, "tokens": self.tokens, "loss": self.loss}
        return {**resampling.records(figures), "error": self.error, "stuck": self.stuck}


def fit(
    runs: Sequence[Trained], target: float, factor: float, huber: float, replications: int, rng: np.random.Generator
) -> Formula:
    """The formula of `runs`. `factor` is k, of C = k N D at `target` FLOPs; `huber` a residual of the log loss.

    Raises ValueError for too few runs.
    """
    if len(runs) < RUNS:
        raise ValueError(f"fit: {len(runs)} runs, and the parametric law takes {RUNS}; add runs")
    n, d, losses = (np.log([getattr(run, name) for run in runs]) for name in ("parameters", "tokens", "loss"))
    centres = float(n.mean()), float(d.mean())
    x, y, z = n - centres[0], d - centres[1], losses
    best = min((_search(start, x, y, z, huber) for start in _starts(x, y, z, huber)), key=lambda pair: pair[1])[0]
    again = []
    for _ in range(min(replications, RESAMPLED)):
        drawn = rng.integers(len(runs), size=len(runs))
        again.append(_search(best, x[drawn], y[drawn], z[drawn], huber)[0])
    samples = np.array(again).T
    at = _at(best, centres, target, factor)
    others = np.array([_at(one, centres, target, factor) for one in again]).T
    tokens, loss = (estimate(value, values) for value, values in zip(at, others, strict=True))
    e, u, a, v, b = samples
    spread = (np.exp(e), np.exp(u + a * centres[0]), a, np.exp(v + b * centres[1]), b)
    logs = (best[0], best[1] + best[2] * centres[0], best[2], best[3] + best[4] * centres[1], best[4])
    values = [math.exp(value) if name in "EAB" else float(value) for name, value in zip(NAMES, logs, strict=True)]
    return Formula(
        {name: estimate(value, of) for name, value, of in zip(NAMES, values, spread, strict=True)},
        estimate(best[2] / (best[2] + best[4]), a / (a + b)),
        target,
        tokens,
        loss,
        error=float(np.sqrt(np.mean(_residuals(best, x, y, z) ** 2))),
        stuck=[name for name, value in (("a", best[2]), ("b", best[4])) if not 1.01 * LEAST < value < 0.99 * MOST],
    )


def _terms(given: Floats, x: Floats, y: Floats) -> Floats:
    e, u, a, v, b = given
    return np.stack([np.full_like(x, e), u - a * x, v - b * y])


def _residuals(given: Floats, x: Floats, y: Floats, z: Floats) -> Floats:
    return np.asarray(np.logaddexp.reduce(_terms(given, x, y)) - z)


def _slopes(given: Floats, x: Floats, y: Floats, z: Floats) -> Floats:
    terms = _terms(given, x, y)
    share = np.exp(terms - np.logaddexp.reduce(terms))
    return np.stack([share[0], share[1], -x * share[1], share[2], -y * share[2]], axis=1)


def _search(start: Floats, x: Floats, y: Floats, z: Floats, huber: float) -> tuple[Floats, float]:
    """Coefficients (ln E, ln A, a, ln B and b around the centres) from `start`, and the sum of Huber losses."""
    from scipy import optimize

    bounds = ([-np.inf, -np.inf, LEAST, -np.inf, LEAST], [np.inf, np.inf, MOST, np.inf, MOST])
    found = optimize.least_squares(
        _residuals, start, _slopes, bounds, loss="huber", f_scale=huber, args=(x, y, z), x_scale="jac",
        ftol=1e-10, xtol=1e-10, gtol=1e-12, max_nfev=300,
    )  # fmt: skip
    return found.x, float(found.cost)


def _starts(x: Floats, y: Floats, z: Floats, huber: float) -> list[Floats]:
    """The best points of a grid around the mean loss, which the three terms share."""
    from scipy import special

    level = float(z.mean())
    shares = [
        (0.7, 0.15, 0.15),
        (0.5, 0.25, 0.25),
        (0.3, 0.35, 0.35),
        (0.9, 0.05, 0.05),
        (0.5, 0.1, 0.4),
        (0.5, 0.4, 0.1),
    ]
    grid = [
        np.array([level + math.log(e), level + math.log(u), a, level + math.log(v), b])
        for (e, u, v), a, b in itertools.product(shares, (0.1, 0.3, 0.6, 1.0), (0.1, 0.3, 0.6, 1.0))
    ]
    return sorted(grid, key=lambda one: float(special.huber(huber, _residuals(one, x, y, z)).sum()))[:STARTS]


def _at(given: Floats, centres: tuple[float, float], target: float, factor: float) -> tuple[float, float]:
    """Best tokens of `target` FLOPs, and the loss there."""
    e, u, a, v, b = given
    product = math.log(target / factor) - centres[0] - centres[1]  # of ln N + ln D around their centres
    tokens = (a * product + math.log(b / a) + v - u) / (a + b)
    terms = np.array([e, u - a * (product - tokens), v - b * tokens])
    return math.exp(tokens + centres[1]), math.exp(float(np.logaddexp.reduce(terms)))


def summary(formula: Formula, alpha: Estimate) -> str:
    """The formula, what it says of the target, and whether it agrees with `alpha` of the IsoFLOP curves."""
    shown = ", ".join(f"{name} {one.shown('{:.4g}'.format)}" for name, one in formula.coefficients.items())
    apart = formula.exponent.low > alpha.high or alpha.low > formula.exponent.high
    lines = [
        f"L = E + A / N^a + B / D^b: {shown}; off by {formula.error:.2%} (rms)",
        f"its exponent of tokens, a / (a + b): {formula.exponent.shown('{:.4f}'.format)}; at {formula.target:.3g} "
        f"FLOPs {formula.tokens.shown()} tokens, loss {formula.loss.shown('{:.4f}'.format)}",
    ]
    if apart:
        lines.append("warning: the exponents of both ways exclude each other; trust the extrapolation of neither")
    for name in formula.stuck:
        lines.append(f"warning: {name} is at the end of what is searched: these runs say nothing of that term")
    return "\n".join(lines)
