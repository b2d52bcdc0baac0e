"""Is every node fit to train? Asked once before the first step, for a bad node costs a run more than a second.

`check` measures on all ranks at once; the first one gathers what was found, judges it, and gives all the same report.
A problem names a node only where the node is to blame: a disk that all nodes share, or versions of which no majority
exists, are everybody's. On CPUs the same code runs with what applies.

Links are measured along a ring of nodes, one lane per local rank and so per network card, in rounds in which a node
either sends or receives: with both at once, a slow card would slow its neighbours' other links too. A node is bad when
both its links of a lane are slow, which takes three nodes to tell.
"""

from __future__ import annotations

import json
import platform
import shutil
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from llama31 import config
from llama31.parallel.collectives import gathered, on_first_rank
from llama31.parallel.mesh import Grid
from llama31.runs.attempts import host_name

ECC_QUERY = ("index", "ecc.errors.uncorrected.volatile.total", "remapped_rows.pending", "remapped_rows.failure")
ECC_STATES = {
    "uncorrected": "uncorrected memory errors",
    "remap_pending": "rows to be remapped at its next reset",
    "remap_failed": "rows that could not be remapped",
}
Record = dict[str, Any]  # what one rank found


@dataclass(frozen=True)
class Problem:
    """Something that training should not begin with; `node` is None where no single node is to blame."""

    node: str | None
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{f'node {self.node}: ' if self.node else ''}{self.what}; {self.remedy}"


@dataclass(frozen=True)
class PreflightReport:
    """What was measured on each node, and what is wrong; the same on all ranks. `hosts` is the host of every rank."""

    nodes: list[dict[str, Any]]
    problems: list[Problem]
    hosts: list[str]

    def to_json(self) -> str:
        """The text of preflight.json."""
        return json.dumps({"nodes": self.nodes, "problems": [str(problem) for problem in self.problems]}, indent=1)

    def bad_nodes(self) -> list[str]:
        """The nodes to do without, each once."""
        return list(dict.fromkeys(problem.node for problem in self.problems if problem.node is not None))


def gather_hosts(grid: Grid) -> list[str]:
    """The host of every rank, by rank. Collective."""
    hosts: list[Any] = [None] * grid.world
    dist.all_gather_object(hosts, host_name())
    return hosts


def check(
    settings: config.Preflight, folder: Path, needed_bytes: int, grid: Grid,
    packages: Mapping[str, str], commit: str | None,
) -> PreflightReport:  # fmt: skip
    """Measure all nodes and judge them; collective, and the same result on all ranks.

    `folder` is the run's, on whose disk `needed_bytes` have to be free; `packages` are the versions installed here and
    `commit` that of the code here. Less than a second on CPUs.
    """
    hosts = gather_hosts(grid)
    dist.barrier()
    record: Record = {"rank": grid.rank, "host": hosts[grid.rank], "time_s": time.time(), "errors": []}
    record["link_gb_s"] = _links(hosts, settings.link_bytes, grid)
    record["allreduce_gb_s"] = _allreduce_gb_s(settings.link_bytes, grid)
    record |= _measured(record, "matmul_tflops", lambda: _matmul_tflops(settings.matmul_size, grid.device))
    record |= _measured(record, "gpu_free_share", lambda: _gpu_free_share(grid.device))
    if hosts.index(hosts[grid.rank]) == grid.rank:  # the first rank of a node speaks for it
        record |= _measured(record, "free_bytes", lambda: _free_bytes(folder))
        record |= _measured(record, "scratch_free_bytes", lambda: _free_bytes(Path(settings.scratch)))
        record |= _measured(record, "ecc", lambda: _ecc(grid.device))
        record["versions"] = {"python": platform.python_version(), **packages, "commit": commit or "none"}
    records = gathered(None, lambda: record)
    nodes, problems = on_first_rank(lambda: (summarise(records), judge(records, settings, needed_bytes)))
    return PreflightReport(nodes, problems, hosts)


def _measured(record: Record, name: str, measure: Callable[[], Any]) -> Record:
    """A measurement by its name; what fails is a finding about this node, and the other ranks must not wait for it."""
    try:
        return {name: measure()}
    except (OSError, RuntimeError, subprocess.SubprocessError, ValueError) as error:
        return {name: None, "errors": [*record["errors"], f"{name}: {error}"]}


# --- measuring ---


