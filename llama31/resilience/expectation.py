"""What the planner says of a run, held against what the run takes: a warning that names the term which is off.

Nothing here is measured: seconds and bytes come from what a step writes down anyway. Compared are medians over windows
of steps, after some to warm up; a speed that differs is told once, and so is memory. Arithmetic, no torch.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from llama31.config import Device, Model, Parallel, Precision, Stack
from llama31.plan import memory
from llama31.plan.memory import StageMemory
from llama31.planner import search, speed
from llama31.planner.search import Demand

TOLERANCE = 0.15
WARM_UP_STEPS, WINDOW_STEPS = 10, 20
BETWEEN = ("dp", "optimizer", "fixed", "jitter")  # causes that lie outside of the passes, under ZeRO-1
PASSES, REST, DATA = "forward and backward passes", "gradients, update and bookkeeping", "waits for data"
LOOK = {
    DATA: "look at the disk and the first rank's processor, or raise data.prefetch",
    PASSES: "look at a profile (profile.first_step), at the lines `ranks` of the record, and at what else runs there",
    REST: "look at the network between replicas, at guard.* and log.*, and at the disk of the run folder",
}
STATES, ALIVE, ALLOCATOR = "weights, gradients and states", "activations, logits and buffers", "the allocator's rest"
LOOK |= {
    STATES: "look at parallel.zero, dp x cp and optimizer.ema_decay",
    ALIVE: "look at a memory snapshot (profile.memory), parallel.micro_batch and parallel.recompute",
    ALLOCATOR: "give the environment PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True, or lower cluster.memory_gb",
}


@dataclass(frozen=True)
class Prediction:
    """Seconds of a step by cause, and bytes of a rank of a pipeline stage when they are most."""

    seconds: dict[str, float]
    need: StageMemory
    between: tuple[str, ...] = BETWEEN

    def parts(self) -> dict[str, float]:
        """Seconds by what a run can tell apart."""
        rest = sum(value for cause, value in self.seconds.items() if cause in self.between)
        return {DATA: 0.0, PASSES: speed.total(self.seconds) - rest, REST: rest}


@dataclass(frozen=True)
class Planned:
    """A run as the planner sees it, on a rank of one pipeline stage."""

    model: Model
    parallel: Parallel  # with dp
    numbers: Precision
    device: Device
    stack: Stack
    gpus: int
    stage: int
    average: bool  # of the masters is kept

    def predict(self, batch_tokens: int, sequence_length: int) -> Prediction:
        """Of a step with such a batch."""
        given = (self.model, self.numbers, self.device, self.stack, self.gpus, sequence_length, batch_tokens)
        asked = Demand(*given, memory_gb=0.0)
        replicas = self.parallel.dp or 1
        work = memory.Workload(
            sequence_length,
            max(1, asked.rows // replicas // self.parallel.micro_batch),
            replicas,
            self.average,
        )
        seconds = speed.step(search.step_job(asked, self.parallel), self.device, self.stack)
        need = memory.of_stage(self.model, self.parallel, self.numbers, work, self.stage)
        return Prediction(seconds, need, BETWEEN if self.parallel.zero == 1 else BETWEEN[1:])


@dataclass(frozen=True)
class Taken:
    """What a step took, in seconds, and what the device's memory held by then, in bytes; None where it has none."""

    step_s: float  # without checkpoints and examinations
    data_s: float
    passes_s: float  # before waiting for other replicas
    allocated: float | None = None  # the peak of live tensors
    reserved: float | None = None  # the peak of what the allocator took for them

    def parts(self) -> dict[str, float]:
        """Seconds as `Prediction.parts` has them."""
        rest = self.step_s - self.data_s - self.passes_s
        return {DATA: self.data_s, PASSES: self.passes_s, REST: max(0.0, rest)}


@dataclass(frozen=True)
class Departure:
    """A warning: the event that the record names, and its reason."""

    event: str
    reason: str


