"""Published formulas of Calculon (Isaev et al., SC'23) on the rows that the planner is held against.

`python -m benchmarks.calculon_formulas [CSV]`, by default benchmarks/published_runs.csv: mean and worst errors of step
times by family, Calculon's beside the planner's, whose numbers have not seen the family. Nothing is fitted here.

Written afresh from the formulas of the tool's repository (calculon-ai/calculon), with the numbers of its file for
H100s, `h100_80g_nvl8`: products at 1,000 TFLOP/s, vectors at 120, memory at 3,072 GB/s, NVLink at 450 GB/s with 0.6
and a network of 50 GB/s with 0.9, each with its efficiency by size. An operation takes its products and its bytes one
after the other. There are no terms for embedding and head, for launches, nor for waiting between ranks.

What had to be added for Llama: fewer key heads, SwiGLU as two products and a multiplication, no dropout, context
parallelism (tokens of a rank over CP; keys and values of the others over the network that holds them), and FP8 at twice
the rate of products. `flash` leaves out what does not exist any more in such kernels: scores in memory, and the masked
half of the square.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llama31 import config
from llama31.command import entry
from llama31.planner.validation import fitting, published
from llama31.planner.validation.published import PublishedRun
from llama31.planner.workloads import StepJob, widths

PRODUCTS, VECTORS, MEMORY = 1000e12, 120e12, 3072e9
# Efficiency from a size on: of GFLOPs of a product, of GFLOPs of a vector operation, of MB of memory.
PRODUCTS_REACH = ((128, 0.95), (16, 0.9), (1, 0.6), (0, 0.1))
VECTORS_REACH = ((16, 0.95), (1, 0.5), (0, 0.1))
MEMORY_REACH = ((100, 0.9), (10, 0.75), (1, 0.6), (0, 0.3))
NVLINK, NVLINK_TIMES, NVLINK_USES = 450e9 * 0.6, 1.5, 0.15
NETWORK, NETWORK_USES = 50e9 * 0.9, 0.02
NUMBER = 2  # bytes


def reached(table: Sequence[tuple[float, float]], size: float) -> float:
    """The efficiency of a size."""
    return next(share for least, share in table if size >= least)


@dataclass(frozen=True)
class Operation:
    """FLOPs and numbers moved of one operation, forward and backward."""

    forward: tuple[float, float]
    backward: tuple[tuple[float, float], ...]
    product: bool = False
    weights: float = 0.0

    def seconds(self, fp8: bool, forward: bool) -> float:
        """One after the other: what is computed, and what is moved."""
        return sum(self._one(flops, numbers, fp8) for flops, numbers in ([self.forward] if forward else self.backward))

    def _one(self, flops: float, numbers: float, fp8: bool) -> float:
        moved = NUMBER * numbers
        table, peak = (PRODUCTS_REACH, PRODUCTS * (2 if fp8 else 1)) if self.product else (VECTORS_REACH, VECTORS)
        computing = flops / (peak * reached(table, flops / 1e9)) if flops else 0.0
        return computing + (moved / (MEMORY * reached(MEMORY_REACH, moved / 1e6)) if moved else 0.0)


def linear(rows: float, inputs: float, outputs: float) -> Operation:
    """A product with weights: its output, and the gradients of its input and of its weights."""
    numbers, flops = rows * inputs + rows * outputs + inputs * outputs, 2 * rows * inputs * outputs
    return Operation((flops, numbers), ((flops, numbers), (flops, numbers)), True, inputs * outputs)


def elementwise(flops: float, back: float, numbers: float, moved_back: float, weights: float = 0.0) -> Operation:
    """A vector operation."""
    return Operation((flops, numbers), ((back, moved_back),), weights=weights)


def block(job: StepJob, flash: bool) -> Iterator[Operation]:
    """A layer on a rank, in order. Norms and residuals stand on 1 / TP of the tokens."""
    model, tokens, tp = job.model, job.tokens, job.tp
    hidden, (queries, keys, ffn) = model.hidden_size, widths(model, tp)
    own = tokens * hidden / tp
    for half in (0, 1):
        yield elementwise(0, 2 * own, 0, 3 * own)  # taken by the branch and by the residual
        yield elementwise(9 * own, 21 * own, 2 * own, 4 * own, hidden)  # norm
        if half == 0:
            yield elementwise(0, 3 * tokens * hidden, 0, 4 * tokens * hidden)  # taken by three products
            yield linear(tokens, hidden, queries)
            yield linear(tokens, hidden, keys / 2)
            yield linear(tokens, hidden, keys / 2)
            yield from attention(job, queries, flash)
            yield linear(tokens, queries, hidden)
        else:
            yield linear(tokens, hidden, ffn)
            yield linear(tokens, hidden, ffn)
            gated = tokens * ffn
            yield elementwise(9 * gated, 15 * gated, 3 * gated, 5 * gated)
            yield linear(tokens, ffn, hidden)
        yield elementwise(own, 2 * own, 3 * own, 3 * own)  # residual


def attention(job: StepJob, queries: float, flash: bool) -> Iterator[Operation]:
    """Scores, softmax and the weighted sum."""
    scores = job.tokens * job.sequence_length * queries / job.model.head_dim
    if flash:
        flops, numbers = 2 * scores * job.model.head_dim, 4 * job.tokens * queries
        yield Operation((flops, numbers), ((2.5 * flops, 2 * numbers),), True)
        return
    flops, numbers = 2 * scores * job.model.head_dim, 2 * job.tokens * queries + scores
    yield Operation((flops, numbers), ((2 * flops, numbers),), True)
    yield elementwise(5 * scores, 8 * scores, 2 * scores, 2 * scores)
    yield Operation((flops, numbers), ((2 * flops, numbers),), True)


def step_s(job: StepJob, flash: bool, overlap: bool) -> float:
    """Seconds of a step; with `overlap` of messages of TP with the tiles of products, and of DP with passes."""
    operations = list(block(job, flash))
    forward = sum(one.seconds(job.fp8, True) for one in operations)
    backward = sum(one.seconds(job.fp8, False) for one in operations)
    forward_tp, backward_tp = messages(job, 4, overlap), messages(job, 6, overlap)
    again = forward if "full" in job.recompute else 0.0
    layers = job.model.layers / job.pp
    per_chunk = layers / job.vpp
    sent = NUMBER * job.tokens * job.model.hidden_size / job.tp / NETWORK if job.pp > 1 else 0.0
    one_way = per_chunk * (forward + forward_tp + keys_sent(job)) + sent
    back = per_chunk * (backward + backward_tp + again + 2 * keys_sent(job)) + sent
    chunk = one_way + back
    whole = job.micro_batches * job.vpp * chunk + (job.pp - 1) * chunk
    weights = sum(one.weights for one in operations)
    return whole + exposed_dp(job, weights, per_chunk, back, overlap) + layers * update(weights, job.shards)


def messages(job: StepJob, count: int, overlap: bool) -> float:
    """Gathers and scatters of a layer under sequence parallelism; behind tiles, the share of the processor is left."""
    if job.tp == 1:
        return 0.0
    size = NUMBER * job.tokens * job.model.hidden_size
    one = NVLINK_TIMES * size / NVLINK
    if overlap:
        return count * one * (job.tp - 1) / job.tp * NVLINK_USES
    return count * (one + 2 * size / (MEMORY * reached(MEMORY_REACH, 2 * size / 1e6)))


def keys_sent(job: StepJob) -> float:
    """K and V of the other ranks of CP. Not in Calculon."""
    _, keys, _ = widths(job.model, job.tp)
    rate = NVLINK if job.tp * job.cp <= 8 else NETWORK
    return NUMBER * keys * job.tokens * (job.cp - 1) / rate


def exposed_dp(job: StepJob, weights: float, per_chunk: float, back: float, overlap: bool) -> float:
    """Gradients scattered and weights gathered, a layer at a time; the last layer's are always seen."""
    if job.shards == 1:
        return 0.0
    inside = job.gpus <= 8
    rate = NVLINK / NVLINK_TIMES if inside else NETWORK * job.shards / (job.shards - 1)
    layer = 2 * NUMBER * weights / rate
    if not overlap:
        return layer * per_chunk * job.vpp
    uses = NVLINK_USES if inside else NETWORK_USES
    chunk, window = per_chunk * layer, job.pp * back
    others = (job.vpp - 1) * (max(0.0, chunk - window) or chunk * uses)
    rest, room = (per_chunk - 1) * layer, back * (1 - 1 / per_chunk)
    return layer + others + (max(0.0, rest - room) or max(0.0, rest) * uses)


