"""Rows of whole documents: none that fits is split, each is read in its turn, and little is padding."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from llama31 import config
from llama31.data import bins
from llama31.data.batches import Batches, Rows
from llama31.data.mixture import Skip, Weights

Packer = Callable[..., None]
RAMP = [config.Ramp(from_tokens=1024, batch_tokens=128, sequence_length=64), config.Ramp(3072, 128, 32)]
BUCKETS = [config.Bucket(0), config.Bucket(12, 3.0), config.Bucket(40, 0.5)]


def _data(tmp_path: Path, names: str = "a", **keys: object) -> config.Data:
    sources = {name: config.Source(weight=1.0 + 2 * number) for number, name in enumerate(names)}
    return config.Data(folder=str(tmp_path), sources=sources, packing="whole", **keys)  # type: ignore[arg-type]


def _schedule(total_tokens: int = 8192, ramp: list[config.Ramp] = [], length: int = 16) -> config.Schedule:  # noqa: B006
    return config.Schedule(
        total_tokens=total_tokens, batch_tokens=64, sequence_length=length, ramp=list(ramp), peak_lr=1e-3
    )


def _step(given: Batches, step: int) -> Rows:
    return given.rows(step, np.arange(given.batch_shape(step)[0]))


def _equal(one: Rows, two: Rows) -> bool:
    return all(np.array_equal(getattr(one, key), getattr(two, key)) for key in Rows.__dataclass_fields__)


def _pieces(rows: Rows) -> Iterator[np.ndarray]:
    """Tokens of every document in every row; padding, the last one, is told by its zeros and left out."""
    for tokens, documents, mask in zip(rows.tokens, rows.documents, rows.loss_mask):
        for number in np.unique(documents):
            piece = tokens[documents == number]
            if piece.any() or mask[documents == number].any():
                yield piece


# --- bins -------------------------------------------------------------------------------------------------------------


def _best_fit(spans: list[int], row_tokens: int) -> int:
    """Rows that best fit from the longest down needs, one piece after the other."""
    rooms: list[int] = []
    for span in sorted(spans, reverse=True):
        fitting = [room for room in rooms if room >= span]
        rooms.append(row_tokens - span)
        if fitting:
            rooms.pop()
            rooms.remove(min(fitting))
            rooms.append(min(fitting) - span)
    return len(rooms)


@pytest.mark.parametrize("seed", range(8))
def test_bins_are_those_of_best_fit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    row_tokens = int(rng.integers(5, 60))
    spans = rng.integers(1, row_tokens + 1, 40)
    counts = rng.integers(0, 9, 40)
    result = bins.fill(spans, counts, row_tokens)
    assert np.array_equal(np.bincount(result.items, minlength=40), counts)
    held = np.add.reduceat(spans[result.items], result.begins[:-1])
    assert held.max() <= row_tokens and np.diff(result.begins).min() > 0
    assert result.rows == _best_fit(np.repeat(spans, counts).tolist(), row_tokens)


def test_bins_of_nothing() -> None:
    assert bins.fill(np.zeros(0, np.int64), np.zeros(0, np.int64), 8).rows == 0


@pytest.mark.parametrize(("row_tokens", "share"), [(2048, 0.002), (8192, 0.005), (32768, 0.02)])
def test_real_text_leaves_little_padding(row_tokens: int, share: float) -> None:
    """The sources of Python's standard library, at four bytes per token."""
    files = Path(os.__file__).parent.rglob("*.py")
    sizes = [file.stat().st_size // 4 + 2 for file in files if "site-packages" not in file.parts]
    spans, counts = np.unique([n for size in sizes for n in _split(size, row_tokens)], return_counts=True)
    result = bins.fill(spans, counts, row_tokens)
    assert len(sizes) > 300 and 1 - sum(sizes) / (result.rows * row_tokens) < share


# --- documents --------------------------------------------------------------------------------------------------------


def test_no_document_that_fits_is_split_and_each_is_read_once_an_epoch(tmp_path: Path, packed_source: Packer) -> None:
    lengths = np.random.default_rng(0).integers(0, 17, 300).tolist()
    packed_source("a", lengths, first=1)
    begins = dict(zip(np.cumsum([1, *lengths]).tolist(), lengths))
    given = Batches(_data(tmp_path), _schedule())
    read: Counter[int] = Counter()
    step = 0
    while sum(read.values()) < 2 * np.count_nonzero(lengths):
        rows = _step(given, step)
        for piece in _pieces(rows):
            assert piece.size == begins[int(piece[0])] and (np.diff(piece) == 1).all()
            read[int(piece[0])] += 1
        assert max(read.values()) - min(read.get(first, 0) for first, n in begins.items() if n) <= 2
        inside = rows.documents[:, 1:] == rows.documents[:, :-1]
        used = rows.tokens[:, 1:] > 0
        assert np.array_equal(rows.loss_mask[:, :-1] == 1, inside & used)
        assert (rows.labels[rows.loss_mask == 1] == rows.tokens[rows.loss_mask == 1] + 1).all()
        step += 1
    assert len(read) == np.count_nonzero(lengths)


def test_long_documents_are_split_at_rows_alone(tmp_path: Path, packed_source: Packer) -> None:
    lengths = [5, 40, 16, 3, 33, 100, 7, 32, 9, 11, 1]
    packed_source("a", lengths, first=1)
    begins = np.cumsum([1, *lengths])[:-1].tolist()
    given = Batches(_data(tmp_path), _schedule())
    pieces: Counter[tuple[int, int]] = Counter()
    predicted: list[int] = []
    rows_of_epoch = bins.fill(*np.unique([n for d in lengths for n in _split(d)], return_counts=True), 16).rows
    for step in range(-(-rows_of_epoch // 4)):
        rows = _step(given, step)
        keep = np.arange(4) + 4 * step < rows_of_epoch
        rows = Rows(*(getattr(rows, name)[keep] for name in Rows.__dataclass_fields__))
        pieces.update((int(piece[0]), piece.size) for piece in _pieces(rows))
        predicted += rows.labels[rows.loss_mask == 1].tolist()
    wanted = [(first + 16 * i, n) for first, d in zip(begins, lengths) for i, n in enumerate(_split(d))]
    assert pieces == Counter(wanted)
    inner = set(range(1, 1 + sum(lengths))) - set(begins)
    assert sorted(predicted) == sorted(inner)  # also the first token of a piece, from the end of the one before


def _split(length: int, row_tokens: int = 16) -> list[int]:
    return [row_tokens] * (length // row_tokens) + ([length % row_tokens] if length % row_tokens else [])


DECISIONS = [
    [],
    [Skip(10, 14), Skip(3, 9), Weights(700, {"a": 1.0, "b": 1.0}), Weights(2000, {"a": 0.0, "b": 1.0})],
    [Weights(1500, {"a": 3.0, "b": 1.0}, [1.0, 1.0, 1.0])],
]


@pytest.mark.parametrize("decisions", DECISIONS)
@pytest.mark.parametrize("buckets", [[], BUCKETS])
@pytest.mark.parametrize("ramp", [[], RAMP])
def test_a_batch_is_a_pure_function_of_the_step(
    decisions: list[Skip | Weights],
    buckets: list[config.Bucket],
    ramp: list[config.Ramp],
    tmp_path: Path,
    packed_source: Packer,
) -> None:
    if not buckets:
        decisions = [Weights(d.from_tokens, d.weights) if isinstance(d, Weights) else d for d in decisions]
    data = _two(tmp_path, packed_source, length_buckets=buckets)
    used = Batches(data, _schedule(ramp=ramp), decisions=decisions)
    in_order = [_step(used, step) for step in range(60)]
    for step in (59, 0, 22, 40, 15, 16):
        fresh = Batches(data, _schedule(ramp=ramp), decisions=decisions)
        assert _equal(_step(fresh, step), in_order[step]) and _equal(_step(used, step), in_order[step])
        assert fresh.lengths(step) == used.lengths(step)
        half = fresh.lengths(step, np.array([0])) + fresh.lengths(step, np.arange(1, len(in_order[step].tokens)))
        assert half == used.lengths(step)
    data.seed += 1
    assert not _equal(_step(Batches(data, _schedule(ramp=ramp), decisions=decisions), 0), in_order[0])


def _two(tmp_path: Path, packed_source: Packer, **keys: object) -> config.Data:
    rng = np.random.default_rng(1)
    packed_source("a", rng.integers(1, 60, 100).tolist())
    packed_source("b", rng.integers(1, 20, 400).tolist(), first=50_000)
    return _data(tmp_path, "ab", **keys)


def test_each_document_is_read_once_an_epoch_through_a_ramp(tmp_path: Path, packed_source: Packer) -> None:
    """Nobody is read for the second time while another waits for the first: no repetition, no gap."""
    lengths = np.random.default_rng(2).integers(1, 17, 600).tolist()
    packed_source("a", lengths, first=1)
    begins = np.cumsum([1, *lengths])[:-1]
    given = Batches(_data(tmp_path), _schedule(ramp=RAMP))
    read = np.zeros(sum(lengths) + 1, np.int64)
    for step in range(200):
        for piece in _pieces(_step(given, step)):
            read[piece[0]] += 1
        assert read[begins].max() - read[begins].min() <= 1
    assert read.max() > 3


def test_what_is_skipped_is_read_in_the_next_epoch(tmp_path: Path, packed_source: Packer) -> None:
    lengths = np.random.default_rng(2).integers(1, 17, 600).tolist()
    packed_source("a", lengths, first=1)
    ramp = [config.Ramp(1024, 128, 64)]
    plain = Batches(_data(tmp_path), _schedule(ramp=ramp))
    skipped = Batches(_data(tmp_path), _schedule(ramp=ramp), decisions=[Skip(5, 8)])
    assert all(_equal(_step(plain, step), _step(skipped, step)) for step in range(5))
    assert all(_equal(_step(plain, step + 3), _step(skipped, step)) for step in range(5, 13))
    left_out = {int(piece[0]) for step in range(5, 8) for piece in _pieces(_step(plain, step))}
    read = Counter(int(piece[0]) for step in range(90) for piece in _pieces(_step(skipped, step)))
    others = [n for first, n in read.items() if first not in left_out]
    assert max(others) - min(others) <= 1 and all(min(others) - 1 <= read[first] < max(others) for first in left_out)


def test_documents_that_were_split_begin_anew_in_longer_rows(tmp_path: Path, packed_source: Packer) -> None:
    lengths = [60] * 20 + [4] * 200
    packed_source("a", lengths, first=1)
    ramp = [config.Ramp(1024, 128, 64)]
    given = Batches(_data(tmp_path), _schedule(ramp=ramp))
    after = [piece for step in range(16, 32) for piece in _pieces(_step(given, step)) if piece.size > 4]
    assert {piece.size for piece in after} == {60}
    assert Counter(int(piece[0]) for piece in after).most_common(1)[0][1] <= -(-len(after) // 20)


def test_weights_by_length(tmp_path: Path, packed_source: Packer) -> None:
    """Tokens of an epoch by bucket; and weights that change at once, of which the documents keep their turns."""
    lengths = np.random.default_rng(3).integers(1, 60, 400)
    packed_source("a", lengths.tolist(), first=1)
    data = _data(tmp_path, length_buckets=BUCKETS)
    change = [Weights(32 * 1024, {"a": 1.0}, [1.0, 0.0, 0.0])]
    given = Batches(data, _schedule(64 * 1024, length=64), decisions=change)
    held = np.array([lengths[lengths < 12].sum(), lengths[(lengths >= 12) & (lengths < 40)].sum(), 0])
    held[2] = lengths.sum() - held.sum()
    expected = held * [2.0, 6.0, 1.0]
    before, after = (sum_of(given, steps) for steps in (range(512), range(512, 1024)))
    assert np.array(before.bucket_tokens) / before.tokens == pytest.approx(expected / expected.sum(), rel=0.05)
    assert after.bucket_tokens[1:] == (0, 0) and before.edges == (0, 12, 40)
    assert before.padding_share < 0.03
    read: Counter[int] = Counter(int(p[0]) for step in range(512) for p in _pieces(_step(given, step)))
    begins = np.cumsum([1, *lengths.tolist()])[:-1]
    for length in (3, 20, 50):
        turns = [read[int(first)] for first in begins[lengths == length]]
        assert max(turns) - min(turns) <= 1


def sum_of(given: Batches, steps: range) -> object:
    total = given.lengths(steps[0])
    for step in steps[1:]:
        total = total + given.lengths(step)
    return total


def test_lengths_are_the_true_ones(tmp_path: Path, packed_source: Packer) -> None:
    packed_source("a", [5, 40, 16, 3, 33, 100, 7, 32, 9, 11, 1], first=1)
    for packing in ("whole", "stream"):
        data = _data(tmp_path)
        data.packing = packing
        given = Batches(data, _schedule(ramp=RAMP))
        true = {first + i: n for first, n in zip(np.cumsum([1, 5, 40, 16, 3, 33, 100, 7, 32, 9, 11]).tolist(),
                [5, 40, 16, 3, 33, 100, 7, 32, 9, 11, 1]) for i in range(n)}  # fmt: skip
        for step in (0, 3, 20, 45):
            rows, recorded = _step(given, step), given.lengths(step)
            pieces = list(_pieces(rows))
            row_tokens = rows.tokens.shape[1]
            assert (recorded.pieces, recorded.tokens) == (len(pieces), sum(piece.size for piece in pieces))
            assert recorded.span_sum == sum(piece.size**2 for piece in pieces)
            assert recorded.length_sum == sum(true[int(token)] for piece in pieces for token in piece)
            assert recorded.long_tokens == sum(piece.size for piece in pieces if 2 * piece.size > row_tokens)
            assert recorded.padding_share == pytest.approx((rows.tokens == 0).mean())
            record = recorded.record()
            assert record["documents"] == len(pieces) and sum(record["length_shares"].values()) == pytest.approx(1)


def test_sources_keep_their_shares(tmp_path: Path, packed_source: Packer) -> None:
    given = Batches(_two(tmp_path, packed_source, length_buckets=BUCKETS), _schedule())
    source = np.concatenate([_step(given, step).source for step in range(25)])
    assert source.sum() == 75  # weights 1 and 3


def test_without_document_mask_padding_weighs_nothing(tmp_path: Path, packed_source: Packer) -> None:
    packed_source("a", [9, 9, 9, 9, 5, 5], first=1)
    masked, whole = (Batches(_data(tmp_path, document_mask=mask), _schedule(64)) for mask in (True, False))
    one, two = _step(masked, 0), _step(whole, 0)
    assert np.array_equal(one.tokens, two.tokens) and not two.documents.any()
    used = (two.tokens > 0).sum(axis=1)
    for row, n in enumerate(used):
        assert two.loss_mask[row].tolist() == [1.0] * (n - 1) + [0.0] * (16 - n + 1)
        assert (two.labels[row, : n - 1] == two.tokens[row, 1:n]).all()


def test_a_source_without_documents_of_the_wanted_lengths_is_named(tmp_path: Path, packed_source: Packer) -> None:
    packed_source("a", [5] * 20)
    buckets = [config.Bucket(0, 0.0), config.Bucket(12)]
    with pytest.raises(
        ValueError, match=r"data.sources.a: none of its documents is in a bucket of data.length_buckets"
    ):
        Batches(_data(tmp_path, length_buckets=buckets), _schedule(64))
