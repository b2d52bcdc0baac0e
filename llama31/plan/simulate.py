"""What failures cost a long run: an event simulation over the causes that the report counted. No torch.

Failures come at random (Poisson) in wall time, so that they hit restarts too; planned interruptions come evenly. Every
second of a run is booked once: as training that was kept, or as lost for one of `REASONS`. The lesson: a restart is
paid at every stop and a checkpoint's stall only as its square root, so minutes of restart matter before seconds of
stall.
"""

from __future__ import annotations

import heapq
import math
import random
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from llama31.config import Simulate

DAY_S = 86400.0
# The run that the counts were taken from (report, section 3.3.4).
REPORT_DAYS = 54
REPORT_GPUS = 16384


class FailureCause(NamedTuple):
    """A row of the report's Table 5, and what we take to follow from it: how it shows, and whether a node leaves."""

    name: str
    stops: int
    shows: str  # error: a process dies or says so; hang: ranks wait for each other; silent: numbers are wrong
    takes_node: bool


# Counts, since the printed percentages sum to 94.9. How a cause shows and what it takes is ours, not the report's.
CAUSES = (
    FailureCause("faulty GPU", 148, "error", True),
    FailureCause("GPU HBM3 memory", 72, "error", True),
    FailureCause("software bug", 54, "error", False),
    FailureCause("network switch or cable", 35, "hang", True),
    FailureCause("host maintenance, unplanned", 32, "error", True),
    FailureCause("GPU SRAM memory", 19, "error", True),
    FailureCause("GPU system processor", 17, "hang", True),
    FailureCause("NIC", 7, "hang", True),
    FailureCause("NCCL watchdog time-out, unknown", 7, "hang", False),
    FailureCause("silent data corruption", 6, "silent", True),
    FailureCause("GPU thermal interface and sensor", 6, "error", True),
    FailureCause("SSD", 3, "error", True),
    FailureCause("power supply", 3, "error", True),
    FailureCause("server chassis", 2, "error", True),
    FailureCause("IO expansion board", 2, "error", True),
    FailureCause("dependency", 2, "error", False),
    FailureCause("CPU", 2, "error", True),
    FailureCause("system memory", 2, "error", True),
)
UNEXPECTED = sum(cause.stops for cause in CAUSES)
PLANNED = FailureCause("planned", 47, "planned", False)
REASONS = ("lost work", "detection", "waiting for a node", "restart", "checkpoint stall", "planned")
# What `sensitivities` halves: each is better when smaller, the interval within its bounds.
KNOBS = (
    "failure_factor",
    "planned_factor",
    "planned_s",
    "restart_s",
    "detect_s",
    "hang_detect_s",
    "silent_detect_s",
    "checkpoint_every_s",
    "checkpoint_stall_s",
    "checkpoint_write_s",
    "spare_nodes",
    "repair_hours",
)

Stop = tuple[float, FailureCause]  # seconds since the start of the run, and why


# --- rates and the closed form ---


def failures_per_s(run: Simulate) -> float:
    """Unexpected stops per second of the whole run."""
    return UNEXPECTED / (REPORT_DAYS * DAY_S) * run.gpus / REPORT_GPUS * run.failure_factor


def planned_per_s(run: Simulate) -> float:
    """Planned interruptions per second: they belong to the run, so more GPUs do not bring more of them."""
    return PLANNED.stops / (REPORT_DAYS * DAY_S) * run.planned_factor


def young_daly_s(stall_s: float, between_failures_s: float) -> float:
    """Training between checkpoints that costs least, to first order (Young 1974; Daly 2006): sqrt(2 stall MTBF)."""
    return math.sqrt(2 * stall_s * between_failures_s)


def interval_s(run: Simulate) -> float:
    """Training between checkpoints: as given, or Young/Daly's, which one write at a time bounds from below.

    Raises ValueError where the given one leaves no time to write.
    """
    if run.checkpoint_every_s is None:
        return max(young_daly_s(run.checkpoint_stall_s, 1 / failures_per_s(run)), run.checkpoint_write_s)
    if run.checkpoint_every_s < run.checkpoint_write_s:
        raise ValueError(
            f"checkpoint_every_s={run.checkpoint_every_s}: the next checkpoint would begin while one is being written; "
            f"give at least checkpoint_write_s={run.checkpoint_write_s}"
        )
    return run.checkpoint_every_s


