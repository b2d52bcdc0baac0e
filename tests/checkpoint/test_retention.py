"""Which checkpoints of a run stay."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from llama31 import config
from llama31.checkpoint import publish, retention
from llama31.checkpoint.shards import Block, Shard
from llama31.runs import attempts

pytestmark = pytest.mark.torch


def save(folder: Path, step: int, attempt: int = 0, loss: float | None = None) -> Path:
    meta = publish.Meta(model={}, step=step, tokens=10 * step, attempt=attempt, validation_loss=loss)
    return publish.save(folder, meta, [Shard("w", (2,), [Block((0,), torch.zeros(2))])])


def steps(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def keep(last: int | None, every: int | None = None, best: int = 0) -> config.Checkpoint:
    return config.Checkpoint(keep_last=last, keep_every_tokens=every, keep_best=best)


def test_the_newest_stay_and_torn_ones_do_not_count(tmp_path: Path) -> None:
    for step in (1, 2, 3, 20):
        save(tmp_path, step)
    os.truncate(tmp_path / "step-00000003" / "random.bin", 1)
    assert retention.prune(tmp_path, keep(None)) == []
    assert [path.name for path in retention.prune(tmp_path, keep(2))] == ["step-00000001"]
    assert steps(tmp_path) == ["step-00000002", "step-00000003", "step-00000020"]
    with pytest.raises(ValueError, match="keep_last=0"):
        retention.prune(tmp_path, keep(0))


def test_the_first_after_every_so_many_tokens_stay(tmp_path: Path) -> None:
    for step in range(3, 30, 3):  # 30, 60, ... 270 tokens, pruned after each as a run does
        save(tmp_path, step)
        retention.prune(tmp_path, keep(1, every=100))
    assert steps(tmp_path) == ["step-00000012", "step-00000021", "step-00000027"]


def test_the_best_stay(tmp_path: Path) -> None:
    for step, loss in enumerate([3.0, 2.0, None, float("nan"), 1.9, 2.7], start=1):
        save(tmp_path, step, loss=loss)
        retention.prune(tmp_path, keep(1, best=2))
    assert steps(tmp_path) == ["step-00000002", "step-00000005", "step-00000006"]


def test_only_the_newest_attempt_deletes_and_nothing_of_newer_ones(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for from_step in (0, 2):
        number = attempts.claim(tmp_path)
        (attempts.path_of(tmp_path, number) / "attempt.json").write_text(json.dumps({"from_step": from_step}))
    for step, attempt in ((1, 0), (2, 0), (3, 1), (4, 1)):
        save(folder, step, attempt)
    with pytest.raises(publish.Superseded):
        retention.prune(folder, keep(1), fence=lambda: attempts.newer(tmp_path, 0))
    assert len(steps(folder)) == 4
    assert [path.name for path in retention.prune(folder, keep(1), attempt=0)] == ["step-00000002", "step-00000001"]
    save(folder, 9, 0)  # off the history: neither counted nor deleted
    assert [path.name for path in retention.prune(folder, keep(1), attempt=1)] == ["step-00000003-a0001"]
    assert steps(folder) == ["step-00000004-a0001", "step-00000009"]


def test_where_the_run_went_on_from_stays_until_there_is_a_newer_one(tmp_path: Path) -> None:
    """The others may be corrupt in ways that sizes do not show."""
    loaded = save(tmp_path, 1)
    save(tmp_path, 2)
    assert retention.prune(tmp_path, keep(1), attempt=1, loaded=loaded) == []
    save(tmp_path, 3, attempt=1)
    gone = retention.prune(tmp_path, keep(1), attempt=1, loaded=loaded)
    assert [path.name for path in gone] == ["step-00000002", "step-00000001"]


def test_torn_ones_go_at_the_next_start_and_whole_ones_do_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step, attempt in ((1, 0), (2, 0), (3, 0), (3, 2)):
        save(tmp_path, step, attempt)
    os.truncate(tmp_path / "step-00000002" / "random.bin", 1)
    (tmp_path / "step-00000003-a0002" / "checkpoint.json").unlink()
    (tmp_path / ".tmp-step-00000004-0a1b2c3d").mkdir()
    (tmp_path / ".tmp-step-00000004-a0002-0a1b2c3d").mkdir()
    gone = retention.remove_torn(tmp_path, attempt=1)
    assert [path.name for path in gone] == ["step-00000002", ".tmp-step-00000004-0a1b2c3d"]
    assert "random.bin has 1 of" in caplog.text
    left = [".tmp-step-00000004-a0002-0a1b2c3d", "step-00000001", "step-00000003", "step-00000003-a0002"]
    assert steps(tmp_path) == left, "what a newer attempt writes is its own"


def test_a_torn_one_stays_where_there_is_no_other(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / "step-00000001" / "random.bin").unlink()
    assert retention.remove_torn(tmp_path, attempt=1) == [] and steps(tmp_path) == ["step-00000001"]


def test_a_held_out_loss_measured_after_the_save_counts(tmp_path: Path) -> None:
    for step, loss in enumerate([3.0, 2.0, None], start=1):
        save(tmp_path, step, loss=loss)
    retention.note_validation(tmp_path / "step-00000003", 1.5, keep(1, best=1))
    assert steps(tmp_path) == ["step-00000003"]
    assert publish.read_meta(tmp_path / "step-00000003").validation_loss == 1.5
    assert publish.verify(tmp_path / "step-00000003") == []
