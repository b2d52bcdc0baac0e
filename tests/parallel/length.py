"""Long rows of many documents under context parallelism; `main(OUTPUT)` is what each process runs.

Four processes hold every layout. One process alone is rank 0 without a reduction: each replica gets the whole batch.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from llama31 import config
from llama31.engine.objectives import MicroBatch, next_token
from llama31.engine.pipeline import Forward
from llama31.model import attention, kernels, llama
from llama31.model.sequences import SequenceTable, chunks_of_rank, take_chunks
from llama31.parallel import mesh
from tests.parallel.cases import VOCAB
from tests.processes import LIMIT_S

PROCESSES, LENGTH = 4, 192
# Chunks are 48 tokens with CP 2, 24 with CP 4.
DOCUMENTS = {
    "odd": ([1, 3, 25, 7, 49, 31, 76], [97, 1, 1, 43, 50]),
    "at-edges": ([24, 24, 48, 96], [23, 1, 1, 23, 49, 95]),
    "inside-chunks": ([7, 17, 11, 13] * 4, [24] * 8),
    "whole-row": ([192], [192]),
}
LAYOUTS = {
    "cp2": {"cp": 2},
    "cp4": {"cp": 4},
    "tp2-cp2": {"tp": 2, "cp": 2},
    "tp2-cp2-full": {"tp": 2, "cp": 2, "recompute": ["full"]},
    "tp2-cp2-norms-swiglu": {"tp": 2, "cp": 2, "recompute": ["norms", "swiglu"]},
}
# Prompts of 30 and 100 tokens with answers that do not see each other, over chunks' edges; documents with gaps between.
TREES = torch.tensor(
    [
        *[(0, 0, 30, 0, 0), (0, 30, 31, 0, 30), (0, 31, 100, 0, 30), (0, 100, 192, 0, 0)],
        *[(1, 0, 100, 0, 0), *((1, begin, begin + 23, 0, 100) for begin in (100, 123, 146, 169))],
    ]
)
GAPS = torch.tensor([(0, 11, 12), (0, 40, 150), (1, 0, 24), (1, 96, 191)])
SHAPE = config.Model(
    name="length", layers=2, hidden_size=64, ffn_hidden_size=96, heads=4, kv_heads=2, vocab_size=VOCAB, init_std=0.1
)


def micro_batch(lengths: tuple[list[int], ...]) -> MicroBatch:
    """One row of documents for each list of lengths; the label across a boundary does not count."""
    assert all(sum(row) == LENGTH for row in lengths)
    stream = np.random.default_rng(5).integers(0, VOCAB, (len(lengths), LENGTH + 1))
    documents = np.stack([np.repeat(np.arange(len(row)), row) for row in lengths])
    weights = np.ones((len(lengths), LENGTH), np.float32)
    weights[:, :-1] = documents[:, 1:] == documents[:, :-1]
    weights /= weights.sum()
    return MicroBatch.from_numpy(stream[:, :-1], stream[:, 1:], weights, documents, torch.device("cpu"))


class Built:
    """The same weights on a layout."""

    def __init__(self, layout: dict[str, Any]) -> None:
        parallel = config.Parallel(micro_batch=2, **layout)
        self.grid = mesh.create(parallel, timeout_s=LIMIT_S)
        self.chunks = llama.build(SHAPE, config.Precision(params="fp32"), parallel, self.grid, seed=3)
        self.forward = Forward(self.chunks, self.grid)

    def loss_and_gradients(self, batch: MicroBatch) -> tuple[float, dict[str, Tensor]]:
        """Of one replica, every gradient as the global tensor."""
        for parameter in self.chunks[0].parameters():
            parameter.grad = None
        loss = self.forward.run([batch], next_token, forward_only=False)
        dist.all_reduce(loss, group=self.grid.cp_group)
        result = {}
        for shard in llama.shards(self.chunks, SHAPE, self.grid):
            assert shard.parameter.grad is not None, shard.name
            whole = torch.zeros(shard.shape)
            for offset, block in shard.blocks(shard.parameter.grad):
                if len(offset) == 2:
                    rows, columns = slice(offset[0], offset[0] + block.size(0)), slice(offset[1], None)
                    whole[rows, columns][:, : block.size(1)] = block
                elif self.grid.tp_rank == 0:  # alike on all tensor-parallel ranks
                    whole.copy_(block)
            dist.all_reduce(whole, group=self.grid.cp_group)
            dist.all_reduce(whole, group=self.grid.tp_group)
            result[shard.name] = whole
        return float(loss), result


def furthest(result: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, float]:
    """By how much a gradient is off anywhere, relative to its largest element."""
    assert result.keys() == wanted.keys()
    return {name: float((result[name] - want).abs().max() / want.abs().max()) for name, want in wanted.items()}


@contextlib.contextmanager
def kept_storages() -> Iterator[dict[int, torch.UntypedStorage]]:
    """The storages that autograd keeps; one that is let go of for a while has no bytes then."""
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage()._cdata] = x.untyped_storage()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        yield kept


def activations(built: Built, batch: MicroBatch) -> int:
    """Bytes kept by the layers between embedding and head, without parameters."""
    decoder, sizes = built.chunks[0].decoder, []
    forward = decoder.forward
    parameters = {parameter.untyped_storage()._cdata for parameter in decoder.parameters()}

    def watched(*args: Any, **kwargs: Any) -> Any:
        with kept_storages() as kept:
            out = forward(*args, **kwargs)
        sizes.extend(storage.nbytes() for key, storage in kept.items() if key not in parameters)
        return out

    decoder.forward = watched
    try:
        built.forward.run([batch], next_token, forward_only=False)
    finally:
        decoder.forward = forward
    return sum(sizes)


@contextlib.contextmanager
def gathering(start: Any) -> Iterator[None]:
    """Attention with another `start_gather`."""
    original, attention.start_gather = attention.start_gather, start
    try:
        yield
    finally:
        attention.start_gather = original


def waited_for(*args: Any, original: Any = attention.start_gather) -> Any:
    """`start_gather` without overlap."""
    rows = original(*args)()
    return lambda: rows


@contextlib.contextmanager
def two_calls() -> Iterator[None]:
    """Attention as a GPU computes it, all documents by one call or two; the kernel is written out."""
    original, kernels.packed = kernels.packed, lambda query: True
    try:
        yield
    finally:
        kernels.packed = original


def alike(result: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(result, expected, strict=True))


def ways_to_gather(grid: mesh.Grid, documents: Tensor) -> dict[str, bool]:
    """Attention while K and V travel, against waiting for them first, and against rows gathered beforehand."""
    generator = torch.Generator().manual_seed(1)
    parts = [torch.randn(LENGTH, 2, heads, 16, generator=generator) for heads in (4, 2, 2, 4)]
    query, key, value, upstream = (take_chunks(x, grid.cp, grid.cp_rank, 0) for x in parts)
    spans = chunks_of_rank(LENGTH, grid.cp, grid.cp_rank)

    def compute(*inputs: Tensor, cp: int = grid.cp) -> list[Tensor]:
        leaves = [x.clone().requires_grad_() for x in inputs]
        table = SequenceTable(documents, 2, spans, torch.device("cpu"), cp)
        out = attention.attend(*leaves, table, grid.cp_group)
        return [out, *torch.autograd.grad(out, leaves, upstream)]

    overlapped = compute(query, key, value)
    with two_calls():
        packed = compute(query, key, value)
    with gathering(waited_for):
        waited = compute(query, key, value)
    beforehand = compute(query, *parts[1:3], cp=1)
    for grad in beforehand[2:]:
        dist.all_reduce(grad, group=grid.cp_group)
    beforehand[2:] = [take_chunks(x, grid.cp, grid.cp_rank, 0) for x in beforehand[2:]]
    return {
        "waiting first, bit for bit": all(torch.equal(a, b) for a, b in zip(overlapped, waited, strict=True)),
        "gathered beforehand": alike(overlapped, beforehand),
        "two calls": alike(packed, beforehand),
    }


def gathers(built: Built, batch: MicroBatch) -> int:
    """How often K and V travel in a forward and backward pass."""
    calls, original = itertools.count(), attention.start_gather

    def counted(*args: Any) -> Any:
        next(calls)
        return original(*args)

    with gathering(counted):
        built.forward.run([batch], next_token, forward_only=False)
    return next(calls)


def run() -> dict[str, Any]:
    """All that the tests ask about, from rank 0's sight."""
    alone = Built({})
    batches = {name: micro_batch(lengths) for name, lengths in DOCUMENTS.items()}
    wanted = {name: alone.loss_and_gradients(batch) for name, batch in batches.items()}
    results: dict[str, Any] = {
        "parity": {},
        "packed": {},
        "bytes": {"alone": activations(alone, batches["odd"])},
        "equal": {},
    }
    for name, layout in LAYOUTS.items():
        built = Built(layout)
        for way, computed in {"parity": contextlib.nullcontext, "packed": two_calls}.items():
            with computed():
                for rows, batch in batches.items():
                    loss, gradients = built.loss_and_gradients(batch)
                    off = furthest(gradients, wanted[rows][1])
                    results[way][f"{name}/{rows}"] = {"losses": [loss, wanted[rows][0]], "gradients": off}
        results["bytes"][name] = activations(built, batches["odd"])
        if name in ("cp2", "cp4"):
            cp = str(built.grid.cp)
            for rows, documents in {"odd": batches["odd"].documents, "trees": TREES, "gaps": GAPS}.items():
                results["equal"][f"{cp}/{rows}"] = ways_to_gather(built.grid, documents)
            results["gathers"] = {rows: gathers(built, batch) for rows, batch in batches.items()}
    return results


def main(output: str) -> None:
    torch.set_num_threads(1)
    mesh.connect(timeout_s=LIMIT_S)
    try:
        results = run()
    except Exception:  # noqa: BLE001 - the test shows it
        results = {"error": traceback.format_exc()}
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, results)
    if dist.get_rank() == 0:
        Path(output).write_text(json.dumps(everyone))
    mesh.close()  # a process that leaves while gloo's threads run may abort
