"""Where the time of a run went, how its attempts ended, and whether it is well.

Every second between the first claim of an attempt and the last sign of life is booked once, under one of `SLICES`.
Steps are intervals of wall time that end at their line's `time_s`, so nothing is counted twice: not a stall within the
step that follows it, nor an attempt that writes on after a newer one has taken over.
"""

from __future__ import annotations

import itertools
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from llama31.report.record import RecordedRun, number, stalled
from llama31.report.text import count, duration, percent, short
from llama31.runs import metrics
from llama31.runs.metrics import AttemptRecord
from llama31.runs.views import Line

TRAINING, LOST, STALLS, START, DOWN, OTHER = SLICES = (
    "training",
    "lost work",
    "checkpoint stalls",
    "start-up",
    "down time",
    "other",
)
DEFINITION = (
    "Effective training time is the wall time of steps that still stand (their step_s, less the checkpoint stalls in "
    "them) as a share of the time from the first attempt's claim to the last line or end. Lost work: steps that a "
    "restart or a rollback undid. Start-up: from an attempt's claim to its first step. Down time: from one attempt's "
    "last sign of life to the next one's claim. Other: what none of these claims, such as "
    "validation and saving at the end of an attempt."
)
OUTCOMES = ("finished", "stopped", "failed")  # that an attempt can say of itself
SILENT_S = 1200.0  # without a line or an end, where the config does not say after how long the guard gives up
LATE_S = 900.0  # without a first step
RECENT = 100  # steps that "now" means


@dataclass(frozen=True)
class Segment:
    """A stretch of one attempt: start-up, training, lost work or other."""

    attempt: int
    kind: str
    begin_s: float
    end_s: float


@dataclass(frozen=True)
class Ending:
    """How an attempt ended, and what that cost. `down_s` is None where no other followed."""

    attempt: int
    outcome: str  # finished, stopped, failed, died, running
    cause: str
    begin_s: float | None
    end_s: float | None
    step: int
    lost_steps: int
    lost_s: float
    down_s: float | None

    @property
    def interrupts(self) -> bool:
        """Whether training had to be started again, or still has to."""
        return self.outcome in ("stopped", "failed", "died")


