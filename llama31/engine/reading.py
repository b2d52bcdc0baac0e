"""Rows as each rank of a model replica gets them: read by the first, ahead of the step, and sent to the others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from llama31.data.prefetch import Prefetcher
from llama31.engine.objectives import MicroBatch
from llama31.parallel.replica import Replica, packed


class Heldout(Protocol):
    """Held-out rows by source; those at or beyond `count` are padding."""

    names: list[str]

    def count(self, name: str) -> int: ...
    def rows(self, name: str, indices: NDArray[np.int64]) -> Any: ...


class Reading:
    """The micro-batches of step after step, from `first` on. Use it in a `with`.

    `rows(step)` gives a replica's rows, in parts. Its first rank alone calls it, in a thread at most `ahead` steps
    early; what it raises is raised where the step takes them, on all ranks of the replica. Other replicas hear nothing.
    While `interrupted` is set, at the end and at a restart, it waits for no other process.
    """

    def __init__(
        self,
        replica: Replica,
        rows: Callable[[int], Sequence[Any]],
        device: torch.device,
        first: int,
        last: int,
        ahead: int,
        interrupted: threading.Event | None = None,
    ) -> None:
        self._replica, self._rows, self._device, self._step = replica, rows, device, first
        self._read = Prefetcher(self._made, first, last, ahead, interrupted) if replica.reads else None
        self.waited_s = 0.0  # by the first rank of the replica, for the rows taken last

    def take(self) -> list[MicroBatch]:
        """Those of the next step. Collective over the replica."""
        begun, seconds, step, self._step = time.perf_counter(), 0.0, self._step, self._step + 1
        if self._read is None:
            sent, rows = self._replica.received()
            assert sent == step, f"the reader is at step {sent}, not {step}"
            batches = self._on_device(rows)
        else:
            with self._replica.telling():
                batches, content = self._read.take()
            seconds = time.perf_counter() - begun
            self._replica.send(content)
        self.waited_s = self._replica.shared(lambda: seconds)
        return batches

    def restart(self, step: int) -> None:
        """Go on from `step`, with rows read anew."""
        self._step = step
        if self._read is not None:
            self._read.restart(step)

    def __enter__(self) -> Reading:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._read is not None:
            self._read.close()

    def _made(self, step: int) -> tuple[list[MicroBatch], bytes]:
        """Of a step: this rank's own, and what the others are sent."""
        rows = self._rows(step)
        return self._on_device(rows), b"" if self._replica.alone else packed((step, rows))

    def _on_device(self, rows: Sequence[Any]) -> list[MicroBatch]:
        return [MicroBatch.from_rows(part, self._device) for part in rows]


class SentHeldout:
    """Held-out rows that the first rank of a replica opens and reads. Collective over the replica."""

    def __init__(self, replica: Replica, opened: Callable[[], Heldout | None]) -> None:
        self._replica = replica
        self._own: Heldout | None = None  # on the others it stays so
        self._counts = replica.shared(lambda: self._counted(opened))
        self.names = list(self._counts)

    def _counted(self, opened: Callable[[], Heldout | None]) -> dict[str, int]:
        self._own = opened()
        return {} if self._own is None else {name: self._own.count(name) for name in self._own.names}

    def count(self, name: str) -> int:
        """Rows of a source."""
        return self._counts[name]

    def rows(self, name: str, indices: NDArray[np.int64]) -> Any:
        """The given rows of a source."""
        return self._replica.shared(lambda: self._read(name, indices))

    def _read(self, name: str, indices: NDArray[np.int64]) -> Any:
        assert self._own is not None, "the reader opened it"
        return self._own.rows(name, indices)


def heldout(replica: Replica, opened: Callable[[], Heldout | None]) -> Heldout | None:
    """What `opened` gives on the first rank of the replica, for all of them; None where nothing is held out."""
    sent = SentHeldout(replica, opened)
    return sent if sent.names else None
