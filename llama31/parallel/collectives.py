"""What all ranks do together beside the step: one verdict for all, and who is first. Works without processes too.

Nothing here costs a rank more messages, sockets or memory with the number of ranks, but what `gathered` brings the
first one.
"""

from __future__ import annotations

import datetime
import itertools
import pickle
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist

WIDTH = 32  # ranks of a tree's groups: three levels hold 32,768, and no process talks to more than 93 others


class Tree:
    """All ranks in gloo groups of at most `width`, whose first ranks are in groups again, up to the first rank.

    One gloo group of 16,384 ranks would open as many sockets in each process. For one thread at a time. Collective to
    make; needs the process group.
    """

    def __init__(self, timeout_s: float, width: int = WIDTH) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        store, timeout = dist.distributed_c10d._get_default_store(), datetime.timedelta(seconds=timeout_s)
        number = next(_numbers)  # all ranks make the same trees in the same order
        self._groups: list[_Group] = []  # from this rank upwards
        for ranks in groups_of(self.rank, self.size, width):
            # Not by new_group: its members alone cannot call it (use_local_synchronization) where ranks belong to
            # different numbers of groups, for each names the group by a count of its own.
            prefix = dist.PrefixStore(f"tree/{number}/{ranks[0]}-{ranks[1]}", store)
            self._groups.append(_Group(prefix, ranks.index(self.rank), len(ranks), timeout))

    def close(self) -> None:
        """End the groups, whose threads otherwise live as long as this."""
        self._groups = []

    def gather(self, value: object) -> list[Any]:
        """All values by rank on the first rank, nothing elsewhere."""
        values = [value]
        for group in self._groups:
            values = [value for part in group.gather(values) for value in part]
        return values if self.rank == 0 else []

    def first_error(self, error: Exception | None) -> Exception | None:
        """The first rank's error of those that have one, on all ranks."""
        for group in self._groups:
            error = next((part for part in group.gather(error) if part is not None), None)
        return cast("Exception | None", self.broadcast(error))

    def broadcast(self, value: object) -> object:
        """The first rank's value, on all ranks."""
        for group in reversed(self._groups):
            value = group.broadcast(value)
        return value


class _Group:
    """Objects between the first rank of a few and the others, by gloo."""

    def __init__(self, store: dist.Store, rank: int, size: int, timeout: datetime.timedelta) -> None:
        self._rank, self._size = rank, size
        self._gloo: Any = dist.ProcessGroupGloo(store, rank, size, timeout)

    def gather(self, value: object) -> list[Any]:
        if self._rank > 0:
            self._send(_packed(value), 0)
            return []
        return [value, *(self._received(rank) for rank in range(1, self._size))]

    def broadcast(self, value: object) -> object:
        if self._rank > 0:
            return self._received(0)
        packed = _packed(value)
        for rank in range(1, self._size):
            self._send(packed, rank)
        return value

    def _send(self, packed: torch.Tensor, rank: int) -> None:
        self._gloo.send([torch.tensor([packed.numel()])], rank, 0).wait()
        self._gloo.send([packed], rank, 0).wait()

    def _received(self, rank: int) -> Any:
        size = torch.zeros(1, dtype=torch.int64)
        self._gloo.recv([size], rank, 0).wait()
        packed = torch.empty(int(size), dtype=torch.uint8)
        self._gloo.recv([packed], rank, 0).wait()
        return pickle.loads(packed.numpy().data)


_numbers = itertools.count()


def _packed(value: object) -> torch.Tensor:
    return torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)


Ranks = dist.ProcessGroup | Tree | None  # None: all ranks, by the process group that torchrun began


def groups_of(rank: int, size: int, width: int = WIDTH) -> list[list[int]]:
    """The groups of `rank` in a tree over range(size), from the bottom upwards; none of one member."""
    result: list[list[int]] = []
    stride = 1
    while stride < size and rank % stride == 0:
        first = rank - rank % (stride * width)
        ranks = list(range(first, min(first + stride * width, size), stride))
        if len(ranks) > 1:
            result.append(ranks)
        stride *= width
    return result


