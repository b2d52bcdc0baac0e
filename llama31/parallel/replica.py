"""What the first rank of a model replica knows, told to the others by messages: rows of data are read once a replica.

Messages go along one axis after the other, PP, CP, TP, each from the rank that has them, in gloo groups of an axis: a
group of a whole replica of 2,048 ranks would open as many sockets in each process.
"""

from __future__ import annotations

import contextlib
import itertools
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist

from llama31.parallel.collectives import as_bytes, gloo_group, passed_on, sendable
from llama31.parallel.mesh import Grid, Group

_numbers = itertools.count()  # all ranks make the same ones in the same order


class Replica:
    """The ranks that hold one copy of the model. Its methods are for one thread, on all of them at once.

    `axes` are (gloo group, rank in it), from the first that messages go along to the last; without any, a rank is alone
    and nothing is sent.
    """

    def __init__(self, axes: Sequence[tuple[Group, int]] = ()) -> None:
        ranks = [rank for _, rank in axes]
        self._hops = [(group, rank) for at, (group, rank) in enumerate(axes) if not any(ranks[at + 1 :])]
        self.alone, self.reads = not axes, not any(ranks)

    @classmethod
    def of(cls, grid: Grid, timeout_s: float, own: bool | None = None) -> Replica:
        """That of a layout. Collective. `own`: with groups of its own, as it needs where the mesh's are not gloo's."""
        sizes = [(grid.pp, grid.pp_group), (grid.cp, grid.cp_group), (grid.tp, grid.tp_group)]
        groups = [group for size, group in sizes if size > 1]
        ranks = [dist.get_rank(group) for group in groups]
        number = next(_numbers)
        if own or (own is None and grid.device.type == "cuda"):
            members = [dist.get_process_group_ranks(group) for group in groups]
            groups = [gloo_group(f"replica/{number}/{axis}", one, timeout_s) for axis, one in enumerate(members)]
        return cls(list(zip(groups, ranks)))

    def close(self) -> None:
        """Let go of the groups: those that are its own end."""
        self._hops = []

    def shared[Result](self, action: Callable[[], Result]) -> Result:
        """What `action` returns on the reader, the first rank, on all ranks; and what it raises, too."""
        if not self.reads:
            return cast(Result, self.received())
        with self.telling():
            value = action()
        self.send(packed(value) if self._hops else b"")
        return value

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """On the reader: what is raised inside is raised by the others' `received`, too."""
        try:
            yield
        except Exception as error:
            if self._hops:
                self.send(pickle.dumps((None, sendable(error))))
            raise

    def send(self, content: bytes) -> None:
        """On the reader: what `packed` made, to all others."""
        if self._hops:
            self._passed(as_bytes(content))

    def received(self) -> Any:
        """On the others: what the reader sent. Raises what it told of."""
        value, error = pickle.loads(self._passed(None).numpy().data)
        if error is not None:
            raise error
        return value

    def _passed(self, content: torch.Tensor | None) -> torch.Tensor:
        """The content, got where it is None, and passed on along the axes at whose beginning this rank stands."""
        for group, rank in self._hops:
            assert (content is None) == (rank > 0), "the first rank of a hop has got it"
            content = passed_on(group, content)
        assert content is not None
        return content


ALONE = Replica()


def packed(value: object) -> bytes:
    """A value as it is sent; may be called by another thread, ahead of `send`."""
    return pickle.dumps((value, None), protocol=5)