def update(weights: float, shards: int) -> float:
    """Adam on a layer's share: 11 operations a weight, and 12 bytes moved."""
    own = weights / shards
    flops, moved = 11 * own, 12 * own
    return flops / (VECTORS * reached(VECTORS_REACH, flops / 1e9)) + moved / (
        MEMORY * reached(MEMORY_REACH, moved / 1e6)
    )


def errors(rows: Sequence[PublishedRun], flash: bool, overlap: bool) -> dict[str, list[float]]:
    """Predicted / published - 1 by family."""
    result: dict[str, list[float]] = {}
    for row in rows:
        assert row.job is not None and row.step_s is not None
        result.setdefault(row.family, []).append(step_s(row.job, flash, overlap) / row.step_s - 1)
    return result


def table(rows: Sequence[PublishedRun], hardware: config.Hardware) -> str:
    """A line per family and all of them: mean and worst of every variant, and of the planner's left-out predictions."""
    kept = [row for row in rows if fitting.fitted(row, "megatron")]
    variants = {
        "Calculon, as it stands": errors(kept, flash=False, overlap=False),
        "with its overlap": errors(kept, flash=False, overlap=True),
        "with flash attention too": errors(kept, flash=True, overlap=True),
        "planner, family left out": {
            one.family: one.errors for one in fitting.families_left_out(kept, hardware) if one.stack == "megatron"
        },
    }
    lines = [f"| step times, mean (worst) | rows | {' | '.join(variants)} |", "|" + "---|" * (2 + len(variants))]
    families = list(dict.fromkeys(row.family for row in kept))
    for name, chosen in [*((family, [family]) for family in families), ("all", families)]:
        cells = [[error for family in chosen for error in of[family]] for of in variants.values()]
        lines.append(f"| {name} | {len(cells[0])} | {' | '.join(map(_cell, cells))} |")
    return "\n".join(lines)


def _cell(each: Sequence[float]) -> str:
    worst = max(each, key=abs)
    return f"{statistics.mean(map(abs, each)):.1%} ({worst:+.0%})" if math.isfinite(worst) else "none"


def main(path: Path) -> None:
    """Print the table."""
    run = entry.compose(config.Plan, "plan", [])
    print(table(published.read(path, run.models, run.hardware), run.hardware))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "published_runs.csv"))