def detection_s(run: Simulate, cause: FailureCause) -> float:
    """Seconds from a failure until all ranks have stopped."""
    return {"error": run.detect_s, "hang": run.hang_detect_s, "silent": run.silent_detect_s}[cause.shows]


def first_order(run: Simulate) -> float:
    """Effective training time in closed form, where losses are few: neither overlaps nor waits for nodes are counted.

    1 - stall / interval - failures (interval / 2 + write + detection + restart) - planned (planned + restart)
    """
    interval = interval_s(run)
    detection = sum(cause.stops * detection_s(run, cause) for cause in CAUSES) / UNEXPECTED
    failure = interval / 2 + run.checkpoint_write_s + detection + run.restart_s
    lost = run.checkpoint_stall_s / interval + failures_per_s(run) * failure
    return 1 - lost - planned_per_s(run) * (run.planned_s + run.restart_s)


def check(run: Simulate) -> None:
    """Raise ValueError with all that is wrong with the keys of `run` beyond the bounds of each."""
    problems = []
    try:
        interval_s(run)
    except ValueError as error:
        problems.append(str(error))
    for name in ("table_stalls_s", "table_detects_s", "table_restarts_s"):
        values = getattr(run, name)
        least = "numbers above 0" if name == "table_stalls_s" else "numbers from 0 on"
        if not values or min(values) < 0 or (name == "table_stalls_s" and 0 in values):
            problems.append(f"{name}={values}: cannot be simulated; give {least}")
    if run.output and Path(run.output).suffix != ".png":
        problems.append(f"output={run.output}: is drawn as PNG; give a name that ends in .png")
    if run.output and not Path(run.output).absolute().parent.is_dir():
        problems.append(f"output={run.output}: its folder is not there; make it, or give another")
    if problems:
        raise ValueError("\n".join(problems))


# --- events ---


def draw_stops(run: Simulate, replication: int) -> list[Stop]:
    """Failures and planned interruptions of one run. They depend on the rates and the seed, not on other keys."""
    source = random.Random(f"{run.seed} {replication}")
    end_s, rate = run.days * DAY_S, failures_per_s(run)
    phase, counts = source.random(), [cause.stops for cause in CAUSES]
    stops, at_s = [], source.expovariate(rate)
    while at_s < end_s:
        stops.append((at_s, source.choices(CAUSES, counts)[0]))
        at_s += source.expovariate(rate)
    often = planned_per_s(run)
    stops += [((index + phase) / often, PLANNED) for index in range(math.ceil(end_s * often - phase))]
    return sorted(stops)


@dataclass
class History:
    """Where the seconds of one run went: `useful_s` and the values of `lost_s` sum to its length."""

    useful_s: float = 0.0
    lost_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(REASONS, 0.0))
    stops: Counter[str] = field(default_factory=Counter)  # by cause
    cost_s: defaultdict[str, float] = field(
        default_factory=lambda: defaultdict(float)
    )  # by cause: lost work and all until the next step

    @property
    def effective(self) -> float:
        """Useful share of the run."""
        return self.useful_s / (self.useful_s + sum(self.lost_s.values()))


def replay(run: Simulate, stops: Iterable[Stop]) -> History:
    """What one run of `run.days` makes of `stops`. A planned one waits while the job is down."""
    job, end_s = _Job(run), run.days * DAY_S
    queue = [stop for stop in stops if stop[0] < end_s]
    heapq.heapify(queue)
    while queue:
        at_s, cause = heapq.heappop(queue)
        if cause is PLANNED and at_s < job.up_s < end_s:
            heapq.heappush(queue, (job.up_s, cause))
        elif cause is not PLANNED or at_s >= job.up_s:
            job.stop(at_s, cause)
    return job.end(end_s)


