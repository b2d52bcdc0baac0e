"""Runs of laws that are known: what a fit has to find again."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from llama31.config import REPORT_BUDGETS
from llama31.scaling.observations import Trained

# Besiroglu et al. 2024, Table 1, rounded; any numbers would do.
E, A, ALPHA, B, BETA = 1.8, 480.0, 0.35, 2100.0, 0.37
FEW = (1e19, 1e20, 1e21)


def best_tokens(flops: float) -> float:
    """Of the formula, at 6 FLOPs per parameter and token."""
    g = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA))
    return (flops / 6) ** (ALPHA / (ALPHA + BETA)) / g


def formula(parameters: float, tokens: float) -> float:
    """L = E + A / N^a + B / D^b."""
    return E + A / parameters**ALPHA + B / tokens**BETA


def of_formula(noise: float, rng: np.random.Generator, budgets: Sequence[float], sizes: int) -> list[Trained]:
    """Runs around the best tokens of each budget, to a factor of four; `noise` in nats."""
    return [
        Trained("planted", flops, parameters, tokens, formula(parameters, tokens) + rng.normal(0, noise))
        for flops in budgets
        for tokens in best_tokens(flops) * np.exp(np.linspace(-math.log(4), math.log(4), sizes))
        for parameters in [flops / 6 / tokens]
    ]


def of_report(
    noise: float,
    rng: np.random.Generator,
    budgets: Sequence[float] = REPORT_BUDGETS,
    sizes: int = 7,
    shift: float = 1.2,
) -> list[Trained]:
    """Parabolas whose minima follow the report's power law, 0.299 C^0.537 (Figure 3), flatter with every budget."""
    runs = []
    for flops in budgets:
        for factor in shift * np.exp(np.linspace(-math.log(4), math.log(4), sizes)):
            tokens = 0.299 * flops**0.537 * factor
            scale = (flops / 6e18) ** -0.1
            loss = 1.7 + 1.4 * scale + 0.06 * scale * math.log(factor) ** 2 + rng.normal(0, noise)
            runs.append(Trained("planted", flops, flops / 5.71 / tokens, tokens, loss))
    return runs


def write(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    """A CSV file."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def write_runs(path: Path, runs: Iterable[Trained]) -> Path:
    """The CSV file that `fit.input` takes."""
    rows = [(run.flops, run.parameters, run.tokens, run.loss) for run in runs]
    return write(path, ("flops", "parameters", "tokens", "loss"), rows)
