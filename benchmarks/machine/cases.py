"""The steps that calibration runs, and those that predictions are held against. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.machine.readings import StepCase
from llama31.config import Model, Parallel

TINY = "tiny"
SHAPES = ((128, 4), (256, 4), (384, 2), (256, 8))  # hidden size and layers of the models that are predicted
LENGTH, MICRO_BATCHES = 256, 4
LAYOUTS = {  # on two processes; one alone is asked besides
    "TP 2": Parallel(tp=2),
    "PP 2": Parallel(pp=2),
    "CP 2": Parallel(cp=2),
    "DP 2, ZeRO 1": Parallel(),
    "DP 2, ZeRO 2": Parallel(zero=2),
    "DP 2, ZeRO 3": Parallel(zero=3),
}
ALONE = {"one process": Parallel()}


def tiny(processes: int) -> list[StepCase]:
    """Models so small that a step is the host's work, with one layer and with five, of one micro-batch and of four."""
    return [
        StepCase(f"{TINY} {layers} {count} {zero}", model(64, layers, 256), Parallel(zero=zero), 32, count)
        for zero in ((1, 2, 3) if processes > 1 else (1,))
        for layers in (1, 5)
        for count in (1, 4)
    ]


def predicted(processes: int) -> list[StepCase]:
    """Small models on every layout of one process, or of two."""
    layouts = LAYOUTS if processes == 2 else ALONE if processes == 1 else {}
    return [
        StepCase(f"{layout}: {hidden} x {layers}", model(hidden, layers, 2048), parallel, LENGTH, MICRO_BATCHES)
        for layout, parallel in layouts.items()
        for hidden, layers in SHAPES
    ]


def of_layout(cases: Sequence[StepCase], layout: str) -> list[StepCase]:
    """Those on one layout."""
    return [case for case in cases if case.name.startswith(f"{layout}:")]


def model(hidden: int, layers: int, vocabulary: int) -> Model:
    """A small Llama with heads of 64, or 32 where there would be one."""
    heads = max(2, hidden // 64)
    return Model(
        name=f"{hidden} x {layers}",
        layers=layers,
        hidden_size=hidden,
        ffn_hidden_size=hidden * 11 // 4 // 64 * 64,
        heads=heads,
        kv_heads=2,
        vocab_size=vocabulary,
        max_positions=1024,
        rope_factor=0,
    )
