"""Batches made ahead: in order, not too far, with errors where they belong, and a thread that ends."""

from __future__ import annotations

import threading
import time

import pytest

from llama31.data.prefetch import Prefetcher


def _threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_results_come_in_order_and_not_too_early(ahead: int) -> None:
    made: list[int] = []

    def make(step: int) -> int:
        made.append(step)
        return step * step

    with Prefetcher(make, 3, 9, ahead) as results:
        for step, result in zip(range(3, 9), results):
            assert result == step * step
            time.sleep(0.01)
            assert len(made) <= step - 3 + 1 + ahead + 1  # one more is in the hands of the thread
    assert made == list(range(3, 9)) and not _threads()


@pytest.mark.parametrize("ahead", [0, 2])
def test_errors_reach_the_step_that_caused_them(ahead: int) -> None:
    def make(step: int) -> int:
        if step == 2:
            raise ValueError("step 2 is bad")
        return step

    seen = []
    with pytest.raises(ValueError, match="step 2 is bad"), Prefetcher(make, 0, 5, ahead) as results:
        seen += results
        seen.extend(iter(results))
    assert not _threads()


def test_leaving_early_ends_the_thread() -> None:
    with Prefetcher(lambda step: step, 0, 10**9, 2) as results:
        assert next(iter(results)) == 0
        assert _threads()
    assert not _threads()
    results.close()


@pytest.mark.parametrize("ahead", [0, 3])
def test_restart_makes_anew_what_was_made_ahead(ahead: int) -> None:
    factor = 1
    with Prefetcher(lambda step: factor * step, 0, 10, ahead) as batches:
        assert [batches.take() for _ in range(4)] == [0, 1, 2, 3]
        factor = 100
        batches.restart(2)
        assert list(batches) == [100 * step for step in range(2, 10)]
