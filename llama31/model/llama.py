"""Llama 3.1 out of Megatron's blocks: its config, our layer (`parts`), a class of ours (report, section 3.2).

Grouped-query attention, SwiGLU, RMSNorm, rotary embedding with the Llama 3.1 scaling, no biases, untied head (tied in
Llama 3.2 1B and 3B). Parameters carry Megatron's names with the layer's global index; `shards` says which block of
each global tensor a rank holds, and initialisation, checkpoints and parity tests all build on that one table.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from megatron.core.transformer import MegatronModule, ModuleSpec, TransformerConfig
from megatron.core.transformer.enums import ModelType
from megatron.core.transformer.transformer_block import (
    TransformerBlock,
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from torch import Tensor, nn

from llama31 import config
from llama31.model import fused, head, kernels, precision, versions
from llama31.model.parts import RewardHead, RMSNorm, WordEmbedding, layer_spec, start_tp_overlap
from llama31.model.sequences import SequenceTable
from llama31.parallel.mesh import Grid
from llama31.plan import shapes

# of whole layers; parts of them are the layer's own business (`parts.Layer`)
FULL = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}


class Llama(MegatronModule):
    """One pipeline chunk of the model: the layers, the embedding before the first and the head after the last.

    Its loss never builds all logits; in the place of a head over the vocabulary there may be one of rewards.
    """

    model_type = ModelType.encoder_or_decoder  # what Megatron's pipeline schedules ask for
    only_tokens: int | None = None  # size of the micro-batches that buffers were made for, where there are such
    scoring = False  # set by `scoring`: of each token its loss and the likeliest token, in the place of one loss

    def __init__(
        self,
        settings: TransformerConfig,
        spec: ModuleSpec,
        model: config.Model,
        first: bool,
        last: bool,
        vp_stage: int | None,
    ) -> None:
        """`first` has the embedding and `last` the head; `vp_stage` numbers the chunks of a rank with interleaving."""
        super().__init__(settings)
        groups = ProcessGroupCollection.use_mpu_process_groups()
        self.tp_group, self.vp_stage = groups.tp, vp_stage  # Megatron's schedules read the latter
        self.cp_group = groups.cp
        self.vocab_size, self.max_sequence_length = model.vocab_size, model.max_positions
        rows = shapes.padded(model.vocab_size, settings.tensor_model_parallel_size)
        self.last, self.tied = last, model.tied_embeddings and model.head == "tokens"
        self.embedding: Any = None
        self.output_layer: Any = None
        self.reward_head: RewardHead | None = None
        if first:
            self.embedding = LanguageModelEmbedding(
                settings,
                rows,
                model.max_positions,
                position_embedding_type="rope",
                tp_group=groups.tp,
            )
            self.embedding.word_embeddings.__class__ = WordEmbedding
        self.rotary_pos_emb = RotaryEmbedding(
            settings.kv_channels,
            rotary_percent=1.0,
            rotary_base=model.rope_theta,  # type: ignore[arg-type]  # a float is what it computes with
            rope_scaling=model.rope_factor > 0,
            rope_scaling_factor=model.rope_factor,
            use_cpu_initialization=settings.use_cpu_initialization,
            cp_group=groups.cp,
        )
        layers = get_num_layers_to_build(settings, vp_stage=vp_stage)
        self.decoder = TransformerBlock(
            settings,
            TransformerBlockSubmodules(layer_specs=[spec] * layers, layer_norm=RMSNorm),
            pre_process=first,
            post_process=last,
            pg_collection=groups,
            vp_stage=vp_stage,
        )
        if last and model.head == "reward":
            self.reward_head = RewardHead(model.hidden_size)
        elif last:
            self.output_layer = ColumnParallelLinear(
                model.hidden_size,
                rows,
                config=settings,
                init_method=settings.init_method,
                bias=False,
                skip_weight_param_allocation=self.tied and first,
                tp_group=groups.tp,
            )

    def set_is_first_microbatch(self) -> None:
        """Called by Megatron's schedule before the first forward pass of a step.

        Transformer Engine's layers then overwrite `main_grad` instead of adding to it, and in FP8 cast their weights
        anew. Megatron's own does it for FP8 alone.
        """
        for module in self.modules():
            if hasattr(module, "is_first_microbatch"):
                module.is_first_microbatch = True

    def set_input_tensor(self, input_tensor: Tensor | list[Tensor] | None) -> None:
        """The states [s, b, h] that the stage before sent, alone or in a list: Megatron's schedules give both."""
        self.decoder.set_input_tensor(input_tensor[0] if isinstance(input_tensor, list) else input_tensor)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None,
        documents: Tensor | SequenceTable,
        labels: Tensor | None = None,
        loss_mask: Tensor | None = None,
        inference_context: Any = None,
        gather_logits: bool = False,
    ) -> Any:
        """Tokens [b, s / cp] of a micro-batch, and their documents (`sequences`; a bare table for one call alone).

        Returns states [s / (cp tp), b, h], divided by tp with sequence parallelism alone, where another stage
        follows; rewards FP32 [b, s / cp] with a reward head; logits [b, s / cp, v / tp], whole with `gather_logits`,
        without labels; with labels what `_losses` says. `position_ids` [b, s / cp], where given, are the rotary
        positions of each row's tokens; `inference_context` keeps K and V of earlier calls.
        """
        if self.only_tokens not in (None, input_ids.numel()):
            raise ValueError(
                f"parallel.tp_overlap=true: its buffers are for micro-batches of {self.only_tokens} tokens on a rank, "
                f"not {input_ids.numel()}; leave it out, or do this by another command"
            )
        states = self.embedding(input_ids, position_ids) if self.embedding is not None else None
        table = SequenceTable.of_call(documents, input_ids, self.cp_group, inference_context)
        cached = inference_context is not None  # then Megatron keeps keys that are turned already
        length = inference_context.max_sequence_length if cached else table.queries * table.cp
        table.rotary = None if cached else self._rotary(length, position_ids)
        states = self.decoder(
            hidden_states=states,
            attention_mask=None,
            rotary_pos_emb=self.rotary_pos_emb(length) if cached else None,
            inference_context=inference_context,
            packed_seq_params=table,
        )
        if not self.last:
            return states
        if self.reward_head is not None:
            if self.config.sequence_parallel:  # every rank goes on with the same numbers: gradients are no parts
                states = gather_from_sequence_parallel_region(
                    states, tensor_parallel_output_grad=False, group=self.tp_group
                )
            return self.reward_head(states)
        if labels is not None:
            return self._losses(states, labels, loss_mask)
        logits, _ = self.output_layer(states, weight=self._head_weight(), runtime_gather_output=gather_logits)
        return logits.transpose(0, 1).contiguous()

    def _rotary(self, length: int, position_ids: Tensor | None) -> fused.Rotary:
        """Of rows of `length` tokens: [s / cp, 1, 1, d], or of each row its own, [s / cp, b, 1, d]."""
        if position_ids is None:
            return fused.shared_rotary(self.rotary_pos_emb(length))
        angles = self.rotary_pos_emb(length, packed_seq=True)  # of all positions, made once
        return fused.Rotary(angles[position_ids.transpose(0, 1)].flatten(2, 3))

    def _head_weight(self) -> Tensor:
        """The head's [v / tp, h]: the embedding's own where they are tied and in one chunk, else a copy of it."""
        if self.tied and self.embedding is not None:
            return self.embedding.word_embeddings.weight
        return self.output_layer.weight

    def _losses(self, states: Tensor, labels: Tensor, loss_mask: Tensor | None) -> tuple[Tensor, Tensor] | Tensor:
        """With labels [b, s] and weights [b, s]: (weighted loss, losses [b, s]).

        While `scoring`: (losses [b, s], likeliest tokens [b, s]) where weights are not 0. With labels alone: losses
        [b, s], differentiable, 0 where the label is negative.
        """
        group = self.tp_group
        if self.config.sequence_parallel:
            states = gather_from_sequence_parallel_region(states, group=group)
        else:
            states = copy_to_tensor_model_parallel_region(states, group=group)
        tokens, flat, weight = states.transpose(0, 1).flatten(0, 1), labels.flatten(), self._head_weight()
        columns = real_rows(self.vocab_size, weight.size(0), group.rank())
        if loss_mask is None:
            return head.token_losses(tokens, weight, flat, group, columns).view(labels.shape)
        if self.scoring:
            per_token, likeliest = head.scores(tokens, weight, flat, loss_mask.flatten() != 0, group, columns)
            return per_token.view(labels.shape), likeliest.view(labels.shape)
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
        # by Megatron while decoding; otherwise document attention does it
        apply_rope_fusion=grid.device.type == "cuda" and precision.have_transformer_engine(),
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
        overlap_p2p_comm=parallel.overlap_p2p,
        deallocate_pipeline_outputs=not parallel.overlap_p2p,  # Megatron waits for each send before it frees
        tp_comm_overlap=parallel.tp_overlap,
        cuda_graph_modules=[],  # no graphs are used, and its default is a deprecated value of its own
        **(FULL if "full" in parallel.recompute else {}),
        **precision.transformer_config(numbers, parallel.zero),
    )


