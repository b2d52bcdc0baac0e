"""Megatron's `.bin/.idx` token files: a writer byte-equal to its IndexedDatasetBuilder, and a checked reader.

`.bin` holds the token ids of all documents end to end. `.idx` holds, little-endian: 9 bytes of magic, version (u64),
code of the number format (u8), sequences (u64), document marks (u64), then per sequence its length (i32) and byte
offset (i64), then the marks (i64): indices of the sequences at which documents begin, and the total.

Beside them, and not Megatron's, `.blocks` holds the token at which every 2,048th document begins, and the end of the
last (i64): by it readers of billions of documents find their way without reading the index.
"""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama31.tokens.mapped import mapped

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_CODES: dict[int, type[np.integer[Any]]] = {
    1: np.uint8,
    2: np.int8,
    3: np.int16,
    4: np.int32,
    5: np.int64,
    8: np.uint16,
}
_CODE_OF = {np.dtype(dtype): code for code, dtype in _CODES.items()}
BLOCK = 2048  # documents whose order in an epoch is made at once; see `data/stream.py`
SUFFIXES = (".bin", ".idx", ".blocks")
_REMEDY = "pack this source again: python -m recipes.pack overwrite=true ..."


def dtype_for(vocab_size: int) -> np.dtype[Any]:
    """Number format for ids below `vocab_size`, by Megatron's rule (`DType.optimal_dtype`)."""
    return np.dtype(np.uint16 if vocab_size < 65500 else np.int32)


class IndexedWriter:
    """Writes `prefix`.bin as documents come and `prefix`.idx on `close`; one sequence per document."""

    def __init__(self, prefix: str | Path, dtype: np.dtype[Any]) -> None:
        self._prefix, self._dtype = str(prefix), np.dtype(dtype)
        self._bin = open(self._prefix + ".bin", "wb")  # noqa: SIM115 - closed by close() or abandon()
        self._digest = hashlib.sha256()
        self._lengths: list[NDArray[np.int32]] = []
        self.tokens = 0
        self.documents = 0

    def add(self, tokens: NDArray[Any], lengths: NDArray[np.int32]) -> None:
        """Append documents: `tokens` [sum of lengths] end to end, `lengths` [documents].

        Raises OSError where the disk does not take them.
        """
        assert tokens.size == lengths.sum(dtype=np.int64)
        content = np.ascontiguousarray(tokens, dtype=self._dtype).tobytes()
        self._bin.write(content)
        self._digest.update(content)
        self._lengths.append(np.asarray(lengths, dtype=np.int32))
        self.tokens += tokens.size
        self.documents += lengths.size

    def close(self) -> str:
        """Write index and blocks, bring all files to the disk, and return the sha256 of tokens and lengths."""
        with self._bin:
            _sync(self._bin)
        lengths = np.concatenate([np.zeros(0, np.int32), *self._lengths])
        begins = np.cumsum(lengths, dtype=np.int64) - lengths  # in tokens
        with open(self._prefix + ".idx", "wb") as index:
            index.write(_HEADER.pack(_MAGIC, 1, _CODE_OF[self._dtype], lengths.size, lengths.size + 1))
            index.write(lengths.tobytes())
            index.write((begins * self._dtype.itemsize).tobytes())
            index.write(np.arange(lengths.size + 1, dtype=np.int64).tobytes())
            _sync(index)
        with open(self._prefix + ".blocks", "wb") as blocks:
            blocks.write(np.append(begins[::BLOCK], self.tokens).astype("<i8").tobytes())
            _sync(blocks)
        self._digest.update(lengths.tobytes())
        return self._digest.hexdigest()

    def abandon(self) -> None:
        """Close the file without an index: what is there is about to be removed."""
        try:
            self._bin.close()
        except OSError:  # a full disk refuses the last buffer again; the first refusal is being reported already
            self._bin.raw.close()