class _Job:
    """A run on its way: it trains from `up_s` on, and before that is down since `down_s` because of `cause`.

    Down means held (a failure not noticed yet, a planned interruption) until `held_s`, without a node until `ready_s`,
    and restarting until `up_s`.
    """

    def __init__(self, run: Simulate) -> None:
        self.run, self.interval_s, self.history = run, interval_s(run), History()
        self.nodes = _Nodes(run)
        self.cause: FailureCause = PLANNED
        self.down_s = self.held_s = self.ready_s = self.up_s = 0.0

    def stop(self, at_s: float, cause: FailureCause) -> None:
        """Stop at `at_s`, which is not before the last stop."""
        self.history.stops[cause.name] += 1
        if at_s < self.ready_s:  # nothing runs that could fail anew; the node is missed when the job wants to start
            self._want_node(at_s, cause)
            return
        kept = self._close(at_s, saved=cause is PLANNED)
        self.cause, self.down_s = cause, at_s
        self.held_s = at_s + (self.run.planned_s if cause is PLANNED else detection_s(self.run, cause))
        self.ready_s = self.held_s
        self._want_node(at_s, cause)
        self.history.cost_s[cause.name] += kept

    def end(self, at_s: float) -> History:
        """The history, when the run ends at `at_s` with what it has trained by then."""
        self._close(at_s, saved=True)
        return self.history

    def _want_node(self, at_s: float, cause: FailureCause) -> None:
        if cause.takes_node:
            self.ready_s = max(self.ready_s, self.nodes.take(at_s))
        self.up_s = self.ready_s + self.run.restart_s

    def _close(self, at_s: float, saved: bool) -> float:
        """Book all since the last stop, the training in it as kept in full if `saved`; returns the work lost."""
        planned = self.cause is PLANNED
        self._book("planned" if planned else "detection", self.down_s, min(self.held_s, at_s))
        self._book("waiting for a node", self.held_s, min(self.ready_s, at_s))
        self._book("planned" if planned else "restart", self.ready_s, min(self.up_s, at_s))
        if at_s <= self.up_s:
            return 0.0
        work_s, kept_s = self._train(at_s - self.up_s)
        kept_s = work_s if saved else kept_s
        self.history.useful_s += kept_s
        self.history.lost_s["lost work"] += work_s - kept_s
        self.history.lost_s["checkpoint stall"] += at_s - self.up_s - work_s
        return work_s - kept_s

    def _train(self, seconds: float) -> tuple[float, float]:
        """Work done in `seconds` since a restart, and how much of it is safe in checkpoints by then."""
        cycle_s = self.interval_s + self.run.checkpoint_stall_s
        begun, rest_s = divmod(seconds, cycle_s)
        safe = max(0, math.floor((seconds - self.run.checkpoint_write_s) / cycle_s))
        return begun * self.interval_s + min(rest_s, self.interval_s), safe * self.interval_s

    def _book(self, reason: str, from_s: float, to_s: float) -> None:
        if to_s > from_s:
            self.history.lost_s[reason] += to_s - from_s
            self.history.cost_s[self.cause.name] += to_s - from_s


class _Nodes:
    """Spare nodes: a failed one is repaired and stands by again."""

    def __init__(self, run: Simulate) -> None:
        self.spare, self.repair_s = run.spare_nodes, run.repair_hours * 3600
        self.back_s: list[float] = [] if run.spare_nodes is None else [0.0] * run.spare_nodes

    def take(self, at_s: float) -> float:
        """When a node can take the place of one that failed at `at_s`."""
        if self.spare is None:
            return at_s
        heapq.heappush(self.back_s, at_s + self.repair_s)
        return max(at_s, heapq.heappop(self.back_s))


def simulate(run: Simulate) -> list[History]:
    """All replications of `run`. Raises ValueError for an interval that leaves no time to write."""
    return [replay(run, draw_stops(run, number)) for number in range(run.replications)]


# --- what they say ---


class Mean(NamedTuple):
    """A mean over replications and half the width of its 95% confidence interval."""

    value: float
    half: float

    def percent(self) -> str:
        """As a percentage, with the half width."""
        return f"{self.value:.2%} ± {self.half:.2%}"


def mean(samples: Sequence[float]) -> Mean:
    """Mean of at least five independent samples with its 95% confidence interval, by Student's t."""
    spread = statistics.stdev(samples) / math.sqrt(len(samples))
    return Mean(statistics.fmean(samples), student_t(len(samples) - 1) * spread)


def student_t(freedom: int) -> float:
    """Quantile 0.975 of Student's t, within 0.3% from 4 degrees of freedom on (Abramowitz and Stegun 26.7.5)."""
    z = statistics.NormalDist().inv_cdf(0.975)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))


def effective(histories: Sequence[History]) -> Mean:
    """Effective training time over all replications."""
    return mean([history.effective for history in histories])


def lost_shares(histories: Sequence[History], run: Simulate) -> dict[str, Mean]:
    """Share of the run that each reason cost."""
    end_s = run.days * DAY_S
    return {reason: mean([history.lost_s[reason] / end_s for history in histories]) for reason in REASONS}


