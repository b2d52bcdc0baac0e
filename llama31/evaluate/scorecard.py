"""The result of an evaluation as tables to read, from what is written as JSON. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def text(result: dict[str, Any]) -> str:
    """All tables of a result of `recipes.evaluate`, a blank line between them."""
    parts = [f"{result['checkpoint']}"]
    if "sources" in result:
        parts += [_sources(result), _positions(result["positions"])]
    if "against" in result:
        parts.append(_against(result["against"]))
    if "tasks" in result:
        parts.append(_tasks(result["tasks"]))
    if "needle" in result:
        parts.append(_needle(result["needle"]))
    parts += [f"{item['prompt']}|{item['continuation']}" for item in result.get("continuations", [])]
    return "\n\n".join(parts)


def _sources(result: dict[str, Any]) -> str:
    rows = [["held-out text", "loss", "95 %", "perplexity", "95 %", "tokens"]]
    for name, figures in [*result["sources"].items(), ("total", result["total"])]:
        between = "" if figures["low"] is None else f"{figures['low']:.4g} to {figures['high']:.4g}"
        loss, interval = f"{figures['loss']:.4f}", _interval(figures["loss_ci95"], 4)
        rows.append([name, loss, interval, f"{figures['perplexity']:.4g}", between, f"{figures['tokens']:,}"])
    return _aligned(rows)


def _positions(positions: dict[str, Any]) -> str:
    """Loss by tokens seen: a row per bin, a column per source."""
    bins = sorted({(entry["from"], entry["to"]) for figures in positions.values() for entry in figures})
    rows = [["loss by tokens seen", *positions]]
    for begin, end in bins:
        cells = []
        for figures in positions.values():
            here = [entry for entry in figures if entry["from"] == begin]
            cells.append(f"{here[0]['loss']:.4f} {_interval(here[0]['loss_ci95'], 4)}".strip() if here else "")
        rows.append([f"{begin:,}" if begin == end else f"{begin:,} to {end:,}", *cells])
    return _aligned(rows)


def _against(against: dict[str, Any]) -> str:
    rows = [["KL in nats per token", "mean", "95 %", "median", "99 %", "highest", "same likeliest", "95 %", "tokens"]]
    for name, figures in [*against["sources"].items(), ("total", against["total"])]:
        numbers = [f"{figures[one]:.4g}" for one in ("kl_p50", "kl_p99", "kl_max")]
        mean = [f"{figures['kl']:.4g}", "" if figures["kl_ci95"] is None else f"+-{figures['kl_ci95']:.2g}"]
        same = [f"{figures['same']:.2%}", "" if figures["same_ci95"] is None else f"+-{figures['same_ci95']:.2%}"]
        rows.append([name, *mean, *numbers, *same, f"{figures['tokens']:,}"])
    return f"against {against['checkpoint']}\n{_aligned(rows)}"


def _tasks(tasks: dict[str, Any]) -> str:
    rows = [["task", "acc", "acc_norm", "acc_bytes", "examples"]]
    for name, task in tasks.items():
        scores = [task[measure] for measure in rows[0][1:4]]
        cells = [f"{one['score']:.4f} {_interval(one['ci95'], 4)}" for one in scores]
        rows.append([name, *cells, f"{scores[0]['count']:,}"])
    return _aligned(rows)


def _needle(needle: dict[str, Any]) -> str:
    rows = [["recall by depth", *(f"{length:,}" for length in needle["lengths"])]]
    for depth, line in zip(needle["depths"], needle["recall"], strict=True):
        rows.append([f"{depth:.0%}", *(f"{share:.2f}" for share in line)])
    rows.append(["all depths", *(f"{one['score']:.2f} {_interval(one['ci95'], 2)}" for one in needle["by_length"])])
    total = needle["total"]
    return f"{_aligned(rows)}\nrecall {total['score']:.4f} {_interval(total['ci95'], 4)} of {total['count']:,} answers"


def _interval(half_width: float | None, digits: int) -> str:
    return "" if half_width is None else f"+-{half_width:.{digits}f}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their longest cell, the first flush left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths)))
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)
