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
CENTROIDS = 256  # of each part of a quantised vector, four bytes a number
PIECE = 1 << 16


class _Cut(Exception):
    pass


def check(path: Path) -> None:
    """Raises ValueError where `path` is no whole fastText model (`.bin` or `.ftz`)."""
    remedy = "train it again, or fetch it again"
    if not path.is_file():
        raise ValueError(f"model={path}: no such file; give a model of fastText, .bin or .ftz")
    with path.open("rb") as file:
        try:
            length = _length(file)
        except (_Cut, struct.error) as error:
            raise ValueError(f"model={path}: the file ends in its head; {remedy}") from error
        except ValueError as error:
            raise ValueError(f"model={path}: {error}; give a model of fastText, .bin or .ftz") from error
    size = path.stat().st_size
    if size != length:
        raise ValueError(f"model={path}: {size:,} bytes, and its head says {length:,}; {remedy}")


def _length(file: BinaryIO) -> int:
    """Bytes that the whole file has to have."""
    magic, version = _read(file, "<2i")
    if magic != MAGIC or version not in VERSIONS:
        raise ValueError("it is none")
    ARGUMENTS.unpack(_exactly(file, ARGUMENTS.size))
    entries, _, _, _, pruned = _read(file, "<3i2q")
    _skip_entries(file, entries)
    file.seek(8 * max(0, pruned), 1)
    (quantised,) = _read(file, "<?")
    _skip_matrix(file, bool(quantised))
    (output_quantised,) = _read(file, "<?")
    _skip_matrix(file, bool(quantised and output_quantised))
    return file.tell()


def _read(file: BinaryIO, form: str) -> tuple[int, ...]:
    return struct.unpack(form, _exactly(file, struct.calcsize(form)))


def _exactly(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise _Cut
    return data


def _skip_entries(file: BinaryIO, entries: int) -> None:
    """Words and labels: text that ends with a zero, a count, a type."""
    begin, data, at = file.tell(), b"", 0
    for _ in range(entries):
        while (end := data.find(b"\0", at)) < 0 or len(data) < end + 1 + ENTRY.size:
            more = file.read(PIECE)
            if not more:
                raise _Cut
            begin, data, at = begin + at, data[at:] + more, 0
        at = end + 1 + ENTRY.size
    file.seek(begin + at)


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
