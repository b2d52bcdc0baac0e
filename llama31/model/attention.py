"""Causal attention inside documents, with all-gather context parallelism.

Rows are packed from several documents, and no token attends across a boundary (report, section 3.2). The mask is
never a matrix: it is a table of documents `(row, begin, end)`, and each document is attended to by itself. Under
context parallelism (section 3.3.2) a row is cut into 2 x CP chunks, rank i holds chunks i and 2CP-1-i so that all
ranks have the same share of the causal triangle, and K and V are gathered whole: they are small thanks to GQA.

A chunk's share of a document is a causal block on its own keys and, where the document began before the chunk, a
block that sees everything earlier. The first needs no other rank, so it is computed while K and V travel. For the
backward pass a rank keeps its own K and V and gathers again: kept whole, they would not shrink with CP.

Shapes: Q [s, b, heads, d], K and V [s, b, kv_heads, d] (Megatron's order), documents int [n, 3]; or [n, 5], where the
last two columns are the span of a prefix that the whole document sees as well, one more block of earlier keys:
responses to one prompt, which do not see each other (an empty span: none).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from llama31.model import kernels

Span = tuple[int, int]
Document = tuple[int, int, Span]  # begin, end, and the prefix that it sees as well


def chunks_of_rank(length: int, cp: int, cp_rank: int) -> list[Span]:
    """The two spans of a row of `length` tokens that a context-parallel rank holds (the whole row when cp is 1)."""
    if cp == 1:
        return [(0, length)]
    size = length // (2 * cp)
    return [(i * size, (i + 1) * size) for i in (cp_rank, 2 * cp - 1 - cp_rank)]


def take_chunks(row: Tensor, cp: int, cp_rank: int, dim: int) -> Tensor:
    """This rank's chunks of a whole row, concatenated along `dim`."""
    spans = chunks_of_rank(row.size(dim), cp, cp_rank)
    return row if cp == 1 else torch.cat([row.narrow(dim, begin, end - begin) for begin, end in spans], dim)


def start_gather(key: Tensor, value: Tensor, group: Any) -> Callable[[], Tensor]:
    """Begin to gather chunks [s / cp, ...] of all ranks; the result waits, and returns whole rows [2, s, ...]."""
    cp, local = dist.get_world_size(group), torch.stack([key, value])
    gathered = local.new_empty((cp, *local.shape))
    work = dist.all_gather_into_tensor(gathered.flatten(0, 1), local, group=group, async_op=True)

    assert work is not None, "all ranks of the mesh are in the group"

    def wait() -> Tensor:
        work.wait()
        halves = gathered.unflatten(2, (2, -1)).movedim((1, 2), (0, 1))  # [K and V, half, rank, s / 2cp, ...]
        return torch.cat([halves[:, 0], halves[:, 1].flip(1)], 1).flatten(1, 2)

    return wait


def scatter_sum(rows: Tensor, group: Any) -> Tensor:
    """Sum of whole rows [2, s, ...] over ranks, each getting its chunks [2, s / cp, ...]."""
    cp = dist.get_world_size(group)
    chunks = rows.unflatten(1, (2 * cp, -1)).movedim(1, 0)
    by_rank = torch.stack([chunks[:cp], chunks[cp:].flip(0)], 2)  # [rank, K and V, half, s / 2cp, ...]
    local = torch.empty_like(by_rank[0])
    dist.reduce_scatter_tensor(local, by_rank.flatten(0, 1), group=group)
    return local.flatten(1, 2)


@dataclass(frozen=True)
class AttentionBlock:
    """Consecutive queries of one document, and the keys that they see."""

    rows: slice  # of the micro-batch
    queries: slice  # in the query tensor
    own: slice  # in K and V as given: the keys at the queries' own positions
    earlier: tuple[Span, ...] = ()  # positions in the row: the document's keys before those, those of its prefix

    @property
    def causal(self) -> bool:
        """A single query sees all its keys; its earlier ones may count as its own."""
        return self.queries.stop - self.queries.start > 1

    @property
    def merged(self) -> bool:
        """Whether there are earlier keys."""
        return bool(self.earlier)


