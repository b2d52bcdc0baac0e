"""How long to train between checkpoints: by tokens, by failures and stalls (Young/Daly), or by the clock."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from llama31 import config

FIRST_STALL_S = 10.0  # assumed until the first save has been measured
CHANGE = 0.1  # share by which the interval has to move before it is told again


def young_daly_s(stall_s: float, between_failures_s: float) -> float:
    """Training between checkpoints that costs least, to first order (Young 1974; Daly 2006): sqrt(2 stall MTBF)."""
    return math.sqrt(2 * stall_s * between_failures_s)


class Interval:
    """The clock of the checkpoints, on the rank that decides.

    Where `checkpoint.every_tokens` stands, tokens decide and this one never speaks. Else `checkpoint.mtbf_hours` and
    the longest stall of the last saves give the interval, or `checkpoint.every_minutes` where no failure rate is
    known; it is at least the time that writing one takes.
    """

    def __init__(self, given: config.Checkpoint, clock: Callable[[], float] = time.monotonic) -> None:
        self._mtbf_s = None if given.every_tokens or given.mtbf_hours is None else given.mtbf_hours * 3600
        self._fixed_s = None if given.every_tokens or given.every_minutes is None else given.every_minutes * 60
        self._clock, self._since_s = clock, clock()
        self._stalls_s: list[float] = []
        self._write_s = 0.0
        self._announced_s = 0.0

    @property
    def interval_s(self) -> float | None:
        """Seconds between the beginnings of two saves; None where tokens decide."""
        if self._mtbf_s is None:
            return None if self._fixed_s is None else max(self._fixed_s, self._write_s)
        return max(young_daly_s(max(self._stalls_s, default=FIRST_STALL_S), self._mtbf_s), self._write_s)

    def due(self) -> bool:
        """Whether it is time to save."""
        interval_s = self.interval_s
        return interval_s is not None and self._clock() - self._since_s >= interval_s

    def saved(self, stall_s: float) -> None:
        """A save has just begun and stopped training for `stall_s`."""
        self._since_s = self._clock()
        self._stalls_s = [*self._stalls_s[-4:], max(stall_s, 1e-3)]

    def written(self, write_s: float) -> None:
        """A save was published `write_s` after training went on."""
        self._write_s = max(write_s, self._write_s)

    def news(self) -> str | None:
        """A sentence where the interval has changed since the last one."""
        interval_s = self.interval_s
        if (
            self._mtbf_s is None
            or interval_s is None
            or abs(interval_s - self._announced_s) <= CHANGE * self._announced_s
        ):
            return None
        self._announced_s = interval_s
        measured_s = max(self._stalls_s, default=None)
        stall = f"a stall of {FIRST_STALL_S} s" if measured_s is None else f"a measured stall of {measured_s:.3g} s"
        return (
            f"a checkpoint every {interval_s:.3g} s: Young/Daly for a failure every {self._mtbf_s / 3600:.3g} h "
            f"(checkpoint.mtbf_hours) and {stall}"
        )
