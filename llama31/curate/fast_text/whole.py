"""Whether a fastText model is all there: its library reads half a file in silence, or dies of ten bytes of one.

fastText 0.9.2 looks at the magic number alone. A file cut in half loads, and every text then gets the same
probabilities; one cut in its head ends the process with SIGFPE. So the format is walked through here before.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

MAGIC, VERSIONS = 793712314, (11, 12)
ARGUMENTS = struct.Struct("<12id")
ENTRY = struct.Struct("<qb")
LABEL, PREFIX = 1, "__label__"  # the type of an entry, and how it begins
CENTROIDS = 256  # of each part of a quantised vector, four bytes a number
PIECE = 1 << 16


class _Cut(Exception):
    pass


class Broken(ValueError):
    """No whole model: why, and what to do."""

    def __init__(self, path: Path, reason: str, remedy: str) -> None:
        super().__init__(f"model={path}: {reason}; {remedy}")
        self.reason, self.remedy = reason, remedy


def check(path: Path) -> tuple[str, ...]:
    """The labels of a fastText model (`.bin` or `.ftz`), sorted; none of one of word vectors.

    Raises Broken where it is no whole one.
    """
    again, other = "train it again, or fetch it again", "give a model of fastText, .bin or .ftz"
    if not path.is_file():
        raise Broken(path, "it is a folder" if path.is_dir() else "no such file", other)
    with path.open("rb") as file:
        try:
            length, labels = _walked(file)
        except (_Cut, struct.error) as error:
            raise Broken(path, "the file ends in its head", again) from error
        except ValueError as error:
            raise Broken(path, str(error), other) from error
    size = path.stat().st_size
    if size != length:
        raise Broken(path, f"{size:,} bytes, and its head says {length:,}", again)
    return labels


def record_path(path: str | Path) -> Path:
    """Where the record of a model stands that was trained here."""
    return Path(f"{path}.json")


def _walked(file: BinaryIO) -> tuple[int, tuple[str, ...]]:
    """Bytes that the whole file has to have, and its labels."""
    magic, version = _read(file, "<2i")
    if magic != MAGIC or version not in VERSIONS:
        raise ValueError("it is no model of fastText")
    ARGUMENTS.unpack(_exactly(file, ARGUMENTS.size))
    entries, _, _, _, pruned = _read(file, "<3i2q")
    labels = _labels(file, entries)
    file.seek(8 * max(0, pruned), 1)
    (quantised,) = _read(file, "<?")
    _skip_matrix(file, bool(quantised))
    (output_quantised,) = _read(file, "<?")
    _skip_matrix(file, bool(quantised and output_quantised))
    return file.tell(), labels


def _read(file: BinaryIO, form: str) -> tuple[int, ...]:
    return struct.unpack(form, _exactly(file, struct.calcsize(form)))


def _exactly(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise _Cut
    return data


def _labels(file: BinaryIO, entries: int) -> tuple[str, ...]:
    """Those among words and labels, which are read through: text that ends with a zero, a count, a type."""
    begin, data, at, labels = file.tell(), b"", 0, list[str]()
    for _ in range(entries):
        while (end := data.find(b"\0", at)) < 0 or len(data) < end + 1 + ENTRY.size:
            more = file.read(PIECE)
            if not more:
                raise _Cut
            begin, data, at = begin + at, data[at:] + more, 0
        if data[end + ENTRY.size] == LABEL:
            labels.append(data[at:end].decode("utf-8", "replace").removeprefix(PREFIX))
        at = end + 1 + ENTRY.size
    file.seek(begin + at)
    return tuple(sorted(labels))


def _skip_matrix(file: BinaryIO, quantised: bool) -> None:
    if not quantised:
        rows, columns = _read(file, "<2q")
        file.seek(4 * rows * columns, 1)
        return
    norms, rows, _, codes = _read(file, "<?2qi")
    file.seek(codes, 1)
    _skip_quantiser(file)
    if norms:
        file.seek(rows, 1)
        _skip_quantiser(file)


def _skip_quantiser(file: BinaryIO) -> None:
    dimension, *_ = _read(file, "<4i")
    file.seek(4 * CENTROIDS * dimension, 1)
