"""What a run watches while it trains, and what it does about it. Verdicts are data, and all ranks hold the same one.

A step is judged before its update is applied: `Seen` says what was measured, `RunGuard.judge` answers with a `Verdict`,
`agree` makes rank 0's verdict (and any rank's wish to stop) that of all ranks, `RunGuard.note` remembers the decision.
Every rank does all of this, at the price of one all-reduce of one integer per step.

`Divergence` and `RankTimes` compare ranks every so many steps; their results are the same on all ranks by construction.
"""

from __future__ import annotations

import functools
import hashlib
import math
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from llama31 import config
from llama31.parallel.mesh import Grid

KINDS = ("continue", "skip", "rollback", "stop")  # from the mildest to the hardest
EVENTS = ("", "divergence", "nonfinite", "loss_spike", "norm_spike", "slow_rank")
_RELATIVE_FLOOR = 1e-3  # least deviation of a window, relative to its mean: a constant window makes no spikes


@dataclass(frozen=True)
class Odd:
    """A rank whose parameters differ from those of its replicas; not `certain` where no majority says who is right."""

    rank: int
    host: str
    certain: bool


@dataclass(frozen=True)
class Seen:
    """What is known of a step before its update is applied. `step` counts the steps done before it."""

    step: int
    loss: float
    grad_norm: float
    odd: tuple[Odd, ...] | None = None  # None: replicas were not compared at this step
    slow: tuple[str, ...] = ()  # hosts slow enough to do without


@dataclass(frozen=True)
class Verdict:
    """What happens to a step. An `event` is set with every kind but an unremarkable `continue`.

    continue: apply the update. skip: discard it, and do the step again without its data. rollback: load a checkpoint
    of at most `before_step` steps. stop: discard it and end the attempt. `from_step` to `to_step` - 1 are the steps
    whose data is left out (`mixture.Skip`), none where both are equal.
    """

    kind: str = "continue"
    event: str = ""
    reason: str = ""
    before_step: int = 0
    from_step: int = 0
    to_step: int = 0


