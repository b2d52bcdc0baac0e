"""All layouts of a model on so many GPUs, the fastest that are accepted and fit first. Arithmetic, no torch.

Every layout has its time predicted, which takes a tenth of a millisecond; whether one is possible and fits is asked in
the order of time until enough do. One that does not fit comes again with more computed a second time.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from llama31.config import Device, Limits, Model, Parallel, Precision, Stack
from llama31.plan import layout, memory
from llama31.plan.memory import Capacity, StageMemory
from llama31.plan.schedule import Stage
from llama31.plan.shapes import BYTES
from llama31.planner import speed
from llama31.planner.workloads import StepJob

RECOMPUTE: tuple[tuple[str, ...], ...] = ((), ("norms",), ("swiglu",), ("norms", "swiglu"), ("mlp",), ("full",))
MICRO_BATCHES = (1, 2, 4, 8)  # rows
FEWEST_TOKENS = 512  # of a row on a rank of CP: fewer are all overhead
MOST_CHUNKS = 16  # of a stage


@dataclass(frozen=True)
class Demand:
    """What is to be laid out, and on what."""

    model: Model
    numbers: Precision
    device: Device
    stack: Stack
    gpus: int
    sequence_length: int
    batch_tokens: int
    memory_gb: float
    limits: Limits = field(default_factory=Limits)

    @property
    def stage(self) -> Stage:
        return Stage(0, None, 0, self.batch_tokens, self.sequence_length)

    @property
    def rows(self) -> int:
        """Of a step."""
        return self.batch_tokens // self.sequence_length

    @property
    def peak_tflops(self) -> float:
        """Of the numbers that weights are in, which MFU counts by."""
        return self.device.fp32_tflops if self.numbers.params == "fp32" else self.device.bf16_tflops

    @property
    def recompute(self) -> list[tuple[str, ...]]:
        """What may be computed again, the least first."""
        allowed = self.limits.recompute
        return [parts for parts in RECOMPUTE if not allowed or named(parts) in allowed]


@dataclass(frozen=True)
class Proposal:
    """A layout that is accepted and fits, with seconds of its step by cause."""

    parallel: Parallel
    job: StepJob
    seconds: dict[str, float]
    memory: StageMemory  # of the stage that needs most

    @property
    def step_s(self) -> float:
        return speed.total(self.seconds)


def named(recompute: Sequence[str]) -> str:
    """What is computed again, as limits and tables say it."""
    return "+".join(recompute) or "none"


def fastest(request: Demand, count: int) -> list[Proposal]:
    """The `count` fastest layouts that are accepted and fit; fewer where there are no more."""
    order = itertools.count()  # ties are not decided by comparing layouts
    waiting = [_entry(request, parallel, 0, next(order)) for parallel in candidates(request)]
    heapq.heapify(waiting)
    result: list[Proposal] = []
    capacity = Capacity(request.memory_gb)
    while waiting and len(result) < count:
        _, _, level, seconds, parallel, job = heapq.heappop(waiting)
        if layout.problems(request.model, parallel, [request.stage], request.gpus, request.numbers):
            continue
        need, _ = layout.worst(request.model, parallel, [request.stage], parallel.dp or 1, request.numbers, capacity)
        if need.total <= capacity.gb * 1e9:
            result.append(Proposal(parallel, job, seconds, need))
        elif level + 1 < len(request.recompute):
            heapq.heappush(waiting, _entry(request, parallel, level + 1, next(order)))
    return result


def candidates(request: Demand) -> Iterator[Parallel]:
    """Layouts whose sizes multiply out and split model, rows and batch, and whose states alone do fit."""
    model, world, limits = request.model, request.gpus, request.limits
    tps = _allowed((tp for tp in _powers(min(request.device.per_node, model.heads)) if world % tp == 0), limits.tp)
    cps = _allowed(_powers(max(1, request.sequence_length // FEWEST_TOKENS)), limits.cp)
    for tp, cp in itertools.product(tps, cps):
        if world % (tp * cp):
            continue
        for pp in _allowed(_stages(model, world // tp // cp), limits.pp):
            dp, rest = divmod(world, tp * cp * pp)
            if rest or request.rows % dp or not _allowed([dp], limits.dp):
                continue
            each = request.rows // dp
            sizes = _allowed((size for size in MICRO_BATCHES if each % size == 0), limits.micro_batch)
            zeros = _allowed((1, 3) if pp == 1 and dp * cp > 1 else (1,), limits.zero)
            chunks = _allowed(_chunks(model, pp), limits.vpp)
            for vpp, size, zero in itertools.product(chunks, sizes, zeros):
                if vpp > 1 and each // size < pp:
                    continue
                ends = pp > 1 and model.layers % (pp * vpp) > 0
                parallel = Parallel(
                    tp=tp, cp=cp, pp=pp, dp=dp, vpp=vpp, micro_batch=size, zero=zero,
                    embedding_as_layer=ends, loss_as_layer=ends,
                )  # fmt: skip
                if _states(request, parallel) <= request.memory_gb * 1e9:
                    yield parallel


def step_job(request: Demand, parallel: Parallel) -> StepJob:
    """The layout at work."""
    dp = parallel.dp or 1
    return StepJob(
        model=request.model,
        device="",
        stack="",
        gpus=request.gpus,
        fp8=request.numbers.fp8 != "none",
        sequence_length=request.sequence_length,
        micro_batch=parallel.micro_batch,
        micro_batches=request.rows / dp / parallel.micro_batch,
        tp=parallel.tp,
        pp=parallel.pp,
        cp=parallel.cp,
        vpp=parallel.vpp,
        dp=dp,
        number_bytes=BYTES[request.numbers.params],
        fsdp=parallel.zero == 3,
        reduce_each=parallel.zero == 2,
        recompute=frozenset(parallel.recompute),
    )


Entry = tuple[float, int, int, dict[str, float], Parallel, StepJob]


def _entry(request: Demand, parallel: Parallel, level: int, number: int) -> Entry:
    other = dataclasses.replace(parallel, recompute=list(request.recompute[level]))
    job = step_job(request, other)
    seconds = speed.step(job, request.device, request.stack)
    return speed.total(seconds), number, level, seconds, other, job


def _states(request: Demand, parallel: Parallel) -> float:
    """Bytes of weights, gradients and states of the first stage: less than what a rank needs."""
    count, shards = memory.parameters(request.model, parallel, 0), (parallel.dp or 1) * parallel.cp
    return 18.0 * count / shards if parallel.zero == 3 else (6 + 12 / shards) * count


def _allowed(values: Iterable[int], limit: Sequence[int]) -> list[int]:
    return [value for value in values if not limit or value in limit]


def _powers(most: int) -> list[int]:
    return [2**n for n in range(max(1, most).bit_length())]


def _stages(model: Model, most: int) -> list[int]:
    """Numbers of stages into which the layers split, also with embedding and loss as a layer each."""
    return [n for n in range(1, min(most, model.layers + 2) + 1) if most % n == 0 and _chunks(model, n)]


def _chunks(model: Model, pp: int) -> list[int]:
    """Chunks per stage; with one stage there is one."""
    if pp == 1:
        return [1]
    sums = (model.layers, model.layers + 2)
    return [vpp for vpp in range(1, MOST_CHUNKS + 1) if any(layers % (pp * vpp) == 0 for layers in sums)]