def blocks(documents: Tensor, rows: int, spans: list[Span], chunked: bool) -> list[AttentionBlock]:
    """The blocks of queries at the positions of `spans`; K and V hold the same positions if chunked, else the row."""
    of_row: list[list[Document]] = [[] for _ in range(rows)]
    for row, begin, end, *prefix in documents.tolist():
        of_row[row].append((begin, end, (prefix[0], prefix[1]) if prefix else (0, 0)))
    if all(those == of_row[0] for those in of_row):
        return _blocks_of_rows(slice(None), of_row[0], spans, chunked)
    return [
        block
        for row, those in enumerate(of_row)
        for block in _blocks_of_rows(slice(row, row + 1), those, spans, chunked)
    ]


def _blocks_of_rows(rows: slice, documents: list[Document], spans: list[Span], chunked: bool) -> list[AttentionBlock]:
    result, offset = [], 0
    for begin, end in spans:
        for start, stop, prefix in documents:
            first, last = max(begin, start), min(end, stop)
            if first >= last:
                continue
            queries, own = slice(offset + first - begin, offset + last - begin), slice(first, last)
            earlier = (start, first)
            if chunked:
                own = queries
            elif last - first == 1:  # a step of decoding
                own, earlier = slice(start, last), (0, 0)
            result.append(
                AttentionBlock(rows, queries, own, tuple(span for span in (prefix, earlier) if span[0] < span[1]))
            )
        offset += end - begin
    return result


def crosses_chunks(documents: Tensor, length: int, cp: int) -> bool:
    """Whether any document lies in more than one chunk or has a prefix: some rank then needs keys of another."""
    size = length // (2 * cp)
    crosses = documents[:, 1] // size != (documents[:, 2] - 1) // size
    return bool(crosses.any() or (documents[:, 3:].size(1) and (documents[:, 3] < documents[:, 4]).any()))


def _heads_first(x: Tensor, positions: slice, rows: slice) -> Tensor:
    """Part of [s, b, heads, d] as a kernel reads it, [b, heads, s, d]; a view."""
    return x[positions, rows].permute(1, 2, 0, 3)


def _positions_first(x: Tensor) -> Tensor:
    """The way back: [b, heads, s, d] -> [s, b, heads, d], a view."""
    return x.permute(2, 0, 1, 3)


def _one_document(todo: list[AttentionBlock], query: Tensor, key: Tensor) -> bool:
    """Whether a single causal block is all there is, whose results need no assembling."""
    whole = slice(None), slice(0, query.size(0)), slice(0, key.size(0))
    one = len(todo) == 1 and (todo[0].rows, todo[0].queries, todo[0].own) == whole
    return one and todo[0].causal and not todo[0].merged


@functools.lru_cache(maxsize=4)  # of a few micro-batches: all layers ask for the same one
def _pack(table: bytes, rows: int, length: int, device: torch.device) -> kernels.PackedDocuments | None:
    """Cumulative lengths of documents [n, 3], given as int32 bytes; None unless they fill `rows` of `length` positions.

    The longest length is rounded up to a power of two: kernels are planned for it, and would be for every batch.
    """
    row, begins, ends = np.frombuffer(table, np.int32).reshape(-1, 3).T
    if (ends - begins).sum() != rows * length:
        return None
    longest = int((ends - begins).max())
    bounds = np.concatenate([[0], row * length + ends]).astype(np.int32)
    return kernels.PackedDocuments(torch.from_numpy(bounds).to(device), min(length, 1 << (longest - 1).bit_length()))


def _one_after_another(x: Tensor) -> Tensor:
    """[s, b, heads, d] -> [b x s, heads, d]; a view where there is one row."""
    return x.transpose(0, 1).reshape(-1, *x.shape[2:])


