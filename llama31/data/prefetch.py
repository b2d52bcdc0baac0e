"""Batches prepared ahead of the step by a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Iterates over `make(step)` for the steps [first, last), made by a thread at most `ahead` steps early.

    What `make` raises is raised where its result is asked for. With `ahead` 0 there is no thread. Use it in a `with`,
    or call `close`: it ends the thread, after the `make` that is under way.
    """

    def __init__(self, make: Callable[[int], T], first: int, last: int, ahead: int) -> None:
        self._make, self._steps, self._ahead = make, range(first, last), ahead
        self._ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(max(1, ahead))
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        if ahead:
            self._thread.start()

    def __iter__(self) -> Iterator[T]:
        for step in self._steps:
            if self._closed.is_set():
                return
            yield self._next(step)

    def __enter__(self) -> Prefetcher[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the thread; results that wait are dropped. May be called twice."""
        self._closed.set()
        while self._thread.is_alive():
            while not self._ready.empty():
                self._ready.get_nowait()
            self._thread.join(timeout=0.05)

    def _next(self, step: int) -> T:
        if not self._ahead:
            return self._make(step)
        result, error = self._ready.get()
        if error is not None:
            raise error
        return result  # type: ignore[return-value]

    def _run(self) -> None:
        for step in self._steps:
            if self._closed.is_set():
                return
            try:
                self._ready.put((self._make(step), None))
            except BaseException as error:  # noqa: BLE001 - it belongs to the consumer, who raises it
                self._ready.put((None, error))
                return
