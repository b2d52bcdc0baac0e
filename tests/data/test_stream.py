"""The order of documents in a stream: block by block, nothing held for each document, and as it was in older runs."""

from __future__ import annotations

import hashlib
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from llama31 import config
from llama31.data.batches import ORDER, WHOLE_ORDER, Batches
from llama31.data.stream import Scattered, Stream, permutation, shuffled
from llama31.tokens.indexed import BLOCK, IndexedReader, IndexedWriter

from .conftest import Packer

COUNT = 20_000  # documents: two blocks and a half


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> IndexedReader:
    """Documents of 0 to 22 tokens, which count up."""
    prefix = tmp_path_factory.mktemp("stream") / "train"
    writer = IndexedWriter(prefix, np.dtype(np.int32))
    lengths = (np.arange(COUNT) * 7919 % 23).astype(np.int32)
    writer.add(np.arange(lengths.sum()), lengths)
    writer.close()
    return IndexedReader(prefix)


def read(stream: Stream, position: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    tokens, documents = np.empty(count, np.int64), np.empty(count, np.int32)
    stream.read(position, tokens, documents)
    return tokens, documents


def digest(stream: Stream) -> str:
    """Of rows in four places of three epochs, their documents and true lengths."""
    rows, total = Scattered(stream, 64), hashlib.sha256()
    end = stream.epoch_tokens
    for position in [*range(0, 6400, 64), end - 64, 5 * end // 2, 64 * (end // 64) + 32]:
        arrays: list[Any] = [np.empty(64, kind) for kind in (np.int64, np.int64, np.int32, np.float32)]
        rows.row(position, *arrays, True)
        for array in (*arrays, *rows.spans(position, 64)):
            total.update(array.tobytes())
    return total.hexdigest()


def test_an_epoch_holds_every_document_once_whole_and_in_an_order_of_its_own(reader: IndexedReader) -> None:
    stream, end = Stream(reader, "7/print"), reader.tokens.size
    orders = []
    for epoch in range(2):
        tokens, documents = read(stream, epoch * end, end)
        firsts = np.flatnonzero(np.diff(documents, prepend=-1))
        assert sorted(tokens) == list(range(end))
        assert (np.diff(tokens)[np.diff(documents) == 0] == 1).all()  # nothing is torn
        assert firsts.size == (reader.lengths() > 0).sum()
        orders.append(tokens[firsts])
    assert (orders[0] != orders[1]).mean() > 0.99


def test_blocks_stay_together_and_come_in_another_order_each_epoch(reader: IndexedReader) -> None:
    stream, end, edges = Stream(reader, "7/print"), reader.tokens.size, reader.blocks()
    assert edges.size - 1 == -(-len(reader) // BLOCK) > 3
    visited = []
    for epoch in range(6):
        tokens, _ = read(stream, epoch * end, end)
        block = np.searchsorted(edges, tokens, side="right") - 1
        changes = np.flatnonzero(np.diff(block, prepend=-1))
        assert changes.size == edges.size - 1
        visited.append(tuple(block[changes].tolist()))
        inside = tokens[block == 0]
        jumps = np.abs(np.diff(inside))
        assert jumps[jumps != 1].mean() > edges[1] / 5  # documents of a block are mixed throughout
    assert len(set(visited)) > 1


def test_runs_that_began_before_blocks_go_on_as_they_began(reader: IndexedReader) -> None:
    """Computed by the code that knew one order alone."""
    assert digest(Stream(reader, "7/print", whole=True)) == (
        "ad16c5003fa7e430611e84d22b67b87160d8b042dab1460814f4cb23b2981de1"
    )
    assert digest(Stream(reader, "7/print")) != digest(Stream(reader, "7/print", whole=True))


def test_a_checkpoint_says_which_order_its_run_has(tmp_path: Path, packed_source: Packer) -> None:
    from llama31.train.feeds import TextFeed

    packed_source("a", [3] * (BLOCK + 100))
    data = config.Data(folder=str(tmp_path), sources={"a": config.Source()}, seed=5)
    schedule = config.Schedule(total_tokens=640, batch_tokens=64, sequence_length=32, peak_lr=1e-3)
    expected = {order: Batches(data, schedule, order=order).rows(3, np.arange(2)) for order in (ORDER, WHOLE_ORDER)}
    assert not np.array_equal(expected[ORDER].tokens, expected[WHOLE_ORDER].tokens)
    begun = TextFeed(data, schedule)
    begun.begin(SimpleNamespace(resumed=None, step=0))  # type: ignore[arg-type]
    extra = begun.extra()
    assert np.array_equal(begun.rows(3, np.arange(2)).tokens, expected[ORDER].tokens)
    before = {key: value for key, value in extra.items() if key != "order"}  # of a checkpoint written before blocks
    for kept, order in ((extra, ORDER), (before, WHOLE_ORDER)):
        resumed = SimpleNamespace(tokens=192, step=3, decisions=[], extra=kept)
        going_on = TextFeed(data, schedule)
        going_on.begin(SimpleNamespace(resumed=resumed, step=3))  # type: ignore[arg-type]
        assert np.array_equal(going_on.rows(3, np.arange(2)).tokens, expected[order].tokens)
        assert going_on.extra()["order"] == order


def test_blocks_are_read_from_their_file_or_found_in_the_index(tmp_path: Path) -> None:
    writer = IndexedWriter(tmp_path / "a", np.dtype(np.int32))
    lengths = np.arange(BLOCK + 5, dtype=np.int32) % 7
    writer.add(np.arange(lengths.sum()), lengths)
    writer.close()
    written = IndexedReader(tmp_path / "a").blocks()
    assert written.tolist() == [0, lengths[:BLOCK].sum(), lengths.sum()]
    file = tmp_path / "a.blocks"
    file.write_bytes(np.array([0, 7, 8], "<i8").tobytes())
    with pytest.raises(ValueError, match=r"a\.blocks: does not belong to its index; remove it, or pack this source"):
        IndexedReader(tmp_path / "a").blocks()
    file.unlink()
    assert np.array_equal(IndexedReader(tmp_path / "a").blocks(), written)


def test_the_order_within_a_block_is_fixed() -> None:
    """A permutation of any size up to a block's, by its seed alone, and every place as likely."""
    for count in (0, 1, 2, 1000, BLOCK):
        assert sorted(shuffled("7", count).tolist()) == list(range(count))
    assert shuffled("7", 8).tolist() == [7, 5, 0, 1, 6, 3, 2, 4]
    firsts = [int(shuffled(f"7/{number}", 10)[0]) for number in range(4000)]
    assert np.abs(np.bincount(firsts, minlength=10) - 400).max() < 80  # four standard deviations


def test_permutations_are_the_ranks_of_random_numbers() -> None:
    """As they have been since the first run: what was begun goes on by them."""
    for count in (0, 1, 2, 3000, BLOCK, 1 << 16, (1 << 16) + 1):
        key = int.from_bytes(hashlib.sha256(f"{count}".encode()).digest()[:16], "little")
        numbers = np.random.Philox(key=key).random_raw(count)
        assert np.array_equal(permutation(f"{count}", count), np.argsort(numbers, kind="stable"))


class Endless:
    """A source of so many documents of 1,000 tokens as a reader would give it, without its files."""

    def __init__(self, documents: int) -> None:
        self._documents = documents
        self.tokens = SimpleNamespace(size=1000 * documents)
        self.read = 0

    def __len__(self) -> int:
        return self._documents

    def blocks(self) -> NDArray[np.int64]:
        return 1000 * np.append(np.arange(0, self._documents, BLOCK), self._documents)

    def edges(self, documents: slice) -> NDArray[np.int64]:
        self.read += documents.stop - documents.start
        return 1000 * np.arange(documents.start, documents.stop)


def test_fifteen_trillion_tokens_fit_into_a_process() -> None:
    """15e9 documents: what is held is counted; the index is read where rows are, and nowhere else."""
    source: Any = Endless(15_000_000_000)
    tracemalloc.start()
    try:
        rows = Scattered(Stream(source, "7/print"), 8192)
        for row in range(64):
            whole, taken = rows.spans(row * 8192 + 14_000_000_000_000, 8192)
            assert taken.sum() == 8192 and (whole == 1000).all()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 300e6
    assert source.read <= 2 * 64 * (BLOCK + 1)