class RunGuard:
    """Judges steps by what came before them. No torch, no clock, no files: what it says is a function of what it saw.

    `step` is where training stands when it begins.
    """

    def __init__(self, settings: config.Guard, step: int = 0) -> None:
        self.settings = settings
        self.rollbacks = 0  # of this attempt: not part of the history
        self._losses = _Window(settings.window_steps)
        self._norms = _Window(settings.window_steps)
        self._skips = 0  # in a row
        self._equal_step = step  # replicas were last known to be equal here

    def judge(self, seen: Seen) -> Verdict:
        """The verdict on a step; changes nothing. Of several events the hardest answer counts, and all are told."""
        anomalies = [*self._divergence(seen), *(self._nonfinite(seen) or self._spikes(seen)), *self._slow(seen)]
        if not anomalies:
            return Verdict()
        kind, event, _ = max(anomalies, key=lambda one: KINDS.index(one[0]))  # the first of the hardest
        reason = "; ".join(why for _, _, why in anomalies)
        step, settings = seen.step, self.settings
        if kind == "skip" and self._skips >= settings.max_skips:
            return Verdict("stop", event, f"{reason}; guard.max_skips={settings.max_skips} were skipped in a row")
        if kind == "rollback" and self.rollbacks >= settings.max_rollbacks:
            why = f"guard.max_rollbacks={settings.max_rollbacks} rollbacks of this attempt did not help"
            return Verdict("stop", event, f"{reason}; {why}")
        if kind == "rollback" and event == "divergence":  # the data is not to blame
            return Verdict(kind, event, reason, before_step=self._equal_step)
        if kind == "rollback":
            first = max(0, step - settings.skip_before_steps)
            return Verdict(kind, event, reason, first, first, step + 1 + settings.skip_after_steps)
        if kind == "skip":
            return Verdict(kind, event, reason, step, step, step + 1)
        return Verdict(kind, event, reason)

    def note(self, seen: Seen, verdict: Verdict) -> None:
        """Remember an agreed verdict. After a rollback, `restore` the history of the checkpoint that was loaded."""
        if verdict.kind == "rollback":
            self.rollbacks += 1
        elif verdict.kind == "skip":
            self._skips += 1
        elif verdict.kind == "continue":
            self._skips = 0
            self._losses.add(seen.loss, self.settings.loss_zscore)
            self._norms.add(seen.grad_norm, self.settings.norm_zscore)
            if seen.odd == ():
                self._equal_step = seen.step

    def history(self) -> dict[str, Any]:
        """What a checkpoint keeps, ready for JSON: with it a resumed run judges as one that was never interrupted."""
        windows = {"losses": asdict(self._losses), "norms": asdict(self._norms)}
        return {**windows, "skips": self._skips, "equal_step": self._equal_step}

    def restore(self, history: Mapping[str, Any] | None, step: int) -> None:
        """Go on from the history of a checkpoint at `step`; None where it has none. Rollbacks stay counted."""
        known = history or {}
        size = self.settings.window_steps
        self._losses = _Window.of(known.get("losses"), size)
        self._norms = _Window.of(known.get("norms"), size)
        self._skips = int(known.get("skips", 0))
        self._equal_step = int(known.get("equal_step", step))

    def _nonfinite(self, seen: Seen) -> list[tuple[str, str, str]]:
        if math.isfinite(seen.loss) and math.isfinite(seen.grad_norm):
            return []
        reason = f"step {seen.step + 1}: loss {seen.loss}, gradient norm {seen.grad_norm}"
        return [(self.settings.on_nonfinite, "nonfinite", reason)]

    def _spikes(self, seen: Seen) -> list[tuple[str, str, str]]:
        settings, anomalies = self.settings, []
        for event, action, name, window, value, most in (
            ("loss_spike", settings.on_loss_spike, "loss", self._losses, seen.loss, settings.loss_zscore),
            ("norm_spike", settings.on_norm_spike, "gradient norm", self._norms, seen.grad_norm, settings.norm_zscore),
        ):
            score = window.score(value)
            if score > most:
                mean = statistics.fmean(window.values)
                reason = f"step {seen.step + 1}: {name} {value:.6g} is {score:.1f} deviations above {mean:.6g}"
                anomalies.append((action, event, reason))
        return anomalies

    def _divergence(self, seen: Seen) -> list[tuple[str, str, str]]:
        if not seen.odd:
            return []
        ranks = ", ".join(f"{one.rank} on {one.host}" for one in seen.odd[:16])
        more = f" and {len(seen.odd) - 16} more" if len(seen.odd) > 16 else ""
        doubt = "" if all(one.certain for one in seen.odd) else " (which of them is right cannot be told)"
        reason = f"step {seen.step + 1}: parameters differ between replicas, on rank {ranks}{more}{doubt}"
        return [(self.settings.on_divergence, "divergence", reason)]

    def _slow(self, seen: Seen) -> list[tuple[str, str, str]]:
        if not seen.slow or self.settings.on_slow_rank == "continue":
            return []
        return [("stop", "slow_rank", f"step {seen.step + 1}: {', '.join(seen.slow)} is slow")]


@dataclass
class _Window:
    """The last ordinary values, and the spikes since the last of them.

    A spike that was let pass does not enter, so that it cannot hide the next. But where a quarter of a window comes as
    spikes in a row, the level has moved (a new source, a longer sequence), and they become the window.
    """

    size: int
    values: list[float] = field(default_factory=list)
    spikes: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, known: Mapping[str, Any] | None, size: int) -> _Window:
        """A window as `asdict` gave it, cut where `size` has become smaller."""
        return cls(size, list(known["values"])[-size:], list(known["spikes"])) if known else cls(size)

    @property
    def enough(self) -> int:
        return max(2, self.size // 4)

    def score(self, value: float) -> float:
        """Standard deviations above the mean; 0 before a quarter of the window is there."""
        if len(self.values) < self.enough:
            return 0.0
        mean = statistics.fmean(self.values)
        deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in self.values) / len(self.values))
        return (value - mean) / max(deviation, _RELATIVE_FLOOR * abs(mean), 1e-12)

    def add(self, value: float, most: float) -> None:
        """Take in a value, by whether it is a spike: more than `most` deviations above the mean."""
        if self.score(value) <= most:
            self.values = [*self.values, value][-self.size :]
            self.spikes = []
            return
        self.spikes.append(value)
        if len(self.spikes) >= self.enough:
            self.values, self.spikes = self.spikes, []