class _AttendPacked(torch.autograd.Function):
    """All documents of whole rows by one call."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, documents: kernels.PackedDocuments) -> Tensor:
        q, k, v = (_one_after_another(x).contiguous() for x in (query, key, value))
        out, kept = kernels.packed_forward(q, k, v, documents)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(q, k, v, out, *kept)
            ctx.documents = documents
        return out.view(query.size(1), query.size(0), *query.shape[2:]).transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, *kept = ctx.saved_tensors
        rows, length = grads[0].size(1), grads[0].size(0)
        gradients = kernels.packed_backward(
            _one_after_another(grads[0]), query, key, value, out, ctx.documents, list(kept)
        )
        return *(x.view(rows, length, *x.shape[1:]).transpose(0, 1) for x in gradients), None


class _Attend(torch.autograd.Function):
    """All blocks of a micro-batch. What is kept for the backward pass has the size of Q, K and V as given."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, todo: list[AttentionBlock], group: Any) -> Tensor:
        wait = None if group is None else start_gather(key, value, group)
        out = (
            None if _one_document(todo, query, key) else torch.zeros_like(query, memory_format=torch.contiguous_format)
        )
        lses: list[Tensor | None] = []
        for block in todo:
            q = _heads_first(query, block.queries, block.rows)
            k, v = (_heads_first(x, block.own, block.rows) for x in (key, value))
            if block.causal and not block.merged and kernels.short(q):
                own_out, lse = kernels.short_forward(q, k, v), None
            else:
                own_out, lse = kernels.forward(q, k, v, block.causal)
            if out is None:
                out = _positions_first(own_out)
            else:
                _heads_first(out, block.queries, block.rows).copy_(own_out)
            lses.append(lse)
        assert out is not None
        whole = (key, value) if wait is None else wait()
        for i, block in enumerate(todo):
            for span in block.earlier:
                q, own_out = (_heads_first(x, block.queries, block.rows) for x in (query, out))
                k, v = (_heads_first(x, slice(*span), block.rows) for x in whole)
                own_lse = lses[i]
                assert own_lse is not None, "only a block that is not merged is short"
                merged, lses[i] = kernels.merge(own_out, own_lse, *kernels.forward(q, k, v, causal=False))
                own_out.copy_(merged)
        if any(ctx.needs_input_grad):
            # The value is a view of the fused projection, all of which would be kept with it.
            ctx.save_for_backward(query, key, value.contiguous(), out, *lses)
            ctx.todo, ctx.group = todo, group
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, *lses = ctx.saved_tensors
        wait = None if ctx.group is None else start_gather(key, value, ctx.group)

        def part(block: AttentionBlock, lse: Tensor | None, at: slice, causal: bool, sources: Any) -> kernels.Gradients:
            grad, q, o = (_heads_first(x, block.queries, block.rows) for x in (grads[0], query, out))
            k, v = (_heads_first(x, at, block.rows) for x in sources)
            if lse is None:
                return kernels.short_backward(grad, q, k, v, o)
            return kernels.backward(grad, q, k, v, o, lse, causal)

        if _one_document(ctx.todo, query, key):
            gradients = part(ctx.todo[0], lses[0], ctx.todo[0].own, True, (key, value))
            return *(_positions_first(x) for x in gradients), None, None
        grad_query = torch.zeros_like(query, memory_format=torch.contiguous_format)
        grad_key, grad_value = grad_own = key.new_zeros((2, *key.shape))

        def add(block: AttentionBlock, lse: Tensor | None, at: slice, causal: bool, sources: Any, targets: Any) -> None:
            gradients = part(block, lse, at, causal, sources)
            _heads_first(grad_query, block.queries, block.rows).add_(gradients[0])
            for target, grad in zip(targets, gradients[1:], strict=True):
                _heads_first(target, at, block.rows).add_(grad)

        for block, lse in zip(ctx.todo, lses, strict=True):
            add(block, lse, block.own, block.causal, (key, value), grad_own)
        whole, grad_whole = ((key, value), grad_own) if wait is None else _with_zeros(wait())
        for block, lse in zip(ctx.todo, lses, strict=True):
            for span in block.earlier:
                add(block, lse, slice(*span), False, whole, grad_whole)
        if wait is not None:
            grad_own += scatter_sum(grad_whole, ctx.group)
        return grad_query, grad_key, grad_value, None, None


