"""Runs the cases of a number of processes; `main(FOLDER)` is what each runs, or with names of cases those alone."""

from __future__ import annotations

import contextlib
import json
import os
import time
import traceback
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from megatron.core.pipeline_parallel import schedules
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from torch import Tensor

from llama31 import config
from llama31.engine.objectives import MicroBatch
from llama31.engine.pipeline import Engine
from llama31.model import llama
from llama31.parallel import mesh
from tests.parallel import live, overlap, proposed
from tests.parallel.cases import CASES, LEARNING_RATES, OPTIMIZER, ROWS, Case, Rows, batches
from tests.processes import LIMIT_S


def micro_batches(rows: Rows, grid: mesh.Grid, size: int) -> list[MicroBatch]:
    """This replica's rows, in the order that the data loader deals them."""
    result = []
    for m in range(ROWS // (size * grid.dp)):
        begin = (m * grid.dp + grid.dp_rank) * size
        part = (a[begin : begin + size] for a in (rows.tokens, rows.labels, rows.loss_mask, rows.documents))
        result.append(MicroBatch.from_numpy(*part, grid.device))
    return result


@contextlib.contextmanager
def sent_and_received() -> Iterator[dict[str, int]]:
    """Most bytes at once of what the chunks of this rank gave the schedule, and of that with what others sent."""
    alive: dict[str, list[weakref.ref[Tensor]]] = {"outputs": [], "received": []}
    most = {"outputs": 0, "all": 0}
    forward_step, backward_step = schedules.forward_step, schedules.backward_step
    communicate = P2PCommunicator._communicate

    def note(kind: str, *tensors: Any) -> None:
        alive[kind] += [weakref.ref(x) for x in tensors if isinstance(x, Tensor)]
        sizes = {
            kind: sum(x.untyped_storage().nbytes() for ref in refs if (x := ref()) is not None)
            for kind, refs in alive.items()
        }
        most["outputs"] = max(most["outputs"], sizes["outputs"])
        most["all"] = max(most["all"], sum(sizes.values()))

    def watched_step(*args: Any, **kwargs: Any) -> Any:
        result = forward_step(*args, **kwargs)
        note("outputs", *(result[0] if isinstance(result[0], list) else result[:1]))
        return result

    def watched_backward(*args: Any, **kwargs: Any) -> Any:
        note("outputs")
        return backward_step(*args, **kwargs)

    def watched_communicate(*args: Any, **kwargs: Any) -> Any:
        result = communicate(*args, **kwargs)
        note("received", *result[:2])
        return result

    with (
        mock.patch.object(schedules, "forward_step", watched_step),
        mock.patch.object(schedules, "backward_step", watched_backward),
        mock.patch.object(P2PCommunicator, "_communicate", watched_communicate),
    ):
        yield most


def run(case: Case) -> dict[str, Any]:
    """Losses and gradient norms of the case's steps, the loss of a batch evaluated in between, bytes between stages."""
    parallel, numbers = case.parallel(), config.Precision(params=case.params)
    grid = mesh.create(parallel)
    chunks = llama.build(case.model(), numbers, parallel, grid, seed=3)
    engine = Engine(chunks, case.model(), OPTIMIZER, numbers, parallel, grid)
    losses, norms, evaluated = [], [], []
    for step, (rows, lr) in enumerate(zip(batches(), LEARNING_RATES, strict=True)):
        mine = micro_batches(rows, grid, case.rows_per_micro_batch)
        if step == 1:
            engine.accumulate(mine)
            engine.discard()  # a discarded step must leave no trace
            evaluated.append(engine.forward.mean_loss(mine)[0])
        with sent_and_received() as most:
            result = engine.accumulate(mine)
        engine.apply(lr)
        losses.append(result.loss)
        norms.append(result.grad_norm)
    alive = [float(most["outputs"]), float(most["all"])]
    return {"losses": losses, "norms": norms, "evaluated": evaluated, "alive": alive}


def main(folder: str, *names: str) -> None:
    torch.set_num_threads(1)
    mesh.connect(timeout_s=LIMIT_S)
    results: dict[str, Any] = {}
    for case in CASES:
        if case.processes != dist.get_world_size() or (names and case.name not in names):
            continue
        begin, threads = time.perf_counter(), len(os.listdir("/proc/self/task"))
        try:
            results[case.name] = result = run(case)
        except Exception:  # noqa: BLE001 - the test that asks for this case shows it
            results[case.name] = result = {"error": traceback.format_exc()}
        mesh.release()
        result["left"] = [len(os.listdir("/proc/self/task")) - threads]
        if dist.get_rank() == 0:
            print(f"{case.name}: {time.perf_counter() - begin:.1f} s", flush=True)
    if dist.get_world_size() == 4 and not names:
        results |= overlap.traces()
    if dist.get_world_size() in (1, proposed.PROCESSES) and (not names or "proposed" in names):
        results |= proposed.results()
    if dist.get_world_size() == 2 and (not names or "live" in names):
        results |= live.peaks()
    if dist.get_rank() == 0:
        Path(folder, f"{dist.get_world_size()}.json").write_text(json.dumps(results))
    mesh.close()  # a process that leaves while gloo's threads run may abort
