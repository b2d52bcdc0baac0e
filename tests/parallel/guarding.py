"""Guard and preflight on four processes, case after case; `main(OUTPUT)` is what each of them runs.

OUTPUT gets, for each case, what every rank found: a list by rank.
"""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from llama31 import config
from llama31.engine.pipeline import Engine
from llama31.model import llama
from llama31.parallel import mesh
from llama31.plan import shapes
from llama31.resilience import guard, preflight, ranks
from tests.parallel.cases import OPTIMIZER, batches
from tests.parallel.cases import model as shape
from tests.parallel.worker import micro_batches
from tests.processes import LIMIT_S

PROCESSES = 4
HOSTS = ["n0", "n1", "n2", "n3"]
PACKAGES = {"torch": torch.__version__, "numpy": "2.0"}


def create(**layout: int) -> mesh.Grid:
    return mesh.create(config.Parallel(**layout), timeout_s=LIMIT_S)  # type: ignore[arg-type]


# --- one control ---


def controls() -> list[Any]:
    """What comes of rank 0's verdict, of what other ranks say, and of an ordinary step."""
    grid = create()
    spike = guard.Verdict("rollback", "loss_spike", "far too high", 3, 3, 11)
    mine = [
        guard.Control(),
        guard.Control(save=grid.rank == 0),
        guard.Control(spike if grid.rank == 0 else guard.Verdict("stop", "nonfinite", "only here")),
        guard.Control(stop=grid.rank == 2, reason="SIGTERM" * (grid.rank == 2)),
        guard.Control(stop=grid.rank < 2, reason="the file stop" * (grid.rank == 0)),
        guard.Control(superseded=grid.rank == 0, reason="attempt 4 has begun" * (grid.rank == 0)),
    ]
    return [asdict(guard.agree(control, grid)) for control in mine]


# --- replicas ---


class Trained:
    """A model on a layout, two steps on, whose replicas have to be equal."""

    def __init__(self, zero: int = 1, params: str = "bf16", **layout: int) -> None:
        parallel = config.Parallel(zero=zero, micro_batch=1, **layout)  # type: ignore[arg-type]
        self.grid = mesh.create(parallel, timeout_s=LIMIT_S)
        numbers = config.Precision(params=params)
        self.chunks = llama.build(shape(), numbers, parallel, self.grid, seed=3)
        engine = Engine(self.chunks, shape(), OPTIMIZER, numbers, parallel, self.grid)
        for rows in batches()[:2]:
            engine.accumulate(micro_batches(rows, self.grid, 1))
            engine.apply(1e-2)
            engine.settle()
        self.named = [(shard.name, shard.parameter) for shard in engine.shards]
        self.divergence = ranks.Divergence(self.named, self.grid, HOSTS, zero)

    def compare(self) -> list[Any]:
        return [asdict(odd) for odd in self.divergence.compare()]

    def flip(self, rank: int, name: str) -> None:
        """Turn the lowest bit of one element of one parameter of one rank."""
        if self.grid.rank != rank:
            return
        result = next(parameter for known, parameter in self.named if name in known)
        words = result.data.view(-1).view(torch.int16 if result.element_size() == 2 else torch.int32)
        words[-1] ^= 1


def flipped(rank: int, name: str, **layout: Any) -> Callable[[], Any]:
    def run() -> dict[str, Any]:
        trained = Trained(**layout)
        before = trained.compare()
        trained.flip(rank, name)
        return {"before": before, "after": trained.compare()}

    return run


def sharded() -> Any:
    trained = Trained(zero=3)
    return {"active": trained.divergence.active, "found": trained.compare()}


# --- times ---


def times() -> Any:
    """Rank 2 is slow in everything, three times; its probe is well again the third time."""
    grid = create()
    slow = grid.rank == 2
    probes = iter([0.03, 0.03, 0.004] if slow else [0.004] * 3)
    times = ranks.RankTimes(config.Guard(), grid, HOSTS, probe=lambda: next(probes))
    seconds = {"data_s": 5.0 if slow else 0.1, "forward_backward_s": 20.0, "optimizer_s": 3.0}
    result = [times.compare(seconds, steps=10) for _ in range(3)]
    return [{**one.line(), "hosts": list(one.hosts)} for one in result]


