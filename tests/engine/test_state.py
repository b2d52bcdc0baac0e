"""How a flat range of a parameter becomes rectangles of the global tensor."""

from __future__ import annotations

import itertools

import pytest
import torch

from llama31.engine import state

pytestmark = pytest.mark.torch


@pytest.mark.parametrize(
    ("shape", "offsets", "local"),
    [
        ((6,), ((0,),), (6,)),
        ((8, 5), ((2, 0),), (4, 5)),
        ((4, 10), ((0, 5),), (4, 5)),
        ((8, 5), ((1, 0), (5, 0)), (4, 5)),  # gate rows and up rows
        ((3, 1), ((0, 0),), (3, 1)),
    ],
)
def test_every_range_of_a_shard_is_cut_into_few_views(
    shape: tuple[int, ...], offsets: tuple[tuple[int, ...], ...], local: tuple[int, ...]
) -> None:
    whole = torch.arange(1.0, 1 + torch.Size(shape).numel()).view(shape)
    rows = local[0] // len(offsets)
    blocks = [whole[tuple(slice(a, a + n) for a, n in zip(o, (rows, *local[1:]), strict=True))] for o in offsets]
    flat = torch.cat(blocks).flatten()
    for start, stop in itertools.combinations(range(flat.numel() + 1), 2):
        held = flat[start:stop]
        result = list(state.cut(offsets, local, start, held))
        assert len(result) <= 3 * len(offsets)
        assert sum(block.resolve().numel() for block in result) == held.numel()
        for block in result:
            part = block.resolve()
            assert part.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr() and part.is_contiguous()
            assert torch.equal(part, whole[tuple(slice(a, a + n) for a, n in zip(block.offset, block.shape))])
