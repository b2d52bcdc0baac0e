"""Batches prepared ahead of the step by a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from types import TracebackType


class Prefetcher[T]:
    """Gives `make(step)` for the steps [first, last), made by a thread at most `ahead` steps early.

    What `make` raises is raised where its result is asked for. With `ahead` 0 there is no thread. Use it in a `with`,
    or call `close`: it ends the thread, after the `make` that is under way, in which nothing waits for another process
    while `interrupted` is set.
    """

    def __init__(
        self,
        make: Callable[[int], T],
        first: int,
        last: int,
        ahead: int,
        interrupted: threading.Event | None = None,
    ) -> None:
        self._make, self._last, self._ahead = make, last, ahead
        self._interrupted = interrupted or threading.Event()
        self._begin(first)

    def _begin(self, first: int) -> None:
        self._step = first
        self._ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(max(1, self._ahead))
        self._closed = threading.Event()
        given = (range(first, self._last), self._ready, self._closed)
        self._thread = threading.Thread(target=self._run, args=given, name="prefetch", daemon=True)
        if self._ahead:
            self._thread.start()

    def __iter__(self) -> Iterator[T]:
        while self._step < self._last and not self._closed.is_set():
            yield self.take()

    def __enter__(self) -> Prefetcher[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def take(self) -> T:
        """What was made for the next step."""
        assert self._step < self._last, "there is no further step"
        self._step += 1
        if not self._ahead:
            return self._make(self._step - 1)
        result, error = self._ready.get()
        if error is not None:
            raise error
        return result  # type: ignore[return-value]

    def restart(self, step: int) -> None:
        """Go on from `step`, making anew what had been made ahead."""
        self.close()
        self._begin(step)

    def close(self) -> None:
        """End the thread; results that wait are dropped. May be called twice."""
        self._closed.set()
        self._interrupted.set()
        while self._thread.is_alive():
            while not self._ready.empty():
                self._ready.get_nowait()
            self._thread.join(timeout=0.05)
        self._interrupted.clear()

    def _run(
        self, steps: range, ready: queue.Queue[tuple[T | None, BaseException | None]], closed: threading.Event
    ) -> None:
        for step in steps:
            if closed.is_set():
                return
            try:
                ready.put((self._make(step), None))
            except BaseException as error:  # noqa: BLE001 - it belongs to the consumer, who raises it
                ready.put((None, error))
                return