# --- what all ranks agree on ---


@dataclass(frozen=True)
class Control:
    """What all ranks do after a step: rank 0's verdict, and what any rank asked for.

    `save` asks for a checkpoint, `stop` for one and the end of the attempt; `superseded` says that a newer attempt
    has begun, so that nothing may be saved. `reason` says why, of the last two.
    """

    verdict: Verdict = Verdict()
    stop: bool = False
    save: bool = False
    superseded: bool = False
    reason: str = ""

    def to_tensor(self, rank: int, device: torch.device) -> Tensor:
        """[1] int64, of which the sum over ranks says all that an ordinary step needs; only rank 0 sends a verdict.

        One number, because gloo's all-reduce of several takes three times as long.
        """
        flags = (self.stop, self.save, self.superseded)
        number = sum(flag << place * _COUNT_BITS for place, flag in enumerate(flags))
        if rank == 0:
            verdict = KINDS.index(self.verdict.kind) + len(KINDS) * EVENTS.index(self.verdict.event)
            number += verdict << len(flags) * _COUNT_BITS
        return torch.tensor([number], dtype=torch.int64, device=device)

    @classmethod
    def from_tensor(cls, summed: Tensor) -> Control:
        """What the sum says: kind and event of the verdict, and what any rank asked for."""
        number = int(summed.item())
        stop, save, superseded = (number >> place * _COUNT_BITS & (1 << _COUNT_BITS) - 1 for place in range(3))
        event, kind = divmod(number >> 3 * _COUNT_BITS, len(KINDS))
        return cls(Verdict(KINDS[kind], EVENTS[event]), stop > 0, save > 0, superseded > 0)


_COUNT_BITS = 18  # room for the ranks that ask for the same: three such counts and a verdict fit into 63 bits


def agree(mine: Control, grid: Grid) -> Control:
    """The control that all ranks follow; collective over all ranks. More is sent only when something happened."""
    summed = mine.to_tensor(grid.rank, grid.device)
    dist.all_reduce(summed)
    agreed = Control.from_tensor(summed)
    asked = agreed.stop or agreed.superseded
    if not agreed.verdict.event and not asked:
        return agreed
    asker = torch.tensor([grid.rank if mine.stop or mine.superseded else -1], device=grid.device)
    dist.all_reduce(asker, dist.ReduceOp.MAX)
    shared: list[Any] = [mine.verdict, mine.reason]
    dist.broadcast_object_list(shared, src=0, device=grid.device)
    reason = (shared[1] or f"asked for on rank {int(asker.item())}") if asked else ""
    return replace(agreed, verdict=shared[0], reason=reason)


def _gathered(row: list[Any], dtype: torch.dtype, grid: Grid) -> list[list[Any]]:
    """The row of every rank, by rank."""
    mine = torch.tensor(row, dtype=dtype, device=grid.device)
    table = torch.empty(grid.world * len(row), dtype=dtype, device=grid.device)
    dist.all_gather_into_tensor(table, mine)
    return table.view(grid.world, len(row)).tolist()


# --- replicas that should be equal ---


