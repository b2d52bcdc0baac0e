"""Checksums of files, taken while they are written: XXH3 with 128 bits, many times faster than any disk.

They find what disks, networks and copies do to a file, not what an attacker does.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

ALGORITHM = "xxh3_128"
PIECE_BYTES = 1 << 20  # small enough for the cache between hashing and writing, large enough to let go of the GIL


@dataclass(frozen=True)
class Entry:
    """What a file should be. Checkpoints of format 1 say only its size."""

    size: int
    checksum: str | None = None


@dataclass
class Written:
    """A file being written: counts and hashes what goes through, and remembers an error of its own.

    torch.save reports a full disk as "unexpected pos"; `error` is what really happened.
    """

    file: io.BufferedWriter
    size: int = 0
    error: OSError | None = None
    _hash: Any = field(default_factory=xxhash.xxh3_128)

    def write(self, data: Any) -> int:
        """Write all of `data` (bytes, or anything with a buffer)."""
        view = memoryview(data).cast("B")
        for begin in range(0, len(view), PIECE_BYTES):
            piece = view[begin : begin + PIECE_BYTES]
            self._hash.update(piece)
            try:
                self.file.write(piece)
            except OSError as error:
                self.error = error
                raise
        self.size += len(view)
        return len(view)

    def flush(self) -> None:
        self.file.flush()

    def entry(self) -> Entry:
        """Size and checksum of what was written so far."""
        return Entry(self.size, self._hash.hexdigest())


def of_bytes(data: bytes) -> Entry:
    """Size and checksum of a file with this content."""
    return Entry(len(data), xxhash.xxh3_128(data).hexdigest())


def of_file(path: Path) -> Entry:
    """Size and checksum of a file on the disk. OSError where it cannot be read."""
    hashed, size, buffer = xxhash.xxh3_128(), 0, memoryview(bytearray(PIECE_BYTES))
    with path.open("rb", buffering=0) as file:
        while read := file.readinto(buffer):
            hashed.update(buffer[:read])
            size += read
    return Entry(size, hashed.hexdigest())
