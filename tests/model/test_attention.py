"""The fast path of attention against a masked softmax written out."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llama31.model import attention, kernels
from llama31.model.attention import Span, attend, chunks_of_rank, take_chunks

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
    result = []
    for row in range(rows):
        cuts = [0, *(torch.randperm(length - 1, generator=generator)[:5] + 1).sort().values.tolist(), length]
        pairs = list(itertools.pairwise(cuts))
        result += [(row, begin, end) for begin, end in (pairs if whole else pairs[row % 2 :: 2])]
    return torch.tensor(result, dtype=torch.int32)


def tensors(generator: torch.Generator, queries: int, length: int, rows: int = 2) -> list[Tensor]:
    """Q with 4 heads, K and V with 2, all of width 8."""
    sizes = ((queries, 4), (length, 2), (length, 2))
    return [torch.randn(s, rows, heads, 8, generator=generator).requires_grad_() for s, heads in sizes]


def compare(parts: list[Tensor], documents: Tensor, spans: list[Span]) -> None:
    """Output and gradients of both paths."""
    result, expected = attend(*parts, documents, spans), explicit(*parts, documents, spans)
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)
    upstream = torch.randn(result.shape, generator=torch.Generator().manual_seed(9))
    grads = torch.autograd.grad(result, parts, upstream, allow_unused=True)
    wanted = torch.autograd.grad(expected, parts, upstream.double())
    for grad, want in zip(grads, wanted, strict=True):
        torch.testing.assert_close(torch.zeros_like(want) if grad is None else grad, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("whole", [True, False])
def test_attend_equals_a_masked_softmax(whole: bool) -> None:
    generator = torch.Generator().manual_seed(3 + whole)
    for spans in ([(0, 24)], [(0, 6), (18, 24)], [(6, 12), (12, 18)], [(17, 24)], [(23, 24)]):
        for _ in range(3):
            documents = table(generator, 2, 24, whole)
            compare(tensors(generator, sum(end - begin for begin, end in spans), 24), documents, spans)


def packed_plainly(
    query: Tensor, key: Tensor, value: Tensor, documents: kernels.PackedDocuments
) -> tuple[Tensor, list[Tensor]]:
    """What a GPU's kernel for many documents means: each by itself."""
    assert int((documents.ends[1:] - documents.ends[:-1]).max()) <= documents.longest
    outs, lses = [], []
    for begin, end in itertools.pairwise(documents.ends.tolist()):
        q, k, v = (x[begin:end].transpose(0, 1)[None] for x in (query, key, value))
        out, lse = kernels.plain_forward(q, k, v, causal=True)
        outs.append(out[0].transpose(0, 1))
        lses.append(lse)
    return torch.cat(outs), lses


def packed_plainly_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    documents: kernels.PackedDocuments,
    kept: list[Tensor],
) -> kernels.Gradients:
    result = []
    for lse, (begin, end) in zip(kept, itertools.pairwise(documents.ends.tolist()), strict=True):
        parts = (x[begin:end].transpose(0, 1)[None] for x in (grad, query, key, value, out))
        result.append([x[0].transpose(0, 1) for x in kernels.plain_backward(*parts, lse, causal=True)])
    query_grad, key_grad, value_grad = (torch.cat(parts) for parts in zip(*result, strict=True))
    return query_grad, key_grad, value_grad


@pytest.mark.parametrize("whole", [True, False])
def test_documents_of_whole_rows_are_one_call(monkeypatch: pytest.MonkeyPatch, whole: bool) -> None:
    """All of the way to the kernel and back but the kernel; where gaps are, or parts of rows, the blocks do it."""
    calls: list[list[int]] = []

    def forward(
        query: Tensor, key: Tensor, value: Tensor, documents: kernels.PackedDocuments
    ) -> tuple[Tensor, list[Tensor]]:
        calls.append(documents.ends.tolist())
        return packed_plainly(query, key, value, documents)

    monkeypatch.setattr(kernels, "packed", lambda query: True)
    monkeypatch.setattr(kernels, "packed_forward", forward)
    monkeypatch.setattr(kernels, "packed_backward", packed_plainly_backward)
    generator = torch.Generator().manual_seed(5 + whole)
    for rows in (1, 3):
        documents = table(generator, rows, 24, whole)
        compare(tensors(generator, 24, 24, rows), documents, [(0, 24)])
        compare(tensors(generator, 7, 24, rows), documents, [(17, 24)])
        ends = [row * 24 + end for row, _, end in documents.tolist()]
        assert calls == ([[0, *ends]] if whole else [])
        calls.clear()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("block", [3, 512])
