"""Runs the cases of a number of processes; `main(FOLDER)` is what each runs, or with names of cases those alone."""

from __future__ import annotations

import json
import os
import time
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from llama31 import config
from llama31.engine.objectives import MicroBatch
from llama31.engine.pipeline import Engine
from llama31.model import llama
from llama31.parallel import mesh
from tests.parallel import overlap
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


def run(case: Case) -> dict[str, Any]:
    """Losses and gradient norms of the case's steps, and the loss of a batch evaluated in between."""
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
        result = engine.accumulate(mine)
        engine.apply(lr)
        losses.append(result.loss)
        norms.append(result.grad_norm)
    return {"losses": losses, "norms": norms, "evaluated": evaluated}


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
    if dist.get_rank() == 0:
        Path(folder, f"{dist.get_world_size()}.json").write_text(json.dumps(results))
    mesh.close()  # a process that leaves while gloo's threads run may abort
