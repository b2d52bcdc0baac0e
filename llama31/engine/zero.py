"""DeepSpeed ZeRO as optimizer and gradient reducer under Megatron's schedule. The only place that touches DeepSpeed.

Megatron runs forward and backward; what stands here takes the gradients, sums them over data x context parallel
ranks, says their norm, and then updates or forgets. The norm is known before the update, so the caller can judge it:
DeepSpeed's own `step` would swallow a NaN. Two implementations of `Reducer`:

`Stage1` keeps FP32 gradients in one flat buffer per group, in BF16 and FP32 alike, and reduce-scatters it once a step.
`Stage23` leaves reduction to DeepSpeed's hooks: stage 2 after each micro-batch, stage 3 inside the wrapped forward.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llama31 import config
from llama31.model import precision
from llama31.model.llama import Llama, ParameterShard, fuse_accumulation
from llama31.parallel.mesh import Grid, Mpu

WEIGHT, MASTER, MOMENTS = "weight", "fp32", ("exp_avg", "exp_avg_sq")
KEYS = (WEIGHT, MASTER, *MOMENTS)  # what ZeRO shares out of a parameter


class Reducer(Protocol):
    """What the engine needs of an optimizer."""

    forward_chunks: list[Any]  # the chunks as the schedule has to call them
    loss_scale: float  # by which the loss is multiplied because the reduction averages

    def after_backward(self) -> Callable[[], None] | None: ...
    def reduce(self) -> float: ...
    def apply(self, lr: float, norm: float) -> None: ...
    def discard(self) -> None: ...
    def fragment(self, parameter: nn.Parameter, key: str) -> tuple[int, Tensor] | None: ...
    def steps_applied(self) -> int: ...
    def finish_load(self, step: int) -> None: ...


def create(
    chunks: list[Llama],
    shards: list[ParameterShard],
    optimizer: config.Optimizer,
    numbers: config.Precision,
    zero: int,
    grid: Grid,
) -> Reducer:
    """The reducer of a ZeRO stage over the parameters of this rank."""
    backend = dist.get_backend()
    _import_deepspeed().init_distributed(backend, auto_mpi_discovery=False, verbose=False, dist_init_required=False)
    adam = _adam(shards, optimizer)
    if zero == 1:
        return Stage1(adam, chunks, shards, optimizer, grid)
    return Stage23(adam, chunks, optimizer, numbers, zero, grid)


def _import_deepspeed() -> Any:
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    import deepspeed.ops

    # On a CPU DeepSpeed would compile a shared-memory collective at its first use, for minutes; and a process killed
    # meanwhile leaves a lock on which every later run waits for ever.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    return deepspeed


def _adam(shards: list[ParameterShard], optimizer: config.Optimizer) -> torch.optim.AdamW:
    decay: list[nn.Parameter] = []
    no_decay: list[nn.Parameter] = []
    for shard in shards:
        (decay if shard.parameter.ndim > 1 else no_decay).append(shard.parameter)
        if shard.replica:
            shard.parameter.ds_pipe_replicated = True  # type: ignore[attr-defined]  # counted once in the norm
    groups = [{"params": decay, "weight_decay": optimizer.weight_decay}, {"params": no_decay, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=0.0,
        betas=(optimizer.beta1, optimizer.beta2),
        eps=optimizer.eps,
        fused=True,
    )


def _create_moments(adam: torch.optim.AdamW, masters: list[Tensor]) -> None:
    """Adam's state exists from the start, so that a checkpoint can fill it without a step that changes weights."""
    for master in masters:
        adam.state[master] = {
            "step": torch.zeros((), dtype=torch.float32, device=master.device),
            **{key: torch.zeros_like(master) for key in MOMENTS},
        }


def shape_of(parameter: nn.Parameter) -> tuple[int, ...]:
    """Shape of a parameter on this tensor-parallel rank, also where ZeRO-3 has taken the parameter apart."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _state_key(key: str) -> str | None:
    """How DeepSpeed calls a master or a moment."""
    return None if key == MASTER else key


def _mapped_fragment(parameter: nn.Parameter, key: str) -> tuple[int, Tensor] | None:
    """The fragment where weights are whole on every rank (ZeRO-1 and 2): of those, the part that its masters update."""
    mapping = parameter._hp_mapping  # type: ignore[attr-defined]
    if mapping is None:
        return None
    address = mapping.lp_fragment_address
    if key == WEIGHT:
        return address.start, parameter.data.view(-1).narrow(0, address.start, address.numel)
    return address.start, mapping.get_hp_fragment(_state_key(key)).data


def _counts_in_norm(parameter: nn.Parameter, grid: Grid) -> bool:
    """Whether this rank's copy of a parameter enters the global norm: replicas of it must not count twice."""
    if getattr(parameter, "ds_pipe_replicated", False):
        return False
    return parameter.ndim > 1 or grid.tp_rank == 0


