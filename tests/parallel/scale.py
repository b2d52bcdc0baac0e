"""One process plays ranks of worlds that no test has: what each makes and keeps, over torch's fake backend.

`python -m tests.parallel.scale OUT`; OUT gets JSON.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import json
import math
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state as state
from torch.testing._internal.distributed.fake_pg import FakeStore

from llama31 import config
from llama31.engine.objectives import MicroBatch
from llama31.engine.pipeline import Engine
from llama31.model import llama
from llama31.parallel import groups, mesh
from llama31.resilience.guard import Control, agree

LAYOUTS = {
    "8": (8, config.Parallel(tp=2, pp=2)),
    "1024": (1024, config.Parallel(tp=8, pp=16, vpp=8)),
    "16384": (16384, config.Parallel(tp=8, pp=16, vpp=8)),
    "16384 cp16": (16384, config.Parallel(tp=8, cp=16, pp=16, vpp=8)),
}


def ranks_of(world: int) -> tuple[int, int, int]:
    return 0, world // 2, world - 1


def play(world: int, rank: int, parallel: config.Parallel) -> dict[str, Any]:
    """The groups of one rank, the calls that made them, and what Python did meanwhile."""
    dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
    made, device, bound = dist.new_group, torch.device("cuda", 0), set[str]()
    default: Any = dist.group.WORLD
    default.bound_device_id = device  # as NCCL's is

    def noted(*args: Any, **kwargs: Any) -> Any:
        bound.add(str(default.bound_device_id))
        return made(*args, **kwargs)

    with mock.patch.object(dist, "new_group", side_effect=noted) as calls:
        tracemalloc.start()
        began_s = time.process_time()
        grid = mesh.create(parallel)
        seconds, (kept, peak) = time.process_time() - began_s, tracemalloc.get_traced_memory()
        tracemalloc.stop()
    members = [dist.get_process_group_ranks(group) for group in state._global_process_group_list[1:]]
    result = {
        "members": sorted(len(ranks) for ranks in members),
        "mine": all(rank in ranks for ranks in members),
        "twice": len(members) - len(set(map(tuple, members))),
        "calls": calls.call_count,
        "bound": [*bound, str(default.bound_device_id)],
        "seconds": round(seconds, 2),
        "kept_bytes": kept,
        "peak_bytes": peak,
        "dp_cp": dist.get_process_group_ranks(grid.dp_cp_group),
        "pp": dist.get_process_group_ranks(grid.pp_group),
    }
    state.destroy_model_parallel()
    dist.destroy_process_group()
    return result


COLLECTIVES = (
    "all_reduce", "all_gather_into_tensor", "reduce_scatter_tensor", "broadcast", "all_gather", "reduce_scatter",
    "barrier", "all_gather_object", "gather_object", "broadcast_object_list", "all_to_all_single",
)  # fmt: skip
STEP = config.Parallel(tp=8, pp=16, embedding_as_layer=True, loss_as_layer=True)
MODEL = config.Model(
    name="test", layers=30, hidden_size=64, ffn_hidden_size=128, heads=8, kv_heads=8, vocab_size=512
)  # fmt: skip


def train(world: int, rank: int) -> dict[str, Any]:
    """The messages of one rank's step with a small model: how many to groups of how many; others' never come."""
    dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
    numbers = config.Precision(params="fp32")
    grid = mesh.create(STEP)
    with mock.patch.object(dist, "new_group", side_effect=dist.new_group) as calls:
        chunks = llama.build(MODEL, numbers, STEP, grid, seed=1)
        engine = Engine(chunks, MODEL, config.Optimizer(), numbers, STEP, grid)
    tokens, mask = np.zeros((1, 64), np.int64), np.ones((1, 64), np.float32)
    rows = [MicroBatch.from_numpy(tokens, tokens, mask, tokens.astype(np.int32), grid.device) for _ in range(STEP.pp)]
    sent: collections.Counter[str] = collections.Counter()
    with contextlib.ExitStack() as parts:
        for name in COLLECTIVES:
            parts.enter_context(mock.patch.object(dist, name, _noted(name, sent)))
        engine.accumulate(rows)
        engine.apply(1e-4)
        agree(Control(), grid)
    state.destroy_model_parallel()
    dist.destroy_process_group()
    return {"sent": dict(sent), "groups": calls.call_count}


def _noted(name: str, sent: collections.Counter[str]) -> Any:
    original = getattr(dist, name)

    def noted(*args: Any, **kwargs: Any) -> Any:
        sent[f"{name} {dist.get_world_size(kwargs.get('group'))}"] += 1
        return original(*args, **kwargs)

    return noted


def rank_lists_differ() -> list[str]:
    """Where our groups along axes are not Megatron's."""
    wrong = []
    for sizes in ((2, 3, 4), (1, 2, 1, 3), (8, 1, 1, 4, 2), (5,), (2, 2, 2, 2, 2)):
        for mask in itertools.product([False, True], repeat=len(sizes)):
            if any(mask):
                theirs = state.generate_masked_orthogonal_rank_groups(math.prod(sizes), list(sizes), list(mask))
                if theirs != groups.rank_groups(math.prod(sizes), sizes, mask):
                    wrong.append(f"{sizes} {mask}")
    return wrong


def main(output: str) -> None:
    results: dict[str, Any] = {"rank_lists_differ": rank_lists_differ()}
    for name, (world, parallel) in LAYOUTS.items():
        results[name] = {str(rank): play(world, rank, parallel) for rank in ranks_of(world)}
    torch.set_num_threads(1)
    results["steps"] = {str(rank): train(16384, rank) for rank in ranks_of(16384)}
    Path(output).write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