class Account:
    """What the record of a run adds up to."""

    def __init__(self, run: RecordedRun) -> None:
        self.run = run
        self.seconds = dict.fromkeys(SLICES, 0.0)
        self.segments: list[Segment] = []
        spans = [(attempt, span) for attempt in run.attempts if (span := _span(attempt))]
        self._spans = {attempt.number: span for attempt, span in spans}
        self.begin_s = spans[0][1][0] if spans else 0.0
        self.end_s = max((end for _, (_, end) in spans), default=0.0)
        for (attempt, (begin, end)), later in itertools.zip_longest(spans, spans[1:]):
            until = later[1][0] if later else end
            self._book(attempt, begin, max(begin, min(end, until)))
            self.seconds[DOWN] += max(0.0, until - end)
        self.seconds[OTHER] = max(0.0, self.wall_s - sum(self.seconds[name] for name in SLICES if name != OTHER))

    @property
    def wall_s(self) -> float:
        """Seconds from the first claim to the last line or end."""
        return self.end_s - self.begin_s

    @property
    def effective(self) -> float | None:
        """Effective training time, see `DEFINITION`; None where no time has passed."""
        return self.seconds[TRAINING] / self.wall_s if self.wall_s > 0 else None

    def _book(self, attempt: AttemptRecord, begin_s: float, end_s: float) -> None:
        """Book one attempt, which had the run to itself from `begin_s` to `end_s`."""
        stalls, epoch = _stalls(attempt.lines), 0
        done_s, trained = begin_s, False
        for line in attempt.lines:
            epoch += line["kind"] == "rollback"
            if line["kind"] != "train" or (at_s := number(line.get("time_s"))) is None:
                continue
            to_s = max(done_s, min(at_s, end_s))
            from_s = min(to_s, max(done_s, at_s - (number(line.get("step_s")) or 0.0)))
            stall_s = sum(stalls.pop(key) for key in _before((epoch, line["step"]), stalls))
            if not trained:
                self._start(attempt, begin_s, from_s)
                done_s, trained = from_s, True
            kind = TRAINING if id(line) in self.run.kept else LOST
            between_s = min(stall_s, from_s - done_s)
            within_s = min(stall_s - between_s, to_s - from_s) if kind == TRAINING else 0.0
            self.seconds[STALLS] += between_s + within_s
            self.seconds[kind] += to_s - from_s - within_s
            self._extend(attempt, kind, done_s, to_s)
            done_s = to_s
        if not trained:
            self._start(attempt, begin_s, end_s)
            return
        self.seconds[STALLS] += min(sum(stalls.values()), end_s - done_s)
        self._extend(attempt, OTHER, done_s, end_s)

    def _start(self, attempt: AttemptRecord, begin_s: float, end_s: float) -> None:
        self.seconds[START] += end_s - begin_s
        self._extend(attempt, START, begin_s, end_s)

    def _extend(self, attempt: AttemptRecord, kind: str, begin_s: float, end_s: float) -> None:
        last = self.segments[-1] if self.segments else None
        if last and (last.attempt, last.kind) == (attempt.number, kind):
            self.segments[-1] = Segment(attempt.number, kind, last.begin_s, end_s)
        elif end_s > begin_s:
            self.segments.append(Segment(attempt.number, kind, begin_s, end_s))

    @cached_property
    def endings(self) -> list[Ending]:
        """How each attempt ended, in order."""
        return [
            self._ending(attempt, later) for attempt, later in itertools.zip_longest(self.run.attempts, self._later())
        ]

    def _later(self) -> Sequence[AttemptRecord]:
        return self.run.attempts[1:]

    def _ending(self, attempt: AttemptRecord, later: AttemptRecord | None) -> Ending:
        begin_s, end_s = self._spans.get(attempt.number, (None, None))
        next_s, _ = self._spans.get(later.number, (None, None)) if later else (None, None)
        outcome, cause = self._outcome(attempt, later is None)
        # What its own rollbacks undid is not what its end cost.
        lost = [
            line for line in metrics.merged(attempt.lines) if line["kind"] == "train" and id(line) not in self.run.kept
        ]
        return Ending(
            attempt.number,
            outcome,
            cause,
            begin_s,
            end_s,
            int(number((attempt.end or {}).get("step")) or (attempt.lines[-1]["step"] if attempt.lines else 0)),
            len(lost),
            sum(number(line.get("step_s")) or 0.0 for line in lost),
            None if end_s is None or next_s is None else max(0.0, next_s - end_s),
        )

    def _outcome(self, attempt: AttemptRecord, newest: bool) -> tuple[str, str]:
        if attempt.end:
            outcome, cause = str(attempt.end.get("outcome")), str(attempt.end.get("cause") or "")
            cause = cause or ("" if outcome == "finished" else "no cause given")
            return (outcome, cause) if outcome in OUTCOMES else ("failed", f"{outcome}: {cause}")
        ranks = ", ".join(name.removeprefix("rank-").lstrip("0") or "0" for name in stalled(attempt))
        if newest and self.silence_s <= self._patience_s:
            return "running", ""
        if ranks:
            return "died", f"no progress: rank {short(ranks, 60)}"
        return "died", "without a word (killed, or its node was lost)"

    @property
    def silence_s(self) -> float:
        """Seconds since the last sign of life."""
        return max(0.0, self.run.now_s - self.end_s)

    @property
    def _patience_s(self) -> float:
        return number(self.run.setting("guard.heartbeat_s")) or SILENT_S

    @property
    def state(self) -> str:
        """How the newest attempt ended, or that it is running."""
        return self.endings[-1].outcome

    @property
    def interruptions(self) -> list[Ending]:
        """The ends after which training had to be started again, or still has to."""
        return [ending for ending in self.endings if ending.interrupts]

    @cached_property
    def tokens_per_s(self) -> float | None:
        """Median of the newest steps."""
        return self.recent("tokens_per_s")

    def recent(self, name: str) -> float | None:
        """Median over the newest steps that stand; None where it was not measured."""
        values = [value for line in self.run.train[-RECENT:] if (value := number(line.get(name))) is not None]
        return statistics.median(values) if values else None

    @property
    def share(self) -> float | None:
        """Share of the schedule that is done."""
        total = self.run.total_tokens
        return min(1.0, self.run.last["tokens"] / total) if total else None

    @property
    def eta_s(self) -> float | None:
        """Seconds to the end of the schedule at the newest steps' pace, saving and validation included."""
        total, rate = self.run.total_tokens, self._pace()
        return max(0.0, total - self.run.last["tokens"]) / rate if total and rate else None

    def _pace(self) -> float | None:
        newest = {id(line) for line in self.run.attempts[-1].lines}
        lines = [line for line in self.run.train[-RECENT:] if id(line) in newest and number(line.get("time_s"))]
        if len(lines) > 1 and lines[-1]["time_s"] > lines[0]["time_s"]:
            return float((lines[-1]["tokens"] - lines[0]["tokens"]) / (lines[-1]["time_s"] - lines[0]["time_s"]))
        return self.tokens_per_s


def _span(attempt: AttemptRecord) -> tuple[float, float] | None:
    """First and last sign of life of an attempt; None where it left none."""
    ends = [attempt.info, *attempt.lines[:1], *attempt.lines[-1:], attempt.end or {}]
    times = [time_s for line in ends if (time_s := number(line.get("time_s"))) is not None]
    return (times[0], max(times)) if times else None


