"""The rows of a step: pure in the step, independent of the layout, each token predicted once, boundaries known."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llama31 import config
from llama31.data import batches
from llama31.data.batches import Batches, HeldoutText, Rows, rank_rows
from llama31.data.mixture import Skip, Weights

Packer = Callable[..., None]


def _data(tmp_path: Path, sources: dict[str, float], **keys: object) -> config.Data:
    result = {name: config.Source(weight=weight) for name, weight in sources.items()}
    return config.Data(folder=str(tmp_path), sources=result, **keys)  # type: ignore[arg-type]


def _schedule(total_tokens: int = 4096, ramp: list[config.Ramp] = []) -> config.Schedule:  # noqa: B006
    return config.Schedule(
        total_tokens=total_tokens, batch_tokens=64, sequence_length=16, ramp=list(ramp), peak_lr=1e-3
    )


def _step(given: Batches, step: int) -> Rows:
    return given.rows(step, np.arange(given.batch_shape(step)[0]))


def _equal(one: Rows, two: Rows) -> bool:
    return all(np.array_equal(getattr(one, key), getattr(two, key)) for key in Rows.__dataclass_fields__)


@pytest.fixture
def two(tmp_path: Path, packed_source: Packer) -> config.Data:
    rng = np.random.default_rng(0)
    packed_source("a", rng.integers(1, 60, 100).tolist(), heldout=[9, 30, 1])
    packed_source("b", rng.integers(1, 9, 200).tolist(), first=50_000, heldout=[100])
    return _data(tmp_path, {"a": 3.0, "b": 1.0})


def test_a_batch_is_a_pure_function_of_the_step(two: config.Data) -> None:
    decisions = (Weights(1000, {"a": 1.0, "b": 4.0}), Skip(20, 24))
    used = Batches(two, _schedule(), decisions=decisions)
    in_order = [_step(used, step) for step in range(50)]
    for step in (49, 0, 17, 30):
        assert _equal(_step(Batches(two, _schedule(), decisions=decisions), step), in_order[step])
        assert _equal(_step(used, step), in_order[step])
    two.seed += 1
    assert not _equal(_step(Batches(two, _schedule(), decisions=decisions), 0), in_order[0])


@pytest.mark.parametrize(("micro_batch", "dp"), [(1, 1), (1, 2), (1, 4), (2, 2), (4, 1)])
def test_rows_do_not_depend_on_the_layout(two: config.Data, micro_batch: int, dp: int) -> None:
    given = Batches(two, _schedule())
    whole = _step(given, 7)
    taken = np.full_like(whole.tokens, -1)
    for rank in range(dp):
        for micro, indices in enumerate(rank_rows(4, micro_batch, dp, rank)):
            assert indices.tolist() == [(micro * dp + rank) * micro_batch + j for j in range(micro_batch)]
            taken[indices] = given.rows(7, indices).tokens
    assert np.array_equal(taken, whole.tokens)
    with pytest.raises(ValueError, match=r"parallel.micro_batch=3 x dp=1"):
        rank_rows(4, 3, 1, 0)


def test_every_token_is_predicted_once_an_epoch_through_a_ramp(tmp_path: Path, packed_source: Packer) -> None:
    packed_source("a", [7, 1, 40, 13, 100, 3, 300, 48])  # 512 tokens
    ramp = [config.Ramp(from_tokens=128, batch_tokens=128, sequence_length=64)]
    given = Batches(_data(tmp_path, {"a": 1.0}), _schedule(1024, ramp))
    rows = [_step(given, step) for step in range(9)]
    assert [r.tokens.shape for r in rows] == [(4, 16)] * 2 + [(2, 64)] * 7
    labels = np.concatenate([r.labels.ravel() for r in rows])
    tokens = np.concatenate([r.tokens.ravel() for r in rows])
    for epoch in range(2):
        assert sorted(tokens[512 * epoch : 512 * (epoch + 1)]) == list(range(512))
        assert np.unique(labels[512 * epoch : 512 * (epoch + 1)]).size >= 511  # one may be of the next epoch
    followed = labels == tokens + 1
    assert followed.sum() >= 1024 - 2 * 9  # within a document each token is followed by its own next one
    assert not np.array_equal(tokens[:512], tokens[512:1024])  # each epoch has its own order


def test_boundaries_of_documents(tmp_path: Path, packed_source: Packer) -> None:
    lengths = [7, 1, 40, 13, 100, 3, 300, 48]
    packed_source("a", lengths)
    document_of = np.repeat(np.arange(8), lengths)
    given = Batches(_data(tmp_path, {"a": 1.0}), _schedule(512))
    rows_of = [_step(given, step) for step in range(8)]
    assert sum((document_of[rows.tokens] != document_of[rows.labels]).sum() for rows in rows_of) == len(lengths)
    for rows in rows_of:
        crosses = document_of[rows.tokens] != document_of[rows.labels]
        assert np.array_equal(rows.loss_mask == 0, crosses)
        assert (rows.documents[:, 0] == 0).all()
        assert np.array_equal(np.diff(rows.documents) == 1, crosses[:, :-1])
        assert set(np.unique(np.diff(rows.documents))) <= {0, 1}
        assert (rows.labels[~crosses] == rows.tokens[~crosses] + 1).all()


def test_without_document_mask_a_row_is_one_document(tmp_path: Path, packed_source: Packer) -> None:
    packed_source("a", [5, 7, 9] * 20, heldout=[4, 5, 6])
    masked, whole = (_data(tmp_path, {"a": 1.0}, document_mask=mask) for mask in (True, False))
    trained, held = _step(Batches(whole, _schedule()), 0), HeldoutText(whole, 8, 14).rows("a", np.arange(2))
    for rows in (trained, held):
        assert not rows.documents.any()
    assert trained.loss_mask.all() and held.loss_mask.sum() == 14
    same = _step(Batches(masked, _schedule()), 0)
    assert np.array_equal(trained.tokens, same.tokens) and np.array_equal(trained.labels, same.labels)
    assert same.documents.any() and not same.loss_mask.all()


def test_a_document_that_follows_itself_is_another(tmp_path: Path, packed_source: Packer) -> None:
    """One document, read again and again: its end must not see, or predict, its own beginning."""
    packed_source("a", [20])
    rows = _step(Batches(_data(tmp_path, {"a": 1.0}, slot_tokens=20), _schedule(80)), 0)
    assert np.array_equal(rows.tokens.ravel(), np.arange(64) % 20)
    assert np.array_equal(rows.loss_mask.ravel() == 0, rows.labels.ravel() == 0)


def test_a_long_document_does_not_fill_batch_after_batch(tmp_path: Path, packed_source: Packer) -> None:
    packed_source("a", [16 * 64, 16 * 64])
    rows = [_step(Batches(_data(tmp_path, {"a": 1.0}), _schedule(2048)), step) for step in range(32)]
    begins = np.concatenate([r.tokens[:, 0] for r in rows])
    assert sorted(begins) == list(range(0, 2048, 16))
    first = begins < 1024
    assert 0.3 < first[:64].mean() < 0.7 and abs(np.corrcoef(begins, np.arange(128))[0, 1]) < 0.3


def test_a_row_may_begin_in_one_slot_and_end_in_another(tmp_path: Path, packed_source: Packer) -> None:
    packed_source("a", [512])
    ramp = [config.Ramp(from_tokens=96, batch_tokens=64, sequence_length=64)]
    data = _data(tmp_path, {"a": 1.0})
    schedule = config.Schedule(total_tokens=512, batch_tokens=32, sequence_length=32, ramp=ramp, peak_lr=1e-3)
    row = _step(Batches(data, schedule), 3)
    assert row.documents.tolist() == [[0] * 32 + [1] * 32]
    assert (row.labels == row.tokens + 1).mean() > 0.95 and row.tokens[0, 32] != row.labels[0, 31]


def test_sources_follow_their_weights(two: config.Data) -> None:
    given = Batches(two, _schedule())
    rows = [_step(given, step) for step in range(10)]
    assert given.names == ["a", "b"]
    source = np.concatenate([r.source for r in rows])
    assert source.sum() == 10
    assert np.array_equal(np.concatenate([r.tokens[:, 0] for r in rows]) >= 50_000, source == 1)


def test_new_weights_continue_each_source(two: config.Data) -> None:
    old = Batches(two, _schedule())
    new = Batches(two, _schedule(), decisions=[Weights(640, {"a": 1.0, "b": 1.0})])
    assert all(_equal(_step(old, step), _step(new, step)) for step in range(10))
    for source in (0, 1):
        streams = [
            np.concatenate([r.tokens[r.source == source].ravel() for r in (_step(g, s) for s in range(30))])
            for g in (old, new)
        ]
        shared = min(map(len, streams))
        assert np.array_equal(streams[0][:shared], streams[1][:shared])


def test_fingerprint_follows_the_data(two: config.Data, packed_source: Packer) -> None:
    before = Batches(two, _schedule()).fingerprint
    two.sources["a"].weight = 7.0
    two.seed = 3
    assert Batches(two, _schedule()).fingerprint == before == HeldoutText(two, 16, 64).fingerprint
    packed_source("b", [500, 20])
    assert Batches(two, _schedule()).fingerprint != before


def test_heldout_predicts_the_same_tokens_whatever_the_length(two: config.Data) -> None:
    for length in (4, 16, 1000):
        held = HeldoutText(two, length, tokens=60)
        assert (held.count("a"), held.count("b")) == (-(-39 // length), -(-60 // length))
        rows = held.rows("a", np.arange(held.count("a") + 1))
        labels = rows.labels[rows.loss_mask == 1]
        assert labels.tolist() == [*range(1, 9), *range(10, 39)]  # not 0, 9 and 39, which begin documents
        assert not rows.loss_mask[-1].any() and rows.tokens.shape == (held.count("a") + 1, length)
        assert HeldoutText(two, length, tokens=60).rows("b", np.array([0])).source.tolist() == [1]


def test_padding_is_a_document_of_its_own(two: config.Data) -> None:
    rows = HeldoutText(two, 32, tokens=1000).rows("a", np.array([1]))
    assert rows.documents[0, :7].tolist() == [0] * 7 and rows.documents[0, 7:].tolist() == [1] + [2] * 24


def test_sources_without_heldout_text(tmp_path: Path, packed_source: Packer, two: config.Data) -> None:
    packed_source("c", [100])
    two.sources["c"] = config.Source()
    held = HeldoutText(two, 16, 64)
    assert held.count("c") == 0 and not held.rows("c", np.array([0, 1])).loss_mask.any()
    with pytest.raises(ValueError, match=r"none of c has a split heldout; pack again"):
        HeldoutText(_data(tmp_path, {"c": 1.0}), 16, 64)


def test_what_is_wrong_with_the_data_is_named(tmp_path: Path, packed_source: Packer, two: config.Data) -> None:
    with pytest.raises(ValueError, match=r"data.sources.x: .*packed.json does not exist; pack it first"):
        Batches(_data(tmp_path, {"x": 1.0}), _schedule())
    packed_source("short", [16])
    with pytest.raises(ValueError, match=r"short has 16 tokens for train, less than one row of schedule.sequence_l"):
        Batches(_data(tmp_path, {"short": 1.0}), _schedule())
    packed_source("other", [100], tokenizer_fingerprint="u")
    with pytest.raises(ValueError, match=r"data.sources.other and data.sources.a were packed with different tok"):
        Batches(_data(tmp_path, {"a": 1.0, "other": 1.0}), _schedule())
    packed_source("mixed", [100])
    packed_source("b", [90, 8], first=7)
    for suffix in (".bin", ".idx"):
        (tmp_path / "mixed" / f"train{suffix}").write_bytes((tmp_path / "b" / f"train{suffix}").read_bytes())
    with pytest.raises(ValueError, match=r"holds 98 tokens in 2 documents, packed.json says 100 in 1"):
        Batches(_data(tmp_path, {"mixed": 1.0}), _schedule(64))
    (tmp_path / "a" / "packed.json").write_text("{}")
    with pytest.raises(ValueError, match=r"packed.json cannot be read .*overwrite=true"):
        Batches(two, _schedule())


def test_many_epochs_are_told(tmp_path: Path, packed_source: Packer) -> None:
    packed_source("a", [100])
    with pytest.warns(UserWarning, match=r"data.sources.a: training reads its 100 tokens 10.2 times"):
        Batches(_data(tmp_path, {"a": 1.0}), _schedule(1024))


def test_rows_beyond_the_batch_are_refused(two: config.Data) -> None:
    with pytest.raises(ValueError, match="step 0 has rows 0 to 3, not 0 to 4"):
        Batches(two, _schedule()).rows(0, np.arange(5))


def test_vocabulary_and_tokenizer_have_to_fit(two: config.Data) -> None:
    given = Batches(two, _schedule())
    model = config.Model("m", 1, 8, 8, 1, 1, vocab_size=99_999)
    with pytest.raises(ValueError, match=r"model.vocab_size=99999: .*tokenizer of 100000 ids; give model.vocab_size="):
        batches.check_vocabulary(given, model)
    model.vocab_size = 100_000
    batches.check_vocabulary(given, model)
    batches.check_tokenizer(given, "t")
    with pytest.raises(ValueError, match=r"tokenizer.path: .*not the one that packed data.sources.a"):
        batches.check_tokenizer(given, "u")


def test_a_source_that_is_drawn_no_more_may_be_gone(two: config.Data) -> None:
    decisions = (Weights(1024, {"a": 1.0, "b": 0.0}),)  # from step 16 on
    there = [_step(Batches(two, _schedule(), decisions=decisions), step) for step in range(40)]
    shutil.rmtree(Path(two.folder) / "b")
    for first in (0, 15):
        with pytest.raises(ValueError, match=r"data\.sources\.b: .* does not exist"):
            Batches(two, _schedule(), decisions=decisions, from_step=first)
    given = Batches(two, _schedule(), decisions=decisions, from_step=16)
    assert all(_equal(_step(given, step), there[step]) for step in range(16, 40))
    with pytest.raises(ValueError, match=r"data\.sources\.b: step \d+ draws from .*/b; put it back"):
        [_step(given, step) for step in range(16)]
    two.sources["b"].weight = 0.0
    assert HeldoutText(two, 16, 64).names == ["a"]
    assert Batches(two, _schedule()).names == ["a", "b"], "one that was never drawn need not be packed either"
