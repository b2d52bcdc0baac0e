"""The fast path of attention against a masked softmax written out."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llama31 import attention
from llama31.attention import Span, attend, chunks_of_rank, take_chunks

pytestmark = pytest.mark.torch


def explicit(query: Tensor, key: Tensor, value: Tensor, documents: Tensor, spans: list[Span]) -> Tensor:
    """What `attend` means: one softmax over a whole mask, in FP64."""
    positions = torch.cat([torch.arange(begin, end) for begin, end in spans])
    owner = torch.full((query.size(1), key.size(0)), -1)
    for number, (row, begin, end) in enumerate(documents.tolist()):
        owner[row, begin:end] = number
    allowed = (owner[:, positions, None] == owner[:, None]) & (owner[:, None] >= 0)  # [b, sq, s]
    allowed &= positions[:, None] >= torch.arange(key.size(0))
    q, k, v = (x.double().permute(1, 2, 0, 3) for x in (query, key, value))
    k, v = (x.repeat_interleave(q.size(1) // k.size(1), 1) for x in (k, v))
    scores = (q @ k.transpose(-1, -2) / math.sqrt(q.size(-1))).masked_fill(~allowed[:, None], -math.inf)
    return (scores.softmax(-1).nan_to_num(0.0) @ v).permute(2, 0, 1, 3)  # no key at all: zeros


def table(generator: torch.Generator, rows: int, length: int, whole: bool) -> Tensor:
    """Random documents: they fill every row, or leave gaps that belong to none."""
    found = []
    for row in range(rows):
        cuts = [0, *(torch.randperm(length - 1, generator=generator)[:5] + 1).sort().values.tolist(), length]
        pairs = list(itertools.pairwise(cuts))
        found += [(row, begin, end) for begin, end in (pairs if whole else pairs[row % 2 :: 2])]
    return torch.tensor(found, dtype=torch.int32)


def tensors(generator: torch.Generator, queries: int, length: int, rows: int = 2) -> list[Tensor]:
    """Q with 4 heads, K and V with 2, all of width 8."""
    sizes = ((queries, 4), (length, 2), (length, 2))
    return [torch.randn(s, rows, heads, 8, generator=generator).requires_grad_() for s, heads in sizes]


def compare(parts: list[Tensor], documents: Tensor, spans: list[Span]) -> None:
    """Output and gradients of both paths."""
    found, expected = attend(*parts, documents, spans), explicit(*parts, documents, spans)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(9))
    grads = torch.autograd.grad(found, parts, upstream, allow_unused=True)
    wanted = torch.autograd.grad(expected, parts, upstream.double())
    for grad, want in zip(grads, wanted, strict=True):
        torch.testing.assert_close(torch.zeros_like(want) if grad is None else grad, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("block", [3, 512])
@pytest.mark.parametrize("whole", [True, False])
def test_attend_equals_a_masked_softmax(monkeypatch: pytest.MonkeyPatch, block: int, whole: bool) -> None:
    monkeypatch.setattr(attention, "QUERY_BLOCK", block)
    generator = torch.Generator().manual_seed(block + whole)
    for spans in ([(0, 24)], [(0, 6), (18, 24)], [(6, 12), (12, 18)], [(17, 24)], [(23, 24)]):
        for _ in range(3):
            documents = table(generator, 2, 24, whole)
            compare(tensors(generator, sum(end - begin for begin, end in spans), 24), documents, spans)


def test_rows_with_the_same_documents_go_together() -> None:
    generator = torch.Generator().manual_seed(1)
    documents = torch.tensor([(row, begin, end) for row in range(2) for begin, end in ((0, 5), (5, 20))])
    compare(tensors(generator, 20, 20), documents, [(0, 20)])


def test_queries_outside_of_documents_give_zeros() -> None:
    """Padding before a prompt: two rows, the second padded by 3 tokens, the third all padding."""
    query, key, value = tensors(torch.Generator().manual_seed(2), 7, 7, rows=3)
    documents = torch.tensor([(0, 0, 7), (1, 3, 7)])
    found = attend(query, key, value, documents, [(0, 7)])
    assert not found[:3, 1].any() and not found[:, 2].any() and found[3:, 1].all()
    compare([query, key, value], documents, [(0, 7)])


def test_a_rank_holds_chunk_i_and_its_mirror() -> None:
    assert chunks_of_rank(16, 1, 0) == [(0, 16)]
    assert [chunks_of_rank(16, 2, rank) for rank in range(2)] == [[(0, 4), (12, 16)], [(4, 8), (8, 12)]]
    for cp in (1, 2, 4):
        held = [span for rank in range(cp) for span in chunks_of_rank(32, cp, rank)]
        assert sorted(position for span in held for position in range(*span)) == list(range(32))
        work = [sum(sum(range(*span)) for span in chunks_of_rank(32, cp, rank)) for rank in range(cp)]
        assert len(set(work)) == 1  # equal shares of the causal triangle


def test_ranks_together_compute_the_whole_row() -> None:
    """Context parallelism without processes: each rank's chunks against all keys."""
    generator = torch.Generator().manual_seed(3)
    query, key, value = tensors(generator, 32, 32)
    documents = table(generator, 2, 32, whole=True)
    whole = attend(query, key, value, documents, [(0, 32)])
    for cp in (2, 4):
        for rank in range(cp):
            mine = attend(take_chunks(query, cp, rank, 0), key, value, documents, chunks_of_rank(32, cp, rank))
            torch.testing.assert_close(mine, take_chunks(whole, cp, rank, 0))


class Largest(TorchDispatchMode):
    """The largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor))])
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spans", [[(0, 4096)], [(1024, 2048), (2048, 3072)], [(0, 1024), (3072, 4096)]])
def test_no_matrix_of_all_positions_is_ever_made(dtype: torch.dtype, spans: list[Span]) -> None:
    length, queries = 4096, sum(end - begin for begin, end in spans)
    query = torch.randn(queries, 1, 4, 8, dtype=dtype, requires_grad=True)
    key, value = (torch.randn(length, 1, 2, 8, dtype=dtype, requires_grad=True) for _ in range(2))
    for documents in ([(0, 0, length)], [(0, 0, 1000), (0, 1000, length)]):
        with Largest() as seen:
            attend(query, key, value, torch.tensor(documents), spans).sum().backward()
        assert 0 < seen.numel <= attention.QUERY_BLOCK * length
        assert attention.QUERY_BLOCK * length < length * length / 4
