"""The layer, and what replaces Megatron's own parts in the model: norm, activation, embedding, reward head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    checkpoint,
    copy_to_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor, nn

from llama31 import config
from llama31.model import fused, precision
from llama31.model.attention import DocumentAttention
from llama31.parallel.mesh import Grid
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

    def forward(self, x: Tensor, residual: bool = False) -> Any:
        """The norm of x [..., h]; with `residual` also x itself, whose gradient one kernel then adds to the norm's."""
        weight = copy_to_tensor_model_parallel_region(self.weight) if self.sequence_parallel else self.weight
        normed = fused.rms_norm(x, weight, self.eps)
        return normed if residual else normed[0]


class SwiGLU(MLP):
    """Megatron's MLP, its activation keeping one tensor for the backward pass instead of four."""

    recompute = False  # whether what the activation gives is computed again, and not kept for fc2's backward pass

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        hidden, _ = self.linear_fc1(hidden_states)
        active = fused.swiglu(hidden)
        out, _ = self.linear_fc2(active)
        if self.recompute:
            fused.compute_again(active, out, partial(fused.swiglu, hidden.detach()))
        return out, None


class Layer(TransformerLayer):
    """Megatron's layer, its forward pass written for what ours has: no bias, no dropout, no attention to others.

    `recompute` names what is not kept for the backward pass: `norms` and `swiglu`, whose outputs alone are computed
    again, `mlp`, which runs twice; `full` is the business of the block around the layers.
    """

    def __init__(self, *args: Any, recompute: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.recompute = frozenset(recompute)
        self.mlp.recompute = "swiglu" in self.recompute
        linears = [self.self_attention.linear_qkv, self.mlp.linear_fc1] if "norms" in self.recompute else []
        for linear in [*linears, *([self.mlp.linear_fc2] if self.mlp.recompute else [])]:
            if self.config.fp8:  # else Transformer Engine keeps an FP8 copy, and nothing is saved
                linear.save_original_input = True

    def run_twice(self) -> Iterator[nn.Module]:
        """The modules whose forward pass runs once more in the backward pass."""
        if "full" in self.recompute:
            yield from self.modules()
        elif "mlp" in self.recompute:
            yield from self.mlp.modules()

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor, context: None = None, **given: Any
    ) -> tuple[Tensor, None]:
        """States [s, b, h] through attention and MLP; `given` is for attention, as Megatron's block gives it."""
        unused = [context, given.pop("context_mask", None), given.pop("padding_mask", None)]
        assert unused == [None] * len(unused), "there is no attention to others, and no expert"
        normed, residual = self.input_layernorm(hidden_states, residual=True)
        out, _ = self.self_attention(normed, attention_mask, **given)
        self._after_norm(self.input_layernorm, hidden_states, normed, out)
        states = residual + out
        normed, residual = self.pre_mlp_layernorm(states, residual=True)
        out = self._mlp(normed)
        self._after_norm(self.pre_mlp_layernorm, states, normed, out)
        return residual + out, None

    def _after_norm(self, norm: nn.Module, states: Tensor, normed: Tensor, out: Tensor) -> None:
        """Where asked for, let go of a norm's output, which a linear layer keeps on the way to `out`."""
        if "norms" in self.recompute:
            fused.compute_again(normed, out, partial(norm, states.detach()))

    def _mlp(self, states: Tensor) -> Tensor:
        if not ("mlp" in self.recompute and self.training):
            return self.mlp(states)[0]  # type: ignore[no-any-return]
        if not self.config.fp8:
            return checkpoint(self.mlp, False, states)[0]  # type: ignore[no-any-return]
        from megatron.core.extensions.transformer_engine import te_checkpoint

        return te_checkpoint(self.mlp, False, get_cuda_rng_tracker, self.pg_collection.tp, states)[0]  # type: ignore


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


def start_tp_overlap(tokens: int | None, hidden_size: int, numbers: config.Precision, grid: Grid) -> None:
    """Make the buffers in which Transformer Engine's linear layers overlap their messages over tp with their products.

    For micro-batches of `tokens` places on a rank, [b, s / cp], and no others. Collective. By Transformer Engine's
    names (2.12 and 2.20), and never run: it takes two GPUs. Raises ValueError where it cannot be, `tokens` None saying
    that sizes vary.
    """
    reason = "micro-batches are not of one size here" if tokens is None else ""
    if grid.device.type != "cuda" or not precision.have_transformer_engine():
        reason = "there is no GPU with Transformer Engine here"
    if reason:
        raise ValueError(f"parallel.tp_overlap=true: {reason}; leave it out")
    from transformer_engine.pytorch.module import base

    if base._ub_communicators is not None:  # of a model before: there is one set in a process
        base.destroy_ub()
    modes = base.UserBufferQuantizationMode
    mode = modes.NONE if numbers.fp8 == "none" else modes.FP8
    base.initialize_ub(
        [tokens, hidden_size], grid.tp, quantization_modes=[mode], dtype=precision.dtype(numbers),
        bootstrap_backend="nccl",
    )  # fmt: skip


def layer_spec(
    device: torch.device, ffn_hidden_size: int, recompute: Sequence[str] = (), emulate: bool = False
) -> ModuleSpec:
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
        pre_mlp_layernorm=RMSNorm,
        mlp=mlp,
    )
    return ModuleSpec(Layer, submodules=layer, params={"recompute": recompute})
