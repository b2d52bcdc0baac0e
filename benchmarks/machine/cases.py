"""The steps that calibration runs, and those that predictions are held against. No torch."""

from __future__ import annotations

from benchmarks.machine.readings import StepCase
from llama31.config import Model, Parallel

TINY = "tiny"
SHAPES = ((128, 4), (256, 4), (384, 2), (256, 8))  # hidden size and layers of the models that are predicted
LENGTH, MICRO_BATCHES = 256, 4
SHORT, WIDE = 32, (512, 1, 2048)  # tokens of what says how the host works; hidden size, layers and vocabulary
LAYOUTS = {  # on two processes; one alone is asked besides
    "TP 2": Parallel(tp=2),
    "PP 2": Parallel(pp=2),
    "CP 2": Parallel(cp=2),
    "DP 2, ZeRO 1": Parallel(),
    "DP 2, ZeRO 2": Parallel(zero=2),
    "DP 2, ZeRO 3": Parallel(zero=3),
}
ALONE = {"one process": Parallel()}
PLAIN, TENSOR, CONTEXT, REDUCING, GATHERING = "DP 2, ZeRO 1", "TP 2", "CP 2", "DP 2, ZeRO 2", "DP 2, ZeRO 3"
SMALL, EACH = (PLAIN, TENSOR, CONTEXT, REDUCING, GATHERING), (REDUCING, GATHERING)


def tiny(processes: int) -> list[StepCase]:
    """Models so small that a step is the host's work, with one layer and with five, of one micro-batch and of four.

    On layouts of data parallelism that send after each micro-batch a wide one besides, whose messages are longer.
    """
    layouts = {name: LAYOUTS[name] for name in SMALL} if processes > 1 else ALONE
    return [
        StepCase(
            f"{TINY} {layout}: {hidden} x {layers}, {count}", model(hidden, layers, rows), work, SHORT, count, layout
        )
        for layout, work in layouts.items()
        for hidden, layers, rows in ((64, 1, 256), (64, 5, 256), *([WIDE] if layout in EACH else []))
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