class Stage1:
    """ZeRO-1: masters and moments are sharded; FP32 gradients live whole until the reduce-scatter of a step.

    DeepSpeed's BF16_Optimizer does the partitioning and the gathering of updated weights, for FP32 parameters too.
    Its own reduction would all-reduce, at twice the bytes of the reduce-scatter here.
    """

    loss_scale = 1.0

    def __init__(
        self,
        adam: torch.optim.AdamW,
        chunks: list[Llama],
        shards: list[ParameterShard],
        optimizer: config.Optimizer,
        grid: Grid,
    ) -> None:
        from deepspeed.runtime import bf16_optimizer
        from deepspeed.runtime.precision_config import get_bfloat16_config

        bf16_optimizer.see_memory_usage = lambda *args, **kwargs: None  # would collect garbage and print, many times

        self.grid, self.clip_norm = grid, optimizer.clip_norm
        self.zero = bf16_optimizer.BF16_Optimizer(
            adam,
            {shard.parameter: shard.name for shard in shards},
            get_bfloat16_config({"bf16": {"enabled": True}}),
            mpu=Mpu(grid),
            dp_process_group=grid.dp_cp_group,
            grad_acc_dtype=torch.float32,
        )
        self.forward_chunks: list[Any] = list(chunks)
        tied = chunks[0].tied and grid.pp > 1
        self.tied = [s.parameter for s in shards if tied and s.name == "embedding.word_embeddings.weight"]
        self._share_fp32_storage()
        self._attach_gradients(chunks)
        _create_moments(adam, self.zero.fp32_groups_flat_partition)
        self.zero._lazy_init_hp_params_optimizer_state()

    def _share_fp32_storage(self) -> None:
        """FP32 parameters are their own masters: no second copy, and nothing to copy back after a step."""
        for index, parts in enumerate(self.zero.bf16_partitioned_groups):
            mine = parts[dist.get_rank(self.grid.dp_cp_group)]
            if mine.dtype == torch.float32:
                self.zero.fp32_groups_flat_partition[index].data = mine
        self.zero._link_all_hp_params()

    def _attach_gradients(self, chunks: list[Llama]) -> None:
        """Gradients are summed where they are made: `main_grad` is the parameter's part of the flat FP32 buffer.

        Head and embedding add to it, and Transformer Engine's linear layers: their product accumulates in FP32 and
        overwrites what the step before left (see `model.Llama.set_is_first_microbatch`), so theirs is never cleared.
        What is left is summed by autograd (FP32) or by a hook that adds a BF16 gradient and frees it (norms).
        """
        self.gradients: dict[nn.Parameter, Tensor] = {}
        overwritten = {parameter for chunk in chunks for parameter in fuse_accumulation(chunk)}
        self._to_clear: list[Tensor] = []
        for group, gradients in zip(self.zero.bf16_groups, self.zero.fp32_groups_gradients, strict=True):
            for parameter, flat in zip(group, gradients, strict=True):
                gradient = flat.view(parameter.shape)
                self.gradients[parameter] = parameter.main_grad = gradient
                if parameter not in overwritten:
                    self._to_clear.append(gradient)
                if parameter.dtype == torch.float32:
                    parameter.grad = gradient
                elif parameter not in overwritten:
                    parameter.register_post_accumulate_grad_hook(_adder(gradient))

    def after_backward(self) -> None:
        return None

    @torch.no_grad()
    def reduce(self) -> float:
        """Sum gradients over data x context parallel ranks; return the global gradient norm."""
        self._sum_tied_embedding()
        group = self.grid.dp_cp_group
        if dist.get_world_size(group) > 1:
            for flat, mine in zip(
                self.zero.fp32_groups_gradients_flat, self.zero.fp32_groups_gradient_flat_partition, strict=True
            ):
                reduced = torch.empty_like(mine)
                dist.reduce_scatter_tensor(reduced, flat, group=group)
                mine.copy_(reduced)
        return self._norm()

    def _sum_tied_embedding(self) -> None:
        for parameter in self.tied:
            dist.all_reduce(self.gradients[parameter], group=self.grid.embedding_group)

    def _norm(self) -> float:
        parts = []
        for index, group in enumerate(self.zero.bf16_groups):
            partition = self.zero.fp32_groups_gradient_flat_partition[index]
            for parameter in group:
                mapping = parameter._hp_mapping
                if mapping is not None and _counts_in_norm(parameter, self.grid):
                    address = mapping.get_hp_fragment_address()
                    parts.append(partition.narrow(0, address.start, address.numel))
        squares = torch.zeros((), dtype=torch.float32, device=self.grid.device)
        if parts:
            squares += torch.stack(torch._foreach_norm(parts)).square_().sum()
        dist.all_reduce(squares)
        return math.sqrt(squares.item())

    @torch.no_grad()
    def apply(self, lr: float, norm: float) -> None:
        """Clip, update the masters of this rank, gather the new weights, and clear the gradients."""
        scale = 1.0 / max(1.0, (norm + 1e-6) / self.clip_norm) if self.clip_norm > 0 else 1.0
        for group, master, gradient in zip(
            self.zero.optimizer.param_groups,
            self.zero.fp32_groups_flat_partition,
            self.zero.fp32_groups_gradient_flat_partition,
            strict=True,
        ):
            group["lr"] = lr
            master.grad = gradient.mul_(scale) if scale < 1.0 else gradient
        self.zero.optimizer.step()
        self.zero.update_lp_params()
        self.discard()

    def discard(self) -> None:
        """Forget the gradients of this step; weights and moments stay as they are."""
        torch._foreach_zero_(self._to_clear)

    def fragment(self, parameter: nn.Parameter, key: str) -> tuple[int, Tensor] | None:
        """This rank's part of a tensor of KEYS: where it starts in the flat TP shard, and the live memory itself."""
        return _mapped_fragment(parameter, key)

    def steps_applied(self) -> int:
        """Updates applied so far, as Adam's bias correction counts them."""
        return int(self.zero.optimizer.state[self.zero.fp32_groups_flat_partition[0]]["step"].item())

    @torch.no_grad()
    def finish_load(self, step: int) -> None:
        """After filling the fragments: the step of Adam, weights from masters, no gradients. Collective."""
        for master in self.zero.fp32_groups_flat_partition:
            self.zero.optimizer.state[master]["step"].fill_(step)
        self.zero.update_lp_params()
        self.discard()


