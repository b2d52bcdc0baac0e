"""Files read as bytes, whatever they are compressed with."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from typing import Any, BinaryIO

COMPRESSED = (".gz", ".zst", ".xz", ".bz2")
BROKEN = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError)


def opened(path: str) -> BinaryIO:
    """A file for reading bytes, decompressed by its suffix. What a damaged one raises is BROKEN."""
    if path.endswith(".gz"):
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if path.endswith(".zst"):
        return io.BufferedReader(_ZstdReader(path))
    if path.endswith(".xz"):
        return lzma.open(path, "rb")  # type: ignore[return-value]
    if path.endswith(".bz2"):
        return io.BufferedReader(_Bz2Reader(path))  # type: ignore[type-var]
    return open(path, "rb")


class _Bz2Reader(bz2.BZ2File):
    """Python's own raises OSError for a damaged stream, as for a disk that fails."""

    def readinto(self, buffer: Any) -> int:
        try:
            return super().readinto(buffer)
        except OSError as error:
            raise EOFError(str(error)) from error


class _ZstdReader(io.RawIOBase):
    """A .zst file of any number of frames. zstandard's own reader ends in silence where the file was truncated."""

    def __init__(self, path: str) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise ValueError(f"{path}: reading .zst needs zstandard; pip install zstandard, or unpack it") from error
        self._zstandard = zstandard
        self._file = open(path, "rb")  # noqa: SIM115 - closed by close()
        self._frame: Any = None
        self._in, self._out = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._out:
            self._in = self._in or self._file.read(1 << 16)
            if not self._in:
                if self._frame is not None:
                    raise EOFError("it ends within a frame")
                return 0
            self._decompress()
        taken = min(len(buffer), len(self._out))
        buffer[:taken], self._out = self._out[:taken], self._out[taken:]
        return taken

    def _decompress(self) -> None:
        self._frame = self._frame or self._zstandard.ZstdDecompressor().decompressobj()
        try:
            self._out = memoryview(self._frame.decompress(self._in))
        except self._zstandard.ZstdError as error:
            raise EOFError(str(error)) from error
        self._in = self._frame.unused_data if self._frame.eof else b""
        if self._frame.eof:
            self._frame = None

    def close(self) -> None:
        self._file.close()
        super().close()
