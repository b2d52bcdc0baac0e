"""What came out, in Markdown: cases, goals, where the time goes, what was left out. And its JSON."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.gpu import ceilings
from benchmarks.gpu.conductor import Record, Said
from benchmarks.gpu.plan import RECIPES, SAVING, GpuWork, parameters

Runs = Mapping[str, list[Said]]
Figure = Callable[[Runs], float | None]


def grouped(record: Record) -> dict[str, list[Said]]:
    """The runs of each case, in the order in which the cases were first measured."""
    runs: dict[str, list[Said]] = {}
    for run in record.runs:
        runs.setdefault(run["case"], []).append(run)
    return runs


def speeds(runs: Sequence[Said]) -> list[float]:
    """Tokens a second of every measured step of a case's runs."""
    return [run["tokens"] / ms * 1e3 for run in runs for ms in run["steps_ms"]]


def _speed(runs: Runs, name: str) -> float | None:
    return statistics.median(speeds(runs[name])) if name in runs else None


def _peak(runs: Runs, name: str) -> float | None:
    return max(run["peak_bytes"] for run in runs[name]) if name in runs else None


def _ratio(one: float | None, other: float | None) -> float | None:
    return one / other if one is not None and other else None


def _best(runs: Runs, trainer: str) -> float | None:
    found = [_speed(runs, f"{trainer}-fp8-{recipe}") for recipe in RECIPES]
    return max((speed for speed in found if speed is not None), default=None)


def _against(case: str, peer: str) -> Figure:
    return lambda runs: _ratio(_speed(runs, case), _speed(runs, peer))


def _memory(case: str) -> Figure:
    return lambda runs: _ratio(_peak(runs, case), _peak(runs, "megatron"))


# What is compared, what the first measurement on an H100 gave, and what is aimed at; "at most" where less is better.
GOALS: list[tuple[str, str, float, bool, Figure]] = [
    ("rows of one length: ours / Megatron's own", "0.77", 1.08, True, _against("ours", "megatron")),
    ("rows twice as long: the same", "", 1.08, True, _against("ours-2x", "megatron-2x")),
    ("eight documents a row: the same", "", 1.08, True, _against("ours-eight", "megatron-eight")),
    (
        "FP8, the best recipe of each: the same",
        "0.72",
        1.10,
        True,
        lambda runs: _ratio(_best(runs, "ours"), _best(runs, "megatron")),
    ),
    ("ours / transformers with torch.compile and autocast", "0.96", 1.35, True, _against("ours", "transformers")),
    ("peak memory: ours / Megatron's own", "1.02", 0.98, False, _memory("ours")),
    ("the same, SwiGLU's output computed again", "", 0.95, False, _memory(SAVING.name)),
    ("rows of short dialogs / rows of one document, ours", "", 0.9, True, _against("ours-dialogs", "ours")),
    (
        "rows eight times as long, long-tailed documents: ours / Megatron's own (THD)",
        "",
        1.1,
        True,
        _against("ours-tail-8x", "megatron-tail-8x"),
    ),
]


def share_of_ceilings(record: Record, work: GpuWork) -> float | None:
    """Of a step of ours the part that it would take at the card's ceilings."""
    runs = grouped(record)
    found = [run["ceilings"] for run in record.runs if "ceilings" in run]
    if not found or "ours" not in runs:
        return None
    step_ms = statistics.median(ms for run in runs["ours"] for ms in run["steps_ms"])
    return sum(ceilings.least_ms(found[0], work).values()) / step_ms


