"""Many sandboxes at once."""

from __future__ import annotations

import asyncio
import threading

import pytest

from llama31.sandbox.isolation import Sandbox
from llama31.sandbox.limits import Execution
from llama31.sandbox.workers import Workers
from tests.sandbox import bwrap


def test_results_come_in_the_order_of_items_that_are_taken_as_needed() -> None:
    taken: list[int] = []

    def items() -> object:
        for i in range(40):
            taken.append(i)
            yield i

    with Workers(3) as workers:
        results = workers.each(lambda i: i * i, items())  # type: ignore[arg-type]
        assert next(results) == (0, 0) and len(taken) <= 6
        assert list(results) == [(i, i * i) for i in range(1, 40)]


def test_as_many_run_at_once_as_asked() -> None:
    together = threading.Barrier(4, timeout=600)  # breaks where fewer than four come
    with Workers(4) as workers:
        assert len(list(workers.each(lambda _: together.wait(), range(8)))) == 8
    with pytest.raises(ValueError, match="count=0"):
        Workers(0)


def test_coroutines_await_programs() -> None:
    sandbox = Sandbox(program=bwrap.program())

    async def all_of_them(workers: Workers) -> list[Execution]:
        runs = (workers.run(sandbox.run, ["cat"], None, f"{i}") for i in range(6))
        return await asyncio.gather(*runs)

    with Workers(2) as workers:
        assert [outcome.stdout for outcome in asyncio.run(all_of_them(workers))] == [f"{i}" for i in range(6)]


def test_an_error_reaches_the_caller_and_what_has_not_begun_is_given_up() -> None:
    begun: list[int] = []

    def fails(i: int) -> None:
        begun.append(i)
        raise RuntimeError(f"of {i}")

    with pytest.raises(RuntimeError, match="of 0"), Workers(1) as workers:
        list(workers.each(fails, range(100)))
    assert len(begun) < 100
