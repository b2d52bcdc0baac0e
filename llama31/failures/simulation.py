"""One run with its failures, event by event. No torch.

Every second of a run is booked once: as training that was kept, or as lost for one of `REASONS`. The lesson: a restart
is paid at every stop and a checkpoint's stall only as its square root, so minutes of restart matter before seconds of
stall.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from llama31.config import Simulate
from llama31.failures import causes
from llama31.failures.causes import CAUSES, DAY_S, PLANNED, SLOW, SLOWED, FailureCause

SLOW_NODES = "slow nodes"  # the time that all others waited for them
REASONS = (
    *("lost work", "detection", "waiting for a node", "restart", "checkpoint stall", "planned"),
    SLOW_NODES,
)

Stop = tuple[float, FailureCause]  # seconds since the start of the run, and why


def simulate(run: Simulate) -> list[History]:
    """All replications of `run`, whose keys have passed `causes.issues`."""
    return [replay(run, draw_stops(run, number)) for number in range(run.replications)]


def draw_stops(run: Simulate, replication: int) -> list[Stop]:
    """Failures, planned interruptions and nodes that turn slow of one run.

    They depend on the rates and the seed, not on other keys, and each kind has its own random numbers.
    """
    source = random.Random(f"{run.seed} {replication}")
    end_s, rate = run.days * DAY_S, causes.failures_per_s(run) * (1 - run.repeat_share)
    phase, counts = source.random(), [cause.stops for cause in CAUSES]
    first = [(at_s, source.choices(CAUSES, counts)[0]) for at_s in _times(source, rate, end_s)]
    stops = [(at_s, cause) for at_s, cause in _repeated(run, first, replication) if at_s < end_s]
    often = causes.planned_per_s(run)
    shared = random.Random(f"{run.seed} {replication} shared")
    return sorted(
        [
            *((at_s, _shared(run, cause, shared)) for at_s, cause in stops),
            *(((index + phase) / often, PLANNED) for index in range(math.ceil(end_s * often - phase))),
            *((at_s, SLOWED) for at_s in _slowed(run, replication)),
        ]
    )


def _times(source: random.Random, rate: float, end_s: float) -> Iterator[float]:
    at_s = source.expovariate(rate)
    while at_s < end_s:
        yield at_s
        at_s += source.expovariate(rate)


def _repeated(run: Simulate, first: Sequence[Stop], replication: int) -> Iterator[Stop]:
    """Each failure, and those for the same cause that follow from it."""
    source = random.Random(f"{run.seed} {replication} repeats")
    for at_s, cause in first:
        yield at_s, cause
        while run.repeat_share and source.random() < run.repeat_share:
            at_s += source.expovariate(1 / run.repeat_s)
            yield at_s, cause


def _shared(run: Simulate, cause: FailureCause, source: random.Random) -> FailureCause:
    """The cause, or one that takes all nodes that share a switch or a power feed."""
    several = run.shared_share > 0 and cause.nodes > 0 and source.random() < run.shared_share
    return cause._replace(nodes=run.shared_nodes) if several else cause


def _slowed(run: Simulate, replication: int) -> Iterator[float]:
    if run.slow_per_1000_node_days:
        source = random.Random(f"{run.seed} {replication} slow")
        yield from _times(source, causes.slow_per_s(run), run.days * DAY_S)


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
    """What one run of `run.days` makes of `stops`. While the job is down, planned ones and slow nodes wait."""
    job, end_s = _Job(run), run.days * DAY_S
    queue = [stop for stop in stops if stop[0] < end_s]
    heapq.heapify(queue)
    while queue:
        at_s, cause = heapq.heappop(queue)
        planned = cause.shows == "planned"
        if cause is SLOWED:
            job.pace.slow(at_s)
            if at_s + run.slow_detect_s < end_s:
                heapq.heappush(queue, (at_s + run.slow_detect_s, SLOW))
        elif planned and at_s < job.up_s < end_s:
            heapq.heappush(queue, (job.up_s, cause))
        elif not planned or at_s >= job.up_s:
            job.stop(at_s, cause)
    return job.end(end_s)


class _Job:
    """A run on its way: it trains from `up_s` on, and before that is down since `down_s` because of `cause`.

    Down means held (a failure not noticed yet, a planned interruption) until `held_s`, without a node until `ready_s`,
    and restarting until `up_s`.
    """

    def __init__(self, run: Simulate) -> None:
        self.run, self.interval_s, self.history = run, causes.interval_s(run), History()
        self.nodes, self.pace = _Nodes(run), _Pace()
        self.cause: FailureCause = PLANNED
        self.down_s = self.held_s = self.ready_s = self.up_s = 0.0

    def stop(self, at_s: float, cause: FailureCause) -> None:
        """Stop at `at_s`, which is not before the last stop."""
        self.history.stops[cause.name] += 1
        if at_s < self.ready_s:  # nothing runs that could fail anew; the node is missed when the job wants to start
            self._want_nodes(at_s, cause)
            return
        if cause is SLOW:
            self.pace.mend(at_s)
        kept = self._close(at_s, saved=cause.shows == "planned")
        self.cause, self.down_s = cause, at_s
        self.held_s = at_s + self._held_s(cause)
        self.ready_s = self.held_s
        self._want_nodes(at_s, cause)
        self.history.cost_s[cause.name] += kept

    def end(self, at_s: float) -> History:
        """The history, when the run ends at `at_s` with what it has trained by then."""
        self._close(at_s, saved=True)
        return self.history

    def _held_s(self, cause: FailureCause) -> float:
        if cause.shows == "planned":
            return self.run.planned_s if cause is PLANNED else 0.0
        return causes.detection_s(self.run, cause)

    def _want_nodes(self, at_s: float, cause: FailureCause) -> None:
        for _ in range(cause.nodes):
            self.ready_s = max(self.ready_s, self.nodes.take(at_s))
        self.up_s = self.ready_s + self.run.restart_s

    def _close(self, at_s: float, saved: bool) -> float:
        """Book all since the last stop, the training in it as kept in full if `saved`; returns the work lost."""
        planned = self.cause is PLANNED
        self._book("planned" if planned else "detection", self.down_s, min(self.held_s, at_s))
        self._book("waiting for a node", self.held_s, min(self.ready_s, at_s))
        self._book("planned" if planned else "restart", self.ready_s, min(self.up_s, at_s))
        spans = self.pace.spans(at_s)
        if at_s <= self.up_s:
            return 0.0
        seconds = at_s - self.up_s
        work_s = self._work_s(seconds)
        safe_s = seconds if saved else self._safe_s(seconds)
        kept_s = self._work_s(safe_s)
        self._book_training(kept_s, spans, safe_s)
        self.history.lost_s["lost work"] += work_s - kept_s
        self.history.lost_s["checkpoint stall"] += seconds - work_s
        return work_s - kept_s

    def _book_training(self, kept_s: float, spans: Sequence[tuple[float, float]], safe_s: float) -> None:
        """Of what is kept, a part was waiting for slow nodes."""
        slow_s = 0.0
        for begin, end in spans:
            begin, end = (min(max(at - self.up_s, 0.0), safe_s) for at in (begin, end))
            slow_s += self._work_s(end) - self._work_s(begin)
        waited = slow_s * (1 - 1 / self.run.slow_factor)
        self.history.useful_s += kept_s - waited
        if waited:
            self.history.lost_s[SLOW_NODES] += waited
            self.history.cost_s[SLOW.name] += waited

    def _work_s(self, seconds: float) -> float:
        """Training done in `seconds` since a restart: all but the stalls of checkpoints."""
        begun, rest_s = divmod(seconds, self.interval_s + self.run.checkpoint_stall_s)
        return begun * self.interval_s + min(rest_s, self.interval_s)

    def _safe_s(self, seconds: float) -> float:
        """The part of `seconds` since a restart whose training checkpoints hold by then."""
        cycle_s = self.interval_s + self.run.checkpoint_stall_s
        return max(0, math.floor((seconds - self.run.checkpoint_write_s) / cycle_s)) * cycle_s

    def _book(self, reason: str, from_s: float, to_s: float) -> None:
        if to_s > from_s:
            self.history.lost_s[reason] += to_s - from_s
            self.history.cost_s[self.cause.name] += to_s - from_s


class _Pace:
    """When a job has had slow nodes; several at a time are no slower than one, for all wait for the slowest."""

    def __init__(self) -> None:
        self.count, self.since_s, self.past = 0, 0.0, list[tuple[float, float]]()

    def slow(self, at_s: float) -> None:
        """A node turns slow."""
        self.since_s = self.since_s if self.count else at_s
        self.count += 1

    def mend(self, at_s: float) -> None:
        """A slow node leaves."""
        self.count -= 1
        if not self.count:
            self.past.append((self.since_s, at_s))

    def spans(self, at_s: float) -> list[tuple[float, float]]:
        """From and until when nodes were slow since this was last asked."""
        spans, self.past = [*self.past, *([(self.since_s, at_s)] if self.count else [])], []
        self.since_s = at_s
        return spans


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