def test_the_written_out_kernel_equals_the_fused_one(monkeypatch: pytest.MonkeyPatch, block: int, causal: bool) -> None:
    """It stands in for torch's on devices and formats that have none; the test runs both where both exist."""
    monkeypatch.setattr(kernels, "QUERY_BLOCK", block)
    generator = torch.Generator().manual_seed(block)
    query, grad = (torch.randn(2, 4, 10, 8, generator=generator) for _ in range(2))
    key, value = (torch.randn(2, 2, 10 if causal else 7, 8, generator=generator) for _ in range(2))
    out, lse = kernels.forward(query, key, value, causal)
    for result, want in zip(kernels.plain_forward(query, key, value, causal), (out, lse), strict=True):
        torch.testing.assert_close(result, want, rtol=1e-5, atol=1e-5)
    parts = (grad, query, key, value, out, lse, causal)
    for result, want in zip(kernels.plain_backward(*parts), kernels.backward(*parts), strict=True):
        torch.testing.assert_close(result, want, rtol=1e-5, atol=1e-5)


EDGES = {  # a row of 48: chunks of 12 with CP 2, of 6 with CP 4
    "odd lengths": [1, 3, 5, 7, 9, 11, 12],
    "boundaries at every chunk edge": [6] * 8,
    "one token before and after the edges": [11, 2, 11, 1, 10, 13],
    "one document": [48],
    "over three chunks": [5, 41, 2],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lengths", EDGES.values(), ids=EDGES.keys())
def test_every_rank_computes_what_documents_alone_would(lengths: list[int], dtype: torch.dtype) -> None:
    """Output and all gradients of each document by itself, against CP 1, 2 and 4 on the packed row."""
    generator = torch.Generator().manual_seed(sum(lengths[:2]))
    parts = [x.detach().to(dtype).requires_grad_() for x in tensors(generator, 48, 48, rows=1)]
    upstream = torch.randn(48, 1, 4, 8, generator=generator).to(dtype)
    ends = list(itertools.accumulate(lengths))
    documents = torch.tensor([(0, end - length, end) for end, length in zip(ends, lengths, strict=True)])
    alone = [
        attend(
            *(x.narrow(0, begin, end - begin) for x in parts), torch.tensor([(0, 0, end - begin)]), [(0, end - begin)]
        )
        for _, begin, end in documents.tolist()
    ]
    expected = torch.cat(alone)
    wanted = torch.autograd.grad(expected, parts, upstream)
    bound = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 5e-2, "atol": 5e-2}
    for cp in (1, 2, 4):
        grads = [torch.zeros_like(x) for x in parts]
        for rank in range(cp):
            mine = attend(take_chunks(parts[0], cp, rank, 0), *parts[1:], documents, chunks_of_rank(48, cp, rank))
            torch.testing.assert_close(mine, take_chunks(expected, cp, rank, 0), **bound)
            for total, grad in zip(grads, torch.autograd.grad(mine, parts, take_chunks(upstream, cp, rank, 0))):
                total += grad
        for total, want in zip(grads, wanted, strict=True):
            torch.testing.assert_close(total, want, **bound)


def test_rows_with_the_same_documents_go_together() -> None:
    generator = torch.Generator().manual_seed(1)
    documents = torch.tensor([(row, begin, end) for row in range(2) for begin, end in ((0, 5), (5, 20))])
    compare(tensors(generator, 20, 20), documents, [(0, 20)])


