"""Megatron's process groups, each made once: of the 20 that it asks for, a rank of the 405B layouts needs 8 to 13.

Megatron enumerates the groups of every axis and combination of axes, for all ranks, and asks torch for each one. Many
are alike (without context parallelism the groups of TP and of TP x CP, of DP and of DP x CP), and where an axis has
one member, every rank would be in a group of its own, of 16,384 that all ranks make: those share one.
"""

from __future__ import annotations

import contextlib
import datetime
import math
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import numpy as np
import torch.distributed as dist


@contextlib.contextmanager
def made_once(state: Any) -> Iterator[None]:
    """Within it Megatron's `state` (the module `parallel_state`) makes no group twice. Collective, as what it makes."""
    made = _Groups(dist.get_rank())
    with (
        _unbound(),
        mock.patch.object(state, "create_group", made.group),
        mock.patch.object(state, "generate_masked_orthogonal_rank_groups", rank_groups),
    ):
        made.begin()
        yield
    state._global_process_group_list = [None, *made.known.values()]  # None stands for the default one


def rank_groups(world_size: int, sizes: Sequence[int], mask: Sequence[bool]) -> list[list[int]]:
    """The ranks of each group along the axes of `mask`, in Megatron's order: it takes seconds for 16,384 ranks.

    `sizes` are those of the axes, from the fastest to the slowest; they multiply out to `world_size`.
    """
    slowest_first = list(enumerate(zip(reversed(sizes), reversed(mask), strict=True)))
    across = [axis for axis, (_, inside) in slowest_first if not inside]
    along = [axis for axis, (_, inside) in slowest_first if inside]
    ranks = np.arange(world_size).reshape(list(reversed(sizes))).transpose(across + along)
    members = math.prod(size for size, inside in zip(sizes, mask, strict=True) if inside)
    result: list[list[int]] = ranks.reshape(-1, members).tolist()
    return result


class _Groups:
    """Stands for Megatron's `create_group`: the same calls on all ranks, in the same order."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.known: dict[tuple[int, ...], Any] = {}  # those of this rank
        self._others: set[tuple[int, ...]] = set()

    def begin(self) -> None:
        """The group of this rank alone: on every rank, since torch counts groups to name the next one."""
        self.known[self.rank,] = dist.new_group([self.rank], use_local_synchronization=True, group_desc="alone")

    def group(
        self,
        ranks: Sequence[int],
        timeout: datetime.timedelta | None = None,
        group_desc: str | None = None,
        **_: object,  # options of NCCL, which are the same for all
    ) -> Any:
        key = tuple(ranks)
        if key in self.known:
            return self.known[key]
        if len(key) == 1 or key in self._others:
            return dist.GroupMember.NON_GROUP_MEMBER
        group = dist.new_group(ranks, timeout=timeout, group_desc=group_desc)
        if self.rank in key:
            self.known[key] = group
        else:
            self._others.add(key)
        return group


@contextlib.contextmanager
def _unbound() -> Iterator[None]:
    """The default group without its device: with it torch makes each group by splitting the communicator of all.

    That is a call that all ranks have to join for each group of the world, members or not.
    """
    default: Any = dist.group.WORLD
    device, default.bound_device_id = default.bound_device_id, None
    try:
        yield
    finally:
        default.bound_device_id = device
