"""Llama 3.1 as a Megatron TransformerConfig plus a layer spec (report, section 3.2).

Grouped-query attention, SwiGLU, RMSNorm, rotary embedding with the Llama 3.1 scaling, no biases, untied head (tied in
Llama 3.2 1B and 3B). Parameters carry Megatron's names with the layer's global index; `shards` says which block of
each global tensor a rank holds, and initialisation, checkpoints and parity tests all build on that one table.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel import (
    VocabParallelEmbedding,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor, nn

from llama31 import config, fused, head, precision
from llama31.attention import DocumentAttention
from llama31.mesh import Grid

RECOMPUTE: dict[str, dict[str, Any]] = {
    "none": {},
    "selective": {"recompute_granularity": "selective"},
    "full": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
}


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
        first, rows = self.vocab_start_index, self.num_embeddings_per_partition
        elsewhere = (ids < first) | (ids >= first + rows)
        split = self.tp_group.size() > 1
        found = fused.embedding((ids - first).masked_fill(elsewhere, 0) if split else ids, self.weight)
        if split:
            found = found.masked_fill(elsewhere.unsqueeze(-1), 0.0)
        if self.reduce_scatter_embeddings:
            return reduce_scatter_to_sequence_parallel_region(found.transpose(0, 1).contiguous(), group=self.tp_group)
        return reduce_from_tensor_model_parallel_region(found, group=self.tp_group) if split else found


class RewardHead(nn.Module):
    """One number per token. Its weight is a vector, alike on all tensor-parallel ranks as those of norms are."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden_size))

    def forward(self, hidden_sbh: Tensor) -> Tensor:
        return (hidden_sbh.float() @ self.weight.float()).transpose(0, 1)


