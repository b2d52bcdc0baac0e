"""Which mixture of data to train a large model on, from losses of small ones (report, section 3.1.2).

The model is a data mixing law (Ye et al. 2024): the loss on each held-out text i is L_i(r) = c_i + exp(t_i . r) over
the shares r of the sources, which sum to 1. Where runs differ in FLOPs, ln FLOPs is one more term of the exponent: a
power law over c_i. The weighted sum of such losses is convex in r, so its minimum is found. A single text would always
propose one source alone, because the exponential of a sum has no minimum inside: two texts at least are asked for.
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
from llama31.scaling.resampling import Estimate, Floats, estimate

RESAMPLED = 200  # replications at most: each fits every text anew and looks for its minimum
FREE = 2  # runs beyond the coefficients of a text
SAME_FLOPS = 0.05  # share by which runs of one size may differ


@dataclass(frozen=True)
class Tried:
    """Small runs: shares [runs, sources], losses [runs, texts], FLOPs [runs], None where all are alike."""

    sources: list[str]
    texts: list[str]
    shares: Floats
    losses: Floats
    flops: Floats | None


@dataclass(frozen=True)
class MixtureProposal:
    """The mixture that costs least at `flops`, by source, and the losses it promises, beside the best one tried."""

    tried: Tried
    flops: float | None
    shares: dict[str, Estimate]
    loss: Estimate
    losses: dict[str, Estimate]
    best_tried: int  # row whose mixture has the lowest loss by the law
    gain: Estimate  # loss of that mixture less that of the proposed one, by the law
    at_bounds: list[str]
    errors: dict[str, float]  # by text, root mean square of residuals in nats

    def record(self) -> dict[str, Any]:
        """For JSON."""
        best = dict(zip(self.tried.sources, map(float, self.tried.shares[self.best_tried]), strict=True))
        return {
            "flops": self.flops,
            "shares": resampling.records(self.shares),
            "loss": self.loss.record(),
            "losses": resampling.records(self.losses),
            "best_tried": best,
            "gain": self.gain.record(),
            "at_bounds": self.at_bounds,
            "errors": self.errors,
        }


def read(given: config.Mixing) -> Tried:
    """Runs of a CSV file, or of folders. Raises ValueError with all that is wrong."""
    if (given.input is None) == (not given.runs):
        raise ValueError("mix.input: give either a CSV file, or mix.runs='[FOLDER,...]'")
    if given.input is not None:
        return _read_table(given.input)
    rows = []
    for run in observations.finished("mix.runs", given.runs):
        weights = {name: source["weight"] for name, source in run.setting("data.sources").items()}
        if run.setting("data.mixture"):
            raise ValueError(f"mix.runs={run.folder}: its mixture changes on the way; give runs with one mixture each")
        rows.append((weights, run.of("validation")[-1]["losses"], observations.flops(run)))
    sources = sorted({name for weights, _, _ in rows for name in weights})
    texts = sorted(set.intersection(*(set(losses) for _, losses, _ in rows)))
    shares = np.array([[float(weights.get(name, 0)) for name in sources] for weights, _, _ in rows])
    losses = np.array([[float(of[name]) for name in texts] for _, of, _ in rows])
    flops = np.array([one for _, _, one in rows])
    return _tried(sources, texts, shares, losses, flops, "mix.runs")


def _read_table(path: str) -> Tried:
    rows = observations.table("mix.input", path, (), _wanted)
    names = list(rows[0].values) if rows else []
    empty = [f"  {row.where}, column {name}: is empty" for row in rows for name in names if row.values[name] is None]
    if empty:
        raise ValueError("\n".join([f"mix.input={path}: {len(empty)} cells are wrong; give a number in each", *empty]))
    sources = [name for name in names if name.startswith("share.")]
    texts = [name for name in names if name.startswith("loss.")]
    shares = np.array([[row.number(name) for name in sources] for row in rows])
    losses = np.array([[row.number(name) for name in texts] for row in rows])
    flops = np.array([row.number("flops") for row in rows]) if "flops" in names else None
    sums = [(row.where, sum(row.number(name) for name in sources)) for row in rows]
    wrong = [f"  {where}: its shares sum to {total:g}" for where, total in sums if sources and abs(total - 1) > 0.01]
    if wrong:
        raise ValueError("\n".join([f"mix.input={path}: shares of a run have to sum to 1; correct", *wrong]))
    sources, texts = ([name.partition(".")[2] for name in of] for of in (sources, texts))
    return _tried(sources, texts, shares, losses, flops, f"mix.input={path}")


def _wanted(name: str) -> bool:
    return name.startswith(("share.", "loss.")) or name == "flops"


def _tried(
    sources: list[str], texts: list[str], shares: Floats, losses: Floats, flops: Floats | None, where: str
) -> Tried:
    if len(sources) < 2 or len(texts) < 2:
        raise ValueError(
            f"{where}: {len(sources)} sources (share.NAME) and {len(texts)} held-out texts (loss.NAME); give two of "
            "each at least: what is best for a single text is a single source"
        )
    if flops is not None and np.ptp(np.log(flops)) <= SAME_FLOPS:
        flops = None
    coefficients = len(sources) + 1 + (flops is not None)
    if len(shares) < coefficients + FREE:
        raise ValueError(
            f"{where}: {len(shares)} runs, and {coefficients} coefficients for each text take {coefficients + FREE}; "
            "add runs"
        )
    shares = shares / shares.sum(axis=1, keepdims=True)
    rank = int(np.linalg.matrix_rank(shares - shares.mean(axis=0), tol=1e-6))
    if rank < len(sources) - 1:
        raise ValueError(
            f"{where}: the mixtures vary in {rank} of {len(sources) - 1} directions, so some sources cannot be told "
            "apart; add runs in which their shares differ"
        )
    return Tried(sources, texts, shares, losses, flops)


def propose(tried: Tried, given: config.Mixing, replications: int, rng: np.random.Generator) -> MixtureProposal:
    """The mixture with the lowest weighted loss, its shares within the ranges tried (and `beyond` them)."""
    weights = _weights(tried, given)
    flops = None if tried.flops is None else given.target_flops or float(tried.flops.max())
    design = _design(tried)
    scaled = 0.0 if tried.flops is None or flops is None else math.log(flops / _middle(tried))
    low = np.clip(tried.shares.min(axis=0) - given.beyond, 0, 1)
    high = np.clip(tried.shares.max(axis=0) + given.beyond, 0, 1)
    laws = [_law(design, losses) for losses in tried.losses.T]
    found = _lowest(laws, weights, scaled, low, high, tried.shares.mean(axis=0))
    spread, freedom = [], len(design) - design.shape[1] - 1
    for losses, law in zip(tried.losses.T, laws, strict=True):
        fitted = _value(law, design)
        pool = resampling.levelled(losses - fitted, resampling.leverage(_slopes(law, design)))
        noise = resampling.noise(pool, freedom, (min(replications, RESAMPLED), len(losses)), rng)
        spread.append([_refit(law, design, fitted + one) for one in noise])
    again = list(zip(*spread, strict=True))
    mixtures = np.array([_lowest(one, weights, scaled, low, high, found) for one in again])
    best = int(np.argmin([_total(laws, weights, scaled, shares) for shares in tried.shares]))
    there = np.array([[_value(law, _row(found, scaled, law)) for law in one] for one in again])
    gains = [_total(one, weights, scaled, tried.shares[best]) - _total(one, weights, scaled, found) for one in again]
    at = np.array([_value(law, _row(found, scaled, law)) for law in laws])
    edge = [
        f"{name} at {value:.3g}"
        for name, value, least, most in zip(tried.sources, found, low, high, strict=True)
        if value - least < 1e-3 or most - value < 1e-3
    ]
    return MixtureProposal(
        tried,
        flops,
        {name: estimate(value, of) for name, value, of in zip(tried.sources, found, mixtures.T, strict=True)},
        estimate(float(at @ weights), there @ weights),
        {name: estimate(value, of) for name, value, of in zip(tried.texts, at, there.T, strict=True)},
        best,
        estimate(_total(laws, weights, scaled, tried.shares[best]) - float(at @ weights), np.array(gains)),
        edge,
        {
            name: float(np.sqrt(np.mean((losses - _value(law, design)) ** 2)))
            for name, losses, law in zip(tried.texts, tried.losses.T, laws, strict=True)
        },
    )


def _weights(tried: Tried, given: config.Mixing) -> Floats:
    unknown = [name for name in given.weights if name not in tried.texts]
    if unknown or (given.weights and not any(given.weights.values())):
        raise ValueError(f"mix.weights={given.weights}: give weights, one above 0, of {', '.join(tried.texts)}")
    weights = np.array([given.weights.get(name, 0.0) if given.weights else 1.0 for name in tried.texts])
    return np.asarray(weights / weights.sum())


# --- the law: coefficients (c, t_1, ..., t_n[, of ln FLOPs]) over a design of shares[, ln(FLOPs / middle)] ---


def _middle(tried: Tried) -> float:
    return 1.0 if tried.flops is None else float(np.exp(np.log(tried.flops).mean()))


def _design(tried: Tried) -> Floats:
    if tried.flops is None:
        return tried.shares
    return np.concatenate([tried.shares, np.log(tried.flops / _middle(tried))[:, None]], axis=1)


def _row(shares: Floats, scaled: float, law: Floats) -> Floats:
    return shares if len(law) == len(shares) + 1 else np.append(shares, scaled)


def _value(law: Floats, design: Floats) -> Any:
    return law[0] + np.exp(np.minimum(design @ law[1:], 50.0))


def _slopes(law: Floats, design: Floats) -> Floats:
    grown = np.exp(np.minimum(design @ law[1:], 50.0))[:, None]
    return np.concatenate([np.ones_like(grown), grown * design], axis=1)


def _law(design: Floats, losses: Floats) -> Floats:
    """From several constants c below the lowest loss, with t by logarithms, the best after a search."""
    starts = []
    for share in (0.98, 0.9, 0.7, 0.4, 0.0):
        rest = np.log(losses - share * losses.min())
        starts.append(np.concatenate([[share * losses.min()], np.linalg.lstsq(design, rest)[0]]))
    laws = [_refit(start, design, losses) for start in starts]
    return min(laws, key=lambda law: float(np.sum((_value(law, design) - losses) ** 2)))


def _refit(start: Floats, design: Floats, losses: Floats) -> Floats:
    """Least squares from `start`, the constant between 0 and the lowest loss."""
    from scipy import optimize

    most = float(losses.min())
    start = np.concatenate([[np.clip(start[0], 1e-3 * most, 0.999 * most)], start[1:]])
    bounds = ([0.0, *[-np.inf] * design.shape[1]], [most, *[np.inf] * design.shape[1]])
    found = optimize.least_squares(
        lambda law: _value(law, design) - losses,
        start,
        lambda law: _slopes(law, design),
        bounds,
        x_scale="jac",
        ftol=1e-12,
        xtol=1e-12,
        gtol=1e-12,
        max_nfev=1000,
    )
    return np.asarray(found.x)


def _total(laws: Sequence[Floats], weights: Floats, scaled: float, shares: Floats) -> float:
    return float(sum(w * _value(law, _row(shares, scaled, law)) for w, law in zip(weights, laws, strict=True)))


def _lowest(laws: Sequence[Floats], weights: Floats, scaled: float, low: Floats, high: Floats, start: Floats) -> Floats:
    """Shares between `low` and `high` that sum to 1 and cost least: a convex problem, so there is one valley."""
    from scipy import optimize

    sources = len(start)

    def slope(shares: Floats) -> Floats:
        grown = [
            w * (_value(law, _row(shares, scaled, law)) - law[0]) * law[1 : sources + 1]
            for w, law in zip(weights, laws, strict=True)
        ]
        return np.asarray(np.sum(grown, axis=0))

    found = optimize.minimize(
        lambda shares: _total(laws, weights, scaled, shares), start, jac=slope, method="SLSQP",
        bounds=list(zip(low, high, strict=True)), options={"ftol": 1e-10, "maxiter": 200},
        constraints={"type": "eq", "fun": lambda shares: shares.sum() - 1, "jac": np.ones_like},
    )  # fmt: skip
    return np.asarray(found.x)


def summary(proposal: MixtureProposal) -> str:
    """A row for each source, the losses, and what is gained over the best mixture that was tried."""
    best = proposal.tried.shares[proposal.best_tried]
    lines = ["| source | proposed (95 %) | tried | in the best one tried |", "|---|---|---|---|"]
    for name, tried, there in zip(proposal.tried.sources, proposal.tried.shares.T, best, strict=True):
        shown = proposal.shares[name].shown("{:.1%}".format)
        lines.append(f"| {name} | {shown} | {tried.min():.1%} to {tried.max():.1%} | {there:.1%} |")
    at = "" if proposal.flops is None else f" at {proposal.flops:.3g} FLOPs"
    lines += ["", f"loss{at}: {proposal.loss.shown('{:.4f}'.format)}"]
    for name, one in proposal.losses.items():
        lines.append(f"  {name}: {one.shown('{:.4f}'.format)}, fitted within {proposal.errors[name]:.4f} (rms)")
    lines.append(f"gained over the best mixture tried: {proposal.gain.shown('{:.4f}'.format)} nats")
    if proposal.gain.low <= 0:
        lines.append("warning: that may be nothing; runs with the proposed mixture would tell")
    if proposal.at_bounds:
        lines.append(
            f"warning: at an end of what was tried: {', '.join(proposal.at_bounds)}; try mixtures beyond, or give "
            "mix.beyond"
        )
    return "\n".join(lines)


def panels(proposal: MixtureProposal) -> list[Panel]:
    """The proposed shares with their intervals, and for each text what the law says beside what was measured."""
    names = list(proposal.shares)
    values = [proposal.shares[name] for name in names]
    tried, places = proposal.tried, list(map(float, range(len(names))))
    shares = [
        Trace(places, list(tried.shares.min(axis=0)), "tried", "bars", 7, list(tried.shares.max(axis=0))),
        Trace(
            places,
            [v.value for v in values],
            "proposed",
            "points",
            0,
            [v.high for v in values],
            [v.low for v in values],
        ),
    ]
    design, fitted = _design(tried), []
    for number, (name, losses) in enumerate(zip(tried.texts, tried.losses.T, strict=True)):
        fitted.append(Trace(list(_value(_law(design, losses), design)), list(losses), name, "points", number))
    ends = [float(tried.losses.min()), float(tried.losses.max())]
    fitted.append(Trace(ends, ends, "", "line", 7))
    return [
        Panel("Proposed mixture", "", "share", shares, names=names),
        Panel("The law", "loss by the law (nats)", "loss measured (nats)", fitted),
    ]
