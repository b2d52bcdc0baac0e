"""The table of blocks: what it finds, what it refuses, and what it costs at 16,384 ranks."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest

from benchmarks import scale_checkpoints as scale
from llama31.checkpoint import index, manifest
from llama31.checkpoint.checksum import Entry
from llama31.checkpoint.index import Index, Part, Placed, Shape, Table

pytestmark = pytest.mark.torch


def part(name: str, shape: Shape, *boxes: tuple[Shape, Shape], dtype: str = "float32") -> Part:
    return index.pack({name: shape}, [(0, dtype, offset, size) for offset, size in boxes])


def test_blocks_are_found_by_place(tmp_path: Path) -> None:
    """Of any shapes, in the files of any ranks; 500 boxes against all blocks looked at one by one."""
    random = np.random.default_rng(1)
    cuts = [sorted({0, 40, *random.integers(1, 40, 6).tolist()}) for _ in range(3)]
    columns = list(zip([0, 11, 17], [11, 17, 30], cuts))
    boxes = [((a, left), (b - a, right - left)) for left, right, rows in columns for a, b in itertools.pairwise(rows)]
    parts = [part("m", (40, 30), *boxes[rank::5]) for rank in range(5)]
    parts += [part("v", (7,), ((0,), (7,)), dtype="bfloat16"), index.pack({}, [])]
    table = Table(parts)
    done = [
        Placed(np.full((len(one.rows), 2), rank), Entry(1)) if len(one.rows) else None for rank, one in enumerate(parts)
    ]
    table.write(tmp_path, done, [f"file{rank}" for rank in range(len(parts))])
    found = Index(tmp_path / index.NAME)
    assert found.tensors == {"m": index.Tensor((40, 30), "float32"), "v": index.Tensor((7,), "bfloat16")}
    assert [(b.file, b.shape) for b in found.blocks("v")] == [("file5", (7,))]
    where = {box: f"file{rank}" for rank in range(5) for box in boxes[rank::5]}
    assert {(b.offset, b.shape): b.file for b in found.blocks("m")} == where
    for _ in range(500):
        at = (int(random.integers(0, 40)), int(random.integers(0, 30)))
        size = (int(random.integers(1, 41 - at[0])), int(random.integers(1, 31 - at[1])))
        touched = {(b.offset, b.shape) for b in found.blocks("m", at, size)}
        assert touched == {
            (offset, shape)
            for offset, shape in boxes
            if all(a < o + n and o < a + m for a, m, o, n in zip(at, size, offset, shape))
        }


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([part("w", (4, 3), ((0, 0), (2, 3)))], "w: blocks hold 6 of 12 elements; every part needs a rank that saves"),
        ([part("w", (4, 3))], "w: blocks hold 0 of 12"),
        ([part("w", (4, 3), ((0, 0), (2, 3))), part("w", (4, 3), ((1, 0), (2, 3)))], "w: its blocks overlap"),
        ([part("w", (4, 3), ((0, 0), (2, 3)), ((3, 0), (2, 3)))], "w: its blocks overlap or lie outside"),
        ([part("w", (4,), ((0,), (2,))), part("w", (4,), ((2,), (2,)), dtype="bfloat16")], "w: ranks disagree"),
        ([part("w", (4,), ((0,), (4,))), part("w", (5,))], "w: ranks disagree on its shape or dtype"),
    ],
)
def test_what_does_not_fill_a_tensor_is_refused(parts: list[Part], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Table(parts)


def test_a_block_of_several_ranks_counts_once() -> None:
    table = Table([part("w", (4,), ((0,), (4,))), part("w", (4,), ((0,), (4,)))])
    assert len(table.rows) == 1 and table.ranks.tolist() == [0] and table.bytes == 16


def test_an_index_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    Table([part("w", (4,), ((0,), (4,)))]).write(tmp_path, [Placed(np.zeros((1, 2), np.int64), Entry(1))], ["f"])
    path = tmp_path / index.NAME
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(ValueError, match="bytes; delete this checkpoint"):
        Index(path)
    path.write_bytes(b"short")
    with pytest.raises(ValueError, match="no index of blocks"):
        Index(path)


def test_16_384_ranks_cost_a_reader_no_more_than_1_024(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """405B with ZeRO 1, all ranks played here; the bounds stand in docs/benchmarks.md."""
    _, (model, small), (_, large) = scale.layouts()
    few = scale.measure(scale.play(model, small), tmp_path / "few", holes=False)
    many = scale.measure(scale.play(model, large), tmp_path / "many", holes=False)
    assert many.ranks == 16_384 and many.blocks > 1_500_000 and many.most_in_folder <= 256 + 1
    assert many.resume_table_bytes < 400_000 and many.resume_table_bytes < 2 * few.resume_table_bytes
    assert many.resume_bytes * many.ranks < 1.05 * 12 * 406e9, "each number of the optimizer once, and little else"
    assert many.table_bytes < 60 * many.blocks
    asked: list[Path] = []
    real = Path.stat
    monkeypatch.setattr(Path, "stat", lambda path, **kwargs: asked.append(path) or real(path, **kwargs))
    assert manifest.glance(tmp_path / "many") is None and len(asked) <= manifest.FEW
    entries = manifest.read(tmp_path / "many").files
    assert len(entries) == 2 * 16_384 + 3 and (tmp_path / "many" / manifest.NAME).stat().st_size < 20_000
