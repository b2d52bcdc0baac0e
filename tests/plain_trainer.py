"""The obvious path, which the engine is compared with: Llama 3.1 and its training step in plain torch, FP32."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from llama31 import config


class Rows(Protocol):
    """What a batch has to have, each `[rows, sequence]`, as numpy arrays or tensors."""

    tokens: Tensor
    labels: Tensor
    loss_mask: Tensor
    documents: Tensor


def rotary_angles(model: config.Model, length: int) -> Tensor:
    """Angle per position and frequency, `[length, head_dim / 2]`, with the scaling of Llama 3.1 (factor 0: none)."""
    frequency = 1.0 / model.rope_theta ** (torch.arange(0, model.head_dim, 2).float() / model.head_dim)
    if model.rope_factor:
        # Turns within the context of Llama 3: frequencies under 1 are stretched, over 4 kept.
        turns = 8192 * frequency / (2 * math.pi)
        kept = ((turns - 1) / (4 - 1)).clamp(0, 1)
        frequency = kept * frequency + (1 - kept) * frequency / model.rope_factor
    return torch.outer(torch.arange(length).float(), frequency)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate the pairs (i, i + half) of `[rows, heads, sequence, head_dim]`."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last axis."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def attention(x: Tensor, qkv: Tensor, proj: Tensor, model: config.Model, allowed: Tensor) -> Tensor:
    """Grouped-query attention; rows of `qkv` are, per group, its query heads, its key and its value."""
    b, s, h = x.shape
    per_group = model.heads // model.kv_heads
    grouped = functional.linear(x, qkv).view(b, s, model.kv_heads, per_group + 2, model.head_dim).permute(0, 2, 3, 1, 4)
    angles = rotary_angles(model, s)
    q = rotate(grouped[:, :, :per_group], angles)  # [b, groups, heads of the group, s, head_dim]
    k = rotate(grouped[:, :, per_group : per_group + 1], angles)
    v = grouped[:, :, per_group + 1 :]
    scores = (q @ k.transpose(-1, -2) / math.sqrt(model.head_dim)).masked_fill(~allowed[:, None, None], -math.inf)
    mixed = (scores.softmax(-1) @ v).permute(0, 3, 1, 2, 4).reshape(b, s, h)
    return functional.linear(mixed, proj)


def logits(weights: dict[str, Tensor], model: config.Model, tokens: Tensor, documents: Tensor | None = None) -> Tensor:
    """Logits `[rows, sequence, vocab]`; a position sees earlier ones, of its document where `documents` is given."""
    s = tokens.shape[1]
    allowed = torch.ones(s, s, dtype=torch.bool).tril().expand(tokens.shape[0], s, s)
    if documents is not None:
        allowed = allowed & (documents[:, :, None] == documents[:, None, :])
    x = weights["embedding.word_embeddings.weight"][tokens]
    for i in range(model.layers):
        w = {name: weights[f"decoder.layers.{i}.{name}.weight"] for name in LAYER}
        inner = norm(x, w["input_layernorm"], model.norm_eps)
        x = x + attention(inner, w["self_attention.linear_qkv"], w["self_attention.linear_proj"], model, allowed)
        gate, up = functional.linear(norm(x, w["pre_mlp_layernorm"], model.norm_eps), w["mlp.linear_fc1"]).chunk(2, -1)
        x = x + functional.linear(functional.silu(gate) * up, w["mlp.linear_fc2"])
    head = weights["embedding.word_embeddings.weight" if model.tied_embeddings else "output_layer.weight"]
    return functional.linear(norm(x, weights["decoder.final_layernorm.weight"], model.norm_eps), head)


LAYER = (
    "input_layernorm",
    "self_attention.linear_qkv",
    "self_attention.linear_proj",
    "pre_mlp_layernorm",
    "mlp.linear_fc1",
    "mlp.linear_fc2",
)


def loss_of(weights: dict[str, Tensor], model: config.Model, rows: Rows, document_mask: bool = True) -> Tensor:
    """Mean cross-entropy over the tokens of the global batch that the mask counts."""
    tokens, labels, mask, documents = map(torch.as_tensor, (rows.tokens, rows.labels, rows.loss_mask, rows.documents))
    result = logits(weights, model, tokens, documents if document_mask else None)
    each = functional.cross_entropy(result.flatten(0, 1), labels.flatten(), reduction="none")
    return (each * mask.flatten()).sum() / mask.sum()


def train(
    weights: dict[str, Tensor],
    model: config.Model,
    batches: Iterable[Rows],
    learning_rates: Sequence[float],
    optimizer: config.Optimizer,
    document_mask: bool = True,
) -> tuple[list[float], list[float]]:
    """Losses and gradient norms (before clipping) of one AdamW step per batch; `weights` are trained in place."""
    for weight in weights.values():
        weight.requires_grad_(True)
    matrices = [w for w in weights.values() if w.ndim >= 2]
    vectors = [w for w in weights.values() if w.ndim < 2]
    groups = [{"params": matrices, "weight_decay": optimizer.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, betas=(optimizer.beta1, optimizer.beta2), eps=optimizer.eps)
    losses, norms = [], []
    for rows, learning_rate in zip(batches, learning_rates):
        loss = loss_of(weights, model, rows, document_mask)
        loss.backward()
        result = torch.nn.utils.clip_grad_norm_(weights.values(), optimizer.clip_norm or math.inf)
        for group in adam.param_groups:
            group["lr"] = learning_rate
        adam.step()
        adam.zero_grad()
        losses.append(loss.item())
        norms.append(result.item())
    return losses, norms
