"""What stages will cost, in hours of a core, by what they were measured to cost per byte of the pages that came in.

Seconds of one core of an EPYC without AVX-512 for a gigabyte of HTML, out of the report.json of a run on the help of
LibreOffice in English and German and the documentation of SymPy: 5,431 pages, 90 MB of HTML with 16 MB of text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama31.curate.running.stages import CurationStage

SECONDS_PER_GB: dict[str, float] = {
    "extract": 155.0,
    "url_duplicates": 0.1,
    "filter": 120.0,
    "minhash_buckets": 0.6,
    "minhash_clusters": 0.2,
    "deduplicate": 6.0,
    "line_duplicates": 0.1,
    "lines": 5.0,
    "tokenize": 16.0,
    "tokens": 10.0,
}
EXPANDED = {"warc": 4.5}  # bytes of HTML for each byte of a compressed archive


def input_bytes(inputs: dict[str, Any], formats: dict[str, str]) -> float:
    """Bytes of pages that the files of the sources hold, of archives as they expand."""
    return sum(float(one["bytes"]) * EXPANDED.get(formats.get(name, ""), 1.0) for name, one in inputs.items())


def core_hours(stage: str, size: float) -> float:
    """Hours of a core that a stage takes for as many bytes of pages; stages that are not measured count nothing."""
    return SECONDS_PER_GB.get(stage, 0.0) * size / 1e9 / 3600


def bill(size: float) -> str:
    """One line for all stages."""
    total = sum(core_hours(stage, size) for stage in SECONDS_PER_GB)
    return f"0 GPUs, {total:.2g} core-h for {_bytes(size)} of HTML"


def table(known: Sequence[CurationStage], missing: dict[str, list[int]], size: float) -> list[str]:
    """Lines for people: each stage with its tasks, what is done of them, memory and hours, and the total."""
    rows = [("stage", "tasks", "done", "memory each", "core-h", "what")]
    total = 0.0
    for stage in known:
        hours = core_hours(stage.name, size) * len(missing[stage.name]) / stage.tasks
        total += hours
        done = stage.tasks - len(missing[stage.name])
        memory = f"{stage.memory_gb:g} GB"
        rows.append((stage.name, f"{stage.tasks:,}", f"{done:,}", memory, f"{hours:.2g}", stage.what))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [*(f"# {line}" for line in lines), f"# total: {total:.2g} core-h, 0 GPUs, for {_bytes(size)} of pages"]


def _bytes(size: float) -> str:
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size:,.0f} bytes"