class IndexedReader:
    """Documents of `prefix`.bin as views of a memory map; nothing is read before it is asked for.

    Raises ValueError, naming file and remedy, where a file is missing, unreadable, empty, truncated or another format.
    """

    def __init__(self, prefix: str | Path) -> None:
        bin_path, idx_path = Path(f"{prefix}.bin"), Path(f"{prefix}.idx")
        bin_bytes, idx_bytes = _size(bin_path), _size(idx_path)
        self.dtype, sequences, marks = _read_header(idx_path, idx_bytes)
        index = mapped(idx_path, np.dtype(np.uint8))
        lengths_end = _HEADER.size + 4 * sequences
        offsets_end = lengths_end + 8 * sequences
        lengths: NDArray[np.int32] = index[_HEADER.size : lengths_end].view(np.int32)
        self._offsets: NDArray[np.int64] = index[lengths_end:offsets_end].view(np.int64)  # of sequences, in bytes
        self._marks: NDArray[np.int64] = index[offsets_end : offsets_end + 8 * marks].view(np.int64)  # of documents
        expected = int(self._offsets[-1]) + int(lengths[-1]) * self.dtype.itemsize
        if bin_bytes != expected:
            raise ValueError(f"{bin_path}: {bin_bytes} bytes, its index says {expected}: truncated or mixed; {_REMEDY}")
        if self._marks[0] != 0 or self._marks[-1] != sequences:
            raise ValueError(f"{idx_path}: its document marks do not cover its sequences; {_REMEDY}")
        self.tokens = mapped(bin_path, self.dtype)
        self._blocks_path = Path(f"{prefix}.blocks")

    def __len__(self) -> int:
        return self._marks.size - 1

    def edges(self, documents: NDArray[np.int64] | slice) -> NDArray[np.int64]:
        """The token at which each of the documents begins, by number; the number of documents means their end."""
        sequences = self._marks[documents]
        first, size = int(sequences[0]) if sequences.size else 0, sequences.size
        if first + size <= self._offsets.size and np.array_equal(sequences, np.arange(first, first + size)):
            return self._offsets[first : first + size] // self.dtype.itemsize  # a sequence each, as most packers write
        behind = sequences == self._offsets.size
        offsets = self._offsets[np.where(behind, 0, sequences)]
        return np.where(behind, self.tokens.nbytes, offsets) // self.dtype.itemsize

    def lengths(self) -> NDArray[np.int64]:
        """Tokens of every document [documents]: 8 bytes of memory for each."""
        return np.diff(self.edges(slice(None)))

    def document(self, index: int) -> NDArray[Any]:
        """Token ids of one document, a view of the file."""
        begin, end = self.edges(slice(index, index + 2)).tolist()
        return self.tokens[begin:end]

    def blocks(self) -> NDArray[np.int64]:
        """The token at which each block of BLOCK documents begins, and the end of the last: [blocks + 1].

        From the file that packing writes beside the others, or, where another packer wrote none, out of the index.
        """
        numbers = np.append(np.arange(0, len(self), BLOCK), len(self))
        try:
            edges = np.fromfile(self._blocks_path, "<i8")
        except OSError:
            return self.edges(numbers)
        checked = [0, numbers.size // 2, numbers.size - 1]
        if edges.size != numbers.size or not np.array_equal(edges[checked], self.edges(numbers[checked])):
            raise ValueError(f"{self._blocks_path}: does not belong to its index; remove it, or {_REMEDY}")
        return edges


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _size(path: Path) -> int:
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError as error:
        raise ValueError(f"{path}: there is no such file; pack this source: python -m recipes.pack ...") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); check its permissions, or {_REMEDY}") from error
    if size == 0:
        raise ValueError(f"{path}: is empty; {_REMEDY}")
    return size


def _read_header(path: Path, size: int) -> tuple[np.dtype[Any], int, int]:
    """Number format, sequences and document marks of an index; raises ValueError where it is none or truncated."""
    with open(path, "rb") as file:
        head = file.read(_HEADER.size)
    if len(head) < _HEADER.size:
        raise ValueError(f"{path}: {size} bytes are less than a header: truncated; {_REMEDY}")
    magic, version, code, sequences, marks = _HEADER.unpack(head)
    if magic != _MAGIC or version != 1 or code not in _CODES:
        raise ValueError(f"{path}: not an index of Megatron's version 1 with integer tokens; {_REMEDY}")
    expected = _HEADER.size + 12 * sequences + 8 * marks
    if size < expected:
        raise ValueError(f"{path}: {size} bytes, its header says {expected}: truncated; {_REMEDY}")
    if sequences == 0 or marks < 2:
        raise ValueError(f"{path}: holds no documents; {_REMEDY}")
    return np.dtype(_CODES[code]), sequences, marks
