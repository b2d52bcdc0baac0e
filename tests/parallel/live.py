"""Bytes of live tensors on layouts of one small model: a step's peak, by a dispatch mode that follows every storage.

No message of gloo and no allocator is in these numbers: what autograd, Megatron's schedules, DeepSpeed and our own code
hold, as torch made it.
"""

from __future__ import annotations

import traceback
import weakref
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils import _pytree as trees
from torch.utils._python_dispatch import TorchDispatchMode

from llama31 import config
from llama31.engine.objectives import MicroBatch
from llama31.engine.pipeline import Engine
from llama31.model import llama
from llama31.parallel import mesh

LENGTH, ROWS = 256, 8
SHAPE = config.Model(
    name="live", layers=8, hidden_size=64, ffn_hidden_size=192, heads=4, kv_heads=2, vocab_size=128, max_positions=256
)
ENDS = {"embedding_as_layer": True, "loss_as_layer": True}
# By name and layout, of two processes.
LIVE: dict[str, dict[str, Any]] = {
    "live dp2": {},
    "live dp2-norms-swiglu": {"recompute": ["norms", "swiglu"]},
    "live dp2-full": {"recompute": ["full"]},
    "live tp2-mlp": {"tp": 2, "recompute": ["norms", "mlp"]},
    "live tp2-without-sp": {"tp": 2, "sequence_parallel": False},
    "live cp2": {"cp": 2},
    "live pp2": {"pp": 2},
    "live pp2-vpp2-wide": {"pp": 2, "vpp": 2, "micro_batch": 2},
    "live pp2-vpp5-ends": {"pp": 2, "vpp": 5, **ENDS},
    "live pp2-vpp4-overlap": {"pp": 2, "vpp": 4, "overlap_p2p": True},
    "live dp2-zero2": {"zero": 2},
    "live dp2-zero3": {"zero": 3},
}


class LiveBytes(TorchDispatchMode):
    """Within it: bytes of all storages that are alive, and the most that there were since `reset`."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._sizes: dict[int, int] = {}
        self._refs: dict[int, weakref.ref[Any]] = {}

    def __enter__(self) -> LiveBytes:
        resize, follow = torch.UntypedStorage.resize_, self.follow

        def resized(storage: torch.UntypedStorage, size: int) -> Any:
            result = resize(storage, size)
            follow(storage)
            return result

        self._resizing = mock.patch.object(torch.UntypedStorage, "resize_", resized)
        self._resizing.start()
        return super().__enter__()  # type: ignore[no-any-return]

    def __exit__(self, *given: Any) -> None:
        super().__exit__(*given)
        self._resizing.stop()

    def follow(self, storage: torch.UntypedStorage) -> None:
        """Count a storage from now on, or its new size."""
        if storage.device.type == "meta":
            return
        key, size = storage._cdata, storage.nbytes()
        if key not in self._refs:
            self._refs[key] = weakref.ref(storage, self._gone(key))
        self.now += size - self._sizes.get(key, 0)
        self._sizes[key] = size
        self.most = max(self.most, self.now)

    def _gone(self, key: int) -> Callable[[Any], None]:
        def forget(_: Any) -> None:
            self.now -= self._sizes.pop(key)
            del self._refs[key]

        return forget

    def reset(self) -> None:
        self.most = self.now

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in trees.tree_leaves((args, kwargs, result)):
            if isinstance(tensor, Tensor):
                self.follow(tensor.untyped_storage())
        return result


def _micro_batches(grid: mesh.Grid, size: int) -> list[MicroBatch]:
    """This replica's rows, of one document each."""
    count = ROWS // grid.dp
    stream = np.random.default_rng(5).integers(0, SHAPE.vocab_size, (ROWS, LENGTH + 1))[grid.dp_rank * count :]
    weights, documents = np.ones((size, LENGTH), np.float32), np.zeros((size, LENGTH), np.int64)
    return [
        MicroBatch.from_numpy(stream[i : i + size, :-1], stream[i : i + size, 1:], weights, documents, grid.device)
        for i in range(0, count, size)
    ]


def _peak(layout: dict[str, Any]) -> int:
    """Most bytes in the second of two steps: buffers that stay have been made in the first."""
    parallel, numbers = config.Parallel(**layout), config.Precision(params="fp32")
    grid = mesh.create(parallel)
    with LiveBytes() as live:
        chunks = llama.build(SHAPE, numbers, parallel, grid, seed=3)
        engine = Engine(chunks, SHAPE, config.Optimizer(), numbers, parallel, grid)
        batches = _micro_batches(grid, parallel.micro_batch)
        for _ in range(2):
            live.reset()
            engine.accumulate(batches)
            engine.apply(1e-3)
    return live.most


def peaks() -> dict[str, dict[str, Any]]:
    """Of each layout the peak of every rank."""
    results: dict[str, dict[str, Any]] = {}
    for name, layout in LIVE.items():
        try:
            own: dict[str, Any] = {"peak": _peak(layout)}
        except Exception:  # noqa: BLE001 - the test shows it
            own = {"error": traceback.format_exc()}
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, own)
        results[name] = {"peaks": [rank.get("peak") for rank in everyone], **own}
        mesh.release()
    return results
