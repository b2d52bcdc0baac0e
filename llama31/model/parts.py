"""The layer, and what replaces Megatron's own parts in the model: norm, activation, embedding, reward head."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    copy_to_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor, nn

from llama31.model import fused, precision
from llama31.model.attention import DocumentAttention
from llama31.quantise.twin import TwinColumn, TwinRow


class RMSNorm(nn.Module):
    """RMSNorm whose weight gradient is right under sequence parallelism.

    There each tensor-parallel rank sees its own tokens only, and nobody else sums the weight's gradient: reading the
    weight through Megatron's copy region does, for every ZeRO stage.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        self.sequence_parallel = config.sequence_parallel
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))

    def forward(self, x: Tensor) -> Tensor:
        weight = copy_to_tensor_model_parallel_region(self.weight) if self.sequence_parallel else self.weight
        return fused.rms_norm(x, weight, self.eps)


class SwiGLU(MLP):
    """Megatron's MLP, its activation keeping one tensor for the backward pass instead of four."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        hidden, _ = self.linear_fc1(hidden_states)
        out, _ = self.linear_fc2(fused.swiglu(hidden))
        return out, None


class WordEmbedding(VocabParallelEmbedding):
    """Megatron's embedding, its gradient added straight to the weight's `main_grad` where there is one."""

    def forward(self, ids: Tensor) -> Tensor:
        split = self.tp_group.size() > 1
        if split:
            first, rows = self.vocab_start_index, self.num_embeddings_per_partition
            elsewhere = (ids < first) | (ids >= first + rows)
            embeddings = fused.embedding((ids - first).masked_fill(elsewhere, 0), self.weight)
            embeddings = embeddings.masked_fill(elsewhere.unsqueeze(-1), 0.0)
        else:
            embeddings = fused.embedding(ids, self.weight)
        if self.reduce_scatter_embeddings:
            return reduce_scatter_to_sequence_parallel_region(
                embeddings.transpose(0, 1).contiguous(), group=self.tp_group
            )
        return reduce_from_tensor_model_parallel_region(embeddings, group=self.tp_group) if split else embeddings


class RewardHead(nn.Module):
    """One number per token. Its weight is a vector, alike on all tensor-parallel ranks as those of norms are."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden_size))

    def forward(self, hidden_sbh: Tensor) -> Tensor:
        return (hidden_sbh.float() @ self.weight.float()).transpose(0, 1)


def layer_spec(device: torch.device, ffn_hidden_size: int, emulate: bool = False) -> ModuleSpec:
    """Transformer Engine's linear layers where there is a GPU that has it, Megatron's own where not.

    With `emulate` those that round as FP8 does (`quantise.twin`).

    Norm and core attention are ours everywhere: see `RMSNorm`, and `attention` for the document mask, which
    Transformer Engine ignores in silence when it comes as a matrix.
    """
    column, row = (TwinColumn, TwinRow) if emulate else (ColumnParallelLinear, RowParallelLinear)
    if not emulate and device.type == "cuda" and precision.have_transformer_engine():
        from megatron.core.extensions.transformer_engine import TEColumnParallelLinear, TERowParallelLinear

        column, row = TEColumnParallelLinear, TERowParallelLinear
    attention = ModuleSpec(
        SelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(column, DocumentAttention, row),
    )
    mlp = partial(SwiGLU.as_mlp_submodule, submodules=MLPSubmodules(column, row), ffn_hidden_size=ffn_hidden_size)
    layer = TransformerLayerSubmodules(
        input_layernorm=RMSNorm,
        self_attention=attention,
        self_attn_bda=get_bias_dropout_add,
        pre_mlp_layernorm=RMSNorm,
        mlp=mlp,
        mlp_bda=get_bias_dropout_add,
    )
    return ModuleSpec(TransformerLayer, submodules=layer)
