"""What the planner proposes for four processes, one layout of each kind, and what a step of it computes."""

from __future__ import annotations

import dataclasses
import traceback
from typing import Any

import numpy as np
import torch.distributed as dist

from llama31 import config
from llama31.command import entry
from llama31.engine.objectives import MicroBatch
from llama31.engine.pipeline import Engine
from llama31.model import llama
from llama31.parallel import mesh
from llama31.planner import proposals, search
from tests.parallel import cases

PROCESSES, ROWS, LENGTH = 4, 8, 1024
REFERENCE = "proposed for one"


def layouts() -> dict[str, config.Parallel]:
    """The fastest of each tp, cp, pp, vpp and zero, by their overrides."""
    run = entry.compose(
        config.Plan, "plan", [f"gpus={PROCESSES}", f"sequence_length={LENGTH}", f"batch_tokens={ROWS * LENGTH}"]
    )
    asked = dataclasses.replace(proposals.request(run), model=cases.model())
    kinds: dict[tuple[int, ...], config.Parallel] = {}
    for one in search.fastest(asked, 1000):
        layout = one.parallel
        kinds.setdefault((layout.tp, layout.cp, layout.pp, layout.vpp, layout.zero), layout)
    return {" ".join(proposals.overrides(layout)): layout for layout in kinds.values()}


def step(layout: config.Parallel) -> dict[str, Any]:
    """Loss and gradient norm of one step."""
    numbers, shape, grid = config.Precision(params="fp32"), cases.model(), mesh.create(layout)
    engine = Engine(llama.build(shape, numbers, layout, grid, seed=3), shape, cases.OPTIMIZER, numbers, layout, grid)
    random = np.random.default_rng(5)
    tokens = random.integers(0, cases.VOCAB, (ROWS, LENGTH + 1))
    rows = (tokens[:, :-1], tokens[:, 1:], np.ones((ROWS, LENGTH), np.float32), np.zeros((ROWS, LENGTH), np.int64))
    size = layout.micro_batch
    mine = []
    for m in range(ROWS // (size * grid.dp)):
        begin = (m * grid.dp + grid.dp_rank) * size
        mine.append(MicroBatch.from_numpy(*(part[begin : begin + size] for part in rows), grid.device))
    result = engine.accumulate(mine)
    return {"loss": result.loss, "norm": result.grad_norm}


def results() -> dict[str, Any]:
    """Of this number of processes: of one the reference, of PROCESSES each layout."""
    wanted = {1: {REFERENCE: config.Parallel()}, PROCESSES: layouts()}[dist.get_world_size()]
    found: dict[str, Any] = {}
    for name, layout in wanted.items():
        try:
            found[name] = step(layout)
        except Exception:  # noqa: BLE001 - the test shows it
            found[name] = {"error": traceback.format_exc()}
        mesh.release()
    return found
