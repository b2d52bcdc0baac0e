"""When to save: Young/Daly's optimum from what was measured, told when it changes, and never where tokens decide."""

from __future__ import annotations

import math

import pytest

from llama31 import config
from llama31.plan.interval import FIRST_STALL_S, Interval


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_interval_follows_the_measured_stall() -> None:
    clock = Clock()
    interval = Interval(config.Checkpoint(mtbf_hours=3.0), clock)
    first = math.sqrt(2 * FIRST_STALL_S * 3 * 3600)
    assert interval.interval_s == pytest.approx(first)
    assert "a checkpoint every" in (interval.news() or "") and interval.news() is None
    clock.now_s = first - 1
    assert not interval.due()
    clock.now_s = first
    assert interval.due()
    interval.saved(stall_s=0.5)
    assert not interval.due()
    assert interval.interval_s == pytest.approx(math.sqrt(2 * 0.5 * 3 * 3600))
    assert "a measured stall of 0.5 s" in (interval.news() or "")
    clock.now_s = first + 103.9  # sqrt(10800) = 103.923
    assert not interval.due()
    clock.now_s = first + 104
    assert interval.due()


def test_two_saves_never_overlap() -> None:
    interval = Interval(config.Checkpoint(mtbf_hours=1.0), Clock())
    interval.saved(stall_s=0.1)
    interval.written(write_s=500)
    assert interval.interval_s == 500


def test_without_a_failure_rate_the_clock_decides() -> None:
    """What no config says: a run of weeks saves every quarter of an hour."""
    clock = Clock()
    interval = Interval(config.Checkpoint(), clock)
    clock.now_s = 899
    assert not interval.due()
    clock.now_s = 900
    assert interval.due() and interval.news() is None
    interval.written(write_s=1000)
    assert interval.interval_s == 1000, "two saves never overlap"


NEVER = config.Checkpoint(every_minutes=None)


@pytest.mark.parametrize("given", [NEVER, config.Checkpoint(every_tokens=9, mtbf_hours=1.0)])
def test_tokens_decide(given: config.Checkpoint) -> None:
    clock = Clock()
    interval = Interval(given, clock)
    clock.now_s = 1e9
    assert interval.interval_s is None and not interval.due() and interval.news() is None
