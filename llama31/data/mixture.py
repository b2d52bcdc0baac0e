"""Which tokens of which source belong to a row of a step: arithmetic over the schedule, no state.

Each source is an endless stream of tokens (`batches.py`); a row of length s takes the next s tokens of one stream.
So a place in the data is one number per source, its cursor, and cursors are known at any step: training is cut into
legs of constant row length and weights, and a fixed pattern says which source each row comes from. A ramp of the
sequence length, new weights or a skipped range begin a new leg at the cursors where the last one ended: nothing is
drawn twice and nothing that was drawn changes. New weights begin their pattern anew, everything else continues it.

The pattern gives each source its share at every prefix, off by less than one row: row j of a source with share w has
to be drawn among the rows floor(j / w) to ceil((j + 1) / w), and taking the most urgent source that may be drawn
always works out (Baruah et al. 1996, "Proportionate progress"). It repeats after the common denominator of the
shares, so any row is looked up at once.
"""

from __future__ import annotations

import bisect
import functools
import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llama31 import config
from llama31.plan import schedule

_LONGEST_PATTERN = 1 << 16


@dataclass(frozen=True)
class Weights:
    """Decision: from the first step that has seen `from_tokens`, draw by these weights (a source left out: never).

    `lengths` are the weights of the buckets of document length from there on; None: as they were.
    """

    from_tokens: int
    weights: Mapping[str, float]
    lengths: Sequence[float] | None = None


@dataclass(frozen=True)
class Skip:
    """Decision: leave out the data that steps `from_step` to `to_step` - 1 would have drawn.

    Training step `from_step` then draws what `to_step` would have drawn. Steps are counted as training counts them
    when the decision is taken, so of several decisions each stands on the ones before it. What is left out has the
    row lengths and weights of the steps from `from_step` on.
    """

    from_step: int
    to_step: int


Decision = Weights | Skip


class Checkpointed(Protocol):
    """What a checkpoint knows of the data that were read before it (`publish.Meta`)."""

    @property
    def tokens(self) -> int: ...
    @property
    def decisions(self) -> list[Any]: ...
    @property
    def extra(self) -> dict[str, Any]: ...


def to_record(decision: Decision) -> dict[str, Any]:
    """A decision as a record for JSON."""
    fields = {key: value for key, value in asdict(decision).items() if value is not None}
    return {"decision": type(decision).__name__.lower(), **fields}


def from_record(record: Mapping[str, Any]) -> Decision:
    """The decision of a record. Raises ValueError where it is none."""
    kinds: dict[str, type[Weights] | type[Skip]] = {"weights": Weights, "skip": Skip}
    fields = {key: value for key, value in record.items() if key != "decision"}
    try:
        return kinds[record["decision"]](**fields)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{dict(record)} is no decision about data ({error!r}); mend decisions.jsonl") from error


def plan(data: config.Data) -> list[Weights]:
    """What a config says about all times: the weights of its sources from 0 on, then each entry of `data.mixture`."""
    first = Weights(
        0,
        {name: source.weight for name, source in data.sources.items()},
        [bucket.weight for bucket in data.length_buckets] or None,
    )
    later = (Weights(mix.from_tokens, dict(mix.weights), list(mix.length_weights) or None) for mix in data.mixture)
    return [first, *later]


def replanned(known: Sequence[Decision], given: Sequence[Weights], tokens: int) -> list[Weights]:
    """Decisions after which the plan `given` holds from `tokens` on, where `known` held until now; none if it does.

    What was drawn stays drawn: entries of `given` for earlier tokens say what holds now, and change nothing behind.
    """
    old = [decision for decision in known if isinstance(decision, Weights)]
    points = sorted({tokens, *(change.from_tokens for change in [*old, *given] if change.from_tokens > tokens)})
    if all(_in_force(old, point) == _in_force(given, point) for point in points):
        return []
    return [Weights(point, *_in_force(given, point)) for point in points]


