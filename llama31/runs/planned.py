"""The picture of a planned layout: its step played out, memory by stage, and what more or fewer GPUs would reach.

Panels are put together here, and drawn by `runs.plots`. No torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from llama31.plan import memory
from llama31.planner import search, timeline
from llama31.planner.search import Demand, Proposal
from llama31.planner.timeline import Timeline
from llama31.runs import plots

DOUBLINGS = 3  # of the GPUs, up and down
WHOLE = 130  # passes of a stage whose numbers can be read; of more, the beginning and the end are drawn again, larger
DIGITS = 75  # of passes beside each other in each of the two
TWO_WAYS = {"forward": 0, "backward": 1}
AFTER = {"dp": "exposed DP", "optimizer": "optimizer", "fixed": "data, norms, logging", "jitter": "jitter"}


class Reach(NamedTuple):
    """What the fastest layout on so many GPUs reaches; None where none fits."""

    gpus: int
    best: Proposal | None


def reaches(asked: Demand, best: Proposal) -> list[Reach]:
    """The fastest layout for halves and doublings of the GPUs, the batch as it is."""
    result = []
    for power in range(-DOUBLINGS, DOUBLINGS + 1):
        gpus = asked.gpus << power if power >= 0 else asked.gpus >> -power
        if not gpus or (power < 0 and asked.gpus % (1 << -power)):
            continue
        found = [best] if not power else search.fastest(dataclasses.replace(asked, gpus=gpus), 1)
        result.append(Reach(gpus, found[0] if found else None))
    return result


def said(reached: Sequence[Reach]) -> list[str]:
    """Of GPUs that no layout is accepted for and fits."""
    none = ", ".join(f"{one.gpus:,}" for one in reached if one.best is None)
    return [f"no layout of this batch is accepted and fits on {none} GPUs"] if none else []


def draw(picture: str, device: str, asked: Demand, reached: Sequence[Reach]) -> Path:
    """Draw all of it to a PNG or SVG file."""
    best = next(one.best for one in reached if one.best is not None and one.gpus == asked.gpus)
    layout = best.parallel
    played = timeline.of_step(asked.model, layout, best.job, asked.device, asked.stack)
    sizes = f"tp {layout.tp} · cp {layout.cp} · pp {layout.pp} · vpp {layout.vpp} · dp {layout.dp}"
    sizes += " · zero 3" if layout.zero == 3 else ""
    title = f"{asked.model.name} on {asked.gpus:,} {device}: {sizes}, rows of {asked.sequence_length:,} tokens, "
    title += f"{asked.batch_tokens:,} a step"
    panels = [_memory(asked, best), *_throughput(asked, reached)]
    return plots.draw_chart(picture, title, chart(played, best.step_s), panels)


def chart(played: Timeline, predicted_s: float) -> plots.Occupancy:
    """The passes of a step as boxes with the number of their micro-batch, paler from chunk to chunk."""
    layout = played.parallel
    boxes = [
        plots.Box(
            one.stage,
            one.begin_s,
            one.end_s,
            "backward" if one.done.backward else "forward",
            0.15 + 0.6 * one.done.chunk / layout.vpp,
            str(one.done.micro_batch),
        )
        for one in played.passes
    ]
    at = played.computed_s
    for cause, seconds in played.after.items():
        boxes += [plots.Box(stage, at, at + seconds, AFTER[cause]) for stage in range(layout.pp)]
        at += seconds
    chunks = f", {layout.vpp} chunks a stage (paler: later)" if layout.vpp > 1 else ""
    title = f"One step, played out as Megatron-Core's schedule orders it: {played.micro_batches} micro-batches "
    title += f"(numbers){chunks}; {played.end_s:.3g} s ({predicted_s:.3g} by the formula), "
    title += f"stages idle {played.idle:.1%} of their passes' time"
    title += "; below, its beginning and its end" if _windows(played) else ""
    kinds = TWO_WAYS | {AFTER[cause]: number for number, cause in enumerate(played.after, start=2)}
    rows = [str(stage) for stage in range(layout.pp)]
    spans = played.phases(0) if layout.pp > 1 else {}
    spans = {f"{name} of stage 0": span for name, span in spans.items()}
    return plots.Occupancy(title, "seconds", "pipeline stage", rows, boxes, kinds, spans, _windows(played))


def _windows(played: Timeline) -> list[tuple[float, float]]:
    """Beginning and end of a step whose passes are too many to be read in the whole."""
    passes = 2 * played.micro_batches * played.parallel.vpp
    if passes <= WHOLE:
        return []
    middle = [one for one in played.passes if one.stage == played.parallel.pp // 2]  # the first may have no layer
    shown, end = DIGITS // len(str(played.micro_batches - 1)), played.computed_s
    first, last = middle[shown - 1].end_s - middle[0].begin_s, middle[-1].end_s - middle[-shown].begin_s
    return [(0.0, first), (end - last, end)]


def _memory(asked: Demand, best: Proposal) -> plots.Panel:
    work = memory.workload(best.parallel, asked.stage, best.parallel.dp or 1)
    stages = memory.predict(asked.model, best.parallel, asked.numbers, work)
    below, traces, x = [0.0] * len(stages), list[plots.Trace](), range(len(stages))
    for number, cause in enumerate(stages[0].causes()):
        above = [low + stage.causes()[cause] / 1e9 for low, stage in zip(below, stages)]
        traces.append(plots.Trace(x, below, cause, "stack", number, high=above))
        below = above
    ends, limit = (-0.5, len(stages) - 0.5), asked.memory_gb
    traces.append(plots.Trace(ends, (limit, limit), f"limit: {limit:.1f} GB for tensors", "dashed", 3))
    title = f"Memory of a rank by cause: {max(below):.1f} GB on the fullest stage"
    return plots.Panel(title, "pipeline stage", "GB", traces, names=[str(stage.stage) for stage in stages], columns=4)


def _throughput(asked: Demand, reached: Sequence[Reach]) -> list[plots.Panel]:
    """Tokens per second of a GPU and of all, over the GPUs."""
    names, places, each, every = [], [], list[float](), list[float]()
    for place, one in enumerate(reached):
        if one.best is None:
            names.append(f"{one.gpus:,}\nnone fits")
            continue
        layout = one.best.parallel
        sizes = f"tp {layout.tp}\ncp {layout.cp}\npp {layout.pp}\nvpp {layout.vpp}\ndp {layout.dp}"
        names.append(f"{one.gpus:,}\n{sizes}\n{one.best.step_s:.3g} s")
        places.append(place)
        every.append(asked.batch_tokens / one.best.step_s)
        each.append(every[-1] / one.gpus)
    linear = [every[0] * 2 ** (place - places[0]) for place in places]
    per_gpu = plots.Trace(places, [0.0] * len(each), "tokens/s of a GPU", "stack", 0, high=each)
    total = [
        plots.Trace(places, linear, "as the GPUs grow", "dashed"),
        plots.Trace(places, every, "", "line"),
        plots.Trace(places, every, "tokens/s of all GPUs", "points"),
    ]
    label = "GPUs: the fastest layout for the same batch, and its step"
    counts = [name.partition("\n")[0] for name in names]
    return [
        plots.Panel("Throughput of a GPU", label, "tokens/s/GPU", [per_gpu], names=names),
        plots.Panel("Throughput of all GPUs", "GPUs", "tokens/s", total, log_y=True, names=counts),
    ]
