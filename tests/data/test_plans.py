"""Plans of rows that one process makes and the others map: the rows of before, nothing held for each document."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llama31 import config
from llama31.config import RunError
from llama31.data import plans, whole
from llama31.data.batches import Batches, Rows
from llama31.data.plans import Plans
from llama31.data.prefetch import Prefetcher

from .test_whole import BUCKETS, DECISIONS, RAMP, _data, _equal, _schedule, _step, _two

Packer = Callable[..., None]


def asked_first(given: Batches, step: int) -> Rows:
    """One row, of whichever source: plans are made for all."""
    return given.rows(step, np.array([0]))


@pytest.mark.parametrize("planned", [False, True])
def test_rows_are_those_of_runs_that_began_before_plans(
    planned: bool, tmp_path: Path, packed_source: Packer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Computed by the code that knew no files. A process that maps works nothing out."""
    monkeypatch.setattr(whole, "PLANNED_FROM", 0 if planned else 1 << 16)
    maker, mapper = (Plans(tmp_path / "rows", makes, 0.0) for makes in (True, False))
    total = hashlib.sha256()
    for ramp in ([], RAMP):
        for decisions in DECISIONS:
            data = _two(tmp_path, packed_source, length_buckets=BUCKETS)
            making = Batches(data, _schedule(ramp=ramp), decisions=decisions, plans=maker)
            mapping = Batches(data, _schedule(ramp=ramp), decisions=decisions, plans=mapper)
            with monkeypatch.context() as patch:
                for step in range(0, 60, 3):
                    asked_first(making, step)
                if planned:
                    patch.setattr(whole, "fill", None)
                    patch.setattr(whole, "_by_length", None)
                for step in range(0, 60, 3):
                    rows = _step(mapping, step)
                    for key in Rows.__dataclass_fields__:
                        total.update(np.ascontiguousarray(getattr(rows, key)).tobytes())
    assert total.hexdigest() == "7e2c1b5ba7dcb8a66d95b4f76c4e81625f676de16b3a8d0e0ddbe4a8ad969046"
    assert (tmp_path / "rows").exists() == planned


