"""A step played out pass by pass: which micro-batch every pipeline stage computes when. Arithmetic, no torch.

The order of a stage's passes is that of Megatron-Core's schedules (1F1B, interleaved): forward passes to warm up, then
forward and backward in turn, then what is left. When each begins follows from when the pass before it on the same
stage and the one that it needs from a neighbour have ended; how long it takes, from `planner.speed`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from llama31.config import Device, Model, Parallel, Stack
from llama31.plan import passes
from llama31.planner import speed
from llama31.planner.workloads import StepJob

AFTER = ("dp", "optimizer", "fixed", "jitter")  # causes of a step that come when the last pass has ended
HEAD_FORWARD = 1 / 3  # of the head's time: one product of three


class Pass(NamedTuple):
    """A micro-batch through a chunk of a stage, one way."""

    backward: bool
    micro_batch: int
    chunk: int


class Timed(NamedTuple):
    """A pass with seconds since the beginning of the step."""

    stage: int
    done: Pass
    begin_s: float
    end_s: float


@dataclass(frozen=True)
class PassSeconds:
    """Seconds of passes, by stage and chunk, and of a message between stages that nothing covers."""

    forward: Sequence[Sequence[float]]
    backward: Sequence[Sequence[float]]
    message: float = 0.0


@dataclass(frozen=True)
class Timeline:
    """All passes of a step, and what comes after the last."""

    parallel: Parallel
    micro_batches: int
    passes: list[Timed]
    after: Mapping[str, float]  # seconds by cause, in their order

    @property
    def computed_s(self) -> float:
        """When the last pass has ended."""
        return max(one.end_s for one in self.passes)

    @property
    def end_s(self) -> float:
        return self.computed_s + sum(self.after.values())

    @property
    def idle(self) -> float:
        """Share of the passes' time in which a stage computes nothing, of all stages."""
        busy = sum(one.end_s - one.begin_s for one in self.passes)
        return 1 - busy / (self.computed_s * self.parallel.pp)

    def phases(self, stage: int) -> dict[str, tuple[float, float]]:
        """When a stage warms up, goes forward and backward in turn, and cools down."""
        own = [one for one in self.passes if one.stage == stage]
        first = next(one.begin_s for one in own if one.done.backward)
        last = max(one.end_s for one in own if not one.done.backward)
        marks = {"warm-up": (0.0, first), "steady": (first, last), "cool-down": (last, max(x.end_s for x in own))}
        return {name: span for name, span in marks.items() if span[1] > span[0]}


def order(parallel: Parallel, micro_batches: int, stage: int) -> list[Pass]:
    """The passes of a stage one after another."""
    group = (parallel.microbatch_group or parallel.pp) if parallel.vpp > 1 else 1
    forward = [
        (micro_batch, chunk)
        for begin in range(0, micro_batches, group)
        for chunk in range(parallel.vpp)
        for micro_batch in range(begin, min(begin + group, micro_batches))
    ]
    ahead = passes.in_flight(parallel, micro_batches, stage) - 1
    result = [Pass(False, *one) for one in forward[:ahead]]
    for number, (micro_batch, chunk) in enumerate(forward):
        if number + ahead < len(forward):
            result.append(Pass(False, *forward[number + ahead]))
        result.append(Pass(True, micro_batch, parallel.vpp - 1 - chunk))
    return result


def play(parallel: Parallel, micro_batches: int, lengths: PassSeconds) -> list[Timed]:
    """When every pass begins and ends, stage by stage. What a stage waits for is an end on a neighbour."""
    waiting = [order(parallel, micro_batches, stage)[::-1] for stage in range(parallel.pp)]
    free = [0.0] * parallel.pp
    ends: dict[tuple[int, Pass], float] = {}
    result: list[Timed] = []
    while any(waiting):
        before = len(result)
        for stage, left in enumerate(waiting):
            while left:
                needed = _needed(parallel, stage, left[-1])
                if needed is not None and needed not in ends:
                    break
                one = left.pop()
                sent = lengths.message if needed is not None and needed[0] != stage else 0.0
                begin = max(free[stage], ends[needed] + sent if needed is not None else 0.0)
                took = (lengths.backward if one.backward else lengths.forward)[stage][one.chunk]
                free[stage] = ends[stage, one] = begin + took
                result.append(Timed(stage, one, begin, begin + took))
        assert len(result) > before, "a schedule in which every stage waits for another"
    return sorted(result, key=lambda one: (one.stage, one.begin_s))


def of_step(model: Model, parallel: Parallel, job: StepJob, device: Device, stack: Stack) -> Timeline:
    """The step that `speed.step` predicts, as the schedule plays it out."""
    count = round(job.micro_batches)
    after = {cause: value for cause, value in speed.step(job, device, stack).items() if cause in AFTER}
    lengths = _lengths(model, parallel, job, speed.layer(job, device, stack))
    ordered = {cause: after[cause] for cause in AFTER if cause in after}
    return Timeline(parallel, count, play(parallel, count, lengths), ordered)


def _lengths(model: Model, parallel: Parallel, job: StepJob, layer: speed.LayerSeconds) -> PassSeconds:
    ways: tuple[list[list[float]], list[list[float]]] = ([], [])
    for stage in range(parallel.pp):
        layers = [passes.chunk_layers(model, parallel, stage, chunk) for chunk in range(parallel.vpp)]
        for way, (each, share) in zip(ways, ((layer.forward, HEAD_FORWARD), (layer.backward, 1 - HEAD_FORWARD))):
            way.append([each * count + layer.waited for count in layers])
            if stage == parallel.pp - 1:
                way[-1][-1] += share * layer.head
    return PassSeconds(*ways, message=layer.message)


def _needed(parallel: Parallel, stage: int, one: Pass) -> tuple[int, Pass] | None:
    """The stage and pass without which a pass cannot begin; None for the first one of a micro-batch."""
    chunks = parallel.pp * parallel.vpp
    position = one.chunk * parallel.pp + stage
    if one.backward and position == chunks - 1:
        return stage, Pass(False, one.micro_batch, one.chunk)
    position += 1 if one.backward else -1
    if position < 0:
        return None
    return position % parallel.pp, Pass(one.backward, one.micro_batch, position // parallel.pp)
