"""The fast path of attention against a masked softmax written out."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llama31.model import attention, kernels, precision
from llama31.model.sequences import PackedSequences, Places, SequenceTable, Span, chunks_of_rank, take_chunks

pytestmark = pytest.mark.torch


@pytest.fixture(params=["a call for each document", "two calls for all"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How a CPU goes about it, and how a GPU does, its kernel written out."""
    if request.param == "two calls for all":
        monkeypatch.setattr(kernels, "packed", lambda query: True)
    return str(request.param)


def attend(query: Tensor, key: Tensor, value: Tensor, documents: Tensor, spans: list[Span]) -> Tensor:
    return attention.attend(query, key, value, SequenceTable(documents, query.size(1), spans, query.device))


def explicit(query: Tensor, key: Tensor, value: Tensor, documents: Tensor, spans: list[Span]) -> Tensor:
    """What `attend` means: one softmax over a whole mask, in FP64."""
    positions = torch.cat([torch.arange(begin, end) for begin, end in spans])
    allowed = torch.zeros(query.size(1), key.size(0), key.size(0), dtype=torch.bool)
    for row, begin, end, *prefix in documents.tolist():
        allowed[row, begin:end, begin:end] = torch.ones(end - begin, end - begin, dtype=torch.bool).tril()
        if prefix:
            allowed[row, begin:end, prefix[0] : prefix[1]] = True
    allowed = allowed[:, positions]
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
def test_attend_equals_a_masked_softmax(whole: bool, way: str) -> None:
    generator = torch.Generator().manual_seed(3 + whole)
    for spans in ([(0, 24)], [(0, 6), (18, 24)], [(6, 12), (12, 18)], [(17, 24)], [(23, 24)]):
        for _ in range(3):
            documents = table(generator, 2, 24, whole)
            compare(tensors(generator, sum(end - begin for begin, end in spans), 24), documents, spans)


def _between(lengths: list[int]) -> Iterator[tuple[int, int]]:
    return itertools.pairwise(itertools.accumulate(lengths, initial=0))


def answers(row: int, begin: int, lengths: list[int]) -> list[tuple[int, ...]]:
    """A prompt and its answers, as a reward model's rows have them."""
    ends = list(itertools.accumulate(lengths, initial=begin))
    prompt, *rest = itertools.pairwise(ends)
    return [(row, *prompt, 0, 0), *((row, *one, *prompt) for one in rest)]


TABLES = {  # of rows of 48
    "one document": [(0, 0, 48)],
    "of one token": [(0, 0, 1), (0, 1, 2), (0, 2, 13), (0, 13, 14), (0, 14, 47), (0, 47, 48)],
    "gaps": [(0, 3, 11), (0, 12, 13), (0, 20, 41)],
    "two rows": [(0, 0, 31), (0, 31, 48), (1, 0, 1), (1, 1, 7), (1, 7, 48)],
    "gaps in two rows": [(0, 0, 31), (1, 11, 13), (1, 17, 48)],
    "a tree": [*answers(0, 0, [9, 5, 1, 13]), (0, 28, 48, 0, 0)],
    "trees in two rows": [
        *answers(0, 0, [1, 1, 1, 27]),
        *answers(0, 30, [7, 2, 9]),
        *answers(1, 0, [25, 20]),
        (1, 45, 48, 0, 0),
    ],
}


