"""What is computed again instead of kept: the same gradients bit for bit, and as many bytes less as the plan says."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from llama31 import config
from llama31.model import llama
from llama31.model.sequences import SequenceTable
from llama31.parallel import mesh
from llama31.plan import memory

pytestmark = pytest.mark.torch

LENGTH, ROWS = 160, 2
MODEL = config.Model(name="r", layers=2, hidden_size=64, ffn_hidden_size=96, heads=4, kv_heads=2, vocab_size=61)
PARTS = [["norms"], ["swiglu"], ["mlp"], ["norms", "swiglu"], ["norms", "mlp"], ["full"]]


@pytest.fixture(scope="module", autouse=True)
def grid() -> Iterator[mesh.Grid]:
    yield mesh.create(config.Parallel())
    mesh.close()


class Run:
    """Gradients of one micro-batch, and the bytes per layer and token that were kept for its backward pass."""

    def __init__(self, recompute: list[str], params: str, grid: mesh.Grid) -> None:
        numbers, parallel = config.Precision(params=params), config.Parallel(recompute=recompute)
        chunk = llama.build(MODEL, numbers, parallel, grid, seed=3)[0]
        generator, dtype = torch.Generator().manual_seed(1), next(chunk.parameters()).dtype
        states = torch.randn(LENGTH, ROWS, MODEL.hidden_size, generator=generator).to(dtype).requires_grad_()
        documents = torch.tensor([(row, 0, LENGTH) for row in range(ROWS)], dtype=torch.int32)
        table = SequenceTable.of_call(documents, torch.zeros(ROWS, LENGTH, dtype=torch.int64), chunk.cp_group, None)
        table.rotary = chunk._rotary(LENGTH, None)
        storages: dict[int, torch.UntypedStorage] = {}

        def pack(x: Tensor) -> Tensor:  # sizes are read later: what is let go of is empty by then
            storages[x.untyped_storage()._cdata] = x.untyped_storage()
            return x

        block = chunk.decoder
        block.final_layernorm = None
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            out = block(hidden_states=states, attention_mask=None, packed_seq_params=table)
        shared = {x.untyped_storage()._cdata for x in [*chunk.parameters(), *table.rotary.factors(dtype)]}
        kept = sum(storage.nbytes() for key, storage in storages.items() if key not in shared)
        self.kept = kept / (MODEL.layers * LENGTH * ROWS)
        out.backward(torch.randn(out.shape, generator=generator).to(out.dtype))
        assert states.grad is not None
        self.gradients = [states.grad, *(p.grad for p in block.parameters() if p.grad is not None)]


@pytest.fixture(scope="module")
def without(grid: mesh.Grid) -> dict[str, Run]:
    return {params: Run([], params, grid) for params in ("fp32", "bf16")}


@pytest.mark.parametrize("params", ["fp32", "bf16"])
@pytest.mark.parametrize("recompute", PARTS, ids="+".join)
def test_same_gradients_and_fewer_bytes(
    recompute: list[str], params: str, grid: mesh.Grid, without: dict[str, Run]
) -> None:
    run = Run(recompute, params, grid)
    assert all(torch.equal(*pair) for pair in zip(run.gradients, without[params].gradients, strict=True))
    layout = config.Parallel(recompute=recompute)
    if recompute == ["full"]:  # which keeps the table of documents as well, a few bytes in all
        assert run.kept == pytest.approx(sum(memory.layer_bytes(MODEL, layout, params, recompute).values()), abs=0.1)
    else:
        assert without[params].kept - run.kept == memory.recomputed_bytes(MODEL, layout, params)


def test_all_that_a_layer_keeps(without: dict[str, Run]) -> None:
    assert without["fp32"].kept == sum(memory.layer_bytes(MODEL, config.Parallel(), "fp32").values())
