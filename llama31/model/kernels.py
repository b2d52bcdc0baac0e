"""Attention of a block of queries to a block of keys, with the log-sum-exp by which blocks are merged.

torch's fused kernels know a square causal mask and no mask at all, and both return the log-sum-exp of each query's
scores. A query that sees a whole span of earlier keys and the causal triangle of its own chunk is those two blocks
merged (`merge`), so no mask is ever written down. For the backward pass each block takes the output and the
log-sum-exp of the merged whole: its probabilities exp(score - lse) are then those of the whole softmax.

Shapes: Q and outputs [b, heads, s, d], K and V [b, kv_heads, t, d] (t = s where causal), lse FP32 [b, heads, s].

Variable-length kernels do all sequences of a micro-batch by one call (`packed_forward`), of which there are two, chosen
by name and not by a library's own judgement. Their shapes: Q and outputs [t, heads, d], K and V [u, kv_heads, d],
lse FP32 [t, heads].
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llama31.model import precision
from llama31.model.sequences import PackedSequences

SHORT = 256  # positions up to which plain BF16 products beat torch's CPU kernel (measured: see docs/benchmarks.md)

QUERY_BLOCK = 512  # queries whose scores exist at once where torch has no fused kernel

Gradients = tuple[Tensor, Tensor, Tensor]


def short(query: Tensor) -> bool:
    """Whether a causal block that needs no merging is done by `short_forward`."""
    return query.device.type == "cpu" and query.dtype == torch.bfloat16 and query.size(2) <= SHORT


def short_forward(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention of a short BF16 document on a CPU by plain products.

    Scores are rounded to BF16 as in Meta's reference code. torch's CPU kernel is made for long rows: at 128 positions
    this took a quarter of its time.
    """
    scaled = _by_group(query * query.size(-1) ** -0.5, key.size(1))
    return (_short_probabilities(scaled, key) @ value).view(query.shape)


def short_backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> Gradients:
    """Gradients of `short_forward`, its scores computed again."""
    scale, kv_heads = query.size(-1) ** -0.5, key.size(1)
    mean = (grad.float() * out.float()).sum(-1, keepdim=True).to(grad.dtype)
    scaled, grad, mean = (_by_group(x, kv_heads) for x in (query * scale, grad, mean))
    p = _short_probabilities(scaled, key)
    grad_scores = (grad @ value.transpose(-1, -2)).sub_(mean).mul_(p)
    grad_query = (grad_scores @ key).mul_(scale).view(query.shape)
    return grad_query, grad_scores.transpose(-1, -2) @ scaled, p.transpose(-1, -2) @ grad


def _by_group(x: Tensor, kv_heads: int) -> Tensor:
    """[b, heads, s, d] -> [b, kv_heads, heads / kv_heads x s, d]: the queries that share keys, one after another."""
    return x.unflatten(1, (kv_heads, -1)).flatten(2, 3)


def _short_probabilities(grouped: Tensor, key: Tensor) -> Tensor:
    s = key.size(2)
    mask = torch.full((s, s), -torch.inf, dtype=key.dtype).triu_(1)
    scores = (grouped @ key.transpose(-1, -2)).unflatten(2, (-1, s)).add_(mask)
    return torch.softmax(scores, -1).flatten(2, 3)


def _fused_on_gpu(query: Tensor) -> bool:
    fits = query.size(-1) % 8 == 0 and query.size(-1) <= 256
    return query.is_cuda and fits and query.dtype in (torch.bfloat16, torch.float16)