def _with_zeros(rows: Tensor) -> tuple[Tensor, Tensor]:
    return rows, torch.zeros_like(rows)


def _packed(query: Tensor, key: Tensor, documents: Tensor) -> kernels.PackedDocuments | None:
    """For one call that does it all: on a GPU, where documents without prefixes fill whole rows."""
    if not kernels.packed(query) or query.size(0) != key.size(0) or documents.size(1) != 3 or documents.is_cuda:
        return None
    return _pack(documents.to(torch.int32).numpy().tobytes(), query.size(1), query.size(0), query.device)


def attend(
    query: Tensor, key: Tensor, value: Tensor, documents: Tensor, spans: list[Span], group: Any = None
) -> Tensor:
    """Causal attention inside documents.

    query [sq, b, heads, d] holds the positions of `spans`, in that order. key and value [s, b, kv_heads, d] hold the
    whole row; with a context-parallel group they hold the positions of `spans` too, and the rest is gathered.
    documents int [n, 3]: (row, begin, end), disjoint and sorted, the same on all ranks of the group; queries outside
    of any give zeros. Or [n, 5], with the span of a prefix. Returns [sq, b, heads, d].
    """
    if group is None and (packed := _packed(query, key, documents)) is not None:
        whole: Tensor = _AttendPacked.apply(query, key, value, packed)
        return whole
    todo = blocks(documents, query.size(1), spans, chunked=group is not None)
    if group is not None:
        cp = dist.get_world_size(group)
        group = group if crosses_chunks(documents, query.size(0) * cp, cp) else None
    out: Tensor = _Attend.apply(query, key, value, todo, group)
    return out


class DocumentAttention(torch.nn.Module):
    """Megatron's `core_attention`: what it calls the attention mask is our table of documents."""

    def __init__(
        self, config: Any, layer_number: int, attn_mask_type: Any, attention_type: str, pg_collection: Any, **_: Any
    ) -> None:
        super().__init__()
        self.group = pg_collection.cp
        self.cp, self.cp_rank = dist.get_world_size(self.group), dist.get_rank(self.group)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: Any = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: Any = None,
    ) -> Tensor:
        """[s / cp, b, heads, d] x 3, documents [n, 3] or [n, 5] -> [s / cp, b, heads * d].

        Raises ValueError for every other way in which Megatron can hand over a mask: nothing here would heed it.
        """
        refuse_other_masks(attention_mask, attention_bias, packed_seq_params)
        assert attention_mask is not None
        if self.cp == 1:
            spans = [(key.size(0) - query.size(0), key.size(0))]
            return attend(query, key, value, attention_mask, spans).flatten(2)
        spans = chunks_of_rank(key.size(0) * self.cp, self.cp, self.cp_rank)
        return attend(query, key, value, attention_mask, spans, self.group).flatten(2)


def refuse_other_masks(documents: Tensor | None, bias: Tensor | None, packed: Any) -> None:
    """Raise ValueError unless the mask is a table of documents and the only mask."""
    remedy = "; give the documents as int [n, 3] (row, begin, end) in the place of attention_mask"
    table = documents is not None and documents.ndim == 2 and documents.size(1) in (3, 5)
    if documents is None or not table or documents.dtype.is_floating_point:
        what = "nothing" if documents is None else f"{documents.dtype} {list(documents.shape)}"
        raise ValueError(f"attention_mask is {what}, not a table of documents, and would be ignored{remedy}")
    if documents.dtype == torch.bool:
        raise ValueError(f"attention_mask is a matrix of truth values, and would be ignored{remedy}")
    if bias is not None or packed is not None:
        name = "attention_bias" if bias is not None else "packed_seq_params (THD)"
        raise ValueError(f"{name} would be ignored by document attention{remedy}")
