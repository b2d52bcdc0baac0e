"""What ZeRO-1 sends and when: the events of two steps on a layout, as all ranks saw them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from llama31 import config
from llama31.engine import stage1
from llama31.engine.objectives import MicroBatch
from llama31.engine.pipeline import Engine
from llama31.model import llama
from llama31.parallel import mesh
from tests.parallel.cases import OPTIMIZER, ROWS, batches, model

LAYOUTS: dict[str, dict[str, Any]] = {
    "trace dp4": {"parallel": {"dp": 4}, "params": "bf16"},
    "trace dp2-pp2-vpp2": {"parallel": {"dp": 2, "pp": 2, "vpp": 2}, "params": "fp32"},
    "trace dp2-pp2-tied": {"parallel": {"dp": 2, "pp": 2}, "params": "fp32", "tied": True},
}

Event = list[Any]


def traces() -> dict[str, list[dict[str, Any]]]:
    """Of each layout what every rank saw: its buckets as (names, elements), and its events in their order."""
    result: dict[str, list[dict[str, Any]]] = {}
    for name, layout in LAYOUTS.items():
        own = _trace(config.Parallel(bucket_bytes=20_000, **layout["parallel"]), layout["params"], "tied" in layout)
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, own)
        result[name] = everyone
        mesh.release()
    return result


def _trace(parallel: config.Parallel, params: str, tied: bool) -> dict[str, Any]:
    grid, numbers, shape = mesh.create(parallel), config.Precision(params=params), model(tied)
    chunks = llama.build(shape, numbers, parallel, grid, seed=3)
    engine = Engine(chunks, shape, OPTIMIZER, numbers, parallel, grid)
    reducer: Any = engine.reducer
    names = {shard.parameter: shard.name for shard in engine.shards}
    events: list[Event] = []
    restore = [
        _record(stage1.dist, "reduce_scatter_tensor", lambda _, whole, **__: events.append(["reduce", _bytes(whole)])),
        _record(
            stage1.dist, "all_gather_into_tensor", lambda whole, *_, **__: events.append(["gather", _bytes(whole)])
        ),
        _record(
            stage1, "_wait", lambda bucket, what: events.append(["wait", what, bucket.number, _open(bucket, what)])
        ),
    ]
    restore.append(  # the head's is no module's forward pass
        _record(llama.Llama, "_head_weight", lambda chunk: events.append(["read", names[chunk.output_layer.weight]]))
    )
    _record(reducer.adam, "step_group", lambda number, *_: events.append(["update", number]))
    for bucket in reducer.buckets:
        for parameter in bucket.parameters:  # theirs count before: what completes a bucket comes behind its message
            parameter.register_post_accumulate_grad_hook(
                lambda _, name=names[parameter]: events.append(["gradient", name])
            )
    for chunk in chunks:
        for module in chunk.modules():
            for parameter in module.parameters(recurse=False):
                _before(module, lambda name=names[parameter]: events.append(["read", name]))
    for rows in batches()[:2]:
        events.append(["step"])
        mine = [
            MicroBatch.from_numpy(
                *(a[i : i + 1] for a in (rows.tokens, rows.labels, rows.loss_mask, rows.documents)), grid.device
            )
            for i in range(grid.dp_rank, ROWS, grid.dp)
        ]
        engine.accumulate(mine)
        events.append(["verdict"])
        engine.apply(1e-2)
    events.append(["end"])
    reducer.settle()
    sums = [float(bucket.weights.double().sum()) for bucket in reducer.buckets]
    for undo in restore:
        undo()
    buckets = [([names[p] for p in bucket.parameters], bucket.gradients.numel()) for bucket in reducer.buckets]
    place = (grid.pp_rank, grid.dp_rank)
    return {"buckets": buckets, "events": events, "micro_batches": len(mine), "weights": sums, "place": place}


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _open(bucket: stage1.GradientBucket, what: str) -> bool:
    return getattr(bucket, what) is not None


def _before(module: nn.Module, action: Callable[[], None]) -> None:
    module.register_forward_pre_hook(lambda *_: action())


def _record(owner: Any, name: str, note: Callable[..., None]) -> Callable[[], None]:
    """Call `note` with the arguments before what `owner` has under `name`; returns what undoes it."""
    original = getattr(owner, name)

    def noted(*args: Any, **kwargs: Any) -> Any:
        note(*args, **kwargs)
        return original(*args, **kwargs)

    setattr(owner, name, noted)
    return lambda: setattr(owner, name, original)
