"""Compute-optimal tokens from IsoFLOP curves (report, section 3.2.1; approach 2 of Hoffmann et al. 2022).

Per budget C a parabola of loss over the logarithm of tokens; its minimum is the optimum of that budget. Through the
optima a power law, tokens(C) = A C^alpha, by least squares of logarithms. Intervals are a residual bootstrap
(`resampling.py`) whose pool is the residuals of all budgets together.

A minimum counts where it is inside: one at an end of the curve says that the best model was not among those tried.
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
from llama31.scaling.observations import Trained
from llama31.scaling.resampling import Estimate, Floats, estimate

POINTS = 4  # of a budget: a parabola takes three, and what it misses is seen from the fourth on
BUDGETS = 3  # of a power law: two always lie on one
SURE = 0.95  # share of replications whose minimum is inside, below which a budget is named


@dataclass(frozen=True)
class Curve:
    """A budget: its runs, the parabola a + b x + c x^2 over x = ln(tokens / centre), and replications of a, b, c."""

    flops: float
    runs: Sequence[Trained]
    centre: float
    coefficients: Floats  # [3]
    replications: Floats  # [replications, 3]

    @property
    def tokens(self) -> float:
        """At the minimum."""
        return float(self.centre * np.exp(_minimum(self.coefficients)))

    @property
    def loss(self) -> float:
        """At the minimum, in nats."""
        a, b, c = self.coefficients
        return float(a - b * b / (4 * c))

    @property
    def all_tokens(self) -> Floats:
        """At the minimum of every replication, NaN where it has none."""
        return np.asarray(self.centre * np.exp(_minimum(self.replications.T)))

    @property
    def inside(self) -> float:
        """Share of replications with a minimum between the fewest and the most tokens that were tried."""
        tried = [run.tokens for run in self.runs]
        return float(np.mean((self.all_tokens > min(tried)) & (self.all_tokens < max(tried))))


def _minimum(coefficients: Floats) -> Floats:
    """Where parabolas [3, ...] are lowest; NaN where they open downwards, and beyond what exp takes."""
    _, b, c = coefficients
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((c > 0) & (np.abs(b) < 100 * c), -b / (2 * c), np.nan)


@dataclass(frozen=True)
class Law:
    """tokens(C) = A C^alpha through the minima of `curves`, and what it says at `target` FLOPs.

    `curvature` is c of the parabola there: a departure by a factor f in tokens costs c ln(f)^2 nats.
    """

    curves: Sequence[Curve]
    alpha: Estimate
    factor: Estimate
    target: float
    tokens: Estimate
    parameters: Estimate
    flops_per_parameter_token: float
    tolerance: float
    departure: Estimate  # factor in tokens, either way, that costs `tolerance` nats at the target
    scatter: float  # root mean square of ln(minimum / law) over the budgets
    expected_scatter: float  # what the bootstrap expects of it

    def warnings(self) -> list[str]:
        """What a reader of the numbers has to know."""
        said = [
            f"{curve.flops:.3g} FLOPs: the minimum is inside in {curve.inside:.0%} of resamplings; add runs around it"
            for curve in self.curves
            if curve.inside < SURE
        ]
        if self.scatter > 2 * self.expected_scatter:
            said.append(
                f"the minima scatter by {self.scatter:.1%} around the power law, and the losses explain "
                f"{self.expected_scatter:.1%}: intervals are too narrow; look at the curves"
            )
        reach = math.log10(self.target / max(curve.flops for curve in self.curves))
        span = math.log10(self.curves[-1].flops / self.curves[0].flops)
        if reach > span:
            said.append(f"the target is {reach:.1f} decades beyond the largest budget, and the budgets span {span:.1f}")
        return said

    def record(self) -> dict[str, Any]:
        """For JSON."""
        minima = [
            {
                "flops": curve.flops,
                "runs": len(curve.runs),
                "tokens": estimate(curve.tokens, curve.all_tokens).record(),
                "loss": curve.loss,
                "curvature": float(curve.coefficients[2]),
                "inside": curve.inside,
            }
            for curve in self.curves
        ]
        figures = {"alpha": self.alpha, "factor": self.factor, "tokens": self.tokens, "parameters": self.parameters}
        return {
            "budgets": minima,
            **resampling.records(figures),
            "target_flops": self.target,
            "flops_per_parameter_token": self.flops_per_parameter_token,
            "departure": {"nats": self.tolerance, **self.departure.record()},
            "scatter": {"found": self.scatter, "expected": self.expected_scatter},
        }


def fit(runs: Sequence[Trained], given: config.Fit, replications: int, rng: np.random.Generator) -> Law:
    """Curves of all budgets and the law through their minima.

    Raises ValueError for budgets with too few runs or without a minimum inside, and where there are too few budgets.
    """
    groups = _chosen(observations.budgets(runs, given.same_budget), given)
    parabolas = [_parabola(group) for _, group in groups]
    _check_minima(groups, parabolas)
    pool = np.concatenate([resampling.levelled(one.residuals, resampling.leverage(one.design)) for one in parabolas])
    freedom = sum(len(one.residuals) - 3 for one in parabolas)
    curves = []
    for (flops, group), one in zip(groups, parabolas, strict=True):
        noise = resampling.noise(pool, freedom, (replications, len(group)), rng)
        again = one.coefficients + noise @ np.linalg.pinv(one.design).T
        curves.append(Curve(flops, group, one.centre, one.coefficients, again))
    return _law(curves, given)


@dataclass(frozen=True)
class _Parabola:
    centre: float
    design: Floats
    coefficients: Floats
    residuals: Floats


def _parabola(runs: Sequence[Trained]) -> _Parabola:
    logs, losses = np.log([run.tokens for run in runs]), np.array([run.loss for run in runs])
    x = logs - logs.mean()
    design = np.stack([np.ones_like(x), x, x * x], axis=1)
    coefficients = np.linalg.pinv(design) @ losses
    return _Parabola(float(np.exp(logs.mean())), design, coefficients, losses - design @ coefficients)


def _chosen(groups: list[tuple[float, list[Trained]]], given: config.Fit) -> list[tuple[float, list[Trained]]]:
    """Budgets to fit: those not left out, each with enough runs."""
    unknown = [flops for flops in given.without if not any(_same(flops, budget, given) for budget, _ in groups)]
    if unknown:
        there = ", ".join(f"{budget:.3g}" for budget, _ in groups)
        raise ValueError(f"fit.without={unknown}: no such budget; give some of {there}")
    kept = [pair for pair in groups if not any(_same(flops, pair[0], given) for flops in given.without)]
    problems = []
    for budget, runs in kept:
        tried = len({run.tokens for run in runs})
        if tried < POINTS:
            places = ", ".join(run.where for run in runs)
            problems.append(
                f"{budget:.3g} FLOPs: runs with {tried} different numbers of tokens ({places}), and a minimum takes "
                f"{POINTS}; add runs, or give fit.without='[{budget:.3g}]' (of one budget are runs whose FLOPs "
                f"differ by {given.same_budget:.0%}: fit.same_budget)"
            )
    if len(kept) < BUDGETS and not problems:
        problems.append(f"fit: a power law takes {BUDGETS} budgets, and there are {len(kept)}; add runs of other FLOPs")
    if problems:
        raise ValueError("\n".join(problems))
    return kept


def _same(flops: float, budget: float, given: config.Fit) -> bool:
    return abs(flops / budget - 1) <= given.same_budget


def _check_minima(groups: list[tuple[float, list[Trained]]], parabolas: list[_Parabola]) -> None:
    """Every budget whose minimum is at an end of its curve, or that has none, with the model that it lacks."""
    problems = []
    for (budget, runs), one in zip(groups, parabolas, strict=True):
        ordered = sorted(runs, key=lambda run: run.tokens)
        best = min(runs, key=lambda run: run.loss)
        lowest = float(one.centre * np.exp(_minimum(one.coefficients)))
        few, many = ordered[0], ordered[-1]
        if math.isnan(lowest):
            reason, remedy = (
                "the parabola has no minimum",
                f"add models on both sides of {best.parameters:.3g} parameters",
            )
        elif lowest >= many.tokens or best.tokens == many.tokens:
            reason, remedy = (
                "the minimum is at the end of most tokens",
                f"add models below {many.parameters:.3g} parameters",
            )
        elif lowest <= few.tokens or best.tokens == few.tokens:
            reason, remedy = (
                "the minimum is at the end of fewest tokens",
                f"add models above {few.parameters:.3g} parameters",
            )
        else:
            continue
        tried = f"{few.tokens:.3g} to {many.tokens:.3g} tokens, lowest loss {best.loss:.4f} at {best.tokens:.3g}"
        problems.append(f"{budget:.3g} FLOPs: {reason} ({tried}); {remedy}, or give fit.without='[{budget:.3g}]'")
    if problems:
        raise ValueError("\n".join(problems))


def _design(curves: Sequence[Curve]) -> Floats:
    """[budgets, 2] of a line over ln FLOPs."""
    logs = np.log([curve.flops for curve in curves])
    return np.stack([np.ones_like(logs), logs], axis=1)


def _law(curves: list[Curve], given: config.Fit) -> Law:
    design = _design(curves)
    solve = np.linalg.pinv(design)
    minima, again = np.log([c.tokens for c in curves]), np.log(np.stack([c.all_tokens for c in curves], axis=1))
    (intercept, slope), lines = solve @ minima, again @ solve.T  # [replications, 2], NaN where a curve has no minimum
    x = math.log(given.target_flops)
    tokens = estimate(math.exp(intercept + slope * x), np.exp(lines[:, 0] + lines[:, 1] * x))
    factor = given.flops_per_parameter_token or _factor(curves[-1])
    per_token = given.target_flops / factor
    residuals, others = minima - design @ (intercept, slope), again - lines @ design.T
    return Law(
        curves=curves,
        alpha=estimate(float(slope), lines[:, 1]),
        factor=estimate(math.exp(intercept), np.exp(lines[:, 0])),
        target=given.target_flops,
        tokens=tokens,
        parameters=Estimate(per_token / tokens.value, per_token / tokens.high, per_token / tokens.low),
        flops_per_parameter_token=factor,
        tolerance=given.tolerance,
        departure=_departure(curves, x, given.tolerance),
        scatter=float(np.sqrt(np.mean(residuals**2))),
        expected_scatter=float(np.sqrt(np.nanmean((others - residuals) ** 2))),
    )


def _factor(curve: Curve) -> float:
    """FLOPs per parameter and token of the run nearest to a minimum."""
    near = min(curve.runs, key=lambda run: abs(math.log(run.tokens / curve.tokens)))
    return near.flops / near.parameters / near.tokens


def _departure(curves: Sequence[Curve], x: float, tolerance: float) -> Estimate:
    """The factor in tokens that costs `tolerance` nats at ln(FLOPs) = x: curvatures follow a power law of their own."""
    solve, at = np.linalg.pinv(_design(curves)), np.array([1.0, x])
    curvatures = np.array([curve.coefficients[2] for curve in curves])
    with np.errstate(divide="ignore", invalid="ignore"):
        again = np.log(np.stack([curve.replications[:, 2] for curve in curves], axis=1)) @ solve.T @ at
    wide = np.exp(np.sqrt(tolerance / np.exp(again)))
    return estimate(math.exp(math.sqrt(tolerance / math.exp(at @ solve @ np.log(curvatures)))), wide)


def summary(law: Law) -> str:
    """A row for each budget, the law, and what it says of the target."""
    lines = [
        "| FLOPs | runs | best tokens (95 %) | loss there | nats for twice or half of them |",
        "|---|---|---|---|---|",
    ]
    for curve in law.curves:
        tokens = estimate(curve.tokens, curve.all_tokens).shown()
        cost = curve.coefficients[2] * math.log(2) ** 2
        lines.append(f"| {curve.flops:.3g} | {len(curve.runs)} | {tokens} | {curve.loss:.4f} | {cost:.4f} |")
    lines += [
        "",
        f"tokens(C) = A C^alpha: alpha {law.alpha.shown('{:.4f}'.format)}, A {law.factor.shown()}",
        f"at {law.target:.3g} FLOPs: {law.tokens.shown()} tokens, {law.parameters.shown()} parameters "
        f"at {law.flops_per_parameter_token:.2f} FLOPs per parameter and token",
        f"flat within {law.tolerance:g} nats: tokens over or times {law.departure.shown('{:.2f}'.format)}",
    ]
    return "\n".join([*lines, *(f"warning: {text}" for text in law.warnings())])


def panels(law: Law) -> list[Panel]:
    """The curves, loss over tokens, and the power law, tokens over FLOPs (the report's Figures 2 and 3)."""
    drawn = []
    for number, curve in enumerate(law.curves):
        tried = sorted(math.log(run.tokens) for run in curve.runs)
        x = np.linspace(tried[0], tried[-1], 60)
        y = np.polynomial.polynomial.polyval(x - math.log(curve.centre), curve.coefficients)
        drawn += [
            Trace(
                [r.tokens for r in curve.runs],
                [r.loss for r in curve.runs],
                f"{curve.flops:.2g} FLOPs",
                "points",
                number,
            ),
            Trace(list(np.exp(x)), list(y), "", "line", number),
        ]
    minima = Trace([c.tokens for c in law.curves], [c.loss for c in law.curves], "minima", "stars")
    return [
        Panel("IsoFLOP curves", "training tokens", "held-out loss (nats)", [*drawn, minima], log_x=True),
        Panel("Compute-optimal tokens", "training FLOPs", "training tokens", _line(law), log_x=True, log_y=True),
    ]


def _line(law: Law) -> list[Trace]:
    ends = np.log([law.curves[0].flops, law.target])
    x = np.linspace(ends.min(), ends.max(), 60)
    again = np.log(np.stack([curve.all_tokens for curve in law.curves], axis=1)) @ np.linalg.pinv(_design(law.curves)).T
    low, high = np.nanquantile(np.exp(again[:, :1] + again[:, 1:] * x), [0.025, 0.975], axis=0)
    flops, spread = list(np.exp(x)), [estimate(c.tokens, c.all_tokens) for c in law.curves]
    label, tokens = f"{law.factor.value:.3g} C^{law.alpha.value:.3f}", law.tokens
    return [
        Trace(flops, list(low), "95 %", "band", 0, list(high)),
        Trace(flops, [law.factor.value * c**law.alpha.value for c in flops], label, "line", 0),
        Trace(
            [c.flops for c in law.curves], [s.value for s in spread], "minima", "points", 1,
            [s.high for s in spread], [s.low for s in spread],
        ),
        Trace([law.target], [tokens.value], f"target: {tokens.value:.3g}", "stars", 2, [tokens.high], [tokens.low]),
    ]  # fmt: skip