class Divergence:
    """Finds ranks whose parameters differ from those of their replicas.

    `named` are the rank's parameters in the order of `model.shards`, `hosts` the host of every rank. Compared are all
    parameters over data and context parallel ranks, and vectors (norms) over tensor parallel ranks too. ZeRO-3
    shards what ZeRO-1 and 2 replicate: there nothing is compared, and `active` is false. Masters and moments have no
    replicas in any stage; and since every update writes all parameters anew from them, a difference lives until the
    next update at most: compare between `accumulate` and `apply`, when a step's weights have been used.
    """

    def __init__(self, named: Sequence[tuple[str, Tensor]], grid: Grid, hosts: Sequence[str], zero: int) -> None:
        self.named, self.grid, self.hosts = list(named), grid, hosts
        self.active = zero < 3 and grid.tp * grid.cp * grid.dp > 1

    def compare(self) -> tuple[Odd, ...]:
        """The ranks in the minority, the same on all ranks. Collective over all ranks."""
        if not self.active:
            return ()
        grid = self.grid
        vectors = [(name, tensor) for name, tensor in self.named if tensor.ndim <= 1]
        row = [digest(self.named), digest(vectors), grid.tp_rank, grid.pp_rank]
        return minorities(_gathered(row, torch.int64, grid), self.hosts)


def minorities(table: Sequence[Sequence[int]], hosts: Sequence[str]) -> tuple[Odd, ...]:
    """Ranks that differ, from rows of (digest, digest of the vectors, tp rank, pp rank) by rank."""
    groups: dict[tuple[int, ...], dict[int, int]] = defaultdict(dict)
    for rank, (whole, vectors, tp, pp) in enumerate(table):
        groups[tp, pp][rank] = whole
        groups[(pp,)][rank] = vectors
    certain: dict[int, bool] = {}
    for digests in groups.values():
        (most, count), *others = Counter(digests.values()).most_common()
        majority = 2 * count > len(digests)
        for rank, own in digests.items():
            if others and (not majority or own != most):
                certain[rank] = certain.get(rank, False) or majority
    if any(certain.values()):  # a majority somewhere settles what a tie elsewhere leaves open
        certain = {rank: True for rank, sure in certain.items() if sure}
    return tuple(Odd(rank, hosts[rank], sure) for rank, sure in sorted(certain.items()))


_BLOCK, _BLOCKS_AT_ONCE = 1 << 16, 64  # elements per sum; 32 MiB of products at a time
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int32}  # by bytes per element


def digest(named: Iterable[tuple[str, Tensor]]) -> int:
    """A signed 64-bit hash of tensors, bit for bit, their names and order included.

    Each block of elements is summed with fixed random odd factors, modulo 2^64, where the tensor lies: any single
    changed bit changes the sum, and changes in two places cancel with a chance below 2^-32, unlike in
    `torch.hash_tensor`, whose XOR sees neither a swap nor the same flip twice. The sums are then hashed in order.
    """
    total, sums = hashlib.blake2b(digest_size=8), []
    for name, tensor in named:
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        sums.append(_sums(tensor.detach()))
    if sums:
        total.update(torch.cat(sums).cpu().numpy().tobytes())
    return int.from_bytes(total.digest(), "little", signed=True)


def _sums(tensor: Tensor) -> Tensor:
    """[blocks] int64, one sum per block of elements."""
    words = tensor.reshape(-1).view(_INTEGERS[tensor.element_size()])
    factors = _factors(tensor.device)
    whole = words.numel() // _BLOCK * _BLOCK
    parts = [(rows * factors).sum(1) for rows in words[:whole].view(-1, _BLOCK).split(_BLOCKS_AT_ONCE)]
    rest = words[whole:]
    return torch.cat([*parts, (rest * factors[: rest.numel()]).sum(0, keepdim=True)])


@functools.cache
def _factors(device: torch.device) -> Tensor:
    random = torch.Generator().manual_seed(20240723)
    return (torch.randint(-(2**63), 2**63 - 1, (_BLOCK,), generator=random) | 1).to(device)


# --- ranks that should be equally fast ---

PROBE = "probe_s"
_FLOOR_S = 0.005  # a rank that is slower by less is not slow, whatever the factor
_PROBE_FLOOR_S = 0.001