def rank_of(ranks: Ranks) -> int:
    """Rank among `ranks`; 0 without an initialised process group."""
    if isinstance(ranks, Tree):
        return ranks.rank
    return dist.get_rank(ranks) if dist.is_initialized() else 0


def size_of(ranks: Ranks) -> int:
    """How many `ranks` are; 1 without an initialised process group."""
    if isinstance(ranks, Tree):
        return ranks.size
    return dist.get_world_size(ranks) if dist.is_initialized() else 1


def on_all_ranks[Result](ranks: Ranks, action: Callable[[], Result]) -> Result:
    """Run `action` on every one of `ranks` and return the rank's own result; where one fails, every rank raises.

    Without an initialised process group this is a plain call. All raise the error of the first rank that has one, so
    that what follows an error is alike on all and nobody waits in a later collective; a rank's own is its cause.
    """
    if not dist.is_initialized():
        return action()
    value, failure = None, None
    try:
        value = action()
    except Exception as error:  # noqa: BLE001 - raised again below, after the others know
        failure = error
    failed = sendable(failure)
    agreed = ranks.first_error(failed) if isinstance(ranks, Tree) else _first_error(ranks, failed)
    if agreed is None:
        return cast(Result, value)
    if failure is not None and failed is failure and (type(failure), str(failure)) == (type(agreed), str(agreed)):
        raise failure  # with the place where it happened
    raise agreed from failure


def on_first_rank[Result](action: Callable[[], Result], ranks: Ranks = None) -> Result:
    """Run `action` on the first rank alone; its result on all ranks, and what it raises, too."""
    if not dist.is_initialized():
        return action()
    value = on_all_ranks(ranks, lambda: action() if rank_of(ranks) == 0 else None)
    if isinstance(ranks, Tree):
        return cast(Result, ranks.broadcast(value))
    shared = [value]
    dist.broadcast_object_list(shared, group=ranks, group_src=0, device=_device(ranks))
    return cast(Result, shared[0])


def gathered[Result](ranks: Ranks, action: Callable[[], Result]) -> list[Result]:
    """Run `action` on every one of `ranks`; all results by rank on the first one, nothing elsewhere.

    Where one rank fails, every rank raises, as in `on_all_ranks`.
    """
    value = on_all_ranks(ranks, action)
    if not dist.is_initialized():
        return [value]
    if isinstance(ranks, Tree):
        return ranks.gather(value)
    parts: list[Any] | None = [None] * dist.get_world_size(ranks) if dist.get_rank(ranks) == 0 else None
    dist.gather_object(value, parts, group=ranks, group_dst=0)
    return parts or []


def sendable(error: Exception | None) -> Exception | None:
    """An error as other ranks can get it: itself, or a RuntimeError with its text."""
    try:
        if str(pickle.loads(pickle.dumps(error))) == str(error):
            return error
        reason = ""
    except Exception as failure:  # noqa: BLE001 - errors of libraries may ask for arguments that they do not keep
        reason = f" ({failure!r})"
    return RuntimeError(f"{type(error).__name__}: {error}{reason}")


def _first_error(group: dist.ProcessGroup | None, failure: Exception | None) -> Exception | None:
    """The first rank's error of those that have one: a number for all, and the error itself where there is one."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    first = torch.tensor(size if failure is None else rank, device=_device(group))
    dist.all_reduce(first, op=dist.ReduceOp.MIN, group=group)
    number = int(first)
    if number == size:
        return None
    shared = [failure]
    dist.broadcast_object_list(shared, group=group, group_src=number, device=_device(group))
    return shared[0]


def _device(group: dist.ProcessGroup | None) -> torch.device:
    """Where the messages of a group lie."""
    if dist.get_backend(group) == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
