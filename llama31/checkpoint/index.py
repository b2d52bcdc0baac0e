"""Where every block of a folder's tensors lies: one table that is mapped, of which a reader touches what it needs.

    <folder>/blocks.index    16 bytes: magic, length of the header; JSON: tensors, dimensions, counts; then columns
    column `tops`            int64 [blocks], first row of a block; ordered by tensor and then by place
    column `boxes`           int64 [blocks, 2 dims - 1], where it begins in the other dimensions, and its shape
    column `places`          int64 [blocks, 3], number of the file, offset in it, length there
    column `files`           text of equal length [files], names relative to the folder

Each rank says what it holds as numbers (`Part`); the first rank puts all of them together and looks for what is
wrong, in numpy: 16,384 ranks of a 405B model hold millions of blocks, of which Python objects would take minutes and
gigabytes. A block of fewer dimensions than the widest tensor has begins at 0 and is 1 wide in those that it lacks.
"""

from __future__ import annotations

import json
import math
import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama31.checkpoint.checksum import Entry, Written

NAME = "blocks.index"
MAGIC, VERSION = b"BLOCKS\0\1", 1
HEAD = struct.Struct("<8sQ")
ALIGNMENT = 64
BYTES = {"bfloat16": 2, "float32": 4, "float16": 2, "float64": 8, "float8_e4m3fn": 1, "float8_e5m2": 1, "bool": 1}
BYTES |= {"int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1}  # of an element, by torch's name
FORMATS = list(BYTES)
Shape = tuple[int, ...]
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Tensor:
    """A global tensor: `dtype` as torch calls it, without its prefix."""

    shape: Shape
    dtype: str


@dataclass(frozen=True)
class Part:
    """What one rank holds, before anything is written: its tensors, packed, and a line of `rows` for each block.

    Ranks that hold parts of the same tensors pack the same bytes, so that their names are read once. `rows`: number of
    the tensor among them, of its format among FORMATS, where the block begins in each dimension, how much it holds:
    int64 [blocks, 2 + 2 dims].
    """

    tensors: bytes
    rows: Numbers


@dataclass(frozen=True)
class Placed:
    """Where a rank has written its blocks: int64 [blocks, 2], offset and length, in the file `entry` describes."""

    places: Numbers
    entry: Entry


@dataclass(frozen=True)
class Stored:
    """A block on the disk."""

    offset: Shape
    shape: Shape
    file: str
    position: int
    length: int


def rectangles(offsets: Sequence[Shape], local: Shape, start: int, count: int) -> Iterator[tuple[Shape, Shape, int]]:
    """A flat range of a rank's part of a tensor, as rectangles of the global tensor.

    `count` elements from element `start` of a part of shape `local`, which consists of one block per offset, equal in
    rows; what of the range lies behind them is padding. Yields where a rectangle begins, its shape, and the element of
    the part with which it begins.
    """
    height, width = local[0] // len(offsets), (local[1] if len(local) == 2 else 1)
    for number, offset in enumerate(offsets):
        first = number * height * width
        begin, end = max(start, first), min(start + count, first + height * width)
        while begin < end:
            row, column = divmod(begin - first, width)
            whole_rows = (end - begin) // width if column == 0 else 0
            length = whole_rows * width or min(end - begin, width - column)
            if len(local) == 1:
                yield (offset[0] + row,), (length,), begin
            else:
                rows = whole_rows or 1
                yield (offset[0] + row, offset[1] + column), (rows, length // rows), begin
            begin += length


def pack(tensors: Mapping[str, Shape], blocks: Sequence[tuple[int, str, Shape, Shape]]) -> Part:
    """`blocks`: number of a tensor of `tensors`, its number format, where a block begins, its shape.

    Raises ValueError for a format that has no place in an index.
    """
    dims = max((len(shape) for shape in tensors.values()), default=1) or 1
    rows = []
    for number, dtype, offset, shape in blocks:
        if dtype not in BYTES:
            raise ValueError(
                f"{list(tensors)[number]}: {dtype} cannot be saved; convert it to one of {', '.join(BYTES)}"
            )
        missing = dims - len(shape)
        rows.append((number, FORMATS.index(dtype), *offset, *[0] * missing, *shape, *[1] * missing))
    return Part(
        zlib.compress(json.dumps(list(tensors.items())).encode(), 1), np.array(rows, np.int64).reshape(-1, 2 + 2 * dims)
    )


class Table:
    """All blocks of all ranks, put together on one of them; `write` makes the file when their places are known."""

    def __init__(self, parts: Sequence[Part]) -> None:
        """Raises ValueError for a tensor that its blocks do not fill, or that ranks see differently.

        A block that several ranks hold counts once, where the first of them has it.
        """
        self.tensors: dict[str, Shape] = {}
        self.counts = np.array([len(part.rows) for part in parts], np.int64)
        rows = self._numbered(parts)
        self.dims = rows.shape[1] // 2 - 1
        ranks = np.repeat(np.arange(len(parts)), self.counts)
        order = np.lexsort((*rows.T[2 : 2 + self.dims][::-1], rows[:, 0]))  # stable: the first rank's first
        rows = rows[order]
        same = np.zeros(len(rows), bool)
        same[1:] = (rows[1:] == rows[:-1]).all(1)
        self.rows, self.order, self.ranks = rows[~same], order[~same], ranks[order[~same]]
        self.first = np.searchsorted(self.rows[:, 0], np.arange(len(self.tensors) + 1))
        self._refuse_holes()
        self.formats = self._formats()

    def _numbered(self, parts: Sequence[Part]) -> Numbers:
        """All rows, with the numbers that tensors have among all of them."""
        numbers: dict[str, int] = {}
        known: dict[bytes, Numbers] = {}
        for packed in dict.fromkeys(part.tensors for part in parts):
            listed = {name: tuple(shape) for name, shape in json.loads(zlib.decompress(packed))}
            for name, shape in listed.items():
                numbers.setdefault(name, len(numbers))
                if self.tensors.setdefault(name, shape) != shape:
                    raise ValueError(f"{name}: ranks disagree on its shape or dtype; give all the same")
            known[packed] = np.array([numbers[name] for name in listed], np.int64)
        dims = max((part.rows.shape[1] for part in parts), default=4) // 2 - 1
        whole = np.empty((int(self.counts.sum()), 2 + 2 * dims), np.int64)
        at = 0
        for part in parts:
            mine, has = whole[at : at + len(part.rows)], part.rows.shape[1] // 2 - 1
            mine[:, 0], mine[:, 1] = known[part.tensors][part.rows[:, 0]], part.rows[:, 1]
            mine[:, 2 : 2 + dims], mine[:, 2 + dims :] = 0, 1
            mine[:, 2 : 2 + has] = part.rows[:, 2 : 2 + has]
            mine[:, 2 + dims : 2 + dims + has] = part.rows[:, 2 + has :]
            at += len(part.rows)
        return whole

    def _formats(self) -> list[str]:
        """Of every tensor, which has at least one block. ValueError where its blocks have several."""
        formats = self.rows[:, 1]
        of_tensor = formats[self.first[:-1]] if len(formats) else formats
        for number in self.rows[formats != of_tensor[self.rows[:, 0]], 0][:1].tolist():
            name = list(self.tensors)[number]
            raise ValueError(f"{name}: ranks disagree on its shape or dtype; give all the same")
        return [FORMATS[number] for number in of_tensor.tolist()]

    def _refuse_holes(self) -> None:
        """Raise ValueError for the first tensor that its blocks do not fill exactly once.

        That the elements are as many as the tensor's says little: one part might be twice there and another one
        missing. So the blocks are measured once more, by a length that is random: a block's extent in a dimension is
        the difference of two hashes, modulo 2^64. Blocks that fill a tensor have its measure; others by accident
        alone.
        """
        padded = [[*shape, *[1] * (self.dims - len(shape))] for shape in self.tensors.values()]
        shapes = np.array(padded, np.int64).reshape(len(self.tensors), self.dims)
        begin, size = self.rows[:, 2 : 2 + self.dims], self.rows[:, 2 + self.dims :]
        whole = shapes.prod(1)
        held = self._sums(size.prod(1))
        beyond = self._sums(((begin < 0) | (begin + size > shapes[self.rows[:, 0]])).any(1).astype(np.int64))
        measured = self._sums(_measure(begin, begin + size).view(np.int64))
        right = _measure(np.zeros_like(shapes), shapes).view(np.int64)
        none = self.first[:-1] == self.first[1:]
        for number in np.flatnonzero((held != whole) | (beyond > 0) | (measured != right) | none).tolist():
            name = list(self.tensors)[number]
            if held[number] != whole[number] or none[number]:
                said = f"blocks hold {held[number]} of {whole[number]} elements; every part needs a rank that saves"
                raise ValueError(f"{name}: {said}")
            raise ValueError(f"{name}: its blocks overlap or lie outside of it; every part needs one block")

    def _sums(self, values: Numbers) -> Numbers:
        """Per tensor; modulo 2^64."""
        running = np.concatenate([np.zeros(1, np.int64), np.cumsum(values)])
        return running[self.first[1:]] - running[self.first[:-1]]

    @property
    def bytes(self) -> int:
        """Of all tensors."""
        return sum(math.prod(shape) * BYTES[dtype] for shape, dtype in zip(self.tensors.values(), self.formats))

    def write(self, folder: Path, placed: Sequence[Placed | None], files: Sequence[str]) -> Entry:
        """The index, on the disk when this returns. `placed`, by rank: None of one without blocks; `files` likewise."""
        alone = [one.places for one in placed if one is not None]
        places = np.concatenate(alone) if alone else np.zeros((0, 2), np.int64)
        used = self.counts > 0
        numbers = np.cumsum(used) - 1
        columns = [
            np.ascontiguousarray(self.rows[:, 2]),
            np.ascontiguousarray(self.rows[:, 3:]),
            np.column_stack([numbers[self.ranks], places[self.order]]).astype(np.int64),
            np.array([name for name, has in zip(files, used, strict=True) if has], np.bytes_),
        ]
        tensors = [[name, shape, dtype] for (name, shape), dtype in zip(self.tensors.items(), self.formats)]
        return _write(folder / NAME, tensors, self.first, self.dims, columns)


def _measure(begin: Numbers, end: Numbers) -> NDArray[np.uint64]:
    """Of boxes, uint64 [boxes], modulo 2^64: additive where boxes are put together."""
    result = np.ones(len(begin), np.uint64)
    for dimension in range(begin.shape[1]):
        salt = np.uint64(0x9E3779B97F4A7C15 * (2 * dimension + 1) & 0xFFFFFFFFFFFFFFFF)
        result *= _hash(end[:, dimension], salt) - _hash(begin[:, dimension], salt)
    return result


def _hash(values: Numbers, salt: np.uint64) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014)."""
    mixed = values.astype(np.uint64) + salt
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _write(path: Path, tensors: list[list[Any]], first: Numbers, dims: int, columns: Sequence[NDArray[Any]]) -> Entry:
    tops, boxes, _, files = columns
    tallest = np.zeros(len(tensors), np.int64)
    held = first[:-1] < first[1:]
    if len(tops):
        tallest[held] = np.maximum.reduceat(boxes[:, dims - 1], first[:-1][held])
    header = {
        "version": VERSION,
        "dims": dims,
        "blocks": len(tops),
        "files": [len(files), files.dtype.itemsize],
        "tensors": [
            [*one, begin, high] for one, begin, high in zip(tensors, first[:-1].tolist(), tallest.tolist(), strict=True)
        ],
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(HEAD.size + len(text)) % ALIGNMENT)
    with open(path, "wb") as raw:
        file = Written(raw)
        file.write(HEAD.pack(MAGIC, len(text)) + text)
        for column in columns:
            if column.nbytes:
                file.write(column.view(np.uint8).reshape(-1))
        raw.flush()
        os.fsync(raw.fileno())
    return file.entry()


class Index:
    """The table of a folder, mapped. `tensors` by name; the blocks of one of them by place."""

    def __init__(self, path: Path) -> None:
        """OSError where there is none, ValueError where it is damaged."""
        with open(path, "rb") as file:
            head = file.read(HEAD.size)
            if len(head) < HEAD.size or not head.startswith(MAGIC):
                raise ValueError(f"{path} is no index of blocks; delete this checkpoint and use an older one")
            length = HEAD.unpack(head)[1]
            header = json.loads(file.read(length))
        if header["version"] != VERSION:
            raise ValueError(f"{path} has version {header['version']}, this code reads {VERSION}")
        blocks, dims, (files, width) = header["blocks"], header["dims"], header["files"]
        self.bytes_read = HEAD.size + length
        listed = header["tensors"]
        self.tensors = {name: Tensor(tuple(shape), dtype) for name, shape, dtype, _, _ in listed}
        ends = [*(first for _, _, _, first, _ in listed[1:]), blocks]
        self._range = {name: (first, end, tallest) for (name, _, _, first, tallest), end in zip(listed, ends)}
        expected = self.bytes_read + 8 * blocks * (2 * dims + 3) + files * width
        if (size := path.stat().st_size) != expected:
            raise ValueError(f"{path} has {size} of {expected} bytes; delete this checkpoint and use an older one")
        self._dims, position = dims, self.bytes_read
        columns = []
        for shape in ((blocks,), (blocks, 2 * dims - 1), (blocks, 3)):
            columns.append(_mapped(path, np.int64, position, shape))
            position += 8 * math.prod(shape)
        self._tops, self._boxes, self._places = columns
        self._files = _mapped(path, np.dtype(f"S{width or 1}"), position, (files,))

    def blocks(self, name: str, offset: Shape = (), shape: Shape = ()) -> Iterator[Stored]:
        """The blocks of a tensor that touch the box of `shape` at `offset`; all of them where none is given.

        Blocks are ordered by where they begin along the first dimension, so those that can touch it are found by
        bisection.
        """
        first, last, tallest = self._range[name]
        if shape:
            tops = self._tops[first:last]
            low = int(np.searchsorted(tops, offset[0] - tallest, "right"))
            first, last = first + low, first + int(np.searchsorted(tops, offset[0] + shape[0], "left"))
        begins = np.column_stack([self._tops[first:last], self._boxes[first:last, : self._dims - 1]])
        sizes, places = self._boxes[first:last, self._dims - 1 :], self._places[first:last]
        self.bytes_read += begins.nbytes + sizes.nbytes + places.nbytes
        if shape:
            at, wide = np.array(offset), np.array(shape)
            dims = len(shape)
            touch = ((begins[:, :dims] < at + wide) & (at < begins[:, :dims] + sizes[:, :dims])).all(1)
            begins, sizes, places = begins[touch], sizes[touch], places[touch]
        dims = len(self.tensors[name].shape)
        listed = zip(begins[:, :dims].tolist(), sizes[:, :dims].tolist(), places.tolist(), strict=True)
        for begin, size, (file, position, length) in listed:
            yield Stored(tuple(begin), tuple(size), self._files[file].decode(), position, length)

    @property
    def count(self) -> int:
        """Blocks of all tensors."""
        return len(self._tops)


def _mapped(path: Path, dtype: Any, position: int, shape: Shape) -> NDArray[Any]:
    if math.prod(shape) == 0:
        return np.zeros(shape, dtype)  # nothing cannot be mapped
    return np.memmap(path, dtype, "r", position, shape)