@dataclass(frozen=True)
class Comparison:
    """Times of all ranks, the same on all ranks: the line `ranks` of the record, and the hosts to do without."""

    phases: dict[str, dict[str, float]]  # min, median, max in seconds, and the slowest rank
    slow: list[dict[str, Any]]  # rank, host, phase, factor; the slowest first
    hosts: tuple[str, ...] = ()

    def line(self) -> dict[str, Any]:
        """The facts of the line `ranks` of metrics.jsonl."""
        return {"phases": self.phases, "slow": self.slow}


class RankTimes:
    """Compares how long the ranks took, every so many steps.

    Ranks of one model replica wait for each other inside `forward_backward_s`, so that phase names the replica (all
    its ranks), `data_s` and the probe name the rank. The probe is a fixed matrix product that waits for nobody; a host
    is done without (`hosts`) only when its probe was slow twice running, for once may be anything.
    """

    def __init__(
        self,
        settings: config.Guard,
        grid: Grid,
        hosts: Sequence[str],
        phases: Sequence[str] = ("data_s", "forward_backward_s"),
        probe: Callable[[], float] | None = None,
    ) -> None:
        self.settings, self.grid, self.hosts, self.phases = settings, grid, hosts, tuple(phases)
        self._probe = probe or SpeedProbe(grid.device)
        self._before: set[int] = set()  # ranks whose probe was slow last time

    def compare(self, seconds: Mapping[str, float], steps: int) -> Comparison:
        """Seconds of this rank by phase, summed over `steps` steps and without any wait for other replicas, against
        those of all ranks. Collective over all ranks. Returned seconds are per step.
        """
        row = [seconds.get(phase, 0.0) / max(steps, 1) for phase in self.phases]
        table = _gathered([*row, self._probe()], torch.float64, self.grid)
        comparison = compare_times(table, (*self.phases, PROBE), self.hosts, self.settings.slow_factor)
        probes = {one["rank"] for one in comparison.slow if one["phase"] == PROBE}
        hosts = dict.fromkeys(self.hosts[rank] for rank in sorted(probes & self._before))
        self._before = probes
        return replace(comparison, hosts=tuple(hosts))


def compare_times(
    table: Sequence[Sequence[float]], phases: Sequence[str], hosts: Sequence[str], slow_factor: float
) -> Comparison:
    """What rows of seconds by phase, one per rank, say."""
    by_phase, slow = {}, []
    for phase, column in zip(phases, zip(*table), strict=True):
        median = statistics.median_low(column)  # of two ranks the faster one, or neither could ever be slow
        floor_s = _PROBE_FLOOR_S if phase == PROBE else _FLOOR_S
        numbers = {"min": min(column), "median": median, "max": max(column)}
        slowest = {"slowest": column.index(max(column))}
        by_phase[phase] = {name: round(value, 6) for name, value in numbers.items()} | slowest
        for rank, value in enumerate(column):
            if value > slow_factor * median and value - median > floor_s:
                factor = round(value / max(median, 1e-9), 2)
                slow.append({"rank": rank, "host": hosts[rank], "phase": phase, "factor": factor})
    return Comparison(by_phase, sorted(slow, key=lambda one: -one["factor"]))


class SpeedProbe:
    """Seconds of a fixed matrix product on `device`, the best of three: what this rank can do when left alone."""

    def __init__(self, device: torch.device) -> None:
        self.device, cuda = device, device.type == "cuda"
        size, dtype, self._products = (4096, torch.bfloat16, 8) if cuda else (256, torch.float32, 1)
        self._factor = torch.full((size, size), 1 / size, dtype=dtype, device=device)
        self._once()  # libraries load

    def __call__(self) -> float:
        return min(self._once() for _ in range(3))

    @torch.no_grad()
    def _once(self) -> float:
        self._wait()
        begin = time.perf_counter()
        for _ in range(self._products):
            self._factor @ self._factor
        self._wait()
        return time.perf_counter() - begin

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