def probe() -> float:
    return ranks.SpeedProbe(create().device)()


# --- preflight ---


def checked(hosts: list[str], plant: Callable[[int, config.Pretrain], None] = lambda rank, run: None) -> Any:
    """Preflight on nodes of these names, with something planted."""

    def run() -> dict[str, Any]:
        grid = create()
        os.environ["SLURMD_NODENAME"] = hosts[grid.rank]
        training = config.Pretrain(name="test", folder="/tmp", model=shape())
        training.preflight = config.Preflight(matmul_share=0.7, link_share=0.5, link_bytes=2**20, min_scratch_bytes=0)
        kept = preflight._seconds, preflight._matmul_tflops, preflight._free_bytes
        # Processes that share few cores are not equally fast: everything takes a millisecond here, unless planted.
        preflight._seconds = lambda action, *_: action() or 1e-3
        plant(grid.rank, training)
        versions = PACKAGES | ({"numpy": "1.26"} if "old" in hosts[grid.rank] else {})
        try:
            needed = 2 * shapes.checkpoint_bytes(training.model, "bf16")
            report = preflight.check(training.preflight, Path("/tmp"), needed, grid, versions, "abc")
        finally:
            preflight._seconds, preflight._matmul_tflops, preflight._free_bytes = kept
        return json.loads(report.to_json()) | {"bad": report.bad_nodes(), "hosts": report.hosts}

    return run


def slow_links(rank: int, run: config.Pretrain) -> None:
    """The card of rank 1 takes its time, whichever way: where it receives, and where rank 2 receives from it."""
    run.preflight.matmul_share = 0.0
    if rank in (1, 2):
        preflight._seconds = lambda action, *_: action() or 0.2


def slow_product(rank: int, run: config.Pretrain) -> None:
    product = preflight._matmul_tflops
    if rank == 2:
        preflight._matmul_tflops = lambda size, device: product(size, device) / 1000


def broken_disk(rank: int, run: config.Pretrain) -> None:
    def fail(folder: Path) -> int:
        raise OSError(116, "Stale file handle")

    if rank == 3:
        preflight._free_bytes = fail


def too_much(rank: int, run: config.Pretrain) -> None:
    run.preflight.min_allreduce_gb_s = 1e6
    run.preflight.min_free_bytes = 2**60


CASES: dict[str, Callable[[], Any]] = {
    "controls": controls,
    "dp4": flipped(2, "linear_fc2", params="fp32"),
    "dp4-bf16-norm": flipped(1, "final_layernorm"),
    "cp2-dp2": flipped(3, "word_embeddings", cp=2),
    "tp2-dp2": flipped(3, "linear_qkv.weight", tp=2),
    "tp2-dp2-norm": flipped(3, "final_layernorm", tp=2, params="fp32"),
    "pp2-dp2": flipped(0, "linear_proj", pp=2),
    "tp4-norm": flipped(1, "final_layernorm", tp=4),
    "dp4-zero2": flipped(2, "linear_fc1.weight", zero=2),
    "dp4-zero3": sharded,
    "times": times,
    "probe": probe,
    "preflight": checked(["n0", "n0", "n0", "n1"]),
    "preflight-versions": checked(["n0", "n1", "n2", "old"]),
    "preflight-links": checked(["n0", "n1", "n2", "n3"], slow_links),
    "preflight-links-odd": checked(["n0", "n1", "n2", "n2"], slow_links),
    "preflight-product": checked(["n0", "n0", "n1", "n1"], slow_product),
    "preflight-disk": checked(["n0", "n1", "n2", "n3"], broken_disk),
    "preflight-too-much": checked(["n0", "n1", "n2", "n3"], too_much),
}


def main(output: str) -> None:
    torch.set_num_threads(1)
    mesh.connect(timeout_s=LIMIT_S)
    results: dict[str, Any] = {}
    for name, case in CASES.items():
        try:
            mine = case()
        except Exception:  # noqa: BLE001 - the test that asks for this case shows it
            mine = {"error": traceback.format_exc()}
        result: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(result, mine)
        results[name] = result
        mesh.release()
    if dist.get_rank() == 0:
        Path(output).write_text(json.dumps(results))
    mesh.close()  # a process that leaves while gloo's threads run may abort
