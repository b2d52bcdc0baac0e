"""Causal attention inside documents, with all-gather context parallelism.

Rows are packed from several documents, and no token attends across a boundary (report, section 3.2). The mask is
never a matrix: it is a table of documents `(row, begin, end)`, and each document is attended to by itself. Under
context parallelism (section 3.3.2) a row is cut into 2 x CP chunks, rank i holds chunks i and 2CP-1-i so that all
ranks have the same share of the causal triangle, and K and V are gathered whole: they are small thanks to GQA.

A chunk's share of a document is a causal block on its own keys and, where the document began before the chunk, a
block that sees everything earlier. The first needs no other rank, so it is computed while K and V travel. For the
backward pass a rank keeps its own K and V and gathers again: kept whole, they would not shrink with CP.

On a GPU these two are two calls of a variable-length kernel, however many documents there are (`_AttendPacked`); a
row that one process has whole needs the first alone. On a CPU each document is a call of its own (`_Attend`), which is
also what the two calls are tested against.

Shapes: Q [s, b, heads, d], K and V [s, b, kv_heads, d] (Megatron's order), documents int [n, 3]; or [n, 5], where the
last two columns are the span of a prefix that the whole document sees as well, one more span of earlier keys:
responses to one prompt, which do not see each other (an empty span: none). `sequences` has the table of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from llama31.model import fused, kernels
from llama31.model.sequences import AttentionBlock, PackedSequences, SequenceTable


def start_gather(key: Tensor, value: Tensor, group: Any) -> Callable[[], Tensor]:
    """Begin to gather [s / cp, ...] of K and V from all ranks; the result waits, and returns [cp, 2, s / cp, ...]."""
    local = torch.stack([key, value])
    gathered = local.new_empty((dist.get_world_size(group), *local.shape))
    work = dist.all_gather_into_tensor(gathered.flatten(0, 1), local, group=group, async_op=True)

    assert work is not None, "all ranks of the mesh are in the group"

    def wait() -> Tensor:
        work.wait()
        return gathered

    return wait


def scatter_sum(by_rank: Tensor, group: Any) -> Tensor:
    """Sum over ranks of [cp, 2, s / cp, ...], what is for each of them; a rank gets its [2, s / cp, ...]."""
    local = torch.empty_like(by_rank[0])
    dist.reduce_scatter_tensor(local, by_rank.flatten(0, 1), group=group)
    return local


def whole_rows(by_rank: Tensor) -> Tensor:
    """[cp, 2, s / cp, ...], each rank's two chunks -> K and V as rows, [2, s, ...]."""
    halves = by_rank.unflatten(2, (2, -1)).movedim((1, 2), (0, 1))  # [K and V, half, rank, s / 2cp, ...]
    return torch.cat([halves[:, 0], halves[:, 1].flip(1)], 1).flatten(1, 2)


def rank_chunks(rows: Tensor, cp: int) -> Tensor:
    """The way back: rows [2, s, ...] -> [cp, 2, s / cp, ...]."""
    chunks = rows.unflatten(1, (2 * cp, -1)).movedim(1, 0)
    return torch.stack([chunks[:cp], chunks[cp:].flip(0)], 2).flatten(2, 3)


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


class _AttendPacked(torch.autograd.Function):
    """All documents by two calls, of which the second is left out where no query sees earlier keys."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, table: SequenceTable, group: Any) -> Tensor:
        # The value is a view of the fused projection, all of which would be kept with it.
        query, key, value = (x.contiguous() for x in (query, key, value))
        wait = None if group is None else start_gather(key, value, group)
        own, earlier = table.own_keys, table.earlier_keys
        q, k, v = _taken(own, query, key, value)
        out, lse, kept = kernels.packed_forward(q, k, v, own)
        gathered = None if wait is None else wait()
        others: list[Tensor] = []
        if earlier is not None:
            k, v = _earlier_keys(earlier, key, value, gathered)
            pick = earlier.queries.take
            other_out, other_lse, others = kernels.packed_forward(pick(q), k, v, earlier)
            merged = kernels.merge(pick(out), pick(lse), other_out, other_lse)
            out, lse = (earlier.queries.replace(x, part) for x, part in zip((out, lse), merged, strict=True))
        result = own.queries.put(out, query.size(0) * query.size(1)).view(query.shape)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(query, key, value, result, lse, *kept, *others)
            ctx.table, ctx.group, ctx.kept = table, group, len(kept)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, result, lse, *kept = ctx.saved_tensors
        wait = None if ctx.group is None else start_gather(key, value, ctx.group)
        own, earlier = ctx.table.own_keys, ctx.table.earlier_keys
        q, k, v = _taken(own, query, key, value)
        grad, out = (own.queries.take(x.flatten(0, 1)) for x in (grads[0], result))
        grad_query, *of_keys = kernels.packed_backward(grad, q, k, v, out, lse, own, kept[: ctx.kept])
        totals = [own.keys.put(part, key.size(0) * key.size(1)) for part in of_keys]
        gathered = None if wait is None else wait()
        if earlier is not None:
            k, v = _earlier_keys(earlier, key, value, gathered)
            parts = (earlier.queries.take(x) for x in (grad, q, out, lse))
            grad, q, out, lse = parts
            of_queries, *of_keys = kernels.packed_backward(grad, q, k, v, out, lse, earlier, kept[ctx.kept :])
            earlier.queries.add(grad_query, of_queries)
            if gathered is None:
                for total, part in zip(totals, of_keys, strict=True):
                    earlier.keys.add(total, part)
        if gathered is not None:
            by_rank = torch.zeros_like(gathered)
            if earlier is not None:
                earlier.keys.add(by_rank.flatten(0, 3), torch.cat(of_keys))
            for total, part in zip(totals, scatter_sum(by_rank, ctx.group), strict=True):
                total += part.flatten(0, 1)
        whole = own.queries.put(grad_query, query.size(0) * query.size(1))
        return whole.view(query.shape), *(total.view(key.shape) for total in totals), None, None


def _taken(own: PackedSequences, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of [s, b, heads, d] what a call with each query's own keys asks for, [t, heads, d]."""
    q, k, v = (x.flatten(0, 1) for x in (query, key, value))
    return own.queries.take(q), own.keys.take(k), own.keys.take(v)


