"""What a process measures of itself while it trains: seconds by phase, peak memory."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Phases:
    """Seconds per phase of a step.

    `with phases("data"): ...` adds to that phase; `pop()` returns `{"data_s": ..., "step_s": ...}`
    since the last call and starts anew. `step_s` is wall time, so what no phase claims is visible as the difference.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._began_s = clock()
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began_s = self._clock()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + self._clock() - began_s

    def seconds(self, name: str) -> float:
        """Seconds of one phase since the last `pop`."""
        return self._seconds.get(name, 0.0)

    def pop(self) -> dict[str, float]:
        """Seconds by phase, keys ending in `_s`, and the wall time `step_s`."""
        now_s = self._clock()
        seconds = {f"{name}_s": value for name, value in self._seconds.items()} | {"step_s": now_s - self._began_s}
        self._began_s, self._seconds = now_s, {}
        return seconds


def peak_memory_bytes(cuda_peak_bytes: int | None = None) -> int:
    """Peak memory: of the device where its number is given, else the resident set of this process."""
    if cuda_peak_bytes is not None:
        return cuda_peak_bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