def case_table(record: Record) -> str:
    """Medians of all steps of a case, with their range."""
    lines = [
        "| case | tokens/s: median (range) | steps | ms a step | TFLOP/s (causal) | peak GB | notes |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, runs in grouped(record).items():
        if "steps_ms" not in runs[0]:
            continue
        each, median = speeds(runs), statistics.median(speeds(runs))
        per_token = runs[0].get("flops_per_token")
        peak = max(run["peak_bytes"] for run in runs) / 1e9
        lines.append(
            f"| {name} | {median:,.0f} ({min(each):,.0f} to {max(each):,.0f}) | {len(each)} "
            f"| {runs[0]['tokens'] / median * 1e3:,.1f} | {f'{median * per_token / 1e12:,.3g}' if per_token else ''} "
            f"| {peak:.2f} | {'; '.join(runs[0]['notes'])} |"
        )
    return "\n".join(lines)


def goal_table(record: Record, work: GpuWork) -> str:
    """Ratios that could be made of what was measured, beside the goal on one H100."""
    lines = ["| figure | first measured | now | goal on one H100 | reached |", "|---|---|---|---|---|"]
    runs = grouped(record)
    found = [(*goal[:4], goal[4](runs)) for goal in GOALS]
    found.append(("share of a step at the ceilings", "0.62", 0.87, True, share_of_ceilings(record, work)))
    for name, before, goal, more, now in found:
        if now is not None:
            sign, reached = (">=", now >= goal) if more else ("<=", now <= goal)
            lines.append(f"| {name} | {before} | {now:.3f} | {sign} {goal:g} | {'yes' if reached else 'no'} |")
    return "\n".join(lines)


def class_table(record: Record, work: GpuWork) -> str:
    """Milliseconds and launches by class of kernel, of one profiled step of each case; the ceilings beside ours."""
    profiles = {name: runs[0]["profile"] for name, runs in grouped(record).items() if "profile" in runs[0]}
    if not profiles:
        return ""
    found = [run["ceilings"] for run in record.runs if "ceilings" in run]
    least = ceilings.least_ms(found[0], work) if found else {}
    total: dict[str, float] = {}
    for profile in profiles.values():
        for kind, entry in profile["classes"].items():
            total[kind] = total.get(kind, 0.0) + entry["ms"]
    bound = [" at the ceilings |", "---|"] if least else ["", ""]
    lines = [
        f"| ms (launches) of a step |{bound[0]} {' | '.join(profiles)} |",
        f"|---|{bound[1]}{'---|' * len(profiles)}",
    ]
    for kind in sorted(total, key=lambda kind: -total[kind]):
        cells = [_cell(profile["classes"].get(kind)) for profile in profiles.values()]
        lines.append(f"| {kind} |{_least(least, kind)} {' | '.join(cells)} |")
    for label, key in (("gaps", "gaps_ms"), ("step, profiled", "wall_ms")):
        cells = [f"{profile[key]:,.1f}" for profile in profiles.values()]
        lines.append(f"| {label} |{' |' if least else ''} {' | '.join(cells)} |")
    for label, key in (("launches", "launches"), ("waits for the device", "synchronisations")):
        cells = [f"{profile[key]:,}" for profile in profiles.values()]
        lines.append(f"| {label} |{' |' if least else ''} {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(entry: Said | None) -> str:
    return f"{entry['ms']:,.1f} ({entry['launches']:,})" if entry else ""


def _least(least: Mapping[str, float], kind: str) -> str:
    if not least:
        return ""
    return f" {least[kind]:,.1f} |" if kind in least else " |"


def ceiling_table(found: Said) -> str:
    """Products, attention and bandwidths of the card."""
    lines = ["| ceiling | TFLOP/s |", "|---|---|"]
    for entry in found["products"]:
        shape = "x".join(str(entry[side]) for side in "mnk")
        value = f"{entry['tflops']:,.3g}" if "tflops" in entry else entry["failed"]
        lines.append(f"| {entry['format']} {entry['name']}, {entry['pass']}, {shape} | {value} |")
    for entry in found["attention"]:
        both = f"{entry['forward_tflops']:,.3g} / {entry['backward_tflops']:,.3g}" if "forward_tflops" in entry else ""
        lines.append(f"| attention, {entry['kernel']}, {entry['length']:,} | {both or entry['failed']} |")
    lines += [
        f"| copy, TB/s read and written | {found['copy_bytes_per_s'] / 1e12:.3g} |",
        f"| fused AdamW, TB/s | {found['adamw_bytes_per_s'] / 1e12:.3g} |",
    ]
    return "\n".join(lines)


def micro_table(rows: Sequence[Said]) -> str:
    """One kernel a row; what sets it apart in one column."""
    lines = ["| kernel | of | us |", "|---|---|---|"]
    for row in rows:
        of = ", ".join(f"{key} {value}" for key, value in row.items() if key not in ("what", "us", "failed"))
        value = f"{row['us']:,.1f}" if "us" in row else row.get("failed", "")
        lines.append(f"| {row['what']} | {of} | {value} |")
    return "\n".join(lines)


def heading(record: Record, work: GpuWork, part: str) -> str:
    """When, on what, with what, and what the slice is."""
    machine = record.machine or {"name": "no machine", "device": "none", "versions": {}}
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    m = work.model
    shape = f"{m.layers} layers of width {m.hidden_size} ({parameters(m) / 1e9:.3g}e9 parameters)"
    rows = f"rows of {work.sequence_length:,}, {work.rows} a step, micro-batch {work.micro_batch}"
    return (
        f"`python -m recipes.benchmark gpu part={part}`, {record.date}, device={machine['device']}: {machine['name']}; "
        f"{versions}; commit {record.commit}. {shape}, {rows}; medians of {work.steps} steps after {work.warmup_steps}."
    )


def markdown(record: Record, work: GpuWork, part: str) -> str:
    """All tables that there is something for."""
    parts = [heading(record, work, part)]
    if any("steps_ms" in run for run in record.runs):
        parts += [case_table(record), goal_table(record, work), class_table(record, work)]
    parts += [ceiling_table(run["ceilings"]) for run in record.runs if "ceilings" in run]
    parts += [micro_table(run["micro"]) for run in record.runs if "micro" in run]
    if record.left_out:
        parts.append("\n".join(["Left out:", "", *(f"- {one['case']}: {one['why']}" for one in record.left_out)]))
    return "\n\n".join(parts) + "\n"


def as_json(record: Record, work: GpuWork, part: str) -> dict[str, Any]:
    """The record whole; `ceilings`, where they were measured, by their own name with device, date and versions."""
    origin = {"date": record.date, "commit": record.commit, **record.machine}
    found = [origin | run["ceilings"] for run in record.runs if "ceilings" in run]
    return {
        "kind": "gpu benchmark",
        "schema": 1,
        "part": part,
        **origin,
        "work": dataclasses.asdict(work),
        "runs": record.runs,
        "left_out": record.left_out,
        **({"ceilings": found[0]} if found else {}),
    }