class Llama(GPTModel):
    """One pipeline chunk of the model: GPTModel whose loss never builds all logits, or one with a reward head."""

    reward_head: RewardHead | None

    def set_is_first_microbatch(self) -> None:
        """Called by Megatron's schedule before the first forward pass of a step.

        Transformer Engine's layers then overwrite `main_grad` instead of adding to it, and in FP8 cast their weights
        anew. Megatron's own does it for FP8 alone.
        """
        for module in self.modules():
            if hasattr(module, "is_first_microbatch"):
                module.is_first_microbatch = True

    def _preprocess(self, input_ids: Tensor, position_ids: Tensor | None, *args: Any, **kwargs: Any) -> Any:
        """As in Megatron; position_ids [b, s / cp], where given, are the rotary positions of each row's tokens."""
        found = super()._preprocess(input_ids, position_ids, *args, **kwargs)
        if position_ids is None:
            return found
        table = self.rotary_pos_emb.get_emb(position_ids.size(1) * self.config.context_parallel_size)
        rotary = table[position_ids.transpose(0, 1)].flatten(2, 3)  # [s / cp, b, 1, head_dim]
        return (found[0], rotary, *found[2:])

    scoring = False  # set by `scoring`: of each token its loss and the likeliest token, in the place of one loss

    def _postprocess(  # type: ignore[override]
        self, hidden_states: Tensor, labels: Tensor | None = None, loss_mask: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Without labels as in Megatron; with labels [b, s] and weights [b, s]: (weighted loss, losses [b, s]).

        While `scoring`: (losses [b, s], likeliest tokens [b, s]) where weights are not 0. With labels alone: losses
        [b, s], differentiable, 0 where the label is negative. With a reward head: its numbers [b, s], FP32.
        """
        if self.reward_head is not None:
            if self.config.sequence_parallel:  # every rank goes on with the same numbers: gradients are no parts
                hidden_states = gather_from_sequence_parallel_region(
                    hidden_states, tensor_parallel_output_grad=False, group=self.pg_collection.tp
                )
            return self.reward_head(hidden_states)
        if not self.post_process or labels is None:
            return super()._postprocess(hidden_states, labels=labels, loss_mask=loss_mask, **kwargs)
        if self.config.sequence_parallel:
            hidden_states = gather_from_sequence_parallel_region(hidden_states, group=self.pg_collection.tp)
        else:
            hidden_states = copy_to_tensor_model_parallel_region(hidden_states, group=self.pg_collection.tp)
        tied = self.share_embeddings_and_output_weights
        weight = self.shared_embedding_or_output_weight() if tied else self.output_layer.weight
        tokens = hidden_states.transpose(0, 1).flatten(0, 1)
        flat, group = labels.flatten(), self.pg_collection.tp
        columns = real_rows(self.vocab_size, weight.size(0), group.rank())
        if loss_mask is None:
            return head.token_losses(tokens, weight, flat, group, columns).view(labels.shape)
        if self.scoring:
            found, likeliest = head.scores(tokens, weight, flat, loss_mask.flatten() != 0, group, columns)
            return found.view(labels.shape), likeliest.view(labels.shape)
        loss, losses = head.weighted_loss(tokens, weight, flat, loss_mask.flatten(), group, columns)
        return loss, losses.view(labels.shape)


def transformer_config(
    model: config.Model, numbers: config.Precision, parallel: config.Parallel, grid: Grid
) -> TransformerConfig:
    """Megatron's view of the model and its layout."""
    interleaved = parallel.vpp > 1
    return TransformerConfig(
        num_layers=model.layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_attention_heads=model.heads,
        num_query_groups=model.kv_heads,
        kv_channels=model.head_dim,
        normalization="RMSNorm",
        layernorm_epsilon=model.norm_eps,
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        persist_layer_norm=False,
        # the fused kernel knows one position per place in a row; reward rows restart theirs
        apply_rope_fusion=model.head == "tokens" and grid.device.type == "cuda" and precision.have_transformer_engine(),
        gradient_accumulation_fusion=False,  # ZeRO-1 switches it on: see `fuse_accumulation`
        perform_initialization=False,
        use_cpu_initialization=grid.device.type == "cpu",
        tensor_model_parallel_size=grid.tp,
        pipeline_model_parallel_size=grid.pp,
        virtual_pipeline_model_parallel_size=grid.vpp if interleaved else None,
        microbatch_group_size_per_vp_stage=(parallel.microbatch_group or grid.pp) if interleaved else None,
        account_for_embedding_in_pipeline_split=parallel.embedding_as_layer,
        account_for_loss_in_pipeline_split=parallel.loss_as_layer,
        context_parallel_size=grid.cp,
        sequence_parallel=parallel.sequence_parallel and grid.tp > 1,
        calculate_per_token_loss=True,  # the loss is already divided by the tokens of the whole batch
        batch_p2p_comm=False,  # batched, gloo gives wrong results with interleaving, in silence
        deallocate_pipeline_outputs=True,
        **RECOMPUTE[parallel.recompute],
        **precision.transformer_config(numbers),
    )


def layer_spec(device: torch.device) -> ModuleSpec:
    """Transformer Engine's linear layers where there is a GPU that has it, Megatron's own where not.

    Norm and core attention are ours everywhere: see `RMSNorm`, and `attention` for the document mask, which
    Transformer Engine ignores in silence when it comes as a matrix.
    """
    spec = get_gpt_layer_local_spec(normalization="RMSNorm")
    layer = spec.submodules
    layer.input_layernorm = layer.pre_mlp_layernorm = RMSNorm
    layer.self_attention.submodules.core_attention = DocumentAttention
    layer.mlp.module = SwiGLU
    logging.getLogger(TransformerLayer.__module__).setLevel(logging.ERROR)  # it warns of every MLP not its own
    if device.type == "cuda" and precision.have_transformer_engine():
        from megatron.core.extensions.transformer_engine import TEColumnParallelLinear, TERowParallelLinear

        layer.self_attention.submodules.linear_qkv = layer.mlp.submodules.linear_fc1 = TEColumnParallelLinear
        layer.self_attention.submodules.linear_proj = layer.mlp.submodules.linear_fc2 = TERowParallelLinear
    return spec


def fuse_accumulation(chunk: Llama) -> list[nn.Parameter]:
    """Let Transformer Engine's layers add to their weight's `main_grad`; returns the weights whose first micro-batch
    overwrites it.

    Recomputed layers run their forward pass twice and then take themselves for a later micro-batch: they only add.
    """
    found = []
    for module in chunk.modules():
        if hasattr(module, "fuse_wgrad_accumulation") and module.weight.dtype == torch.bfloat16:
            module.fuse_wgrad_accumulation = True
            if chunk.config.recompute_granularity != "full":
                found.append(module.weight)
    return found


def build(
    model: config.Model,
    numbers: config.Precision,
    parallel: config.Parallel,
    grid: Grid,
    seed: int | None = None,
) -> list[Llama]:
    """This rank's chunks of the model: one, or `vpp` with interleaving.

    With a seed the weights are drawn (equal on every layout), without one they are left for a checkpoint to fill.
    Raises ValueError where this machine cannot compute in the precision asked for.
    """
    precision.check(numbers, grid.device)
    settings = transformer_config(model, numbers, parallel, grid)
    spec = layer_spec(grid.device)
    interleaved = grid.vpp > 1
    chunks = []
    for vp in range(grid.vpp):
        vp_stage = vp if interleaved else None
        layers = get_num_layers_to_build(settings, vp_stage=vp_stage)
        chunk = Llama(
            settings,
            TransformerBlockSubmodules(layer_specs=[spec] * layers, layer_norm=RMSNorm),
            vocab_size=padded(model.vocab_size, grid.tp),
            max_sequence_length=model.max_positions,
            pre_process=grid.first_stage and vp == 0,
            post_process=grid.last_stage and vp == grid.vpp - 1,
            share_embeddings_and_output_weights=model.tied_embeddings and model.head == "tokens",
            position_embedding_type="rope",
            rotary_base=model.rope_theta,  # type: ignore[arg-type]  # a float is what it computes with
            rope_scaling=model.rope_factor > 0,
            rope_scaling_factor=model.rope_factor,
            vp_stage=vp_stage,
        )
        chunk.vocab_size = model.vocab_size
        if chunk.pre_process:
            chunk.embedding.word_embeddings.__class__ = WordEmbedding
        chunk.reward_head = None
        if model.head == "reward" and chunk.post_process:
            chunk.output_layer, chunk.reward_head = None, RewardHead(model.hidden_size)
        for parameter in chunk.parameters():  # what gradient norms over ranks ask; Megatron sets it on initialising
            parameter.tensor_model_parallel = parameter.ndim > 1  # type: ignore[attr-defined]
        chunks.append(chunk.to(device=grid.device, dtype=precision.dtype(numbers)))
    for shard in shards(chunks, model, grid):
        shard.parameter.data[shard.rows :].zero_()  # and so it stays: no gradient reaches the padding
    if seed is not None:
        initialise(chunks, model, grid, seed)
    return chunks


def padded(vocabulary: int, tp: int) -> int:
    """Rows of embedding and head where `tp` ranks share them: where that does not come out even, a multiple of 8 each.

    The rows beyond the vocabulary are zeros. No id means them, the loss and sampling leave their logits out, and
    checkpoints and exports hold the vocabulary's rows alone, so that any layout reads what another one wrote.
    """
    return vocabulary if vocabulary % tp == 0 else math.ceil(vocabulary / (8 * tp)) * 8 * tp


def real_rows(vocabulary: int, rows: int, tp_rank: int) -> int:
    """How many of a rank's `rows` of embedding or head are words; the others follow them and are padding."""
    return min(max(vocabulary - tp_rank * rows, 0), rows)


@dataclass(frozen=True)
class ParameterShard:
    """A parameter of this rank, and the blocks of the global tensor that it holds, in its own row order."""

    name: str
    shape: tuple[int, ...]
    parameter: nn.Parameter
    offsets: tuple[tuple[int, ...], ...]  # one block each, equal in size along dim 0
    replica: bool  # the tied embedding's second copy, on the last pipeline stage
    rows: int  # of the parameter, from the top: those after them are padding of the vocabulary, and nowhere stored

    def blocks(self, tensor: Tensor) -> Iterator[tuple[tuple[int, ...], Tensor]]:
        """(offset in the global tensor, view of `tensor`) for a tensor shaped like the parameter."""
        if self.rows:
            yield from zip(self.offsets, tensor[: self.rows].chunk(len(self.offsets)), strict=True)


def shards(chunks: list[Llama], model: config.Model, grid: Grid) -> list[ParameterShard]:
    """Every parameter of this rank under its global name, in an order that is the same on all replicas."""
    found = []
    for chunk in chunks:
        for local_name, parameter in chunk.named_parameters():
            name = _global_name(local_name, chunk)
            replica = model.tied_embeddings and name == "output_layer.weight"
            if replica:
                name = "embedding.word_embeddings.weight"
            shape, offsets = _layout(name, tuple(parameter.shape), grid)
            rows = parameter.size(0)
            if name in VOCABULARY:
                shape, rows = (model.vocab_size, shape[1]), real_rows(model.vocab_size, rows, grid.tp_rank)
            found.append(ParameterShard(name, shape, parameter, offsets, replica, rows))
    return found


def _global_name(local_name: str, chunk: Llama) -> str:
    parts = local_name.split(".")
    if parts[:2] == ["decoder", "layers"]:
        parts[2] = str(chunk.decoder.layers[int(parts[2])].layer_number - 1)
    return ".".join(parts)


def _layout(name: str, local: tuple[int, ...], grid: Grid) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """Global shape and the offsets of this rank's blocks of a parameter."""
    if len(local) == 1:
        return local, ((0,),)
    rows, columns = local
    if name.endswith(("linear_proj.weight", "linear_fc2.weight")):
        return (rows, columns * grid.tp), ((0, grid.tp_rank * columns),)
    if name.endswith("linear_fc1.weight"):  # a rank's gate rows, then its up rows
        half = rows // 2
        return (rows * grid.tp, columns), ((grid.tp_rank * half, 0), (half * (grid.tp + grid.tp_rank), 0))
    return (rows * grid.tp, columns), ((grid.tp_rank * rows, 0),)


BLOCK_ROWS, BLOCK_COLUMNS = 128, 512
VOCABULARY = ("embedding.word_embeddings.weight", "output_layer.weight")
REWARD_HEAD = "reward_head.weight"


def _normal(seed: int, name: str, offset: tuple[int, ...], size: tuple[int, int]) -> np.ndarray:
    """FP32 standard normal numbers [size] of a global tensor from `offset` on.

    The tensor is tiled; each tile has a counter-based generator keyed by (seed, name, tile), so any rank draws any
    block without drawing the rest.
    """
    out = np.empty(size, np.float32)
    for row in range(offset[0] // BLOCK_ROWS, math.ceil((offset[0] + size[0]) / BLOCK_ROWS)):
        for column in range(offset[1] // BLOCK_COLUMNS, math.ceil((offset[1] + size[1]) / BLOCK_COLUMNS)):
            key = hashlib.sha256(f"{seed}/{name}/{row}/{column}".encode()).digest()[:16]
            generator = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
            tile = generator.standard_normal((BLOCK_ROWS, BLOCK_COLUMNS), np.float32)
            top, left = row * BLOCK_ROWS, column * BLOCK_COLUMNS
            r0, r1 = max(top, offset[0]), min(top + BLOCK_ROWS, offset[0] + size[0])
            c0, c1 = max(left, offset[1]), min(left + BLOCK_COLUMNS, offset[1] + size[1])
            out[r0 - offset[0] : r1 - offset[0], c0 - offset[1] : c1 - offset[1]] = tile[
                r0 - top : r1 - top, c0 - left : c1 - left
            ]
    return out


@torch.no_grad()
def initialise(chunks: list[Llama], model: config.Model, grid: Grid, seed: int) -> None:
    """Draw the initial weights: equal on every layout, each rank its own shard only.

    Normal with `init_std`; projections into the residual stream scaled by 1 / sqrt(2 layers), norms 1. The report does
    not state its initialisation: this is ours, and Megatron's.
    """
    initialise_reward_head(chunks, model, grid, seed)
    for shard in shards(chunks, model, grid):
        if len(shard.shape) == 1:
            if shard.name != REWARD_HEAD:
                shard.parameter.fill_(1.0)
            continue
        into_residual = shard.name.endswith(("linear_proj.weight", "linear_fc2.weight"))
        std = model.init_std / math.sqrt(2 * model.layers) if into_residual else model.init_std
        for offset, block in shard.blocks(shard.parameter.data):
            numbers = _normal(seed, shard.name, offset, (block.size(0), block.size(1)))
            block.copy_(torch.from_numpy(numbers).mul_(std))


@torch.no_grad()
def initialise_reward_head(chunks: list[Llama], model: config.Model, grid: Grid, seed: int) -> None:
    """Draw the reward head, where this rank has one: all that is new of a reward model on pre-trained weights.

    Normal with `init_std`. The report does not state its own.
    """
    for shard in shards(chunks, model, grid):
        if shard.name == REWARD_HEAD:
            numbers = _normal(seed, shard.name, (0, 0), (1, shard.shape[0]))[0]
            shard.parameter.copy_(torch.from_numpy(numbers).mul_(model.init_std))
