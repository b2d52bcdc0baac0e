"""DeepSpeed ZeRO as optimizer and gradient reducer under Megatron's schedule.

Megatron runs forward and backward; a `Reducer` takes the gradients, sums them over data x context parallel ranks,
says their norm, and then updates or forgets. The norm is known before the update, so the caller can judge it:
DeepSpeed's own `step` would swallow a NaN. Two implementations:

`Stage1` keeps FP32 gradients in flat buckets, in BF16 and FP32 alike, and reduce-scatters each once a step.
`Stage23` leaves reduction to DeepSpeed's hooks: stage 2 after each micro-batch, stage 3 inside the wrapped forward.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llama31 import config
from llama31.engine import partition
from llama31.engine.stage1 import Stage1
from llama31.model import precision
from llama31.model.llama import Llama, ParameterShard
from llama31.parallel.mesh import Grid, Mpu


class Reducer(Protocol):
    """What the engine needs of an optimizer."""

    forward_chunks: list[Any]  # the chunks as the schedule has to call them
    loss_scale: float  # by which the loss is multiplied because the reduction averages

    def begin(self, micro_batches: int) -> None: ...
    def after_backward(self) -> Callable[[], None] | None: ...
    def reduce(self) -> Tensor: ...
    def apply(self, lr: float, norm: float) -> None: ...
    def settle(self) -> None: ...
    def discard(self) -> None: ...
    def fragment(self, parameter: nn.Parameter, key: str) -> tuple[int, Tensor] | None: ...
    def steps_applied(self) -> int: ...
    def finish_load(self, step: int) -> None: ...


def create(
    chunks: list[Llama],
    shards: list[ParameterShard],
    optimizer: config.Optimizer,
    numbers: config.Precision,
    parallel: config.Parallel,
    grid: Grid,
) -> Reducer:
    """The reducer of a ZeRO stage over the parameters of this rank."""
    partition.initialise()
    partition.mark_replicas(shards)
    if parallel.zero == 1:
        return Stage1(chunks, shards, optimizer, parallel.bucket_bytes, grid)
    return Stage23(chunks, shards, optimizer, numbers, parallel.zero, grid)


class Stage23:
    """ZeRO-2 and ZeRO-3: DeepSpeed's hooks reduce and shard the gradients, so its own norm, clipping and step follow.

    Stage 2 reduces after every micro-batch (its price under pipelines); stage 3 gathers parameters in the forward of
    the wrapped model, and its parameter coordinator deadlocks with pipelines, which `config` refuses.
    """

    def __init__(
        self,
        chunks: list[Llama],
        shards: list[ParameterShard],
        optimizer: config.Optimizer,
        numbers: config.Precision,
        zero: int,
        grid: Grid,
    ) -> None:
        self.grid, self.stage, self.loss_scale = grid, zero, float(grid.dp * grid.cp)
        matrices = [shard.parameter for shard in shards if shard.parameter.ndim > 1]
        vectors = [shard.parameter for shard in shards if shard.parameter.ndim == 1]
        groups = [
            {"params": matrices, "weight_decay": optimizer.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        adam = partition.AdamW([group for group in groups if group["params"]], optimizer)
        self.engine, *_ = partition.import_deepspeed().initialize(
            model=chunks[0] if zero == 3 else nn.ModuleList(chunks),
            optimizer=adam,
            config=_settings(optimizer, numbers, zero),
            mpu=Mpu(grid),
            dist_init_required=False,
        )
        self.zero = self.engine.optimizer
        self.forward_chunks: list[Any] = [_Wrapped(self.engine, chunks[0])] if zero == 3 else list(chunks)
        partition.create_moments(self.zero.optimizer, self._masters())
        if zero == 2:
            self.zero._lazy_init_hp_params_optimizer_state()

    def _masters(self) -> list[Tensor]:
        masters: list[Tensor] = (
            self.zero.fp32_partitioned_groups_flat if self.stage == 3 else self.zero.single_partition_of_fp32_groups
        )
        return masters

    def begin(self, micro_batches: int) -> None:
        return None

    def after_backward(self) -> Callable[[], None] | None:
        """What the schedule has to call after the backward pass of each micro-batch."""
        if self.stage == 3:
            return None
        self.engine.set_gradient_accumulation_boundary(False)
        self.zero.micro_step_id = 0

        def reduce_micro_batch() -> None:
            self.zero.overlapping_partition_gradients_reduce_epilogue()
            self.zero.micro_step_id += 1

        return reduce_micro_batch

    @torch.no_grad()
    def reduce(self) -> Tensor:
        """Finish the reduction; return this rank's share of the squared norm, FP64 [], NaN if that is not finite."""
        from deepspeed.runtime.utils import combine_grad_norm_groups

        if self.stage == 3:
            self.zero.finalize_gradient_accumulation_boundary()
            norms = self.zero._get_norm_groups()
        else:
            self.engine.set_gradient_accumulation_boundary(True)
            self.zero.setup_buckets()
            self.engine.allreduce_gradients()
            groups = range(len(self.zero.bit16_groups))
            norms = [
                self.zero.get_grad_norm_direct(self.zero.averaged_gradients[i], self.zero.params_in_partition[i])
                for i in groups
            ]
        lost = any(float(norm) < 0 for norm in norms)  # how DeepSpeed marks a norm that is not finite
        norm = math.nan if lost else float(combine_grad_norm_groups(norms))  # of all ranks, so the first counts it
        share = norm**2 if lost or self.grid.rank == 0 else 0.0
        return torch.full((), share, dtype=torch.float64, device=self.grid.device)

    def apply(self, lr: float, norm: float) -> None:
        """Clip and update, through DeepSpeed's step."""
        for group in self.zero.optimizer.param_groups:
            group["lr"] = lr
        self.engine.step()

    def settle(self) -> None:
        return None

    @torch.no_grad()
    def discard(self) -> None:
        """Forget the gradients of this step; weights and moments stay as they are."""
        if self.stage == 3:
            self.zero._pre_step()
            self.zero._partition_all_parameters()
            self.zero._overflow_clean_up(1.0)
            return
        self.zero.zero_grad(set_to_none=True)
        self.zero._release_preflattened_grad_buffers()
        for index in self.zero.averaged_gradients:
            self.zero.averaged_gradients[index] = None
            self.zero.all_grad_tensors[index] = None

    def fragment(self, parameter: nn.Parameter, key: str) -> tuple[int, Tensor] | None:
        """This rank's part of a tensor of KEYS: where it starts in the flat TP shard, and the live memory itself."""
        if self.stage == 2:
            return partition.mapped_fragment(parameter, key)
        if key == partition.WEIGHT:
            mine = parameter.ds_tensor.data  # type: ignore[attr-defined]
        else:
            mine, _ = self.zero._get_fp32_opt_state_partition(
                parameter, False, optim_state_key=partition.state_key(key)
            )
        start = mine.numel() * dist.get_rank(self.grid.dp_cp_group)
        held = min(mine.numel(), math.prod(partition.shape_of(parameter)) - start)  # the last ranks hold padding
        return (start, mine.data[:held]) if held > 0 else None

    def steps_applied(self) -> int:
        """Updates applied so far, as Adam's bias correction counts them."""
        return int(self.zero.optimizer.state[self._masters()[0]]["step"].item())

    @torch.no_grad()
    def finish_load(self, step: int) -> None:
        """After filling the fragments: the step of Adam, weights from masters, no gradients. Collective."""
        self.discard()  # before the weights: ZeRO-3 lets go of what it gathered of the old ones
        for master in self._masters():
            self.zero.optimizer.state[master]["step"].fill_(step)
        if self.stage == 2:
            self.zero.update_lp_params()
            return
        for index, master in enumerate(self._masters()):
            self.zero.fp16_partitioned_groups_flat[index].copy_(master)
            self.zero._unflatten_partitioned_parameters(index)


def _settings(optimizer: config.Optimizer, numbers: config.Precision, zero: int) -> dict[str, Any]:
    """DeepSpeed's configuration: accumulation stays 1, since it would divide the gradient once per pipeline stage."""
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optimizer.clip_norm,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": zero, "overlap_comm": False, "contiguous_gradients": True},
        "steps_per_print": None,
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
    }
    if zero == 3:
        settings["managed_gradient_accumulation"] = False
    if precision.dtype(numbers) == torch.bfloat16:
        settings["bf16"] = {"enabled": True}
    return settings


class _Wrapped:
    """A chunk whose call goes through DeepSpeed's engine, so that ZeRO-3 gathers parameters around it.

    Everything else is the chunk's: the engine's own `config` would shadow Megatron's.
    """

    def __init__(self, engine: Any, chunk: Llama) -> None:
        self._engine, self._chunk = engine, chunk

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._engine(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._chunk, name)
