"""`.bin/.idx`: byte-equal to Megatron's builder, and a reader that names what is wrong with a file."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest

from llama31.tokens.indexed import IndexedReader, IndexedWriter, dtype_for

DOCUMENTS = [[5, 6, 7], [1], list(range(100)), [65_499, 0]]


def _write(prefix: Path, vocab_size: int) -> str:
    writer = IndexedWriter(prefix, dtype_for(vocab_size))
    for batch in (DOCUMENTS[:1], DOCUMENTS[1:]):
        writer.add(np.concatenate(batch), np.array([len(document) for document in batch], np.int32))
    return writer.close()


@pytest.mark.torch
@pytest.mark.parametrize("vocab_size", [65_499, 65_500, 128_256])
def test_bytes_equal_those_of_megatron(tmp_path: Path, vocab_size: int) -> None:
    import torch
    from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=DType.optimal_dtype(vocab_size))
    for document in DOCUMENTS:
        builder.add_item(torch.tensor(document))
        builder.end_document()
    builder.finalize(str(tmp_path / "theirs.idx"))
    _write(tmp_path / "ours", vocab_size)
    for suffix in ("bin", "idx"):
        assert (tmp_path / f"ours.{suffix}").read_bytes() == (tmp_path / f"theirs.{suffix}").read_bytes()
    theirs = IndexedDataset(str(tmp_path / "ours"))
    assert [document.tolist() for document in theirs] == DOCUMENTS


@pytest.mark.parametrize("vocab_size", [65_499, 128_256])
def test_reads_what_was_written(tmp_path: Path, vocab_size: int) -> None:
    _write(tmp_path / "a", vocab_size)
    reader = IndexedReader(tmp_path / "a")
    assert [reader.document(i).tolist() for i in range(len(reader))] == DOCUMENTS
    assert np.shares_memory(reader.document(2), reader.tokens)  # views, not copies


def test_digest_tells_tokens_and_boundaries_apart(tmp_path: Path) -> None:
    digests = set()
    for i, (tokens, lengths) in enumerate([([1, 2, 3], [1, 2]), ([1, 2, 3], [2, 1]), ([1, 2, 4], [1, 2])]):
        writer = IndexedWriter(tmp_path / str(i), dtype_for(100))
        writer.add(np.array(tokens), np.array(lengths, np.int32))
        digests.add(writer.close())
    assert len(digests) == 3


def test_reads_documents_of_several_sequences(tmp_path: Path) -> None:
    """Megatron's format allows them; `_write` never makes them."""
    (tmp_path / "a.bin").write_bytes(np.arange(6, dtype=np.int32).tobytes())
    index = struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", 1, 4, 3, 3)
    index += np.array([2, 1, 3], np.int32).tobytes() + np.array([0, 8, 12]).tobytes() + np.array([0, 2, 3]).tobytes()
    (tmp_path / "a.idx").write_bytes(index)
    reader = IndexedReader(tmp_path / "a")
    assert [reader.document(i).tolist() for i in range(len(reader))] == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("suffix", ["bin", "idx"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", "there is no such file; pack this source"),
        ("empty", "is empty; pack this source again"),
        ("truncated", "truncated"),
        ("unreadable", "cannot be read"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, suffix: str, damage: str, message: str) -> None:
    _write(tmp_path / "a", 1000)
    path = tmp_path / f"a.{suffix}"
    content = path.read_bytes()
    path.unlink()
    if damage == "unreadable":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes(content[: 0 if damage == "empty" else -2])
    with pytest.raises(ValueError, match=message) as error:
        IndexedReader(tmp_path / "a")
    assert str(path) in str(error.value)


@pytest.mark.parametrize(("offset", "byte"), [(0, b"X"), (9, b"\x02"), (17, b"\x06")])
def test_foreign_headers_are_refused(tmp_path: Path, offset: int, byte: bytes) -> None:
    _write(tmp_path / "a", 1000)
    content = bytearray((tmp_path / "a.idx").read_bytes())
    content[offset : offset + 1] = byte
    (tmp_path / "a.idx").write_bytes(content)
    with pytest.raises(ValueError, match="not an index of Megatron's version 1"):
        IndexedReader(tmp_path / "a")


def test_a_header_alone_is_truncated(tmp_path: Path) -> None:
    _write(tmp_path / "a", 1000)
    (tmp_path / "a.idx").write_bytes((tmp_path / "a.idx").read_bytes()[:20])
    with pytest.raises(ValueError, match="less than a header"):
        IndexedReader(tmp_path / "a")


def test_a_thousand_sources_need_no_thousand_open_files(tmp_path: Path) -> None:
    writer = IndexedWriter(tmp_path / "a", np.dtype(np.uint16))
    writer.add(np.arange(5), np.array([2, 3], np.int32))
    writer.close()
    before = len(os.listdir("/proc/self/fd"))
    readers = [IndexedReader(tmp_path / "a") for _ in range(100)]
    assert len(os.listdir("/proc/self/fd")) <= before + 1
    kept = readers[0].document(1)
    del readers
    assert kept.tolist() == [2, 3, 4]
    with pytest.raises(ValueError, match="read-only"):
        kept[0] = 1
