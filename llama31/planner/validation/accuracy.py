"""How far predictions are from what was published: row by row, on average, and by family. No torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llama31.config import Hardware
from llama31.planner import speed
from llama31.planner.validation import footprint
from llama31.planner.validation.fitting import LeftOutFamily
from llama31.planner.validation.published import PublishedRun


@dataclass(frozen=True)
class Predicted:
    """A published run beside what was predicted of it. Errors are predicted / published - 1."""

    row: PublishedRun
    seconds: dict[str, float]  # of a step by cause; empty where no job could be made
    gib: dict[str, float]  # of memory by cause

    @property
    def step_s(self) -> float | None:
        return sum(self.seconds.values()) or None

    @property
    def tokens_per_s(self) -> float | None:
        """Per GPU."""
        job = self.row.job
        return None if job is None or not self.step_s else job.step_tokens / job.gpus / self.step_s

    @property
    def memory_gib(self) -> float | None:
        return sum(self.gib.values()) or None

    @property
    def step_error(self) -> float | None:
        return _error(self.step_s, self.row.step_s)

    @property
    def tokens_error(self) -> float | None:
        return _error(self.tokens_per_s, self.row.tokens_per_s)

    @property
    def memory_error(self) -> float | None:
        return _error(self.memory_gib, self.row.memory_gib)


def results(rows: Sequence[PublishedRun], hardware: Hardware) -> list[Predicted]:
    """Every row, predicted where a job could be made of it."""
    return [_predicted(row, hardware) for row in rows]


def averages(results: Sequence[Predicted]) -> dict[str, float | None]:
    """Mean and largest absolute errors over the rows that are averaged, as fractions; None where there are none."""
    steps = [abs(one.step_error) for one in results if one.row.averaged and one.step_error is not None]
    memory = [abs(one.memory_error) for one in results if one.row.averaged and one.memory_error is not None]
    return {
        "step_time_mape": _mean(steps),
        "step_time_worst": max(steps, default=None),
        "memory_mape": _mean(memory),
        "memory_worst": max(memory, default=None),
    }


def as_json(results: Sequence[Predicted]) -> str:
    """The averages and `rows`, each with both step times, tokens/s per GPU, memory, errors and causes."""
    return json.dumps({**averages(results), "rows": [_row(one) for one in results]}, indent=1) + "\n"


def tables(results: Sequence[Predicted], left_out: Sequence[LeftOutFamily]) -> str:
    """Rows, averages and families as Markdown."""
    lines = [
        "| line | run | step s | predicted | error | tokens/s/GPU | GiB | predicted | error | |",
        "|" + "---|" * 10,
    ]
    for one in results:
        row = one.row
        step = f"{_number(row.step_s)} | {_number(one.step_s)} | {_percent(one.step_error)}"
        memory = f"{_number(row.memory_gib)} | {_number(one.memory_gib)} | {_percent(one.memory_error)}"
        lines.append(f"| {row.line} | {row.id} | {step} | {_number(one.tokens_per_s)} | {memory} | {row.reason} |")
    mean = averages(results)
    counted = sum(one.row.averaged for one in results)
    lines += ["", f"{counted} of {len(results)} rows are averaged; the others say why not."]
    for name, title in (("step_time", "step time"), ("memory", "memory")):
        if mean[f"{name}_mape"] is None:
            lines.append(f"{title}: published of no row that is averaged")
            continue
        lines.append(f"{title}: mean error {_percent(mean[f'{name}_mape'])}, worst {_percent(mean[f'{name}_worst'])}")
    if left_out:
        lines += ["", "step time of families that the numbers had not seen (fitted to this file's other families):", ""]
        lines += ["| stack | family | rows | mean error | worst | bias |", "|---|---|---|---|---|---|"]
        lines += [_family(*one) for one in left_out]
        every = [abs(error) for one in left_out for error in one.errors]
        lines += ["", f"all of them: mean error {_percent(_mean(every))}"]
    return "\n".join(lines)


def _predicted(row: PublishedRun, hardware: Hardware) -> Predicted:
    if row.job is None:
        return Predicted(row, {}, {})
    seconds = speed.step(row.job, hardware.devices[row.job.device], hardware.stacks[row.job.stack])
    return Predicted(row, seconds, {name: count / footprint.GIB for name, count in footprint.causes(row.job).items()})


def _row(one: Predicted) -> dict[str, Any]:
    row = one.row
    return {
        "id": row.id,
        "line": row.line,
        "model": row.model,
        "gpu": row.device,
        "averaged": row.averaged,
        "reason": row.reason,
        "step_s": {"published": row.step_s, "predicted": one.step_s, "error": one.step_error},
        "tokens_per_s_gpu": {
            "published": row.tokens_per_s,
            "predicted": one.tokens_per_s,
            "error": one.tokens_error,
        },
        "memory_gib": {"published": row.memory_gib, "predicted": one.memory_gib, "error": one.memory_error},
        "seconds_by_cause": one.seconds,
        "gib_by_cause": one.gib,
    }


def _family(stack: str, family: str, errors: Sequence[float]) -> str:
    sizes = [abs(error) for error in errors]
    mean, bias = _percent(_mean(sizes)), _percent(_mean(errors), sign="+")
    return f"| {stack} | {family} | {len(errors)} | {mean} | {_percent(max(sizes))} | {bias} |"


def _error(predicted: float | None, published: float | None) -> float | None:
    return None if predicted is None or published is None else predicted / published - 1


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}" if value < 10_000 else f"{value:,.0f}"


def _percent(value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{100 * value:{sign}.1f} %"
