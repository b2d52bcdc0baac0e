"""What DeepSpeed makes of parameters: flat ranges of every one, of which each data x context parallel rank owns a part.

What the stages of ZeRO have in common: DeepSpeed as it is imported here, the names of what is shared out, and where a
rank's part of it lies in memory.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llama31 import config
from llama31.model.llama import ParameterShard
from llama31.parallel.mesh import Grid, Group, Mpu

WEIGHT, MASTER, MOMENTS = "weight", "fp32", ("exp_avg", "exp_avg_sq")
KEYS = (WEIGHT, MASTER, *MOMENTS)  # what ZeRO shares out of a parameter


def initialise() -> None:
    """Let DeepSpeed use the process group that is there."""
    options = {"auto_mpi_discovery": False, "verbose": False, "dist_init_required": False}
    import_deepspeed().init_distributed(dist.get_backend(), **options)


def import_deepspeed() -> Any:
    """The package, told what it would do wrong on a CPU."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    import deepspeed.ops

    # On a CPU DeepSpeed would compile a shared-memory collective at its first use, for minutes; and a process killed
    # meanwhile leaves a lock on which every later run waits for ever.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    return deepspeed


class AdamW(torch.optim.AdamW):
    """torch's, its one kernel for a whole group; of which groups may be updated one by one."""

    def __init__(self, groups: list[dict[str, Any]], optimizer: config.Optimizer) -> None:
        super().__init__(groups, lr=0.0, betas=(optimizer.beta1, optimizer.beta2), eps=optimizer.eps, fused=True)

    def step_group(self, number: int, lr: float, divide_by: Tensor | None = None) -> None:
        """Update the parameters of one group; gradients are divided by a number on their device, where one is given."""
        groups, self.grad_scale = self.param_groups, divide_by
        groups[number]["lr"] = lr
        self.param_groups = [groups[number]]
        try:
            self.step()
        finally:
            self.param_groups = groups


def partitioned(adam: AdamW, names: dict[nn.Parameter, str], mpu: Mpu, group: Group) -> Any:
    """DeepSpeed's optimizer of ZeRO-1 for BF16: it moves the parameters of each group of `adam` into a flat tensor."""
    from deepspeed.runtime import bf16_optimizer
    from deepspeed.runtime.precision_config import get_bfloat16_config

    bf16_optimizer.see_memory_usage = lambda *args, **kwargs: None  # would collect garbage and print, many times
    settings = get_bfloat16_config({"bf16": {"enabled": True}})
    return bf16_optimizer.BF16_Optimizer(
        adam, names, settings, mpu=mpu, dp_process_group=group, grad_acc_dtype=torch.float32
    )


def mark_replicas(shards: list[ParameterShard]) -> None:
    """Tell DeepSpeed of copies that another pipeline stage holds as well: they count once in the norm."""
    for shard in shards:
        if shard.replica:
            shard.parameter.ds_pipe_replicated = True  # type: ignore[attr-defined]


def create_moments(adam: torch.optim.AdamW, masters: list[Tensor]) -> None:
    """Adam's state exists from the start, so that a checkpoint can fill it without a step that changes weights."""
    for master in masters:
        adam.state[master] = {
            "step": torch.zeros((), dtype=torch.float32, device=master.device),
            **{key: torch.zeros_like(master) for key in MOMENTS},
        }


def shape_of(parameter: nn.Parameter) -> tuple[int, ...]:
    """Shape of a parameter on this tensor-parallel rank, also where ZeRO-3 has taken the parameter apart."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def state_key(key: str) -> str | None:
    """How DeepSpeed calls a master or a moment."""
    return None if key == MASTER else key


def mapped_fragment(parameter: nn.Parameter, key: str) -> tuple[int, Tensor] | None:
    """The fragment where weights are whole on every rank (ZeRO-1 and 2): of those, the part that its masters update."""
    mapping = parameter._hp_mapping  # type: ignore[attr-defined]
    if mapping is None:
        return None
    address = mapping.lp_fragment_address
    if key == WEIGHT:
        return address.start, parameter.data.view(-1).narrow(0, address.start, address.numel)
    return address.start, mapping.get_hp_fragment(state_key(key)).data


def counts_in_norm(parameter: nn.Parameter, grid: Grid) -> bool:
    """Whether this rank's copy of a parameter enters the global norm: replicas of it must not count twice."""
    if getattr(parameter, "ds_pipe_replicated", False):
        return False
    return parameter.ndim > 1 or grid.tp_rank == 0