def _matmul_tflops(size: int | None, device: torch.device) -> float:
    """TFLOPS of a square product, BF16 on a GPU: the best of what a tenth of a second has room for, at least three.

    On a CPU by the seconds that this thread had: how many others share its cores says nothing about the node.
    """
    cuda = device.type == "cuda"
    size = size or (8192 if cuda else 512)
    factor = torch.full((size, size), 1 / size, dtype=torch.bfloat16 if cuda else torch.float32, device=device)

    def product() -> None:
        factor @ factor

    with torch.no_grad():
        _seconds(product, device)  # libraries load
        clock = time.perf_counter if cuda else time.thread_time
        best, begin, tries = float("inf"), time.perf_counter(), 0
        while tries < 3 or time.perf_counter() - begin < 0.1:
            best, tries = min(best, _seconds(product, device, clock)), tries + 1
    return 2 * size**3 / best / 1e12


def _links(hosts: Sequence[str], size_bytes: int, grid: Grid) -> float | None:
    """GB/s from the node before this one in the ring, in this rank's lane; None where there is no such lane."""
    rings = lanes(hosts)
    ring = next((ring for ring in rings if grid.rank in ring), [])
    nodes, place = len(rings[0]) if rings else 0, ring.index(grid.rank) if ring else -1
    best = float("inf")
    for size in (1, size_bytes, size_bytes):  # the first opens the connections
        message = torch.zeros(size, dtype=torch.uint8, device=grid.device)
        for sending in rounds(nodes):
            dist.barrier()
            if ring and (place - 1) % nodes in sending:
                receive = partial(_exchange, dist.irecv, message, ring[place - 1])
                seconds = _seconds(receive, grid.device)
                best = min(best, seconds) if size == size_bytes else best
            elif ring and place in sending:
                _exchange(dist.isend, message, ring[(place + 1) % nodes])
    return size_bytes / best / 1e9 if ring else None


def _exchange(direction: Any, message: torch.Tensor, peer: int) -> None:
    for work in dist.batch_isend_irecv([dist.P2POp(direction, message, peer)]):
        work.wait()


def lanes(hosts: Sequence[str]) -> list[list[int]]:
    """The ranks of each lane, one per node in the nodes' order; none for a single node.

    Where nodes have unequal numbers of ranks, those that not all nodes have are in no lane.
    """
    by_node: dict[str, list[int]] = defaultdict(list)
    for rank, host in enumerate(hosts):
        by_node[host].append(rank)
    return [list(lane) for lane in zip(*by_node.values())] if len(by_node) > 1 else []


def rounds(nodes: int) -> list[set[int]]:
    """Which nodes send to the next one in each round: every node once, and none that receives in the same round."""
    if nodes < 2:
        return []
    paired = nodes - nodes % 2
    last = [{nodes - 1}] if nodes % 2 else []
    return [set(range(0, paired, 2)), set(range(1, paired, 2)), *last]