def _in_force(plan: Sequence[Weights], tokens: int) -> tuple[dict[str, float], list[float] | None]:
    """Weights above 0, and those of the buckets, at `tokens`."""
    weights: dict[str, float] = {}
    lengths: list[float] | None = None
    for change in sorted(plan, key=lambda change: change.from_tokens):
        if change.from_tokens <= tokens:
            weights = {name: float(weight) for name, weight in change.weights.items() if weight}
            lengths = lengths if change.lengths is None else [float(weight) for weight in change.lengths]
    return weights, lengths


@dataclass(frozen=True)
class Draw:
    """Where rows come from: index of the source and position in its stream, in tokens; both [rows]."""

    source: NDArray[np.int64]
    position: NDArray[np.int64]


@dataclass(frozen=True)
class Chapter:
    """The time in which rows have one length and documents one set of weights by length."""

    sequence_length: int
    lengths: tuple[float, ...]
    cursors: tuple[int, ...]  # tokens drawn from each source before


@dataclass(frozen=True)
class _Leg:
    """Steps of one row length and one set of weights. A leg that is not trained only moves the cursors."""

    first_step: int
    steps: int
    rows: int  # per step
    sequence_length: int
    weights: tuple[float, ...]
    lengths: tuple[float, ...]
    cursors: tuple[int, ...]  # tokens drawn from each source before this leg
    first_row: int  # place in the pattern at which this leg begins: the one before may have had the same weights
    trained: bool