@dataclass
class Expectation:
    """A run's prediction, and the steps since it was last held against them."""

    planned: Planned
    states_bytes: float | None = None  # live tensors after setup, on a device with memory of its own
    _known: dict[tuple[int, int], Prediction] = field(default_factory=dict)
    _kind: tuple[int, int] | None = None
    _steps: list[Taken] = field(default_factory=list)
    _warm: int = 0
    _told: set[str] = field(default_factory=set)

    def of(self, batch_tokens: int, sequence_length: int) -> Prediction:
        """What is predicted of a step with such a batch."""
        kind = (batch_tokens, sequence_length)
        if kind not in self._known:
            self._known[kind] = self.planned.predict(batch_tokens, sequence_length)
        return self._known[kind]

    def line(self, batch_tokens: int, sequence_length: int) -> str:
        """A sentence for the start of the run."""
        one = self.of(batch_tokens, sequence_length)
        whole = speed.total(one.seconds)
        shares = sorted(one.seconds.items(), key=lambda cause: -cause[1])[:4]
        causes = ", ".join(f"{name} {seconds / whole:.0%}" for name, seconds in shares)
        rate = batch_tokens / self.planned.gpus / whole
        return (
            f"expected: {whole:.3g} s a step, {rate:,.0f} tokens/s per device ({causes}); "
            f"{one.need.allocated / 1e9:.1f} GB of tensors on pipeline stage {self.planned.stage}"
        )

    def compare(self, taken: Taken, batch_tokens: int, sequence_length: int) -> Iterator[Departure]:
        """Take note of a step; at the end of a window say what is off and has not been said."""
        if self._kind != (batch_tokens, sequence_length):
            self._kind, self._steps, self._warm = (batch_tokens, sequence_length), [], 0
        self._warm += 1
        if self._warm <= WARM_UP_STEPS:
            return
        self._steps.append(taken)
        if len(self._steps) < WINDOW_STEPS:
            return
        window, self._steps = self._steps, []
        expected = self.of(batch_tokens, sequence_length)
        checks: dict[str, Callable[[], Departure | None]] = {
            "speed": lambda: slower_or_faster(expected, window),
            "memory": lambda: more_or_less(expected, window[-1], self.states_bytes),
        }
        for name, check in checks.items():
            departure = None if name in self._told else check()
            if departure is not None:
                self._told.add(name)
                yield departure


def unknown(device: Device, numbers: Precision) -> str:
    """Why nothing can be said of a run with such numbers on a device; empty where it can."""
    if numbers.fp8_emulate:
        return "FP8 is emulated"
    if numbers.params == "fp32" and not device.fp32_tflops:
        return "it does not know the rate of FP32 products"
    return "it knows no FP8 of this device" if numbers.fp8 != "none" and not device.fp8_tflops else ""


def slower_or_faster(expected: Prediction, window: list[Taken]) -> Departure | None:
    """Whether the median step is off, and the part that is most."""
    step_s = statistics.median(one.step_s for one in window)
    predicted = speed.total(expected.seconds)
    if abs(step_s / predicted - 1) <= TOLERANCE:
        return None
    parts = [one.parts() for one in window]
    seen = {name: statistics.median(part[name] for part in parts) for name in parts[0]}
    name = _furthest(expected.parts(), seen, step_s > predicted)
    largest = ""
    if name == PASSES:
        inside = {cause: value for cause, value in expected.seconds.items() if cause not in expected.between}
        first, second = (*sorted(inside, key=lambda cause: -inside[cause]), "nothing")[:2]
        largest = f", most of it {first} and {second}"
    off = f"a step takes {step_s:.3g} s where {predicted:.3g} s are predicted ({step_s / predicted - 1:+.0%})"
    term = f"{name} take {seen[name]:.3g} s and not {expected.parts()[name]:.3g} s{largest}"
    return Departure("step_time", f"{off}: {term}; {LOOK[name]}")


def more_or_less(expected: Prediction, taken: Taken, states: float | None) -> Departure | None:
    """Whether the peak of live tensors is off, or more is reserved beside them than was allowed for; and the term."""
    if taken.allocated is None or taken.reserved is None or states is None:
        return None
    need = expected.need
    always = need.weights + need.gradients + need.states
    predicted = {STATES: always, ALIVE: need.allocated - always, ALLOCATOR: need.reserve}
    rest = max(need.reserve, taken.reserved - taken.allocated)  # less than was allowed for is nobody's worry
    seen = {STATES: states, ALIVE: taken.allocated - states, ALLOCATOR: rest}
    live = taken.allocated / need.allocated - 1
    beside = (rest - need.reserve) / need.total
    if abs(live) <= TOLERANCE and beside <= TOLERANCE:
        return None
    if abs(live) <= TOLERANCE:
        name = ALLOCATOR
    else:
        name = _furthest({n: predicted[n] for n in (STATES, ALIVE)}, seen, live > 0)
    return Departure(
        "memory",
        f"{taken.allocated / 1e9:.3g} GB of tensors are live where {need.allocated / 1e9:.3g} are predicted "
        f"({live:+.0%}), {taken.reserved / 1e9:.3g} reserved: {name} take {seen[name] / 1e9:.3g} GB and not "
        f"{predicted[name] / 1e9:.3g}; {LOOK[name]}",
    )


def _furthest(predicted: Mapping[str, float], seen: Mapping[str, float], more: bool) -> str:
    """The part that is off by most, in the direction in which the whole is."""
    sign = 1 if more else -1
    return max(predicted, key=lambda name: sign * (seen[name] - predicted[name]))