def fuse_accumulation(chunk: Llama) -> list[nn.Parameter]:
    """Let Transformer Engine's layers add to their weight's `main_grad`; returns the weights whose first micro-batch
    overwrites it.

    What is recomputed by running a linear layer twice takes itself for a later micro-batch then: it only adds.
    """
    fused_weights = []
    twice = {part for layer in chunk.decoder.layers for part in layer.run_twice()}
    for module in chunk.modules():
        if hasattr(module, "fuse_wgrad_accumulation") and module.weight.dtype == torch.bfloat16:
            module.fuse_wgrad_accumulation = True
            if module not in twice:
                fused_weights.append(module.weight)
    return fused_weights


def build(
    model: config.Model,
    numbers: config.Precision,
    parallel: config.Parallel,
    grid: Grid,
    seed: int | None = None,
    micro_batch_tokens: int | None = None,
) -> list[Llama]:
    """This rank's chunks of the model: one, or `vpp` with interleaving.

    With a seed the weights are drawn (equal on every layout), without one they are left for a checkpoint to fill.
    `micro_batch_tokens`: places of every micro-batch on a rank, b x s / cp, where they are all of one size.
    Raises ValueError where this machine cannot compute in the precision asked for, or where its Transformer Engine does
    not fit its torch.
    """
    if grid.device.type == "cuda":
        precision.have_transformer_engine()  # which brings a cuDNN: loaded before anything runs
    versions.tell()
    kernels.tell(grid.device, model.head_dim)
    precision.check(numbers, grid.device)
    again = [part for part in parallel.recompute if part in ("norms", "swiglu")]
    if numbers.fp8 == "delayed" and again:  # the second time it would be rounded by another scale
        reason = "delayed FP8 scales by what was there before, so what is rounded again would not be the same"
        given = f"parallel.recompute=[{','.join(parallel.recompute)}]"
        raise ValueError(f"{given}: {reason}; give mlp or full, or precision.fp8=tensorwise")
    if parallel.tp_overlap:
        start_tp_overlap(micro_batch_tokens, model.hidden_size, numbers, grid)
    settings = transformer_config(model, numbers, parallel, grid)
    spec = layer_spec(grid.device, model.ffn_hidden_size, parallel.recompute, numbers.fp8_emulate)
    interleaved = grid.vpp > 1
    chunks = []
    for vp in range(grid.vpp):
        vp_stage = vp if interleaved else None
        first = grid.first_stage and vp == 0
        last = grid.last_stage and vp == grid.vpp - 1
        chunk = Llama(settings, spec, model, first, last, vp_stage)
        chunk.only_tokens = micro_batch_tokens if parallel.tp_overlap else None
        for parameter in chunk.parameters():  # what gradient norms over ranks ask; Megatron sets it on initialising
            parameter.tensor_model_parallel = parameter.ndim > 1  # type: ignore[attr-defined]
        chunks.append(chunk.to(device=grid.device, dtype=precision.dtype(numbers)))
        precision.place_fp8(chunk, numbers, model.layers, grid.device)
    for shard in shards(chunks, model, grid):
        shard.parameter.data[shard.rows :].zero_()  # and so it stays: no gradient reaches the padding
    if seed is not None:
        initialise(chunks, model, grid, seed)
    return chunks


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
    parts = []
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
            parts.append(ParameterShard(name, shape, parameter, offsets, replica, rows))
    return parts


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
