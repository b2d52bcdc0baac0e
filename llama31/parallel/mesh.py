"""Processes -> groups. The only place that touches Megatron's `parallel_state`.

Ranks are laid out TP, CP, PP, DP from the fastest axis to the slowest (report, section 3.3.2): tensor parallelism
talks most and stays inside a node, data parallelism talks least. Megatron's own default would put DP inside PP.
"""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from llama31 import config
from llama31.parallel import cpu, groups

Group = Any  # torch.distributed.ProcessGroup, whose stubs lack what is used here


@dataclass(frozen=True)
class Grid:
    """Where this process stands on each axis, and the groups it shares with its neighbours."""

    tp: int
    cp: int
    pp: int
    dp: int
    vpp: int
    tp_rank: int
    cp_rank: int
    pp_rank: int
    dp_rank: int
    rank: int
    world: int
    device: torch.device
    tp_group: Group
    cp_group: Group
    pp_group: Group
    dp_group: Group
    dp_cp_group: Group
    model_group: Group
    embedding_group: Group | None

    @property
    def first_stage(self) -> bool:
        return self.pp_rank == 0

    @property
    def last_stage(self) -> bool:
        return self.pp_rank == self.pp - 1


def connect(timeout_s: int) -> torch.device:
    """Join the process group that torchrun described in the environment; alone when it described none.

    Returns the device of this process. NCCL where there is a GPU, gloo where there is none.
    """
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    cpu.install()
    if dist.is_initialized():
        return device
    backend, timeout = "nccl" if cuda else "gloo", datetime.timedelta(seconds=timeout_s)
    bound: dict[str, Any] = {"device_id": device} if cuda else {}
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group(backend, timeout=timeout, **bound)
    else:
        dist.init_process_group(backend, timeout=timeout, store=dist.HashStore(), rank=0, world_size=1, **bound)
    return device


def create(parallel: config.Parallel, timeout_s: int = 1800) -> Grid:
    """Build the groups of a layout over all processes (torchrun's, or this one alone), in place of those in use.

    Raises ValueError when the layout does not multiply out to the world size.
    """
    device = connect(timeout_s)
    from megatron.core import parallel_state as state
    from megatron.core import tensor_parallel

    world = dist.get_world_size()
    model = parallel.tp * parallel.cp * parallel.pp
    if world % model or (parallel.dp is not None and parallel.dp * model != world):
        raise ValueError(
            f"parallel: tp={parallel.tp} x cp={parallel.cp} x pp={parallel.pp} x dp={parallel.dp} does not multiply "
            f"out to the {world} processes started; start another number or change the layout"
        )
    if state.model_parallel_is_initialized():
        release()
    with groups.made_once(state):
        state.initialize_model_parallel(
            parallel.tp,
            parallel.pp,
            parallel.vpp if parallel.vpp > 1 else None,
            context_parallel_size=parallel.cp,
            expert_tensor_parallel_size=parallel.tp * parallel.cp,  # no experts, but this order asks to be consistent
            order="tp-cp-ep-pp-dp",
            distributed_timeout_minutes=max(1, timeout_s // 60),
            create_gloo_process_groups=False,
        )
    tensor_parallel.model_parallel_cuda_manual_seed(1, force_reset_rng=True)
    first_or_last = state.get_pipeline_model_parallel_rank() in (0, parallel.pp - 1)
    return Grid(
        tp=parallel.tp,
        cp=parallel.cp,
        pp=parallel.pp,
        dp=world // model,
        vpp=parallel.vpp,
        tp_rank=state.get_tensor_model_parallel_rank(),
        cp_rank=state.get_context_parallel_rank(),
        pp_rank=state.get_pipeline_model_parallel_rank(),
        dp_rank=state.get_data_parallel_rank(),
        rank=dist.get_rank(),
        world=world,
        device=device,
        tp_group=state.get_tensor_model_parallel_group(),
        cp_group=state.get_context_parallel_group(),
        pp_group=state.get_pipeline_model_parallel_group(),
        dp_group=state.get_data_parallel_group(),
        dp_cp_group=state.get_data_parallel_group(with_context_parallel=True),
        model_group=state.get_model_parallel_group(),
        embedding_group=state.get_embedding_group() if first_or_last else None,
    )


def stage_group() -> Group:
    """All ranks of this one's pipeline stage: TP, CP and DP, over which FP8's maxima are taken."""
    from megatron.core import parallel_state as state

    return state.get_amax_reduction_group(with_context_parallel=True)


def release() -> None:
    """Leave the groups of the layout in use. Collective.

    Megatron alone would keep them: of gloo some fifty threads that wake up a hundred times a second, for each layout.
    """
    from megatron.core import parallel_state as state

    dist.barrier()
    for group in state._global_process_group_list or []:
        if group is not None:  # which stands for the default one
            dist.destroy_process_group(group)
    state.destroy_model_parallel()


def close() -> None:
    """Leave all groups; afterwards another layout can be created."""
    from megatron.core import parallel_state as state

    if dist.is_initialized():
        dist.barrier()  # nobody leaves while another still talks to it
        state.destroy_model_parallel()
        dist.destroy_process_group()


class Mpu:
    """What DeepSpeed asks of a model-parallel unit, answered from a `Grid`.

    `parallel_state` itself will not do: its data-parallel group excludes CP, so ZeRO would not reduce over CP.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    def get_data_parallel_group(self) -> Group:
        return self.grid.dp_cp_group

    def get_data_parallel_rank(self) -> int:
        return dist.get_rank(self.grid.dp_cp_group)

    def get_data_parallel_world_size(self) -> int:
        return self.grid.dp * self.grid.cp

    def get_data_parallel_group_ranks(self) -> list[int]:
        return dist.get_process_group_ranks(self.grid.dp_cp_group)

    def get_model_parallel_group(self) -> Group:
        return self.grid.model_group

    def get_model_parallel_rank(self) -> int:
        return dist.get_rank(self.grid.model_group)

    def get_model_parallel_world_size(self) -> int:
        return self.grid.tp * self.grid.pp

    def get_tensor_model_parallel_group(self) -> Group:
        return self.grid.tp_group

    def get_tensor_model_parallel_rank(self) -> int:
        return self.grid.tp_rank

    def get_tensor_model_parallel_world_size(self) -> int:
        return self.grid.tp

    def get_tensor_model_parallel_src_rank(self) -> int:
        return dist.get_process_group_ranks(self.grid.tp_group)[0]

    def get_pipeline_model_parallel_group(self) -> Group:
        return self.grid.pp_group

    def get_pipeline_model_parallel_rank(self) -> int:
        return self.grid.pp_rank

    def get_pipeline_model_parallel_world_size(self) -> int:
        return self.grid.pp