def forward(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of a block."""
    output: tuple[Tensor, ...]
    if query.device.type == "cpu":
        output = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, causal)
    elif _fused_on_gpu(query):
        output = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, causal)
    else:
        output = plain_forward(query, key, value, causal)
    return output[0], output[1]


def backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, causal: bool
) -> Gradients:
    """Gradients of a block; `out` and `lse` are those of all blocks of these queries merged."""
    parts = (grad, query, key, value, out, lse)
    if query.device.type == "cpu":
        gradients: Gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(*parts, 0.0, causal)
        return gradients
    if not _fused_on_gpu(query):
        return plain_backward(*parts, causal)
    seed = torch.zeros(2, dtype=torch.uint64, device=query.device)  # of a dropout that does not take place
    gradients = torch.ops.aten._scaled_dot_product_flash_attention_backward(
        *parts, None, None, query.size(2), key.size(2), 0.0, causal, seed, seed.new_empty(())
    )
    return gradients


def merge(out: Tensor, lse: Tensor, other_out: Tensor, other_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of the same queries over the keys of both blocks."""
    both = torch.logaddexp(lse, other_lse)
    share, other_share = ((x - both).exp_().unsqueeze(-1) for x in (lse, other_lse))
    return (out * share + other_out * other_share).to(out.dtype), both


def _plain_scores(query: Tensor, key: Tensor, begin: int, causal: bool) -> Tensor:
    """FP32 (or wider) scores of a few queries, the first of which is number `begin`."""
    wide = torch.promote_types(query.dtype, torch.float32)
    heads = key.to(wide).repeat_interleave(query.size(1) // key.size(1), 1)
    scores = (query.to(wide) @ heads.transpose(-1, -2)).mul_(1 / math.sqrt(query.size(-1)))
    if causal:
        positions = torch.arange(key.size(2), device=key.device)
        scores.masked_fill_(positions > positions[begin : begin + query.size(2), None], -torch.inf)
    return scores


def plain_forward(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """`forward` written out, for what torch has no fused kernel for (FP32 on a GPU)."""
    outs, sums = [], []
    for begin in range(0, query.size(2), QUERY_BLOCK):
        scores = _plain_scores(query[:, :, begin : begin + QUERY_BLOCK], key, begin, causal)
        sums.append(torch.logsumexp(scores, -1))
        p = _by_group(scores.sub_(sums[-1].unsqueeze(-1)).exp_(), key.size(1))
        outs.append((p @ value.to(p.dtype)).view(*scores.shape[:3], -1).to(query.dtype))
    return torch.cat(outs, 2), torch.cat(sums, 2)


def plain_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, causal: bool
) -> Gradients:
    """`backward` written out."""
    wide, kv_heads, scale = lse.dtype, key.size(1), 1 / math.sqrt(query.size(-1))
    grad_query, grad_key, grad_value = (torch.zeros_like(x, dtype=wide) for x in (query, key, value))
    for begin in range(0, query.size(2), QUERY_BLOCK):
        at = slice(begin, begin + QUERY_BLOCK)
        p = _by_group((_plain_scores(query[:, :, at], key, begin, causal) - lse[:, :, at, None]).exp_(), kv_heads)
        mean = (grad[:, :, at].to(wide) * out[:, :, at].to(wide)).sum(-1, keepdim=True)
        g, mean, q = (_by_group(x.to(wide), kv_heads) for x in (grad[:, :, at], mean, query[:, :, at]))
        grad_value += p.transpose(-1, -2) @ g
        grad_scores = (g @ value.to(wide).transpose(-1, -2)).sub_(mean).mul_(p).mul_(scale)
        grad_query[:, :, at] = (grad_scores @ key.to(wide)).view_as(grad_query[:, :, at])
        grad_key += grad_scores.transpose(-1, -2) @ q
    return grad_query.to(query.dtype), grad_key.to(key.dtype), grad_value.to(value.dtype)


class Measured(NamedTuple):
    """A row of the table by which a variable-length kernel is chosen."""

    mean_length: int  # queries of a sequence, from which on it holds
    kernel: str
    known: str  # how this is known


# From the longest down; docs/benchmarks.md has the figures. Where cuDNN cannot be had torch's kernel does all of it.
CHOICE = (
    Measured(4096, "cudnn", "measured: 1.8 times as fast forward, 2.2 times backward"),
    Measured(256, "cudnn", "predicted"),
    Measured(1, "torch", "predicted: its grid is as long as the longest sequence, cuDNN's as long as all of them"),
)


def packed(query: Tensor) -> bool:
    """Whether all documents of a micro-batch are done by one call or two (`packed_forward`)."""
    return _fused_on_gpu(query)


def chosen(query: Tensor, sequences: PackedSequences) -> str:
    """The variable-length kernel for these sequences: "cudnn", "torch", or "plain" where there is neither."""
    if not _fused_on_gpu(query):
        return "plain"
    mean = query.size(0) / (sequences.query_ends.numel() - 1)
    name = next((row.kernel for row in CHOICE if mean >= row.mean_length), "torch")
    return "torch" if name == "cudnn" and (query.size(-1) > CUDNN_WIDTH or _cudnn() is None) else name


@functools.cache
def tell(device: torch.device, width: int) -> None:
    """One line on standard error, by the first process: which kernels a GPU's attention uses, heads being `width`."""
    if device.type == "cuda" and os.environ.get("RANK", "0") == "0":
        print(choice_line(width <= CUDNN_WIDTH and _cudnn() is not None), file=sys.stderr, flush=True)


def choice_line(cudnn: bool) -> str:
    """What `tell` says; `cudnn`: whether it can be had."""
    if not cudnn:
        return (
            "attention: torch's flash kernel for documents of all lengths, for want of Transformer Engine with "
            f"cuDNN {CUDNN_LSE[0]}.{CUDNN_LSE[1]}; from {CHOICE[0].mean_length} tokens on that took half its time"
        )
    named = {"cudnn": "cuDNN through Transformer Engine", "torch": "torch's flash kernel"}
    rows = [f"{named[row.kernel]} from a mean of {row.mean_length} tokens ({row.known})" for row in CHOICE]
    return f"attention for documents: {'; '.join(rows)}"


def packed_forward(
    query: Tensor, key: Tensor, value: Tensor, sequences: PackedSequences
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Attention of each sequence's queries to its keys, causal or to all: output, log-sum-exp, what else is kept."""
    if not query.size(0):
        return torch.empty_like(query), query.new_empty(query.shape[:2], dtype=torch.float32), []
    kernel = chosen(query, sequences)
    if kernel == "plain":
        return *packed_plain_forward(query, key, value, sequences), []
    if kernel == "torch":
        ends = sequences.query_ends, sequences.key_ends, sequences.longest_query, sequences.longest_key
        flash = torch.ops.aten._flash_attention_forward(query, key, value, *ends, 0.0, sequences.causal, False)
        return flash[0], flash[1].t(), list(flash[2:4])
    cudnn = _cudnn()
    assert cudnn is not None, "chosen where it can be had"
    out, (lse, *kept) = cudnn(
        "fused_attn_fwd", sequences, q=query, k=key, v=value, fake_dtype=query.dtype, is_training=True
    )
    return out, lse.squeeze(-1), kept


def packed_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    sequences: PackedSequences,
    kept: list[Tensor],
) -> Gradients:
    """Gradients of `packed_forward`; `out` and `lse` are those of all calls with these queries merged."""
    if not query.size(0):
        return torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
    kernel, parts = chosen(query, sequences), (grad.contiguous(), query, key, value, out)
    if kernel == "plain":
        return packed_plain_backward(*parts, lse, sequences)
    if kernel == "torch":
        ends = sequences.query_ends, sequences.key_ends, sequences.longest_query, sequences.longest_key
        flash: Gradients = torch.ops.aten._flash_attention_backward(
            *parts, lse.t().contiguous(), *ends, 0.0, sequences.causal, *kept
        )
        return flash
    cudnn = _cudnn()
    assert cudnn is not None, "chosen where it can be had"
    gradients = cudnn(
        "fused_attn_bwd", sequences, d_o=parts[0], q=query, k=key, v=value, o=out, fake_dtype=query.dtype,
        aux_ctx_tensors=[lse.contiguous().unsqueeze(-1), *kept],
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip
    return gradients[0], gradients[1], gradients[2]


def _each(sequences: PackedSequences) -> list[tuple[slice, slice]]:
    """Queries and keys of each sequence."""
    ends = (itertools.pairwise(one.tolist()) for one in (sequences.query_ends, sequences.key_ends))
    return [(slice(*queries), slice(*keys)) for queries, keys in zip(*ends, strict=True)]


def _one(x: Tensor, at: slice) -> Tensor:
    """[t, heads, d] -> [1, heads, s, d], a view."""
    return x[at].transpose(0, 1).unsqueeze(0)


def packed_plain_forward(
    query: Tensor, key: Tensor, value: Tensor, sequences: PackedSequences
) -> tuple[Tensor, Tensor]:
    """`packed_forward` written out: a sequence after the other."""
    out, lse = torch.empty_like(query), query.new_empty(query.shape[:2], dtype=torch.float32)
    for queries, keys in _each(sequences):
        parts = _one(query, queries), _one(key, keys), _one(value, keys)
        own_out, own_lse = plain_forward(*parts, sequences.causal)
        out[queries], lse[queries] = own_out[0].transpose(0, 1), own_lse[0].t()
    return out, lse


def packed_plain_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, sequences: PackedSequences
) -> Gradients:
    """`packed_backward` written out."""
    gradients = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    for queries, keys in _each(sequences):
        parts = _one(grad, queries), _one(query, queries), _one(key, keys), _one(value, keys), _one(out, queries)
        own = plain_backward(*parts, lse[queries].t().unsqueeze(0), sequences.causal)
        for whole, at, part in zip(gradients, (queries, keys, keys), own, strict=True):
            whole[at] = part[0].transpose(0, 1)
    return gradients


# Of sequences one after another. Transformer Engine 2.12 knows the first, the last three came with later releases; a
# call gets what its release knows.
LAYOUT = {"qkv_layout": "thd_thd_thd", "o_format": "thd", "do_format": "thd", "dqkv_layout": "thd_thd_thd"}
CUDNN_LSE = (9, 6)  # from here on cuDNN gives and takes the log-sum-exp as [t, heads, 1]; before it was padded
CUDNN_WIDTH = 128  # of heads, that its backward pass takes on every card since Ampere


@functools.cache
def _cudnn() -> Callable[..., Any] | None:
    """How cuDNN's attention is called through Transformer Engine; None where that cannot be had.

    What it keeps are the log-sum-exp and a random state. Given back a merged log-sum-exp it computes the part that one
    call has in the whole: Transformer Engine's own context parallelism relies on that too.
    """
    if not precision.have_transformer_engine():
        return None
    from transformer_engine.pytorch.constants import TE_DType
    from transformer_engine.pytorch.cpp_extensions import fused_attn
    from transformer_engine.pytorch.utils import get_cudnn_version

    if get_cudnn_version() < CUDNN_LSE or torch.cuda.get_device_capability() == (12, 0):  # there it is padded still
        return None
    backend = fused_attn.FusedAttnBackend["F16_arbitrary_seqlen"]
    known = {
        name: inspect.signature(getattr(fused_attn, name)).parameters for name in ("fused_attn_fwd", "fused_attn_bwd")
    }

    def call(name: str, sequences: PackedSequences, **given: Any) -> Any:
        ends = {"q": sequences.query_ends, "kv": sequences.key_ends}
        for side, longest in (("q", sequences.longest_query), ("kv", sequences.longest_key)):
            given[f"max_seqlen_{side}"] = longest
            given[f"cu_seqlens_{side}"] = given[f"cu_seqlens_{side}_padded"] = ends[side]
        given |= {**LAYOUT, "fused_attention_backend": backend, "dqkv_dtype": TE_DType[given["q"].dtype]}
        given["attn_mask_type"] = "padding_causal" if sequences.causal else "padding"
        given["window_size"] = (-1, 0 if sequences.causal else -1)
        return getattr(fused_attn, name)(**{key: value for key, value in given.items() if key in known[name]})

    return call
