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
        return _zstd(path)
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


def _zstd(path: str) -> BinaryIO:
    try:
        import zstandard  # noqa: F401
    except ImportError as error:
        raise ValueError(f"{path}: reading .zst needs zstandard; pip install zstandard, or unpack it") from error
    return io.BufferedReader(ZstdFrames(open(path, "rb")))  # type: ignore[type-var,return-value]


class ZstdFrames(io.RawIOBase):
    """Any number of frames of zstd, one behind the other. zstandard's own reader ends in silence at one that is cut.

    Args:
        file: open for reading bytes; closed with this.
        piece: compressed bytes at a time, each of which may become 32 KB.
        window: bytes that a frame may refer back to, at most; 0: 128 MB.

    Raises EOFError for frames that are cut or damaged.
    """

    def __init__(self, file: Any, piece: int = 1 << 16, window: int = 0) -> None:
        import zstandard

        self._zstandard, self._file, self._piece, self._window = zstandard, file, piece, window
        self._frame: Any = None
        self._in, self._out = b"", memoryview(b"")

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Some bytes; 0 at the end."""
        while not self._out:
            self._in = self._in or self._file.read(self._piece)
            if not self._in:
                if self._frame is not None:
                    raise EOFError("it ends within a frame")
                return 0
            self._decompress()
        taken = min(len(buffer), len(self._out))
        buffer[:taken], self._out = self._out[:taken], self._out[taken:]
        return taken

    def _decompress(self) -> None:
        if self._frame is None:
            self._frame = self._zstandard.ZstdDecompressor(max_window_size=self._window).decompressobj()
        try:
            self._out = memoryview(self._frame.decompress(self._in))
        except self._zstandard.ZstdError as error:
            raise EOFError(str(error)) from error
        self._in = self._frame.unused_data if self._frame.eof else b""
        if self._frame.eof:
            self._frame = None

    def close(self) -> None:
        """Also the file."""
        self._file.close()
        super().close()
