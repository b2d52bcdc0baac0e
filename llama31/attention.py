"""Causal attention inside documents, with all-gather context parallelism.

Rows are packed from several documents, and no token attends across a boundary (report, section 3.2). The mask is
never a matrix: it is a table of documents `(row, begin, end)`, and each document is attended to by itself. Under
context parallelism (section 3.3.2) a row is cut into 2 x CP chunks, rank i holds chunks i and 2CP-1-i so that all
ranks have the same share of the causal triangle, and K and V are gathered whole: they are small thanks to GQA.

Shapes: Q [s, b, heads, d], K and V [s, b, kv_heads, d] (Megatron's order), documents int [n, 3]; or [n, 5], where the
last two columns are the span of a prefix that the whole document sees: responses to one prompt, which do not see each
other (an empty span: none).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

QUERY_BLOCK = 512  # queries that share one materialised mask where no kernel knows a lower-right causal mask

SHORT = 256  # positions up to which plain BF16 products beat torch's CPU kernel (measured: see docs/benchmarks.md)

Span = tuple[int, int]
Document = tuple[int, int, int, int]  # its span, and that of the prefix that it sees as well


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


class _GatherRow(torch.autograd.Function):
    """All-gather of chunked rows into whole rows along dim 0; the gradient is summed and cut back."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, group: Any) -> Tensor:
        ctx.group, cp = group, dist.get_world_size(group)
        gathered = local.new_empty((cp, *local.shape))
        dist.all_gather_into_tensor(gathered.flatten(0, 1), local.contiguous(), group=group)
        halves = gathered.view(cp, 2, local.size(0) // 2, *local.shape[1:])
        return torch.cat([halves[:, 0], halves[:, 1].flip(0)]).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        cp = dist.get_world_size(ctx.group)
        chunks = grads[0].unflatten(0, (2 * cp, -1))
        by_rank = torch.stack([chunks[:cp], chunks[cp:].flip(0)], 1).contiguous()
        local = torch.empty_like(by_rank[0])  # [2, s / 2cp, ...]
        dist.reduce_scatter_tensor(local, by_rank.flatten(0, 1), group=ctx.group)
        return local.flatten(0, 1), None


def gather_row(local: Tensor, group: Any) -> Tensor:
    """[s / cp, ...] on each rank -> the whole row [s, ...] in order, differentiable."""
    return _GatherRow.apply(local, group)


def _sdpa(query: Tensor, key: Tensor, value: Tensor, **kwargs: Any) -> Tensor:
    """[s, b, h, d] in and out."""
    q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
    out = F.scaled_dot_product_attention(q, k, v, enable_gqa=q.size(1) != k.size(1), **kwargs)
    return out.permute(2, 0, 1, 3)


class _ShortCausal(torch.autograd.Function):
    """Causal attention of a short BF16 document on a CPU: plain products, the scores computed again in backward.

    Scores are rounded to BF16 as in Meta's reference code. torch's CPU kernel is made for long rows: at 128 positions
    this took a quarter of its time.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[b, heads, s, d], K and V [b, kv_heads, s, d] -> [b, heads, s, d]."""
        per_group = query.size(1) // key.size(1)
        grouped = (query * query.size(-1) ** -0.5).unflatten(1, (-1, per_group)).flatten(2, 3)
        out = _ShortCausal.probabilities(grouped, key) @ value
        ctx.save_for_backward(grouped, key, value, out)
        return out.unflatten(2, (per_group, -1)).flatten(1, 2)

    @staticmethod
    def probabilities(grouped: Tensor, key: Tensor) -> Tensor:
        s = key.size(2)
        mask = torch.full((s, s), -torch.inf, dtype=key.dtype).triu_(1)
        scores = (grouped @ key.transpose(-1, -2)).unflatten(2, (-1, s)).add_(mask)
        return torch.softmax(scores, -1).flatten(2, 3)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        grouped, key, value, out = ctx.saved_tensors
        per_group = grouped.size(2) // key.size(2)
        grad = grads[0].unflatten(1, (-1, per_group)).flatten(2, 3)
        p = _ShortCausal.probabilities(grouped, key)
        grad_value = p.transpose(-1, -2) @ grad
        mean = (grad.float() * out.float()).sum(-1, keepdim=True).to(grad.dtype)
        grad_scores = (grad @ value.transpose(-1, -2)).sub_(mean).mul_(p)
        grad_query = (grad_scores @ key).mul_(key.size(-1) ** -0.5)
        grad_key = grad_scores.transpose(-1, -2) @ grouped
        return grad_query.unflatten(2, (per_group, -1)).flatten(1, 2), grad_key, grad_value


def _causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """A whole document, [s, b, h, d] in and out."""
    if query.device.type == "cpu" and query.dtype == torch.bfloat16 and query.size(0) <= SHORT:
        return _ShortCausal.apply(*(x.permute(1, 2, 0, 3) for x in (query, key, value))).permute(2, 0, 1, 3)
    return _sdpa(query, key, value, is_causal=True)


def _lower_right(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The queries are the last ones of the keys' span: each sees all keys up to itself."""
    s, total = query.size(0), key.size(0)
    if s == 1:
        return _sdpa(query, key, value)
    if s == total:
        return _causal(query, key, value)
    if query.is_cuda:
        from torch.nn.attention.bias import causal_lower_right

        return _sdpa(query, key, value, attn_mask=causal_lower_right(s, total))
    outs, positions = [], torch.arange(total)
    for begin in range(0, s, QUERY_BLOCK):
        block = query[begin : begin + QUERY_BLOCK]
        last = total - s + begin + block.size(0)
        mask = positions[:last] <= positions[last - block.size(0) : last, None]
        outs.append(_sdpa(block, key[:last], value[:last], attn_mask=mask))
    return torch.cat(outs)


def attend(query: Tensor, key: Tensor, value: Tensor, documents: Tensor, spans: list[Span]) -> Tensor:
    """Causal attention inside documents.

    query [sq, b, heads, d] holds the positions of `spans`, in that order; key and value [s, b, kv_heads, d] hold the
    whole row. documents int [n, 3]: (row, begin, end), disjoint and sorted; queries outside of any give zeros. Or
    [n, 5], with the span of a prefix. Returns [sq, b, heads, d].
    """
    rows: list[list[Document]] = [[] for _ in range(query.size(1))]
    for row, begin, end, *prefix in documents.tolist():
        rows[row].append((begin, end, *(prefix or (0, 0))))
    if all(row == rows[0] for row in rows):
        return _attend_rows(query, key, value, rows[0], spans)
    parts = zip(query.split(1, 1), key.split(1, 1), value.split(1, 1), rows, strict=True)
    return torch.cat([_attend_rows(q, k, v, spans_of_row, spans) for q, k, v, spans_of_row in parts], 1)


def _seen(whole: Tensor, document: Document, last: int) -> Tensor:
    """Keys or values of a document up to `last`, behind those of its prefix."""
    begin, _, first, end = document
    own = whole[begin:last]
    return torch.cat([whole[first:end], own]) if end > first else own


def _attend_rows(query: Tensor, key: Tensor, value: Tensor, documents: list[Document], spans: list[Span]) -> Tensor:
    """`attend` for rows that have the same documents."""
    lengths = [end - begin for begin, end, *_ in documents]
    alone = all(first == end for *_, first, end in documents)
    if alone and spans == [(0, key.size(0))] and sum(lengths) == key.size(0):
        pieces = zip(query.split(lengths), key.split(lengths), value.split(lengths), strict=True)
        outs = [_lower_right(q, k, v) for q, k, v in pieces]
        return outs[0] if len(outs) == 1 else torch.cat(outs)
    outs, offset = [], 0
    for begin, end in spans:
        at = begin
        for document in documents:
            first, last = max(begin, document[0]), min(end, document[1])
            if first >= last:
                continue
            if first > at:
                outs.append(torch.zeros_like(query[offset + at - begin : offset + first - begin]))
            q = query[offset + first - begin : offset + last - begin]
            outs.append(_lower_right(q, _seen(key, document, last), _seen(value, document, last)))
            at = last
        if at < end:
            outs.append(torch.zeros_like(query[offset + at - begin : offset + end - begin]))
        offset += end - begin
    return torch.cat(outs)


class DocumentAttention(torch.nn.Module):
    """Megatron's `core_attention`: what it calls the attention mask is our table of documents."""

    def __init__(
        self, config: Any, layer_number: int, attn_mask_type: Any, attention_type: str, pg_collection: Any, **_: Any
    ) -> None:
        super().__init__()
        self.group = pg_collection.cp
        self.cp, self.cp_rank = dist.get_world_size(self.group), dist.get_rank(self.group)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, attn_mask_type: Any = None, **_: Any
    ) -> Tensor:
        """[s / cp, b, heads, d] x 3, documents [n, 3] -> [s / cp, b, heads * d]."""
        if self.cp > 1:
            key, value = gather_row(torch.stack([key, value], -2), self.group).unbind(-2)
            spans = chunks_of_rank(key.size(0), self.cp, self.cp_rank)
        else:
            spans = [(key.size(0) - query.size(0), key.size(0))]
        return attend(query, key, value, attention_mask, spans).flatten(2)