def _before(place: tuple[int, int], stalls: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    return list(itertools.takewhile(lambda key: key < place, stalls))


def _stalls(lines: Sequence[Line]) -> dict[tuple[int, int], float]:
    """Seconds that checkpoints stopped training, by rollbacks before them and step, in that order.

    By step and not by place in the record: the line of an asynchronous one may come when it is published.
    """
    stalls: defaultdict[tuple[int, int], float] = defaultdict(float)
    epoch = 0
    for line in lines:
        epoch += line["kind"] == "rollback"
        if line["kind"] == "checkpoint":
            stalls[epoch, line["step"]] += number(line.get("stall_s")) or 0.0
    return dict(sorted(stalls.items()))


# --- interruptions by cause ---


@dataclass(frozen=True)
class Cause:
    """Interruptions with the same outcome, and the same cause but for the numbers in it."""

    outcome: str
    cause: str
    endings: Sequence[Ending]

    @property
    def lost_s(self) -> float:
        """Seconds of work that they undid."""
        return sum(ending.lost_s for ending in self.endings)

    @property
    def down_s(self) -> float:
        """Seconds until the next attempt."""
        return sum(ending.down_s or 0.0 for ending in self.endings)


def causes(endings: Sequence[Ending]) -> list[Cause]:
    """Interruptions by cause, the most costly first."""
    groups: defaultdict[tuple[str, str], list[Ending]] = defaultdict(list)
    for ending in endings:
        groups[ending.outcome, re.sub(r"\d+(\.\d+)?(e[-+]?\d+)?", "#", ending.cause)].append(ending)
    result = []
    for (outcome, pattern), members in groups.items():
        same = len({ending.cause for ending in members}) == 1
        result.append(Cause(outcome, members[0].cause if same else pattern, members))
    return sorted(result, key=lambda cause: (-cause.lost_s - cause.down_s, -len(cause.endings)))


# --- is it well? ---


def concerns(account: Account) -> list[str]:
    """What deserves a look, the worst first; empty for a run that is well."""
    return [*_state_concerns(account), *_loss_concerns(account), *_speed_concerns(account)]


def _state_concerns(account: Account) -> Iterator[str]:
    last = account.endings[-1]
    if last.outcome in ("failed", "died"):
        yield f"Attempt {last.attempt} {last.outcome} at step {last.step:,}: {short(last.cause, 160)}"
    if (account.run.folder / "stop").exists() and last.outcome == "running":
        yield "A stop has been requested"
    if last.outcome == "running" and not account.run.train and account.run.now_s - account.begin_s > LATE_S:
        yield f"No step yet, {duration(account.run.now_s - account.begin_s)} after the first attempt began"
    in_row = list(itertools.takewhile(lambda e: e.outcome in ("failed", "died"), reversed(account.endings)))
    if len(in_row) >= 3:
        yield f"The last {len(in_row)} attempts failed or died"
    events = [line for line in account.run.of("event") if line.get("event") == "divergence"]
    if events:
        yield f"Replicas diverged {_times(len(events))}, last at step {events[-1]['step']:,}"


def _loss_concerns(account: Account) -> Iterator[str]:
    run = account.run
    bad = [line for line in run.train if line.get("loss") is not None and number(line["loss"]) is None]
    if bad:
        steps = f"{count(len(bad))} step{'s' * (len(bad) > 1)}"
        yield f"The loss of {steps} is not finite, last at step {bad[-1]['step']:,}"
    losses = [value for line in run.train if (value := number(line.get("loss"))) is not None]
    size = len(losses) // 10
    if size >= 10:
        now, before = statistics.median(losses[-size:]), statistics.median(losses[-2 * size : -size])
        spread = statistics.median(abs(loss - before) for loss in losses[-2 * size : -size])
        if now > before + 3 * max(spread, 0.005):
            yield f"The training loss rises: {before:.3f} to {now:.3f} over the last fifth of the steps"
    undone = [line for line in run.of("rollback") if line["step"] > 0.9 * run.last["step"]]
    if len(undone) > 1:
        yield f"{len(undone)} rollbacks in the last tenth of the steps"


def _speed_concerns(account: Account) -> Iterator[str]:
    ranks = account.run.of("ranks")
    slow = ranks[-1].get("slow") if ranks else None
    if isinstance(slow, list) and slow:
        named = ", ".join(f"{s.get('rank')} on {s.get('host', '?')}" for s in slow[:3] if isinstance(s, dict))
        more = "" if len(slow) <= 3 else f" and {len(slow) - 3} more"
        yield f"Slow at the last comparison: rank {short(named, 120)}{more}"
    rates = [value for line in account.run.train if (value := number(line.get("tokens_per_s"))) is not None]
    if len(rates) >= 4 * RECENT and account.tokens_per_s is not None:
        usual = statistics.median(rates[len(rates) // 2 :])
        if account.tokens_per_s < 0.85 * usual:
            slower = percent(1 - account.tokens_per_s / usual, 0)
            yield f"Tokens/s are {slower} below the median of the run's second half"
    if account.effective is not None and account.effective < 0.9 and account.wall_s > 3600:
        worst = max((name for name in SLICES if name != TRAINING), key=lambda name: account.seconds[name])
        yield (
            f"Effective training time is {percent(account.effective)}; "
            f"most went to {worst} ({duration(account.seconds[worst])})"
        )


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"
