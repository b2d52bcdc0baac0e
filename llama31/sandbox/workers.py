"""Many programs at once, one per core."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from types import TracebackType
from typing import Any


class Workers:
    """Threads that each wait for one sandbox: `with Workers() as workers`.

    count: how many at once; the cores that this process may use, by default. On the way out what has not begun is
    given up, and what runs is waited for, which its own limits bound.
    """

    def __init__(self, count: int | None = None) -> None:
        self.count = count if count is not None else len(os.sched_getaffinity(0))
        if self.count < 1:
            raise ValueError(f"count={count}: no program would run; give 1 or more")
        self._threads = ThreadPoolExecutor(self.count, "sandbox")

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._threads.shutdown(cancel_futures=True)

    async def run[T](self, function: Callable[..., T], *given: Any) -> T:
        """`function(*given)` in a thread of these, for callers that do other things meanwhile."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *given)

    def each[A, T](self, function: Callable[[A], T], items: Iterable[A]) -> Iterator[tuple[A, T]]:
        """(item, result) in the order of the items, which are taken as they are needed."""
        waiting, left = deque[tuple[A, Future[T]]](), iter(items)
        while True:
            for item in islice(left, 2 * self.count - len(waiting)):
                waiting.append((item, self._threads.submit(function, item)))
            if not waiting:
                return
            item, future = waiting.popleft()
            yield item, future.result()
