"""Runs of `loop.fit` with a fault planted in one of them: `torchrun ... -m tests.parallel.faults PLAN OUT`.

A plan is that of `training.py`; a run may have "fault": [kind, step], which strikes when the data of that step (0 is
the first) comes by, "decisions": ranges of steps to leave out from the beginning, and "damage": a checkpoint of its
folder in which one bit is changed before.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist

from llama31 import config
from llama31.data import mixture
from llama31.data.batches import Batches
from llama31.data.mixture import Skip
from llama31.engine import pipeline
from llama31.engine.objectives import MicroBatch, next_token
from llama31.parallel import mesh
from llama31.resilience import watch, watchdog
from tests.parallel.training import changed, fit, tiny_run
from tests.processes import LIMIT_S, alive


class Planted:
    """`next_token`, with a fault. Those of the data strike whenever it comes, the others once."""

    measures = next_token.measures

    def __init__(self, run: config.Pretrain, kind: str, step: int) -> None:
        self.run, self.kind, self.done = run, kind, False
        self.took_s, self.graces = 0.0, 0
        self.hung_s: float | None = None
        batches = Batches(run.data, run.schedule)
        rows, _ = batches.batch_shape(step)
        self.rows = {row.tobytes() for row in batches.rows(step, np.arange(rows)).tokens}

    def __call__(self, chunk: Any, batch: MicroBatch, grid: Any) -> Any:
        struck = any(row.tobytes() in self.rows for row in batch.tokens.numpy())
        if struck and self.kind in ("nan", "spike"):
            return next_token(chunk, batch.scaled({"nan": float("nan"), "spike": 50.0}[self.kind]), grid)
        result = next_token(chunk, batch, grid)
        if struck and not self.done:
            self.done = True
            getattr(self, self.kind)(chunk, grid)
        return result

    def flip(self, chunk: Any, grid: Any) -> None:
        """One bit of one weight of one replica, after it was used."""
        if grid.rank == 1:
            weight = dict(chunk.named_parameters())["decoder.final_layernorm.weight"]
            weight.data.view(torch.int32)[3] ^= 1

    def term(self, chunk: Any, grid: Any) -> None:
        """A signal that only one rank hears, twice."""
        if grid.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)

    def stop(self, chunk: Any, grid: Any) -> None:
        """The file that an operator touches."""
        Path(self.run.folder, "stop").touch()

    def claim(self, chunk: Any, grid: Any) -> None:
        """The same job, started again elsewhere."""
        if grid.rank == 0:
            Path(self.run.folder, "attempts/0007").mkdir()

    def slow(self, chunk: Any, grid: Any) -> None:
        """One rank takes long, by its own clock."""
        if grid.rank == 1:
            self.took_s += 0.1

    def hang(self, chunk: Any, grid: Any) -> None:
        """One rank does not come back. The time that its watchdog knows begins here."""
        self.hung_s = time.monotonic()
        if grid.rank == 1:
            time.sleep(9999)

    def clock(self) -> float:
        """Of the engine, where a rank is to be slow: no time passes but the planted one."""
        self.took_s += 0.001
        return self.took_s

    def since_hang(self) -> float:
        """Of the watchdog, where a rank hangs: slow steps before are none of its business."""
        return 0.0 if self.hung_s is None else time.monotonic() - self.hung_s

    def until_told(self, grace_s: float) -> None:
        """The watchdog's graces, as long as they need: for the others to tell, then for the lowest to end the job."""
        stalled = Path(self.run.folder, "attempts/0000/stalled")
        while len(list(stalled.glob("rank-*.txt"))) < dist.get_world_size():
            time.sleep(0.01)
        while self.graces and alive(watchdog.read(stalled)[0].pid):
            time.sleep(0.01)
        self.graces += 1


@contextlib.contextmanager
def clocks(planted: Planted) -> Iterator[None]:
    """No fault is found, or missed, because the machine is busy."""
    dog = functools.partial(watchdog.Watchdog, clock=planted.since_hang, pause=planted.until_told)
    with contextlib.ExitStack() as patched:
        if planted.kind == "slow":
            patched.enter_context(mock.patch.object(pipeline, "time", SimpleNamespace(perf_counter=planted.clock)))
        if planted.kind == "hang":
            patched.enter_context(mock.patch.object(watch, "Watchdog", dog))
        yield


def _damage(checkpoint: Path) -> None:
    """One bit of the largest file."""
    path = max((path for path in checkpoint.rglob("*.distcp")), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def main(plan: str, output: str) -> None:
    torch.set_num_threads(1)
    mesh.connect(timeout_s=LIMIT_S)
    results: dict[str, Any] = {}
    begun = mixture.begun
    for step in json.loads(Path(plan).read_text()):
        run = changed(tiny_run(Path(step["folder"]), Path(step["data"])), step["overrides"])
        planned = [Skip(*pair) for pair in step.get("decisions", [])]
        mixture.begun = lambda data, meta, planned=planned: (
            (begun(data, meta)[0], planned) if planned else begun(data, meta)
        )
        if dist.get_rank() == 0 and "damage" in step:
            _damage(Path(run.folder, "checkpoints", step["damage"]))
        dist.barrier()
        try:
            with contextlib.ExitStack() as faulty:
                objective: Any = next_token
                if "fault" in step:
                    objective = Planted(run, *step["fault"])
                    faulty.enter_context(clocks(objective))
                results[step["name"]] = {"checkpoint": str(fit(run, objective))}
        except (ValueError, config.RunError) as error:
            results[step["name"]] = {"error": str(error)}
    if dist.get_rank() == 0:
        Path(output).write_text(json.dumps(results))
    mesh.close()  # a process that leaves while gloo's threads run may abort


if __name__ == "__main__":
    main(*sys.argv[1:])