def _earlier_keys(
    earlier: PackedSequences, key: Tensor, value: Tensor, gathered: Tensor | None
) -> tuple[Tensor, Tensor]:
    """K and V [t, kv_heads, d] of what comes before the queries: out of the whole rows, or of what was gathered."""
    if gathered is None:
        return earlier.keys.take(key.flatten(0, 1)), earlier.keys.take(value.flatten(0, 1))
    k, v = earlier.keys.take(gathered.flatten(0, 3)).chunk(2)
    return k, v


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
        whole = (key, value) if wait is None else whole_rows(wait())
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
        whole, grad_whole = ((key, value), grad_own) if wait is None else _with_zeros(whole_rows(wait()))
        for block, lse in zip(ctx.todo, lses, strict=True):
            for span in block.earlier:
                add(block, lse, slice(*span), False, whole, grad_whole)
        if wait is not None:
            grad_own += scatter_sum(rank_chunks(grad_whole, dist.get_world_size(ctx.group)), ctx.group)
        return grad_query, grad_key, grad_value, None, None


def _with_zeros(rows: Tensor) -> tuple[Tensor, Tensor]:
    return rows, torch.zeros_like(rows)


def attend(query: Tensor, key: Tensor, value: Tensor, table: SequenceTable, group: Any = None) -> Tensor:
    """Causal attention inside documents.

    query [sq, b, heads, d] holds the positions of the table's spans, in that order. key and value [s, b, kv_heads, d]
    hold the whole row; with a context-parallel group they hold the positions of the spans too, and the rest is
    gathered. The table's documents are the same on all ranks of the group; queries outside of any give zeros. Returns
    [sq, b, heads, d].
    """
    group = group if table.travels else None
    if kernels.packed(query) and query.size(0) > 1:  # a step of decoding sees all keys, which a call would copy
        packed: Tensor = _AttendPacked.apply(query, key, value, table, group)
        return packed
    out: Tensor = _Attend.apply(query, key, value, table.blocks, group)
    return out


class DocumentAttention(torch.nn.Module):
    """Megatron's `core_attention`; what documents there are it learns from a `SequenceTable`."""

    def __init__(
        self, config: Any, layer_number: int, attn_mask_type: Any, attention_type: str, pg_collection: Any, **_: Any
    ) -> None:
        super().__init__()
        self.group = pg_collection.cp

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        attn_mask_type: Any = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: Any = None,
    ) -> Tensor:
        """[s / cp, b, h, d] x 3, a `SequenceTable` as packed_seq_params -> [s / cp, b, h * d].

        Raises ValueError for every other way in which Megatron can hand over a mask: nothing here would heed it.
        """
        table = table_alone(packed_seq_params, attention_mask, attention_bias)
        if table.rotary is not None:
            query, key = fused.rotate(query, table.rotary), fused.rotate(key, table.rotary)
        return attend(query, key, value, table, self.group).flatten(2)


def table_alone(table: Any, mask: Tensor | None, bias: Tensor | None) -> SequenceTable:
    """The table. Raises ValueError unless it is one, and all that says which token sees which."""
    remedy = "; give a SequenceTable of the documents as packed_seq_params, and nothing else"
    if mask is not None or bias is not None:
        name = "attention_mask" if mask is not None else "attention_bias"
        raise ValueError(f"{name} would be ignored by document attention{remedy}")
    if not isinstance(table, SequenceTable):
        raise ValueError(f"packed_seq_params is {type(table).__name__}, which document attention cannot read{remedy}")
    return table
