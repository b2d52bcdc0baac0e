"""What all ranks do together beside the step: one verdict for all, and who is first. Works without processes too.

Nothing here costs a rank more messages, sockets or memory with the number of ranks, but what `gathered` brings the
first one.
"""

from __future__ import annotations

import datetime
import itertools
import pickle
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, cast

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
        number = next(_numbers)  # all ranks make the same trees in the same order
        self._groups = [  # from this rank upwards
            _Group(gloo_group(f"tree/{number}", ranks, timeout_s), ranks.index(self.rank), len(ranks))
            for ranks in groups_of(self.rank, self.size, width)
        ]

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

    def broadcast(self, value: object) -> Any:
        """The first rank's value, on all ranks."""
        for group in reversed(self._groups):
            value = group.broadcast(value)
        return value


class _Group:
    """Objects between the first rank of a few and the others, by gloo."""

    def __init__(self, gloo: Any, rank: int, size: int) -> None:
        self._gloo, self._rank, self._size = gloo, rank, size

    def gather(self, value: object) -> list[Any]:
        if self._rank > 0:
            packed = as_bytes(pickle.dumps(value))
            self._gloo.send([torch.tensor([packed.numel()])], 0, 0).wait()
            self._gloo.send([packed], 0, 0).wait()
            return []
        return [value, *(self._received(rank) for rank in range(1, self._size))]

    def broadcast(self, value: object) -> object:
        packed = None if self._rank > 0 else as_bytes(pickle.dumps(value))
        passed = passed_on(self._gloo, packed)
        return value if self._rank == 0 else pickle.loads(passed.numpy().data)

    def _received(self, rank: int) -> Any:
        size = torch.zeros(1, dtype=torch.int64)
        self._gloo.recv([size], rank, 0).wait()
        packed = torch.empty(int(size), dtype=torch.uint8)
        self._gloo.recv([packed], rank, 0).wait()
        return pickle.loads(packed.numpy().data)


_numbers = itertools.count()


def gloo_group(name: str, ranks: Sequence[int], timeout_s: float) -> Any:
    """A gloo group of these ranks of the world, at least two, which its members alone make, all under one `name`.

    Not by new_group: its members alone cannot call it (use_local_synchronization) where ranks belong to different
    numbers of groups, for each names the group by a count of its own.
    """
    store = dist.PrefixStore(f"{name}/{ranks[0]}-{ranks[1]}", dist.distributed_c10d._get_default_store())
    timeout = datetime.timedelta(seconds=timeout_s)
    return dist.ProcessGroupGloo(store, ranks.index(dist.get_rank()), len(ranks), timeout)


def as_bytes(content: bytes) -> torch.Tensor:
    """uint8 [bytes], as messages are sent."""
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def passed_on(gloo: Any, content: torch.Tensor | None) -> torch.Tensor:
    """What the first rank of a gloo group gives as `content`, uint8 [any size], on all of them; None on the others."""
    size = torch.tensor([0 if content is None else content.numel()])
    gloo.broadcast(size, 0).wait()
    content = torch.empty(int(size), dtype=torch.uint8) if content is None else content
    gloo.broadcast(content, 0).wait()
    return content


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
    if agreed is not None:
        _raise(agreed, failure)
    return cast(Result, value)


def on_first_rank[Result](action: Callable[[], Result], ranks: Ranks = None) -> Result:
    """Run `action` on the first rank alone; its result on all ranks, and what it raises, too."""
    if not dist.is_initialized():
        return action()
    value: Result | None = None
    failure: Exception | None = None
    if rank_of(ranks) == 0:
        try:
            value = action()
        except Exception as error:  # noqa: BLE001 - raised below, when the others know
            failure = error
    outcome = value, sendable(failure)
    value, agreed = ranks.broadcast(outcome) if isinstance(ranks, Tree) else _broadcast(outcome, ranks, 0)
    if agreed is not None:
        _raise(agreed, failure)
    return cast(Result, value)


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
    return cast(Exception, _broadcast(failure, group, number))


def _raise(agreed: Exception, own: Exception | None) -> NoReturn:
    """What all raise: this rank's own error, with the place where it happened, if it is that one."""
    if own is not None and (type(own), str(own)) == (type(agreed), str(agreed)):
        raise own
    raise agreed from own


def _broadcast(value: object, group: dist.ProcessGroup | None, first: int) -> Any:
    """The value of rank `first` of the group, on all of them."""
    shared = [value]
    dist.broadcast_object_list(shared, group=group, group_src=first, device=_device(group))
    return shared[0]


def _device(group: dist.ProcessGroup | None) -> torch.device:
    """Where the messages of a group lie."""
    if dist.get_backend(group) == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