def _allreduce_gb_s(size_bytes: int, grid: Grid) -> float | None:
    """Bus bandwidth of an all-reduce of all ranks: bytes that each moves, 2 (n - 1) / n of its own, per second."""
    if grid.world == 1:
        return None
    message, best = torch.zeros(max(1, size_bytes // 4), device=grid.device), float("inf")
    for _ in range(3):  # the first opens the connections
        dist.barrier()
        best = min(best, _seconds(lambda: dist.all_reduce(message), grid.device))
    return 2 * (grid.world - 1) / grid.world * message.nbytes / best / 1e9


def _seconds(action: Callable[[], Any], device: torch.device, clock: Callable[[], float] = time.perf_counter) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = clock()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - begin


def _gpu_free_share(device: torch.device) -> float | None:
    """Share of the GPU's memory that is free or this process's own."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return (free + torch.cuda.memory_reserved(device)) / total


def _free_bytes(folder: Path) -> int:
    """Free bytes of the file system of a folder, or of the nearest parent that exists."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free


def _ecc(device: torch.device) -> list[dict[str, Any]] | None:
    """The state of this node's GPU memories; None without a GPU or the tool."""
    if device.type != "cuda" or shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", f"--query-gpu={','.join(ECC_QUERY)}", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise RuntimeError(f"nvidia-smi exited with {done.returncode}: {(done.stderr or done.stdout).strip()[:200]}")
    return parse_ecc(done.stdout)


def parse_ecc(text: str) -> list[dict[str, Any]]:
    """What nvidia-smi answers to `ECC_QUERY`, one dictionary per GPU; None where a GPU does not know.

    Raises ValueError for lines of another shape.
    """
    states = []
    for line in text.splitlines():
        if not line.strip():
            continue
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != len(ECC_QUERY) or not cells[0].isdigit():
            raise ValueError(f"nvidia-smi printed {line!r} instead of {', '.join(ECC_QUERY)}")
        numbers = {"yes": 1, "no": 0}
        values = [int(cell) if cell.isdigit() else numbers.get(cell.lower()) for cell in cells]
        states.append(dict(zip(("gpu", *ECC_STATES), values)))
    return states


# --- judging ---


def judge(records: Sequence[Record], settings: config.Preflight, needed_bytes: int) -> list[Problem]:
    """What is wrong, from the records of all ranks, by rank.

    `needed_bytes` is the free disk asked for where `min_free_bytes` is null.
    """
    first: dict[str, Record] = {}  # the record of each node's first rank, which alone holds what concerns the node
    for record in records:
        first.setdefault(record["host"], record)
    nodes = list(first.values())
    return [
        *(
            Problem(r["host"], f"rank {r['rank']}: {error}", "look at its logs")
            for r in records
            for error in r["errors"]
        ),
        *_judge_gpus(records, settings),
        *_judge_matmul(records, settings),
        *_judge_links(records, settings),
        *_judge_allreduce(records, settings),
        *_judge_disks(nodes, settings, needed_bytes),
        *_judge_clocks(nodes, settings),
        *_judge_versions(nodes),
    ]


def _judge_gpus(records: Sequence[Record], settings: config.Preflight) -> list[Problem]:
    problems = []
    for record in records:
        free = record["gpu_free_share"]
        if free is not None and free < settings.min_gpu_free_share:
            what = f"rank {record['rank']}: {free:.0%} of the GPU's memory is free"
            remedy = f"end what else runs there (preflight.min_gpu_free_share={settings.min_gpu_free_share})"
            problems.append(Problem(record["host"], what, remedy))
        for gpu in record.get("ecc") or []:
            bad = [f"{gpu[key]} {described}" for key, described in ECC_STATES.items() if gpu[key]]
            if bad:
                problems.append(
                    Problem(record["host"], f"GPU {gpu['gpu']} has {', '.join(bad)}", "reset or replace it")
                )
    return problems


def _share(given: float | None, on_gpus: float, records: Sequence[Record]) -> float:
    """What is asked of a node relative to the median; nothing of CPUs, which other work slows, unless given."""
    if given is not None:
        return given
    return on_gpus if all(record["gpu_free_share"] is not None for record in records) else 0.0


def _judge_matmul(records: Sequence[Record], settings: config.Preflight) -> list[Problem]:
    rates = {record["rank"]: record["matmul_tflops"] for record in records if record["matmul_tflops"] is not None}
    if not rates:
        return []
    share = _share(settings.matmul_share, 0.7, records)
    median = statistics.median(rates.values())
    least, key = share * median, f"preflight.matmul_share={share}"
    if settings.min_matmul_tflops is not None and settings.min_matmul_tflops > least:
        least, key = settings.min_matmul_tflops, f"preflight.min_matmul_tflops={settings.min_matmul_tflops}"
    return [
        Problem(
            records[rank]["host"],
            f"rank {rank}: a matrix product runs at {rate:.3g} TFLOPS, the median of all ranks is {median:.3g}",
            f"look for throttling or another job on it ({key})",
        )
        for rank, rate in rates.items()
        if rate < least
    ]


def _judge_links(records: Sequence[Record], settings: config.Preflight) -> list[Problem]:
    rings = lanes([record["host"] for record in records])
    rates = {record["rank"]: record["link_gb_s"] for record in records if record["link_gb_s"] is not None}
    if not rings or len(rings[0]) < 3 or not rates:
        return []
    both = {  # of each rank: the link from the node before, and that to the next, measured where it was received
        rank: (rates[rank], rates[behind]) for ring in rings for rank, behind in zip(ring, [*ring[1:], ring[0]])
    }
    median = statistics.median(max(pair) for pair in both.values())  # a bad node's neighbours have one good link
    share = _share(settings.link_share, 0.5, records)
    remedy = f"look at its network card and cable (preflight.link_share={share})"
    return [
        Problem(
            records[rank]["host"],
            f"both links of rank {rank} are slow, {pair[0]:.3g} and {pair[1]:.3g} GB/s; the median is {median:.3g}",
            remedy,
        )
        for rank, pair in both.items()
        if max(pair) < share * median
    ]


def _judge_allreduce(records: Sequence[Record], settings: config.Preflight) -> list[Problem]:
    rates = [record["allreduce_gb_s"] for record in records if record["allreduce_gb_s"] is not None]
    least = settings.min_allreduce_gb_s
    if least is None or not rates or min(rates) >= least:
        return []
    what = f"an all-reduce of all ranks runs at {min(rates):.3g} GB/s"
    return [Problem(None, what, f"look at NCCL's settings and the network (preflight.min_allreduce_gb_s={least})")]


def _judge_disks(nodes: Sequence[Record], settings: config.Preflight, needed_bytes: int) -> list[Problem]:
    least = needed_bytes if settings.min_free_bytes is None else settings.min_free_bytes
    free_of = {node["host"]: node["free_bytes"] for node in nodes if node["free_bytes"] is not None}
    short = {host: free for host, free in free_of.items() if free < least}
    remedy = f"make room, or set preflight.min_free_bytes ({least / 1e9:.3g} GB are asked for)"
    if short and len(short) == len(free_of):  # one disk that all share
        problems = [Problem(None, f"the run folder's disk has {min(short.values()) / 1e9:.3g} GB free", remedy)]
    else:
        described = "the run folder's disk, unlike other nodes', has"
        problems = [Problem(host, f"{described} {free / 1e9:.3g} GB free", remedy) for host, free in short.items()]
    for node in nodes:
        free = node["scratch_free_bytes"]
        if free is not None and free < settings.min_scratch_bytes:
            what = f"{settings.scratch} has {free / 1e6:.3g} MB free"
            remedy = f"clean it up (preflight.min_scratch_bytes={settings.min_scratch_bytes})"
            problems.append(Problem(node["host"], what, remedy))
    return problems


def _judge_clocks(nodes: Sequence[Record], settings: config.Preflight) -> list[Problem]:
    median = statistics.median(node["time_s"] for node in nodes)
    remedy = f"synchronise it (preflight.max_clock_skew_s={settings.max_clock_skew_s})"
    return [
        Problem(node["host"], f"its clock is {node['time_s'] - median:+.1f} s off the median", remedy)
        for node in nodes
        if abs(node["time_s"] - median) > settings.max_clock_skew_s
    ]


def _judge_versions(nodes: Sequence[Record]) -> list[Problem]:
    """Nodes in the minority, by package; where there is no majority, both sides and nobody in particular."""
    problems = []
    names = dict.fromkeys(name for node in nodes for name in node["versions"])
    for name in names:
        holders: dict[str, list[str]] = defaultdict(list)
        for node in nodes:
            holders[node["versions"].get(name, "none")].append(node["host"])
        (usual, most), *others = sorted(holders.items(), key=lambda item: -len(item[1]))
        if others and 2 * len(most) <= len(nodes):
            sides = " and ".join(f"{version} on {_listed(hosts)}" for version, hosts in holders.items())
            problems.append(Problem(None, f"{name} is {sides}", "give all nodes the same environment"))
        elif others:
            remedy = "give it the environment of the others"
            problems += [
                Problem(host, f"{name} is {version}, {usual} elsewhere", remedy)
                for version, hosts in others
                for host in hosts
            ]
    return problems


def _listed(hosts: Sequence[str]) -> str:
    return ", ".join(hosts[:8]) + (f" and {len(hosts) - 8} more" if len(hosts) > 8 else "")


def summarise(records: Sequence[Record]) -> list[dict[str, Any]]:
    """One dictionary per node, in the order of their first ranks, of what its ranks found."""
    by_node: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_node[record["host"]].append(record)
    median = statistics.median(ranks[0]["time_s"] for ranks in by_node.values())
    nodes = []
    for host, ranks in by_node.items():
        node: dict[str, Any] = {"host": host, "ranks": [record["rank"] for record in ranks]}
        for name in ("matmul_tflops", "link_gb_s", "gpu_free_share"):
            values = [record[name] for record in ranks]
            node[name] = [round(value, 4) for value in values if value is not None]
        node["allreduce_gb_s"] = ranks[0]["allreduce_gb_s"] and round(ranks[0]["allreduce_gb_s"], 4)
        node |= {name: ranks[0][name] for name in ("free_bytes", "scratch_free_bytes", "ecc", "versions")}
        node["clock_skew_s"] = round(ranks[0]["time_s"] - median, 4)
        node["errors"] = [error for record in ranks for error in record["errors"]]
        nodes.append(node)
    return nodes
