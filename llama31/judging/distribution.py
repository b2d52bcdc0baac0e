"""Rewards of two models' answers to the same prompts, as distributions: what the report judges FP8 by (section 6.2).

Benchmarks did not show what unbounded activations broke; rewards over very many answers did. Beside mean and quantiles
stands the largest distance of the two cumulative distributions (Kolmogorov and Smirnov's D). Answers to one prompt
resemble each other, so chance is told by exchanging the two models' answers prompt by prompt, not by D's table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama31.evaluate import confidence

SHARES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
BINS = 40
EXCHANGES = 1000  # p-values in steps of a thousandth
Pair = tuple[Sequence[float], Sequence[float]]  # rewards of one prompt's answers, by either model


def compare(prompts: Sequence[Pair], exchanges: int = EXCHANGES, seed: int = 1) -> dict[str, Any]:
    """Figures of the first model's rewards (`mine`) and the second's (`previous`), ready for JSON; {} without any.

    Of prompts that both answered. `difference` is the mean over prompts of the difference of mean rewards, with the
    half width of its 95 % t-interval (null for a single one); `ks` is D and `ks_p` the share of exchanges with as large
    a D. `density` is that of the bins between `edges`.
    """
    both = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in prompts if len(a) and len(b)]
    if not both:
        return {}
    differences = [float(a.mean() - b.mean()) for a, b in both]
    mean, ci95 = confidence.paired(differences)
    values = np.concatenate([value for pair in both for value in pair])
    mine = np.concatenate([np.repeat([True, False], (len(a), len(b))) for a, b in both])
    of_prompt = np.repeat(np.arange(len(both)), [len(a) + len(b) for a, b in both])
    distance, chance = _distance(values, mine, of_prompt, exchanges, seed)
    edges = np.linspace(values.min(), values.max(), BINS + 1) if np.ptp(values) else values[0] + np.array([-0.5, 0.5])
    result = {
        "prompts": len(both), "difference": mean, "difference_ci95": ci95, "ks": distance, "ks_p": chance,
        "shares": list(SHARES), "edges": edges.tolist(),
        "mine": _figures(values[mine], edges), "previous": _figures(values[~mine], edges),
    }  # fmt: skip
    return result | {"said": _said(result)}


def _figures(values: NDArray[np.float64], edges: NDArray[np.float64]) -> dict[str, Any]:
    return {
        "answers": int(values.size),
        "mean": float(values.mean()),
        "quantiles": np.quantile(values, SHARES).tolist(),
        "density": np.histogram(values, edges, density=True)[0].tolist(),
    }


def _distance(
    values: NDArray[np.float64], mine: NDArray[np.bool_], of_prompt: NDArray[np.int64], exchanges: int, seed: int
) -> tuple[float, float]:
    """D of two samples, and the share of `exchanges` of whole prompts, this one among them, that reach it."""
    order = np.argsort(values, kind="stable")
    sorted_values, first, prompts = values[order], mine[order], of_prompt[order]
    last = np.append(sorted_values[1:] != sorted_values[:-1], True)  # equal values step together

    def largest(side: NDArray[np.bool_]) -> float:
        share, other = np.cumsum(side) / side.sum(), np.cumsum(~side) / (~side).sum()
        return float(np.abs(share - other)[last].max())

    found, random = largest(first), np.random.default_rng(seed)
    flips = (random.random(int(of_prompt.max()) + 1) < 0.5 for _ in range(exchanges))
    reached = sum(largest(first ^ flip[prompts]) >= found - 1e-12 for flip in flips)
    return found, (reached + 1) / (exchanges + 1)


def _said(result: Mapping[str, Any]) -> str:
    likely = result["ks_p"]
    verdict = "no more than chance makes" if likely >= 0.05 else "more than chance makes"
    spread = "" if result["difference_ci95"] is None else f" ± {result['difference_ci95']:.3g}"
    return (
        f"mean difference {result['difference']:+.3g}{spread}; largest distance of the distributions "
        f"{result['ks']:.3f}, {verdict} (p = {likely:.3f})"
    )


def text(result: Mapping[str, Any]) -> str:
    """What `recipes.judge` prints."""
    lines = [f"rewards, {result['prompts']:,} prompts: {result['said']}"]
    for key, name in (("mine", "this model"), ("previous", "the one before")):
        quantiles = "  ".join(f"{share:.0%} {value:.3g}" for share, value in zip(SHARES, result[key]["quantiles"]))
        lines.append(f"  {name}: mean {result[key]['mean']:.4g}; {quantiles}; {result[key]['answers']:,} answers")
    return "\n".join(lines)