@pytest.mark.parametrize("heads", [(8, 1, 64), (2, 2, 128), (4, 2, 8)], ids=str)
@pytest.mark.parametrize("documents", TABLES.values(), ids=TABLES.keys())
def test_two_calls_do_all_documents(
    documents: list[tuple[int, ...]], heads: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of the way to a GPU's kernels and back but the kernels: whole rows, chunks of ranks, the end of a row."""
    calls: list[PackedSequences] = []
    forward = kernels.packed_forward

    def counted(*parts: Any) -> Any:
        calls.append(parts[-1])
        return forward(*parts)

    monkeypatch.setattr(kernels, "packed", lambda query: True)
    monkeypatch.setattr(kernels, "packed_forward", counted)
    generator, table = torch.Generator().manual_seed(heads[2]), torch.tensor(documents, dtype=torch.int32)
    rows = 1 + int(table[:, 0].max())
    for spans in ([(0, 48)], *(chunks_of_rank(48, cp, rank) for cp, rank in ((2, 0), (2, 1), (4, 1))), [(41, 48)]):
        queries = sum(end - begin for begin, end in spans)
        sizes = ((queries, heads[0]), (48, heads[1]), (48, heads[1]))
        parts = [torch.randn(n, rows, count, heads[2], generator=generator).requires_grad_() for n, count in sizes]
        compare(parts, table, spans)
        whole = spans == [(0, 48)] and len(documents[0]) == 3
        assert [call.causal for call in calls] in ([[True]] if whole else [[True], [True, False]])
        calls.clear()


def test_answers_to_one_prompt_ask_for_it_once() -> None:
    """They are one sequence of the second call, so the prompt's keys are neither copied nor summed for each."""
    table = SequenceTable(torch.tensor(answers(0, 0, [9, 5, 1, 13])), 1, [(0, 28)], torch.device("cpu"))
    assert table.own_keys.query_ends.tolist() == [0, 9, 14, 15, 28] and table.own_keys.queries.index is None
    earlier = table.earlier_keys
    assert earlier is not None and not earlier.causal
    assert (earlier.query_ends.tolist(), earlier.key_ends.tolist()) == ([0, 19], [0, 9])
    assert earlier.keys.index is None and earlier.queries.index is not None and earlier.keys.count == 9


class Operations(TorchDispatchMode):
    """How many operations reach the device."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("spans", [[(0, 96)], [(0, 24), (72, 96)]], ids=["whole rows", "chunks"])
def test_launches_do_not_grow_with_documents(spans: list[Span], monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward pass of one layer, with a kernel that is one operation: 2 documents, 32, 64 answers."""

    def forward(query: Tensor, key: Tensor, value: Tensor, sequences: PackedSequences) -> tuple[Tensor, Tensor, Any]:
        return query.clone(), query[..., 0].clone(), []

    def backward(*parts: Any) -> tuple[Tensor, ...]:
        return parts[1].clone(), parts[2].clone(), parts[3].clone()

    monkeypatch.setattr(kernels, "packed", lambda query: True)
    monkeypatch.setattr(kernels, "packed_forward", forward)
    monkeypatch.setattr(kernels, "packed_backward", backward)
    rows = ([50, 46], [3] * 32, [1] * 96)
    first, *others = (launches([(0, *pair) for pair in _between(lengths)], spans) for lengths in rows)
    assert max(others) <= first, "a document that a chunk's edge cuts needs the second call, more of them no third"
    few, many = (launches(answers(0, 0, lengths), spans) for lengths in ([32, 40, 24], [32] + [1] * 64))
    assert few == many


def launches(documents: list[tuple[int, ...]], spans: list[Span]) -> int:
    """Operations of attention's forward and backward pass, the table having been made by the layer before."""
    query, key, value = tensors(torch.Generator().manual_seed(1), sum(end - begin for begin, end in spans), 96, 1)
    table = SequenceTable(torch.tensor(documents), 1, spans, query.device)
    attention.attend(query, key, value, table)
    with Operations() as seen:
        attention.attend(query, key, value, table).sum().backward()
    return seen.count


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
def test_every_rank_computes_what_documents_alone_would(lengths: list[int], dtype: torch.dtype, way: str) -> None:
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


def test_rows_with_the_same_documents_go_together(way: str) -> None:
    generator = torch.Generator().manual_seed(1)
    documents = torch.tensor([(row, begin, end) for row in range(2) for begin, end in ((0, 5), (5, 20))])
    compare(tensors(generator, 20, 20), documents, [(0, 20)])


def test_queries_outside_of_documents_give_zeros(way: str) -> None:
    """Padding before a prompt: two rows, the second padded by 3 tokens, the third all padding."""
    query, key, value = tensors(torch.Generator().manual_seed(2), 7, 7, rows=3)
    documents = torch.tensor([(0, 0, 7), (1, 3, 7)])
    result = attend(query, key, value, documents, [(0, 7)])
    assert not result[:3, 1].any() and not result[:, 2].any() and result[3:, 1].all()
    compare([query, key, value], documents, [(0, 7)])


def test_keys_after_the_queries_have_no_gradient(way: str) -> None:
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


def test_ranks_together_compute_the_whole_row(way: str) -> None:
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
        query, key, value = query[0].transpose(0, 1), *(x.flatten(0, 1)[:, :2].clone() for x in (key, value))
        ends = torch.zeros(4, dtype=torch.int32, device="cuda")
        sequences = PackedSequences(Places(32, None), Places(16, None), ends, ends, 16, 8, causal)
        assert kernels.chosen(query, sequences) == "torch", "Transformer Engine is not here"
        out, lse, kept = kernels.packed_forward(query, key, value, sequences)
        assert out.shape == query.shape and lse.shape == query.shape[:2] and lse.dtype == torch.float32
        grads = kernels.packed_backward(torch.empty_like(out), query, key, value, out, lse, sequences, kept)
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


def engine(version: tuple[int, int, int], asked: list[dict[str, Any]]) -> dict[str, ModuleType]:
    """Transformer Engine's modules as far as attention asks for them, the kernels written out."""

    def sequences(given: dict[str, Any]) -> PackedSequences:
        ends, causal = (given["cu_seqlens_q"], given["cu_seqlens_kv"]), given["attn_mask_type"] == "padding_causal"
        assert given["window_size"] == ((-1, 0) if causal else (-1, -1)) and given["qkv_layout"] == "thd_thd_thd"
        assert all((one[1:] - one[:-1]).min() > 0 for one in ends), "an empty sequence is for nobody to compute"
        asked.append(given)
        counts = (Places(given["q"].size(0), None), Places(given["k"].size(0), None))
        return PackedSequences(*counts, *ends, given["max_seqlen_q"], given["max_seqlen_kv"], causal)

    def fused_attn_fwd(
        q, k, v, cu_seqlens_q, cu_seqlens_kv, max_seqlen_q, max_seqlen_kv, attn_mask_type, window_size, qkv_layout
    ) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
        out, lse = kernels.packed_plain_forward(q, k, v, sequences(locals()))
        return out, [lse.unsqueeze(-1), torch.zeros(2)]

    def fused_attn_bwd(
        q, k, v, o, d_o, aux_ctx_tensors, cu_seqlens_q, cu_seqlens_kv, max_seqlen_q, max_seqlen_kv, attn_mask_type,
        window_size, qkv_layout, dqkv_dtype,
    ) -> list[Tensor]:  # fmt: skip
        lse, state = aux_ctx_tensors
        assert lse.shape == (*q.shape[:2], 1) and lse.is_contiguous() and state.shape == (2,)
        return [*kernels.packed_plain_backward(d_o, q, k, v, o, lse.squeeze(-1), sequences(locals())), None]

    names = ("", ".pytorch", ".pytorch.constants", ".pytorch.cpp_extensions", ".pytorch.utils")
    made = {f"transformer_engine{name}": ModuleType(name) for name in names}
    functions = {"fused_attn_fwd": fused_attn_fwd, "fused_attn_bwd": fused_attn_bwd}
    backend = {"FusedAttnBackend": {"F16_arbitrary_seqlen": 1}}
    made["transformer_engine.pytorch.cpp_extensions"].fused_attn = SimpleNamespace(**functions, **backend)  # type: ignore[attr-defined]
    made["transformer_engine.pytorch.constants"].TE_DType = {torch.float32: 0}  # type: ignore[attr-defined]
    made["transformer_engine.pytorch.utils"].get_cudnn_version = lambda: version  # type: ignore[attr-defined]
    return made


@pytest.mark.parametrize("documents", [TABLES["two rows"], TABLES["trees in two rows"]], ids=["two rows", "trees"])
def test_cudnn_is_asked_for_what_the_calls_mean(
    documents: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two calls through Transformer Engine's functions, which get the merged log-sum-exp back in their own shape."""
    asked: list[dict[str, Any]] = []
    for name, module in engine((9, 20, 0), asked).items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(precision, "have_transformer_engine", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    kernels._cudnn.cache_clear()
    monkeypatch.setattr(kernels, "packed", lambda query: True)
    monkeypatch.setattr(kernels, "chosen", lambda query, sequences: "cudnn")
    table = torch.tensor(documents)
    try:
        for spans in ([(0, 48)], [(0, 12), (36, 48)]):
            generator = torch.Generator().manual_seed(1)
            compare(tensors(generator, sum(end - begin for begin, end in spans), 48), table, spans)
    finally:
        kernels._cudnn.cache_clear()
    forward, backward = ([one for one in asked if ("d_o" in one) == is_backward] for is_backward in (False, True))
    assert len(forward) == len(backward) == (3 if len(documents[0]) == 3 else 4)


@pytest.mark.parametrize(("version", "capability"), [((9, 5, 1), (9, 0)), ((9, 20, 0), (12, 0))])
def test_a_cudnn_that_pads_its_sums_is_not_asked(
    version: tuple[int, int, int], capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, module in engine(version, []).items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(precision, "have_transformer_engine", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    kernels._cudnn.cache_clear()
    assert kernels._cudnn() is None
    kernels._cudnn.cache_clear()


def test_the_kernel_is_chosen_by_a_table_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel(length: int, documents: int, width: int = 128) -> str:
        with FakeTensorMode():
            query = torch.empty(length, 8, width, device="cuda", dtype=torch.bfloat16)
            ends = torch.empty(documents + 1, dtype=torch.int32, device="cuda")
            places = Places(length, None)
            return kernels.chosen(query, PackedSequences(places, places, ends, ends, length, length, True))

    monkeypatch.setattr(kernels, "_cudnn", lambda: print)
    assert [kernel(8192, 1), kernel(8192, 8), kernel(8192, 33), kernel(8192, 1, 256)] == [
        "cudnn",
        "cudnn",
        "torch",
        "torch",
    ]
    assert "cuDNN through Transformer Engine from a mean of 4096" in kernels.choice_line(cudnn=True)
    assert "predicted" in kernels.choice_line(cudnn=True) and "for want of" in kernels.choice_line(cudnn=False)


ONE_ROW = torch.tensor([(0, 0, 8)])


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"attention_mask": torch.ones(1, 1, 8, 8, dtype=torch.bool)}, "attention_mask would be ignored"),
        ({"attention_mask": ONE_ROW}, "attention_mask would be ignored"),
        ({"attention_bias": torch.zeros(1)}, "attention_bias would be ignored"),
        ({"packed_seq_params": PackedSeqParams(qkv_format="thd")}, "packed_seq_params is PackedSeqParams, which"),
        ({"packed_seq_params": None}, "packed_seq_params is NoneType, which"),
    ],
)
def test_every_other_mask_is_refused(given: dict[str, Any], what: str) -> None:
    table = SequenceTable(ONE_ROW, 1, [(0, 8)], torch.device("cpu"))
    given = {"packed_seq_params": table, **given}
    with pytest.raises(ValueError, match=f"{what}.*give a SequenceTable"):
        attention.table_alone(given["packed_seq_params"], given.get("attention_mask"), given.get("attention_bias"))
    assert attention.table_alone(table, None, None) is table


@pytest.mark.parametrize("documents", [torch.ones(8, 3, dtype=torch.bool), torch.zeros(8, 3), torch.zeros(1, 1, 8, 8)])
def test_what_is_no_table_of_documents_is_refused(documents: Tensor) -> None:
    with pytest.raises(ValueError, match=r"not a table; give int \[n, 3\]"):
        SequenceTable(documents, 1, [(0, 8)], torch.device("cpu"))