def sensitivities(run: Simulate, histories: Sequence[History]) -> dict[str, Mean]:
    """Effective time gained by halving each knob, most first; `histories` are those of `run`.

    Replications are compared one by one: they share their failures, so the difference is surer than either side. Nodes
    that stand by are doubled instead; knobs that are not in use are left out.
    """
    gains = {}
    for knob in KNOBS:
        other = _halved(run, knob)
        if other is not None:
            pairs = zip(simulate(other), histories, strict=True)
            gains[knob] = mean([new.effective - old.effective for new, old in pairs])
    return dict(ranked(gains))


def ranked(means: Mapping[str, Mean]) -> list[tuple[str, Mean]]:
    """The largest first."""
    return sorted(means.items(), key=lambda item: -item[1].value)


def _halved(run: Simulate, knob: str) -> Simulate | None:
    value: Any = getattr(run, knob)
    if not value or (knob == "repair_hours" and run.spare_nodes is None):
        return None
    if knob == "checkpoint_every_s" and value / 2 < run.checkpoint_write_s:
        return None
    return replace(run, **{knob: 2 * value if knob == "spare_nodes" else value / 2})


# --- tables ---


def summary(run: Simulate, histories: Sequence[History]) -> str:
    """What is simulated, and the effective training time."""
    total, samples = effective(histories), sorted(history.effective for history in histories)
    unexpected = statistics.fmean(sum(history.stops.values()) - history.stops["planned"] for history in histories)
    planned = statistics.fmean(history.stops["planned"] for history in histories)
    every = "as given" if run.checkpoint_every_s else "Young/Daly"
    return "\n".join(
        [
            f"{run.gpus:,} GPUs, {run.days:g} days, {run.replications} replications: {unexpected:.1f} unexpected stops "
            f"(one per {1 / failures_per_s(run) / 3600:.2f} h) and {planned:.1f} planned ones per run",
            f"checkpoint every {interval_s(run):,.0f} s of training ({every})",
            f"effective training time {total.percent()} (95% confidence); single runs {samples[0]:.2%} to "
            f"{samples[-1]:.2%}; closed form, first order {first_order(run):.2%}",
        ]
    )


def lost_table(run: Simulate, histories: Sequence[History]) -> str:
    """Lost time by reason, most first."""
    shares = ranked(lost_shares(histories, run))
    rows = [f"| {reason} | {share.percent()} | {share.value * run.days * 24:.1f} |" for reason, share in shares]
    return "\n".join(["| lost to | share of the run | hours |", "|---|---|---|", *rows])


def cause_table(histories: Sequence[History]) -> str:
    """Stops by cause, and what followed from each until the next step."""
    lines = ["| cause | stops per run | hours lost per run | minutes per stop |", "|---|---|---|---|"]
    rows = []
    for cause in (*CAUSES, PLANNED):
        stops = statistics.fmean(history.stops[cause.name] for history in histories)
        hours = statistics.fmean(history.cost_s[cause.name] for history in histories) / 3600
        rows.append((hours, f"| {cause.name} | {stops:.1f} | {hours:.1f} | {hours * 60 / stops if stops else 0:.1f} |"))
    return "\n".join([*lines, *(text for _, text in sorted(rows, reverse=True))])


def sensitivity_table(run: Simulate, gains: Mapping[str, Mean]) -> str:
    """What halving each knob buys."""
    rows = [
        f"| {knob} | {getattr(run, knob):g} | {100 * gain.value:+.2f} ± {100 * gain.half:.2f} |"
        for knob, gain in gains.items()
    ]
    return "\n".join(["| halved (spare_nodes: doubled) | from | percentage points gained |", "|---|---|---|", *rows])


def goal_table(run: Simulate) -> str:
    """Effective time for each stall, detection and restart; bold where the whole interval reaches the goal."""
    head = " | ".join(f"restart {restart:g} s" for restart in run.table_restarts_s)
    lines = [f"| stall | detection | {head} |", "|---|---|" + "---|" * len(run.table_restarts_s)]
    for stall in run.table_stalls_s:
        for detect in run.table_detects_s:
            cells = []
            for restart in run.table_restarts_s:
                share = effective(simulate(replace(run, checkpoint_stall_s=stall, detect_s=detect, restart_s=restart)))
                reached = share.value - share.half >= run.goal
                cells.append(f"**{share.value:.2%}**" if reached else f"{share.value:.2%}")
            lines.append(f"| {stall:g} s | {detect:g} s | {' | '.join(cells)} |")
    return "\n".join(lines)