def test_what_a_mapping_process_holds_does_not_grow(
    tmp_path: Path, packed_source: Packer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes at their peak, from opening on, for documents of up to 60 tokens in rows of 64."""
    monkeypatch.setattr(whole, "PLANNED_FROM", 0)
    peaks = {}
    np.random.Philox(key=1)  # imports what it needs
    for count in (5_000, 80_000):
        packed_source("a", (np.arange(count) * 7919 % 60 + 1).tolist(), fingerprint=str(count))
        schedule = _schedule(1 << 26, length=64)
        maker, mapper = (Plans(tmp_path / "rows", makes, 0.0) for makes in (True, False))
        held = {}
        for kept in (maker, mapper):
            tracemalloc.start()
            given = Batches(_data(tmp_path), schedule, plans=kept)
            for step in (0, 1, 200):
                _step(given, step)
            held[kept.makes] = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        peaks[count] = held[False][1]
        assert held[True][0] < 100_000, "nor does the other hold what it has written"
    assert peaks[80_000] < 1.2 * peaks[5_000] < 100_000


def test_who_maps_waits_for_who_makes_and_not_for_ever(
    tmp_path: Path, packed_source: Packer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole, "PLANNED_FROM", 0)
    data = _two(tmp_path, packed_source)
    expected = _step(Batches(data, _schedule()), 0)
    folder = tmp_path / "rows"
    with pytest.raises(RunError, match=r"rows/documents-.*cluster.timeout_s=0; see whether it lives"):
        Batches(data, _schedule(), plans=Plans(folder, False, 0.0))
    rows: list[Rows] = []
    waiting = threading.Thread(
        target=lambda: rows.append(_step(Batches(data, _schedule(), plans=Plans(folder, False, 60.0)), 0))
    )
    waiting.start()
    asked_first(Batches(data, _schedule(), plans=Plans(folder, True, 0.0)), 0)
    waiting.join(60)
    assert _equal(rows[0], expected)


@pytest.mark.parametrize("damage", ["cut", "empty", "foreign", "garbage"])
def test_a_file_that_is_not_whole_or_not_its_own_is_made_again(damage: str, tmp_path: Path) -> None:
    made = {"a": np.arange(5), "b": np.ones((2, 3), np.float32), "c": np.zeros(0, np.int32)}
    maker, mapper = (Plans(tmp_path, makes, 0.0) for makes in (True, False))
    name, found = maker.arrays("epoch", [1], lambda: made)
    assert all(np.array_equal(found[key], made[key]) and found[key].dtype == made[key].dtype for key in made)
    path = tmp_path / name
    content = path.read_bytes()
    foreign, _ = maker.arrays("epoch", [2], lambda: made)
    changed = {"cut": content[:-1], "empty": b"", "foreign": (tmp_path / foreign).read_bytes(), "garbage": b"x" * 200}
    path.unlink()  # it is mapped
    path.write_bytes(changed[damage])
    with pytest.raises(RunError, match="has not written this plan"):
        mapper.arrays("epoch", [1], lambda: made)
    assert maker.arrays("epoch", [1], lambda: made)[0] == name and path.read_bytes() == content
    assert np.array_equal(mapper.arrays("epoch", [1], dict)[1]["b"], made["b"])
    assert len(list(tmp_path.iterdir())) == 2, "no draft is left"


@pytest.fixture
def kept_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any source has plans, which are removed five steps after they were held last."""
    monkeypatch.setattr(whole, "PLANNED_FROM", 0)
    monkeypatch.setattr(plans, "KEPT_STEPS", 5)


@pytest.mark.usefixtures("kept_briefly")
def test_files_that_no_step_needs_any_more_are_removed(tmp_path: Path, packed_source: Packer) -> None:
    packed_source("a", [9] * 300)
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / f"epoch-{'0' * 20}").write_bytes(b"")  # left by another attempt
    (folder / ".nfs0001").write_bytes(b"")  # removed by somebody while another maps it
    given = Batches(_data(tmp_path), _schedule(1 << 20), plans=Plans(folder, True, 0.0))
    expected = Batches(_data(tmp_path), _schedule(1 << 20))
    for step in range(801):
        assert _equal(asked_first(given, step), asked_first(expected, step))
        assert len([path for path in folder.iterdir() if path.name.startswith("epoch")]) <= 4
    kinds = sorted(path.name.split("-")[0] for path in folder.iterdir())
    assert kinds == [".nfs0001", "documents", "epoch", "epoch", "plan"]
    assert _equal(asked_first(given, 3), asked_first(expected, 3)), "of which a rollback finds what it needs made anew"


@pytest.mark.usefixtures("kept_briefly")
def test_files_of_a_source_that_is_seldom_drawn_stay(tmp_path: Path, packed_source: Packer) -> None:
    """Another process may read it for the first time at any step."""
    packed_source("a", [9] * 300)
    packed_source("b", [7] * 300)
    sources = {"a": config.Source(weight=0.997), "b": config.Source(weight=0.003)}
    data = dataclasses.replace(_data(tmp_path), sources=sources)
    folder = tmp_path / "rows"
    maker = Batches(data, _schedule(1 << 20), plans=Plans(folder, True, 0.0))
    expected = Batches(data, _schedule(1 << 20))
    last, drawn, longest = 0, 0, 0
    for step in range(400):
        asked_first(maker, step)
        if (expected.mixture.draw(step, np.arange(expected.batch_shape(step)[0])).source == 1).any():
            longest, last, drawn = max(longest, step - last), step, drawn + 1
            mapper = Batches(data, _schedule(1 << 20), plans=Plans(folder, False, 0.0))
            assert _equal(asked_first(mapper, step), asked_first(expected, step))
    assert drawn > 2 and longest > 40, "it was not needed for long enough, and then it was"


def test_who_is_interrupted_waits_no_more(tmp_path: Path) -> None:
    waiting = Plans(tmp_path, False, 3600.0)
    raised: list[BaseException] = []
    started = threading.Event()

    def make(step: int) -> None:
        started.set()
        try:
            waiting.arrays("epoch", [step], dict)
        except RunError as error:
            raised.append(error)
            raise

    read = Prefetcher(make, 0, 5, 1, waiting.interrupted)
    started.wait(60)
    read.close()
    assert not waiting.interrupted.is_set() and ["given up" in str(error) for error in raised] == [True]