class Mixture:
    """Maps (step, row) to (source, position), given weights per source name, a schedule and decisions.

    Sources are ordered by name, so the order in YAML does not matter. Raises ValueError (keys `data.sources.*.weight`)
    for weights that name unknown sources, are negative, or are all zero, and for skips that skip nothing. `lengths` are
    the weights by document length at the beginning: kept here because decisions change them, used by `whole.py`.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        schedule: config.Schedule,
        decisions: Sequence[Decision] = (),
        lengths: Sequence[float] = (),
    ) -> None:
        self.names = sorted(weights)
        self._schedule = schedule
        self._changes = self._weight_changes(Weights(0, weights, lengths), decisions)
        left_out = dropped([decision for decision in decisions if isinstance(decision, Skip)])
        self._legs = self._cut(left_out)
        self._trained = [leg for leg in self._legs if leg.trained]
        self._firsts = [leg.first_step for leg in self._trained]

    def shape(self, step: int) -> tuple[int, int]:
        """(rows of the global batch, sequence length) of a step."""
        leg = self._leg(step)
        return leg.rows, leg.sequence_length

    def draw(self, step: int, rows: NDArray[np.int64]) -> Draw:
        """Where the given rows of the step's global batch come from."""
        leg = self._leg(step)
        places = leg.first_row + (step - leg.first_step) * leg.rows + np.asarray(rows, np.int64)
        pattern, _ = _pattern(leg.weights)
        source = pattern[places % len(pattern)]
        begun = _counts(leg.weights, np.array([leg.first_row]))[0]
        before = _counts(leg.weights, places)[np.arange(places.size), source] - begun[source]
        return Draw(source, np.array(leg.cursors, np.int64)[source] + before * leg.sequence_length)

    def drawn(self, step: int) -> dict[str, int]:
        """Tokens taken from each source before `step`, skipped ones included."""
        leg = self._leg(step)
        return dict(zip(self.names, _advanced(leg, step - leg.first_step)))

    def weights(self, tokens: int) -> dict[str, float]:
        """Weights in force for the step that has seen `tokens`."""
        return dict(zip(self.names, self._weights_at(schedule.step_at(self._schedule, tokens))[0]))

    def chapters(self) -> list[Chapter]:
        """Chapters in the order of the data, those of skipped steps included; the last one does not end."""
        result: list[Chapter] = []
        for leg in self._legs:
            if not result or (result[-1].sequence_length, result[-1].lengths) != (leg.sequence_length, leg.lengths):
                result.append(Chapter(leg.sequence_length, leg.lengths, leg.cursors))
        return result

    def _leg(self, step: int) -> _Leg:
        return self._trained[bisect.bisect_right(self._firsts, step) - 1]

    def _weight_changes(
        self, first: Weights, decisions: Sequence[Decision]
    ) -> list[tuple[int, tuple[float, ...], tuple[float, ...]]]:
        """(first step, weights, lengths), by step; of two at one step the later decision holds."""
        by_step, lengths = {}, first.lengths or ()
        changes = [decision for decision in decisions if isinstance(decision, Weights)]
        for change in [first, *sorted(changes, key=lambda decision: decision.from_tokens)]:
            lengths = lengths if change.lengths is None else change.lengths
            step = schedule.step_at(self._schedule, change.from_tokens)
            by_step[step] = (self._checked(change.weights), tuple(map(float, lengths)))
        return [(step, *by_step[step]) for step in sorted(by_step)]

    def _checked(self, weights: Mapping[str, float]) -> tuple[float, ...]:
        unknown = sorted(set(weights) - set(self.names))
        if unknown:
            raise ValueError(f"weights name {', '.join(unknown)}: data.sources has {', '.join(self.names)} only")
        values = tuple(float(weights.get(name, 0)) for name in self.names)
        if not all(math.isfinite(value) and value >= 0 for value in values) or not any(values):
            keys = ", ".join(f"data.sources.{name}.weight={value}" for name, value in zip(self.names, values))
            raise ValueError(f"{keys}: give weights of at least 0, one of them above 0")
        return values

    def _weights_at(self, step: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return [(weights, lengths) for first, weights, lengths in self._changes if first <= step][-1]

    def _cut(self, dropped: list[tuple[int, int]]) -> list[_Leg]:
        """All legs in the order of the data; `dropped` gives (training step, steps left out before it), by step."""
        legs: list[_Leg] = []
        begun = 0
        for step, count in dropped:
            self._extend(legs, begun, step, trained=True)
            self._extend(legs, step, step + count, trained=False)
            begun = step
        self._extend(legs, begun, None, trained=True)
        return legs

    def _extend(self, legs: list[_Leg], begin: int, end: int | None, trained: bool) -> None:
        """Append the legs of steps [begin, end); without an end the last leg lasts for ever."""
        ramps = [schedule.step_at(self._schedule, ramp.from_tokens) for ramp in self._schedule.ramp]
        breaks = {begin, *ramps, *(first for first, *_ in self._changes)}
        firsts = sorted(first for first in breaks if first >= begin and (end is None or first < end))
        for first, last in zip(firsts, [*firsts[1:], end]):
            stage = schedule.batch_at(self._schedule, schedule.step_tokens(self._schedule, first))
            cursors = _advanced(legs[-1], legs[-1].steps) if legs else [0] * len(self.names)
            steps = last - first if last is not None else 0  # nothing stands behind an endless leg
            weights, lengths = self._weights_at(first)
            same = bool(legs) and legs[-1].weights == weights
            first_row = legs[-1].first_row + legs[-1].steps * legs[-1].rows if same else 0
            shape = stage.batch_tokens // stage.sequence_length, stage.sequence_length
            legs.append(_Leg(first, steps, *shape, weights, lengths, tuple(cursors), first_row, trained))


def dropped(skips: Sequence[Skip]) -> list[tuple[int, int]]:
    """(training step, steps left out right before it), by step, of skips that were decided one after the other."""
    kept: list[tuple[int, int]] = []
    for skip in skips:
        if not 0 <= skip.from_step < skip.to_step:
            raise ValueError(f"{skip} skips nothing: from_step has to be at least 0 and below to_step")
        count = skip.to_step - skip.from_step
        # Ranges left out within the new one join it; those behind it move to the training steps that now reach them.
        inside = sum(n for step, n in kept if skip.from_step <= step <= skip.to_step)
        before = [(step, n) for step, n in kept if step < skip.from_step]
        behind = [(step - count, n) for step, n in kept if step > skip.to_step]
        kept = [*before, (skip.from_step, count + inside), *behind]
    return kept


def _advanced(leg: _Leg, steps: int) -> list[int]:
    """Cursors after so many steps of a leg."""
    places = leg.first_row + np.array([0, steps * leg.rows])
    begun, ended = _counts(leg.weights, places)
    return [cursor + int(n) * leg.sequence_length for cursor, n in zip(leg.cursors, ended - begun)]


def _counts(weights: tuple[float, ...], places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows of each source [places, sources] before the given places of the endless pattern."""
    pattern, counts = _pattern(weights)
    whole, rest = np.divmod(places, len(pattern))
    return whole[:, None] * counts[-1] + counts[rest]


def parts(weights: Sequence[float]) -> list[int]:
    """Rows of each source in one pattern.

    Weights are taken as the decimals they are written in. Where these need a pattern of more than 65,536 rows, shares
    are rounded to such a pattern: to within 0.002 % of the whole, and never to nothing.
    """
    exact = [Fraction(repr(float(weight))) for weight in weights]
    scale = math.lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * scale) for weight in exact]
    divisor = math.gcd(*whole)
    whole = [part // divisor for part in whole]
    if sum(whole) <= _LONGEST_PATTERN:
        return whole
    total = sum(whole)
    floors = [max(int(part > 0), part * _LONGEST_PATTERN // total) for part in whole]
    by_rest = sorted(range(len(whole)), key=lambda i: (-(whole[i] * _LONGEST_PATTERN % total), i))
    for i in by_rest[: max(0, _LONGEST_PATTERN - sum(floors))]:
        floors[i] += 1
    return floors


@functools.lru_cache(maxsize=64)
def _pattern(weights: tuple[float, ...]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(source of each row [rows], rows of each source before each row [rows + 1, sources]) of one pattern."""
    rows_of = parts(weights)
    length = sum(rows_of)
    pattern = np.empty(length, np.int64)
    drawn = [0] * len(rows_of)
    # A source waits until the row from which it may be drawn again; then the nearest deadline goes first.
    waiting = [(0, i) for i, rows in enumerate(rows_of) if rows]
    ready: list[tuple[int, int]] = []
    for row in range(length):
        while waiting and waiting[0][0] <= row:
            _, i = heapq.heappop(waiting)
            heapq.heappush(ready, (-(-(drawn[i] + 1) * length // rows_of[i]), i))
        _, i = heapq.heappop(ready)
        pattern[row] = i
        drawn[i] += 1
        if drawn[i] < rows_of[i]:
            heapq.heappush(waiting, (drawn[i] * length // rows_of[i], i))
    counts = np.zeros((length + 1, len(rows_of)), np.int64)
    np.cumsum(pattern[:, None] == np.arange(len(rows_of)), axis=0, out=counts[1:])
    return pattern, counts


def begun(data: config.Data, meta: Checkpointed | None) -> tuple[dict[str, float], list[Decision]]:
    """The mixture at step 0 and the decisions since, with more where a run that goes on was given another plan.

    `meta` is of the checkpoint that it goes on from. What `data.mixture` plans is written down as decisions when the
    run begins, so that a resume knows what was to come; the plan of a resumed run holds from where it goes on, and
    what was drawn stays drawn.
    """
    given = plan(data)
    if meta is None:
        return dict(given[0].weights), list(given[1:])
    first = {name: float(weight) for name, weight in meta.extra.get("weights", given[0].weights).items()}
    first |= {name: 0.0 for name in given[0].weights if name not in first}
    decisions = [from_record(record) for record in meta.decisions]
    at_first = Weights(0, first, [weight for _, weight in meta.extra.get("length_buckets", [])] or None)
    return first, [*decisions, *replanned([at_first, *decisions], given, meta.tokens)]


def as_begun(data: config.Data, meta: Checkpointed | None, weights: Mapping[str, float]) -> config.Data:
    """The data as at step 0: what was drawn depends on it. Sources that came later begin with weight 0.

    Without the plan, which stands among the decisions.
    """
    sources = {name: replace(data.sources.get(name, config.Source()), weight=given) for name, given in weights.items()}
    extra = meta.extra if meta else {}
    buckets = [config.Bucket(*pair) for pair in extra.get("length_buckets", [])] or data.length_buckets
    slots = extra.get("slot_tokens") or data.slot_tokens
    return replace(data, sources=sources, mixture=[], length_buckets=buckets, slot_tokens=slots)
