"""Attention of a block of queries to a block of keys, with the log-sum-exp by which blocks are merged.

torch's fused kernels know a square causal mask and no mask at all, and both return the log-sum-exp of each query's
scores. A query that sees a whole span of earlier keys and the causal triangle of its own chunk is those two blocks
merged (`merge`), so no mask is ever written down. For the backward pass each block takes the output and the
log-sum-exp of the merged whole: its probabilities exp(score - lse) are then those of the whole softmax.

Shapes: Q and outputs [b, heads, s, d], K and V [b, kv_heads, t, d] (t = s where causal), lse FP32 [b, heads, s].
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llama31.model import precision

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


@dataclass(frozen=True)
class PackedDocuments:
    """Documents of a micro-batch whose rows stand one after another: what a variable-length kernel asks for.

    ends int32 [n + 1]: cumulative lengths, on the device; the kernels' tables are made for `longest`, a length that
    no document exceeds.
    """

    ends: Tensor
    longest: int


def packed(query: Tensor) -> bool:
    """Whether all documents of a micro-batch are done by one call (`packed_forward`)."""
    return _fused_on_gpu(query)


def packed_forward(
    query: Tensor, key: Tensor, value: Tensor, documents: PackedDocuments
) -> tuple[Tensor, list[Tensor]]:
    """Causal attention inside each document; [t, heads, d] and twice [t, kv_heads, d], documents one after another.

    cuDNN through Transformer Engine, where that is installed: on an H100 twice as fast as torch's own kernel
    (docs/benchmarks.md). Returns the output and what `packed_backward` needs.
    """
    ends, longest = documents.ends, documents.longest
    if (cudnn := _cudnn()) is None:
        output = torch.ops.aten._flash_attention_forward(
            query, key, value, ends, ends, longest, longest, 0.0, True, False
        )
        return output[0], list(output[1:4])
    out, kept = cudnn("fused_attn_fwd", documents, q=query, k=key, v=value, fake_dtype=query.dtype, is_training=True)
    return out, list(kept)


def packed_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, documents: PackedDocuments, kept: list[Tensor]
) -> Gradients:
    """Gradients of `packed_forward`."""
    ends, longest = documents.ends, documents.longest
    if (cudnn := _cudnn()) is None:
        lse, seed, offset = kept
        gradients: Gradients = torch.ops.aten._flash_attention_backward(
            grad, query, key, value, out, lse, ends, ends, longest, longest, 0.0, True, seed, offset
        )
        return gradients
    gradients = cudnn(
        "fused_attn_bwd", documents, q=query, k=key, v=value, o=out, d_o=grad.contiguous(), fake_dtype=query.dtype,
        aux_ctx_tensors=kept, deterministic=torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip
    return gradients[0], gradients[1], gradients[2]


# Of documents one after another, each causal by itself. The first are spelled as Transformer Engine 2.12 has them, the
# last three came with later releases; a call gets what its release knows.
LAYOUT = {"qkv_layout": "thd_thd_thd", "attn_mask_type": "padding_causal", "window_size": (-1, 0)}
LAYOUT |= {"o_format": "thd", "do_format": "thd", "dqkv_layout": "thd_thd_thd"}


@functools.cache
def _cudnn() -> Callable[..., Any] | None:
    """How cuDNN's attention is called through Transformer Engine; None where that is not installed."""
    if not precision.have_transformer_engine():
        return None
    from transformer_engine.pytorch.constants import TE_DType
    from transformer_engine.pytorch.cpp_extensions import fused_attn

    backend = fused_attn.FusedAttnBackend["F16_arbitrary_seqlen"]
    known = {
        name: inspect.signature(getattr(fused_attn, name)).parameters for name in ("fused_attn_fwd", "fused_attn_bwd")
    }

    def call(name: str, documents: PackedDocuments, **given: Any) -> Any:
        for side in ("q", "kv"):
            given[f"max_seqlen_{side}"] = documents.longest
            given[f"cu_seqlens_{side}"] = given[f"cu_seqlens_{side}_padded"] = documents.ends
        given |= {**LAYOUT, "fused_attention_backend": backend, "dqkv_dtype": TE_DType[given["q"].dtype]}
        return getattr(fused_attn, name)(**{key: value for key, value in given.items() if key in known[name]})

    return call
