"""How well a model will answer, from small ones (report, section 3.2.1 and Figure 4).

Two steps: the likelihood of the right answer, normalised per character, is a line over the logarithm of FLOPs, fitted
to the scaling-law models alone; accuracy is a sigmoid of that likelihood, fitted to them and to models that were
trained otherwise (Llama 2 in the report). Intervals are of a new model: the curve's own doubt, and the scatter around
it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llama31 import config
from llama31.runs.plots import Panel, Trace
from llama31.scaling import observations, resampling
from llama31.scaling.resampling import Estimate, Floats, Line, estimate

MODELS = 4  # of either step: two coefficients, and what contradicts them
STEPS = 30  # of a search that begins beside its end
STEEPEST = 200.0  # of a sigmoid, per nat: beyond it is a step between two models


@dataclass(frozen=True)
class Examined:
    """A model: FLOPs (None: trained otherwise), nats per character of right answers, accuracy."""

    where: str
    flops: float | None
    nll: float
    accuracy: float


@dataclass(frozen=True)
class Sigmoid:
    """accuracy = chance + (ceiling - chance) / (1 + exp((nll - middle) / width)), and replications of both."""

    chance: float
    ceiling: float
    middle: float
    width: float
    middles: Floats
    widths: Floats
    pool: Floats
    freedom: int

    def at(self, nll: Floats | float) -> Floats:
        """Accuracy of the curve."""
        return _sigmoid(nll, self.middle, self.width, self.chance, self.ceiling)

    def all_at(self, nll: Floats) -> Floats:
        """Accuracy of every replication, each at an nll of its own or [n, 1] of them."""
        return _sigmoid(nll, self.middles, self.widths, self.chance, self.ceiling)


@dataclass(frozen=True)
class Forecast:
    """Both steps, what they say of `target` FLOPs, and of models that were held out."""

    models: Sequence[Examined]
    held_out: Sequence[tuple[Examined, Estimate, Estimate]]  # with forecast nll and accuracy
    line: Line
    sigmoid: Sigmoid
    target: float
    nll: Estimate
    accuracy: Estimate

    def record(self) -> dict[str, Any]:
        """For JSON."""
        held_out = [
            {"where": one.where, "flops": one.flops, "nll": one.nll, "accuracy": one.accuracy}
            | {"forecast_nll": nll.record(), "forecast_accuracy": accuracy.record()}
            for one, nll, accuracy in self.held_out
        ]
        return {
            "line": {"intercept": self.line.intercept, "slope_per_decade": self.line.slope},
            "sigmoid": {"middle": self.sigmoid.middle, "width": self.sigmoid.width},
            "target_flops": self.target,
            "nll": self.nll.record(),
            "accuracy": self.accuracy.record(),
            "held_out": held_out,
        }


def read(given: config.Forecasting) -> list[Examined]:
    """Models of the CSV file. Raises ValueError with all that is wrong in it."""
    if given.input is None:
        raise ValueError("forecast.input=null: there is nothing to fit; give a CSV file with flops, nll, accuracy")
    rows = observations.table("forecast.input", given.input, ("nll", "accuracy"), lambda name: name == "flops")
    wrong = [
        f"  {row.where}, column accuracy: {row.number('accuracy'):g} is above 1; give a share"
        for row in rows
        if row.number("accuracy") > 1
    ]
    if wrong:
        raise ValueError("\n".join([f"forecast.input={given.input}: {len(wrong)} cells are wrong", *wrong]))
    return [Examined(row.where, row.values.get("flops"), row.number("nll"), row.number("accuracy")) for row in rows]


def fit(models: Sequence[Examined], given: config.Forecasting, replications: int, rng: np.random.Generator) -> Forecast:
    """Both steps. Raises ValueError for too few models, and where more FLOPs or likelihood do not help."""
    scaling = [model for model in models if model.flops is not None and model.flops <= given.most_flops]
    held_out = [model for model in models if model.flops is not None and model.flops > given.most_flops]
    judged = [model for model in models if model.flops is None or model.flops <= given.most_flops]
    if len({model.flops for model in scaling}) < MODELS:
        raise ValueError(
            f"forecast.input={given.input}: {len({model.flops for model in scaling})} different FLOPs up to "
            f"forecast.most_flops={given.most_flops:g}, and the line takes {MODELS}; add models"
        )
    flops = np.log10([model.flops or 0 for model in scaling])
    line = resampling.line(flops, np.array([model.nll for model in scaling]), replications, rng)
    if line.slope >= 0:
        raise ValueError(
            f"forecast.input={given.input}: nll does not fall with FLOPs ({line.slope:+.3g} a decade), so nothing can "
            "be forecast. Is it the negative log-likelihood of the right answer, divided by its characters?"
        )
    sigmoid = _fit_sigmoid(judged, given, replications, rng)
    nll, accuracy = _at(given.target_flops, line, sigmoid, rng)
    compared = [(model, *_at(model.flops or 0, line, sigmoid, rng)) for model in held_out]
    return Forecast(models, compared, line, sigmoid, given.target_flops, nll, accuracy)


def _at(flops: float, line: Line, sigmoid: Sigmoid, rng: np.random.Generator) -> tuple[Estimate, Estimate]:
    """nll and accuracy of a new model."""
    x, count = math.log10(flops), len(line.slopes)
    nlls = line.all_at(x) + resampling.noise(line.pool, line.freedom, (count,), rng)
    accuracies = sigmoid.all_at(nlls) + resampling.noise(sigmoid.pool, sigmoid.freedom, (count,), rng)
    accuracies = np.clip(accuracies, 0, sigmoid.ceiling)
    return estimate(line.at(x), nlls), estimate(float(sigmoid.at(line.at(x))), accuracies)


def _sigmoid(nll: Any, middle: Any, width: Any, chance: float, ceiling: float) -> Floats:
    """Half way from chance to the ceiling at `middle`; written by tanh, which does not overflow."""
    return np.asarray(chance + (ceiling - chance) * (1 - np.tanh((nll - middle) / (2 * width))) / 2)


def _fit_sigmoid(
    models: Sequence[Examined], given: config.Forecasting, replications: int, rng: np.random.Generator
) -> Sigmoid:
    nll, accuracy = np.array([one.nll for one in models]), np.array([one.accuracy for one in models])
    if given.ceiling <= given.chance:
        raise ValueError(
            f"forecast.ceiling={given.ceiling}: not above forecast.chance={given.chance}; give a larger one"
        )
    if np.ptp(nll) == 0 or np.corrcoef(nll, accuracy)[0, 1] >= 0:
        raise ValueError(
            f"forecast.input={given.input}: accuracy does not grow as nll falls; a sigmoid says nothing here. Add "
            "larger models, whose accuracy is above chance"
        )
    middle, steepness = _search(np.array([np.median(nll), 4 / np.ptp(nll)]), nll, accuracy, given)
    slopes = _slopes(np.array([middle, steepness]), nll, accuracy, given)
    residuals = accuracy - _sigmoid(nll, middle, 1 / steepness, given.chance, given.ceiling)
    pool, freedom = resampling.levelled(residuals, resampling.leverage(slopes)), len(models) - 2
    noise = resampling.noise(pool, freedom, (replications, len(models)), rng)
    start, fitted = np.array([middle, steepness]), accuracy - residuals
    again = _search_all(start, nll, fitted + noise, given)
    return Sigmoid(given.chance, given.ceiling, middle, 1 / steepness, again[0], 1 / again[1], pool, freedom)


def _residuals(given: Floats, nll: Floats, accuracy: Floats, keys: config.Forecasting) -> Floats:
    return _sigmoid(nll, given[0], 1 / given[1], keys.chance, keys.ceiling) - accuracy


def _slopes(given: Floats, nll: Floats, accuracy: Floats, keys: config.Forecasting) -> Floats:
    middle, steepness = given
    share = _sigmoid(nll, middle, 1 / steepness, 0.0, 1.0)
    slope = (keys.ceiling - keys.chance) * share * (1 - share)
    return np.stack([slope * steepness, -slope * (nll - middle)], axis=1)


def _search(start: Floats, nll: Floats, accuracy: Floats, keys: config.Forecasting) -> tuple[float, float]:
    """Middle and steepness of the best sigmoid."""
    from scipy import optimize

    bounds = ([-np.inf, 1e-3], [np.inf, STEEPEST])
    start = np.clip(start, [-np.inf, 2e-3], [np.inf, STEEPEST * 0.99])
    found = optimize.least_squares(_residuals, start, _slopes, bounds, args=(nll, accuracy, keys), x_scale="jac")
    return float(found.x[0]), float(found.x[1])


def _search_all(start: Floats, nll: Floats, accuracies: Floats, keys: config.Forecasting) -> Floats:
    """Middles and steepnesses [2, replications] for accuracies [replications, models], all at once.

    Levenberg and Marquardt's steps from the best sigmoid: its neighbours are near, and two coefficients solve by hand.
    """
    found = np.repeat(start[:, None], len(accuracies), axis=1)
    damping = np.full(len(accuracies), 1e-3)
    cost, slopes, wrong = _around(found, nll, accuracies, keys)
    for _ in range(STEPS):
        (aa, ab, bb), (a, b) = _products(slopes), ((slopes * wrong).sum(axis=2))
        aa, bb = aa * (1 + damping), bb * (1 + damping)
        step = np.stack([bb * a - ab * b, aa * b - ab * a]) / np.maximum(aa * bb - ab**2, 1e-300)
        tried = found - step
        tried[1] = np.clip(tried[1], found[1] / 2, np.minimum(found[1] * 2, STEEPEST))
        new_cost, new_slopes, new_wrong = _around(tried, nll, accuracies, keys)
        better = new_cost < cost
        found, cost = np.where(better, tried, found), np.where(better, new_cost, cost)
        slopes = np.where(better[:, None], new_slopes, slopes)
        wrong = np.where(better[:, None], new_wrong, wrong)
        damping = np.clip(np.where(better, damping / 5, damping * 5), 1e-9, 1e9)
    return found


def _around(found: Floats, nll: Floats, accuracies: Floats, keys: config.Forecasting) -> tuple[Floats, Floats, Floats]:
    """Of every replication: squares, slopes [2, replications, models] and residuals [replications, models]."""
    middles, steepnesses = found[0][:, None], found[1][:, None]
    share = _sigmoid(nll, middles, 1 / steepnesses, 0.0, 1.0)
    slope = (keys.ceiling - keys.chance) * share * (1 - share)
    wrong = keys.chance + (keys.ceiling - keys.chance) * share - accuracies
    return (wrong**2).sum(axis=1), np.stack([slope * steepnesses, -slope * (nll - middles)]), wrong


def _products(slopes: Floats) -> tuple[Floats, Floats, Floats]:
    a, b = slopes
    return (a * a).sum(axis=1), (a * b).sum(axis=1), (b * b).sum(axis=1)


def summary(forecast: Forecast) -> str:
    """Both steps in words, and models that were held out beside what was forecast of them."""
    line, sigmoid = forecast.line, forecast.sigmoid
    with_flops = sorted(one.flops for one in forecast.models if one.flops is not None)
    lines = [
        f"nll = {line.intercept:.4f} {line.slope:+.4f} log10(FLOPs)",
        f"accuracy: from {sigmoid.chance:g} to {sigmoid.ceiling:g}, half way at nll {sigmoid.middle:.4f}, "
        f"width {sigmoid.width:.4f}",
        f"at {forecast.target:.3g} FLOPs: nll {forecast.nll.shown('{:.4f}'.format)}, "
        f"accuracy {forecast.accuracy.shown('{:.1%}'.format)}",
    ]
    for one, nll, accuracy in forecast.held_out:
        lines.append(
            f"held out, {one.where}: {one.flops:.3g} FLOPs, nll {one.nll:.4f}, forecast {nll.shown('{:.4f}'.format)}; "
            f"accuracy {one.accuracy:.1%}, forecast {accuracy.shown('{:.1%}'.format)}"
        )
    best = max(one.accuracy for one in forecast.models)
    halfway = (sigmoid.chance + sigmoid.ceiling) / 2
    if best < halfway:
        lines.append(
            f"warning: no model is right more often than {best:.1%}, so the upper half of the sigmoid is assumed"
        )
    reach = math.log10(forecast.target / max(with_flops))
    if reach > math.log10(max(with_flops) / min(with_flops)):
        lines.append(f"warning: the target is {reach:.1f} decades beyond the largest model, more than the models span")
    return "\n".join(lines)


def panels(forecast: Forecast) -> list[Panel]:
    """Likelihood over FLOPs, and accuracy over likelihood (the report's Figure 4)."""
    unseen = [one for one, _, _ in forecast.held_out]
    known = [one for one in forecast.models if one.flops is not None and one not in unseen]
    x = np.linspace(math.log10(min(one.flops or 0 for one in known)), math.log10(forecast.target), 60)
    spread = forecast.line.intercepts[:, None] + forecast.line.slopes[:, None] * x
    low, high = np.quantile(spread, [0.025, 0.975], axis=0)
    flops = list(10**x)
    others = [one for one in forecast.models if one.flops is None]
    ends = [one.nll for one in forecast.models] + [forecast.nll.value]
    nll = np.linspace(min(ends) - 0.05 * np.ptp(ends), max(ends) + 0.05 * np.ptp(ends), 80)
    least, most = np.quantile(forecast.sigmoid.all_at(nll[:, None]), [0.025, 0.975], axis=1)
    first = [
        Trace(flops, list(low), "95 %", "band", 0, list(high)),
        Trace(flops, [forecast.line.at(one) for one in x], "line", "line", 0),
        Trace([one.flops or 0 for one in known], [one.nll for one in known], "models", "points", 1),
        Trace([one.flops or 0 for one in unseen], [one.nll for one in unseen], "held out", "points", 2),
        Trace([forecast.target], [forecast.nll.value], "forecast", "stars", 2, [forecast.nll.high], [forecast.nll.low]),
    ]
    second = [
        Trace(list(nll), list(least), "95 %", "band", 0, list(most)),
        Trace(list(nll), list(forecast.sigmoid.at(nll)), "sigmoid", "line", 0),
        Trace([one.nll for one in known], [one.accuracy for one in known], "models", "points", 1),
        Trace([one.nll for one in unseen], [one.accuracy for one in unseen], "held out", "points", 2),
        Trace([one.nll for one in others], [one.accuracy for one in others], "trained otherwise", "points", 3),
        Trace(
            [forecast.nll.value], [forecast.accuracy.value], "forecast", "stars", 2,
            [forecast.accuracy.high], [forecast.accuracy.low],
        ),
    ]  # fmt: skip
    label = "nats per character of right answers"
    return [
        Panel("Likelihood of right answers", "training FLOPs", label, [one for one in first if one.x], log_x=True),
        Panel("Accuracy", label, "accuracy", [one for one in second if one.x]),
    ]