def _adder(total: Tensor) -> Callable[[Tensor], None]:
    def add(parameter: Tensor) -> None:
        if parameter.grad is not None:  # who adds to `main_grad` leaves none
            total.add_(parameter.grad)
            parameter.grad = None

    return add


class Stage23:
    """ZeRO-2 and ZeRO-3: DeepSpeed's hooks reduce and shard the gradients, so its own norm, clipping and step follow.

    Stage 2 reduces after every micro-batch (its price under pipelines); stage 3 gathers parameters in the forward of
    the wrapped model, and its parameter coordinator deadlocks with pipelines, which `config` refuses.
    """

    def __init__(
        self,
        adam: torch.optim.AdamW,
        chunks: list[Llama],
        optimizer: config.Optimizer,
        numbers: config.Precision,
        zero: int,
        grid: Grid,
    ) -> None:
        self.grid, self.stage, self.loss_scale = grid, zero, float(grid.dp * grid.cp)
        self.engine, *_ = _import_deepspeed().initialize(
            model=chunks[0] if zero == 3 else nn.ModuleList(chunks),
            optimizer=adam,
            config=_settings(optimizer, numbers, zero),
            mpu=Mpu(grid),
            dist_init_required=False,
        )
        self.zero = self.engine.optimizer
        self.forward_chunks: list[Any] = [_Wrapped(self.engine, chunks[0])] if zero == 3 else list(chunks)
        _create_moments(self.zero.optimizer, self._masters())
        if zero == 2:
            self.zero._lazy_init_hp_params_optimizer_state()

    def _masters(self) -> list[Tensor]:
        masters: list[Tensor] = (
            self.zero.fp32_partitioned_groups_flat if self.stage == 3 else self.zero.single_partition_of_fp32_groups
        )
        return masters

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
    def reduce(self) -> float:
        """Finish the reduction; return the global gradient norm, NaN where a gradient is not finite."""
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
        if any(float(norm) < 0 for norm in norms):  # how DeepSpeed marks a norm that is not finite
            return math.nan
        return float(combine_grad_norm_groups(norms))

    def apply(self, lr: float, norm: float) -> None:
        """Clip and update, through DeepSpeed's step."""
        for group in self.zero.optimizer.param_groups:
            group["lr"] = lr
        self.engine.step()

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
            return _mapped_fragment(parameter, key)
        if key == WEIGHT:
            mine = parameter.ds_tensor.data  # type: ignore[attr-defined]
        else:
            mine, _ = self.zero._get_fp32_opt_state_partition(parameter, False, optim_state_key=_state_key(key))
        start = mine.numel() * dist.get_rank(self.grid.dp_cp_group)
        held = min(mine.numel(), math.prod(shape_of(parameter)) - start)  # the last ranks hold padding
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