def test_queries_outside_of_documents_give_zeros() -> None:
    """Padding before a prompt: two rows, the second padded by 3 tokens, the third all padding."""
    query, key, value = tensors(torch.Generator().manual_seed(2), 7, 7, rows=3)
    documents = torch.tensor([(0, 0, 7), (1, 3, 7)])
    result = attend(query, key, value, documents, [(0, 7)])
    assert not result[:3, 1].any() and not result[:, 2].any() and result[3:, 1].all()
    compare([query, key, value], documents, [(0, 7)])


def test_keys_after_the_queries_have_no_gradient() -> None:
    generator = torch.Generator().manual_seed(4)
    compare(tensors(generator, 9, 20), torch.tensor([(row, 0, 9) for row in range(2)]), [(0, 9)])


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


def kept_bytes(length: int, spans: list[Span], documents: list[tuple[int, int, int]], dtype: torch.dtype) -> int:
    """Bytes of the storages that attention keeps for its backward pass, which is then run."""
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    queries = sum(end - begin for begin, end in spans)
    query = torch.randn(queries, 1, 4, 8, dtype=dtype, requires_grad=True)
    key, value = (torch.randn(length, 1, 2, 8, dtype=dtype, requires_grad=True) for _ in range(2))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = attend(query, key, value, torch.tensor(documents), spans)
    out.sum().backward()
    return sum(kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spans", [[(0, 4096)], [(1024, 2048), (2048, 3072)], [(0, 1024), (3072, 4096)]])
def test_no_mask_is_ever_made(dtype: torch.dtype, spans: list[Span]) -> None:
    """Neither as one tensor nor as the sum of the blocks that are kept: nothing is larger than K, V or Q."""
    length, of_value = 4096, torch.finfo(dtype).bits // 8
    for documents in ([(0, 0, length)], [(0, 0, 1001), (0, 1001, length)]):
        with Largest() as seen:
            kept = kept_bytes(length, spans, documents, dtype)
        assert 0 < seen.numel <= 4 * 8 * length
        queries = sum(end - begin for begin, end in spans)
        of_parts, of_sums = of_value * (2 * queries * 4 * 8 + 2 * length * 2 * 8), 4 * 4 * queries
        assert of_parts < kept <= of_parts + of_sums  # Q and output, K and V; less where a short block keeps no sums


@pytest.mark.parametrize("causal", [True, False])
def test_torch_has_the_kernels_that_a_gpu_would_run(causal: bool) -> None:
    """Signatures and shapes alone, on tensors without numbers: this is not a GPU."""
    with FakeTensorMode():
        query = torch.empty(2, 8, 32, 64, device="cuda", dtype=torch.bfloat16)
        key, value = (torch.empty(2, 2, 32, 64, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        out, lse = kernels.forward(query, key, value, causal)
        assert out.shape == query.shape and lse.shape == query.shape[:3] and lse.dtype == torch.float32
        grads = kernels.backward(torch.empty_like(out), query, key, value, out, lse, causal)
    assert [grad.shape for grad in grads] == [query.shape, key.shape, value.shape]


def test_the_value_is_kept_without_the_projection_that_it_is_cut_from() -> None:
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    fused = torch.randn(16, 1, 8, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        attend(fused[:, :, :4] * 1, fused[:, :, 4:6] * 1, fused[:, :, 6:], torch.tensor([(0, 0, 16)]), [(0, 16)])
    assert fused.untyped_storage().data_ptr() not in kept


@pytest.mark.parametrize(
    ("mask", "given", "what"),
    [
        (None, {}, "attention_mask is nothing"),
        (torch.ones(1, 1, 8, 8, dtype=torch.bool), {}, r"torch.bool \[1, 1, 8, 8\], not a table"),
        (torch.ones(8, 3, dtype=torch.bool), {}, "matrix of truth values"),
        (torch.zeros(8, 3), {}, "not a table of documents"),
        (torch.tensor([(0, 0, 8)]), {"attention_bias": torch.zeros(1)}, "attention_bias would be ignored"),
        (torch.tensor([(0, 0, 8)]), {"packed_seq_params": object()}, r"packed_seq_params \(THD\) would be ignored"),
    ],
)
def test_every_other_mask_is_refused(mask: Tensor | None, given: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        attention.refuse_other_masks(mask, given.get("attention_bias"), given.get("packed_seq_params"))
