"""Ranks against each other, every so many steps: do replicas hold the same parameters, and is one of them slow."""

from __future__ import annotations

import functools
import hashlib
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from llama31 import config
from llama31.parallel.mesh import Grid

PROBE = "probe_s"
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int32}  # by bytes per element
_BLOCK, _BLOCKS_AT_ONCE = 1 << 16, 64  # elements per sum; 32 MiB of products at a time
_PROBE_FLOOR_S = 0.001
_FLOOR_S = 0.005  # a rank that is slower by less is not slow, whatever the factor


@dataclass(frozen=True)
class Odd:
    """A rank whose parameters differ from those of its replicas; not `certain` where no majority says who is right."""

    rank: int
    host: str
    certain: bool


def _gathered(row: list[Any], dtype: torch.dtype, grid: Grid) -> list[list[Any]]:
    """The row of every rank, by rank."""
    mine = torch.tensor(row, dtype=dtype, device=grid.device)
    table = torch.empty(grid.world * len(row), dtype=dtype, device=grid.device)
    dist.all_gather_into_tensor(table, mine)
    return table.view(grid.world, len(row)).tolist()


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

    Ranks of one model replica wait for each other inside `forward_backward_s`, and one of them reads for all, so these
    phases name the replica (all its ranks), and the probe names the rank. The probe is a fixed matrix product that
    waits for nobody; a host is done without (`hosts`) only when its probe was slow twice running, for once may be
    anything.
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
