"""One reader per model replica: all ranks have the rows that it read, and the error that it met. Ranks are threads."""

from __future__ import annotations

import itertools
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from llama31.data.batches import Rows
from llama31.dialogs import rows as dialog_rows
from llama31.engine import reading
from llama31.engine.objectives import MicroBatch
from llama31.engine.reading import Reading
from llama31.parallel import replica
from llama31.parallel.replica import ALONE, Replica
from tests.dialogs import pieces

pytestmark = pytest.mark.torch

CPU = torch.device("cpu")
SHAPE = (2, 3, 2)  # ranks along each axis


class Member:
    """One thread's end of a group that knows how to broadcast, as gloo's does."""

    def __init__(self, rank: int, inboxes: Sequence[queue.Queue[torch.Tensor]]) -> None:
        self.rank, self._inboxes, self.messages = rank, inboxes, 0

    def broadcast(self, tensor: torch.Tensor, root: int) -> Member:
        self.messages += 1
        if self.rank == root:
            for rank in set(range(len(self._inboxes))) - {root}:
                self._inboxes[rank].put(tensor.clone())
        else:
            got = self._inboxes[self.rank].get(timeout=60)
            assert got.shape == tensor.shape and got.dtype == tensor.dtype
            tensor.copy_(got)
        return self

    def wait(self) -> None:
        pass


def on_ranks(action: Callable[[Replica, list[Member]], Any], shape: Sequence[int] = SHAPE) -> list[Any]:
    """What `action` returns, or raises, on every rank of a replica of that shape, by rank."""
    groups: dict[Any, list[queue.Queue[torch.Tensor]]] = {}
    places = list(itertools.product(*map(range, shape)))
    members = []
    for place in places:
        ends = []
        for axis, rank in enumerate(place):
            line = axis, place[:axis], place[axis + 1 :]
            ends.append(Member(rank, groups.setdefault(line, [queue.Queue() for _ in range(shape[axis])])))
        members.append(ends)

    def run(ends: list[Member]) -> Any:
        try:
            return action(Replica([(end, end.rank) for end in ends]), ends)
        except Exception as error:  # noqa: BLE001 - it is the result
            return error

    with ThreadPoolExecutor(len(places)) as threads:
        return list(threads.map(run, members))


def text(step: int) -> Rows:
    tokens = np.arange(16).reshape(2, 8) + 100 * step
    documents = np.repeat([[0, 0, 0, 1, 1, 2, 2, 2]], 2, 0).astype(np.int32)
    return Rows(tokens, tokens + 1, np.ones((2, 8), np.float32), documents, np.zeros(2, np.int64))


def compared(step: int) -> dialog_rows.PackedRows:
    return dialog_rows.pack([[piece] for piece in pieces.dpo_pieces(0.2, count=2 + step)], 128, compares=True)


def content(batches: Sequence[MicroBatch]) -> list[Any]:
    """All numbers of micro-batches, to be compared."""
    tensors = []
    for batch in batches:
        found = [batch.tokens, batch.labels, batch.weights, batch.documents, batch.positions]
        if batch.compared is not None:
            found += [batch.compared.of_token, batch.compared.pairs, batch.compared.reference]
        tensors += [None if one is None else (one.dtype, one.tolist()) for one in found]
    return tensors


@pytest.mark.parametrize("ahead", [0, 2])
@pytest.mark.parametrize("rows_of", [text, compared])
def test_all_ranks_have_what_one_of_them_reads(rows_of: Callable[[int], Any], ahead: int) -> None:
    asked: dict[Replica, list[int]] = {}

    def read(of: Replica, ends: list[Member]) -> Any:
        def rows(step: int) -> list[Any]:
            asked.setdefault(of, []).append(step)
            return [rows_of(step), rows_of(step + 1)]

        with Reading(of, rows, CPU, 3, 9, ahead) as feed:
            taken = [content(feed.take()) for _ in range(4)]
            feed.restart(4)
            taken += [content(feed.take()) for _ in range(4, 9)]
            return taken, feed.waited_s, [end.messages for end in ends]

    results = on_ranks(read)
    expected = [
        content([MicroBatch.from_rows(rows_of(step + more), CPU) for more in (0, 1)])
        for step in (3, 4, 5, 6, 4, 5, 6, 7, 8)
    ]
    assert all(result[0] == expected for result in results)
    assert len(asked) == 1, "nobody else reads"
    assert len({result[1] for result in results}) == 1, "all say how long its reader waited"
    per_step = 4  # sizes and contents, of the rows and of the wait
    assert results[0][2] == [9 * per_step] * 3
    assert results[-1][2] == [0, 0, 9 * per_step], "who stands behind on the last axis hears along it alone"


class Odd(Exception):
    """An error of a library that cannot be sent as it is."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} is not {two}")


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [(ValueError("data.sources.a: gone"), ValueError, "data.sources.a: gone"), (Odd(1, 2), RuntimeError, "1 is not 2")],
)
def test_what_the_reader_meets_is_raised_by_all(error: Exception, kind: type, message: str, ahead: int) -> None:
    def rows(step: int) -> list[Any]:
        if step == 1:
            raise error
        return [text(step)]

    def read(of: Replica, ends: list[Member]) -> Any:
        with Reading(of, rows, CPU, 0, 9, ahead) as feed:
            feed.take()
            feed.take()

    results = on_ranks(read)
    assert results[0] is error
    assert all(type(result) is kind and message in str(result) for result in results[1:])


def test_held_out_rows_are_opened_and_read_by_one() -> None:
    class Held:
        def __init__(self) -> None:
            self.names = ["a", "b"]

        def count(self, name: str) -> int:
            return {"a": 3, "b": 0}[name]

        def rows(self, name: str, indices: Any) -> tuple[str, list[int]]:
            if name == "b":
                raise KeyError(name)
            return name, indices.tolist()

    opened = []

    def ask(of: Replica, ends: list[Member]) -> Any:
        held = reading.heldout(of, lambda: opened.append(of) or Held())  # type: ignore[func-returns-value]
        assert held is not None and reading.heldout(of, lambda: None) is None
        with pytest.raises(KeyError, match="b"):
            held.rows("b", np.arange(2))
        return held.names, held.count("a"), held.count("b"), held.rows("a", np.arange(2))

    assert on_ranks(ask) == [(["a", "b"], 3, 0, ("a", [0, 1]))] * 12
    assert len(opened) == 1


def test_a_rank_that_is_a_replica_by_itself_sends_and_packs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "packed", None)
    monkeypatch.setattr(replica, "packed", None)
    with Reading(ALONE, lambda step: [text(step)], CPU, 0, 3, 1) as feed:
        assert content(feed.take()) == content([MicroBatch.from_rows(text(0), CPU)])
    assert ALONE.shared(lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        ALONE.shared(lambda: 1 / 0)
