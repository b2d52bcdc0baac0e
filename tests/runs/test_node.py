"""What one process of a node works out for all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llama31 import config
from llama31.runs import node


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes this process the one of a local rank, as torchrun does."""
    folder = tmp_path / "attempt_0"
    folder.mkdir()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")

    def as_rank(rank: int) -> None:
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(folder / str(rank) / "error.json"))

    return as_rank


def never() -> dict[str, int]:
    raise AssertionError("the first process of the node has done this")


def test_the_first_process_works_for_all(started: Callable[[int], None]) -> None:
    started(0)
    assert node.once_a_node("config a=1", lambda: {"a": 1}) == {"a": 1}
    assert node.once_a_node("config a=2", lambda: {"a": 2}) == {"a": 2}
    started(3)
    assert node.once_a_node("config a=1", never) == {"a": 1}
    assert node.once_a_node("config a=2", never) == {"a": 2}


def test_the_others_wait_for_it(started: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    def first_comes_at_last(seconds: float) -> None:
        started(0)
        node.once_a_node("config", lambda: {"a": 3})

    monkeypatch.setattr(node.time, "sleep", first_comes_at_last)
    started(3)
    assert node.once_a_node("config", never) == {"a": 3}


def test_all_have_its_error(started: Callable[[int], None]) -> None:
    def refused() -> None:
        raise config.ConfigError([config.Issue("model.heads", 3, "does not divide", "give 4")], "a hint")

    messages = []
    for rank in (0, 5):
        started(rank)
        with pytest.raises(config.ConfigError) as raised:
            node.once_a_node("config", refused if rank == 0 else lambda: None)
        messages.append((str(raised.value), raised.value.issues, raised.value.hint))
    assert messages[0] == messages[1] and messages[0][1][0].key == "model.heads"


def test_what_cannot_be_handed_on_is_made_by_each(started: Callable[[int], None]) -> None:
    for rank in (0, 1):
        started(rank)
        assert node.once_a_node("lambda", lambda rank=rank: lambda: rank)() == rank  # type: ignore[misc]


@pytest.mark.parametrize("missing", ["TORCHELASTIC_ERROR_FILE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"])
def test_without_torchrun_it_is_a_plain_call(
    missing: str, started: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    started(2)
    monkeypatch.delenv(missing)
    assert node.once_a_node("config", lambda: 4) == 4
