"""Which documents stand where in a micro-batch's rows: one table of them, made once and shared by all layers.

Megatron hands it through as `packed_seq_params`, a slot that its checkpoints keep by reference: a recomputed layer gets
the same object, and nothing is made twice. Attention asks for one of two views of it, each made when first asked for.
`own_keys` and `earlier_keys` are the two calls of a variable-length kernel that do all documents, however many there
are; `blocks` lists the parts of documents one by one, for kernels that do one at a time.

A rank's part of a document sees the causal triangle of its own positions, and all of some earlier spans: what of the
document came before a context-parallel chunk, and the prefix that it shares with others. The two calls are those two.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llama31.model.fused import Rotary

Span = tuple[int, int]
Ints = NDArray[np.int64]


def chunks_of_rank(length: int, cp: int, cp_rank: int) -> list[Span]:
    """The two spans of a row of `length` tokens that a context-parallel rank holds (the whole row when cp is 1)."""
    if cp == 1:
        return [(0, length)]
    size = length // (2 * cp)
    return [(i * size, (i + 1) * size) for i in (cp_rank, 2 * cp - 1 - cp_rank)]


def take_chunks(row: Tensor, cp: int, cp_rank: int, dim: int) -> Tensor:
    """This rank's chunks of a whole row, concatenated along `dim`."""
    spans = chunks_of_rank(row.size(dim), cp, cp_rank)
    return row if cp == 1 else torch.cat([row.narrow(dim, begin, end - begin) for begin, end in spans], dim)


@dataclass(frozen=True)
class AttentionBlock:
    """Consecutive queries of one document, and the keys that they see."""

    rows: slice  # of the micro-batch
    queries: slice  # in the query tensor
    own: slice  # in K and V as given: the keys at the queries' own positions
    earlier: tuple[Span, ...] = ()  # positions in the row: the document's keys before those, those of its prefix

    @property
    def causal(self) -> bool:
        """A single query sees all its keys; its earlier ones may count as its own."""
        return self.queries.stop - self.queries.start > 1

    @property
    def merged(self) -> bool:
        """Whether there are earlier keys."""
        return bool(self.earlier)


@dataclass(frozen=True)
class Places:
    """Some places along the first axis of a tensor: index int64 [count], or None for the first `count`, in order."""

    count: int
    index: Tensor | None

    def take(self, whole: Tensor) -> Tensor:
        """What stands there, [count, ...]; a view where the places are the first."""
        return whole[: self.count] if self.index is None else whole.index_select(0, self.index)

    def put(self, part: Tensor, size: int) -> Tensor:
        """A tensor [size, ...] of zeros but for `part` [count, ...]; that itself where it is all."""
        if self.index is None and self.count == size:
            return part
        return self.replace(part.new_zeros((size, *part.shape[1:])), part)

    def replace(self, whole: Tensor, part: Tensor) -> Tensor:
        """The same with `part` [count, ...] there, in place where it is not all."""
        if self.index is None and self.count == whole.size(0):
            return part
        if self.index is None:
            whole[: self.count] = part
            return whole
        return whole.index_copy_(0, self.index, part)

    def add(self, whole: Tensor, part: Tensor) -> None:
        """Add `part` [count, ...] there; a place may occur more than once."""
        if self.index is None:
            whole[: self.count] += part
        else:
            whole.index_add_(0, self.index, part)


@dataclass(frozen=True)
class PackedSequences:
    """One call of a variable-length kernel: sequences of queries one after another, and of each the keys that it sees.

    query_ends, key_ends int32 [n + 1]: cumulative lengths, none of them 0, on the device. longest_query, longest_key:
    lengths that none exceeds.
    """

    queries: Places
    keys: Places
    query_ends: Tensor
    key_ends: Tensor
    longest_query: int
    longest_key: int
    causal: bool


class _Parts(NamedTuple):
    """This rank's parts of documents, in the order of the queries: arrays [n]."""

    row: Ints
    query: Ints  # where the queries begin in the query tensor
    first: Ints  # and where in the row
    length: Ints
    begin: Ints  # of the document; its keys from here up to `first` are earlier
    prefix_begin: Ints
    prefix_end: Ints


@dataclass(eq=False)
class SequenceTable:
    """Documents of a micro-batch, and which positions of its rows the queries, keys and values hold.

    documents int [n, 3] as (row, begin, end), or [n, 5] with the span of a prefix (`attention`), disjoint and sorted;
    rows: how many the micro-batch has; spans: the positions of the queries, in their order. With cp above 1 keys and
    values hold these too and those of other ranks are gathered, else they hold the whole row. Raises ValueError for
    other tables.
    """

    documents: Tensor
    rows: int
    spans: list[Span]
    device: torch.device
    cp: int = 1
    rotary: Rotary | None = None  # turns queries and keys before attention; None where that has been done

    qkv_format: ClassVar[str] = "sbhd"  # what Megatron reads of packed_seq_params: it is to leave the tensors as is

    def __post_init__(self) -> None:
        shape, kind = list(self.documents.shape), self.documents.dtype
        if len(shape) != 2 or shape[1] not in (3, 5) or kind.is_floating_point or kind == torch.bool:
            raise ValueError(
                f"documents are {kind} {shape}, not a table; give int [n, 3] (row, begin, end), or [n, 5] with the "
                "span of a prefix"
            )

    @classmethod
    def of_rank(
        cls, documents: Tensor, rows: int, length: int, cp: int, cp_rank: int, device: torch.device
    ) -> SequenceTable:
        """For rows of `length` tokens, of which a context-parallel rank holds its two chunks."""
        return cls(documents, rows, chunks_of_rank(length, cp, cp_rank), device, cp)

    @classmethod
    def of_call(
        cls, documents: Tensor | SequenceTable, tokens: Tensor, group: Any, inference_context: Any
    ) -> SequenceTable:
        """For tokens [b, s / cp]: a table as it is, or one of the documents; with a cache those that follow it."""
        if isinstance(documents, SequenceTable):
            return documents
        rows, queries = tokens.shape
        if inference_context is not None:
            first = inference_context.sequence_len_offset
            return cls(documents, rows, [(first, first + queries)], tokens.device)
        return cls.of_rank(documents, rows, queries * group.size(), group.size(), group.rank(), tokens.device)

    @functools.cached_property
    def _host(self) -> Ints:
        table: Ints = self.documents.cpu().numpy().astype(np.int64)
        return table if table.shape[1] == 5 else np.pad(table, ((0, 0), (0, 2)))

    @property
    def queries(self) -> int:
        """Positions of each row that this rank has."""
        return sum(end - begin for begin, end in self.spans)

    @functools.cached_property
    def travels(self) -> bool:
        """Whether keys have to be gathered: whether any document lies in more than one chunk or has a prefix.

        The same on all ranks: a rank that needs none itself is one that others gather from.
        """
        if self.cp == 1:
            return False
        size = self.queries // 2
        _, begin, end, *prefix = self._host.T
        return bool((begin // size != (end - 1) // size).any() or (prefix[0] < prefix[1]).any())

    @functools.cached_property
    def blocks(self) -> list[AttentionBlock]:
        """Each part of a document, in rows with equal documents those of all rows at once."""
        of_row = [self._host[self._host[:, 0] == row, 1:].tolist() for row in range(self.rows)]
        if all(those == of_row[0] for those in of_row):
            return self._blocks_of_rows(slice(None), of_row[0])
        return [block for row, those in enumerate(of_row) for block in self._blocks_of_rows(slice(row, row + 1), those)]

    def _blocks_of_rows(self, rows: slice, documents: list[list[int]]) -> list[AttentionBlock]:
        result, offset = [], 0
        for begin, end in self.spans:
            for start, stop, *prefix in documents:
                first, last = max(begin, start), min(end, stop)
                if first >= last:
                    continue
                queries, own = slice(offset + first - begin, offset + last - begin), slice(first, last)
                seen = [(prefix[0], prefix[1]), (start, first)]
                if self.cp > 1:
                    own = queries
                elif last - first == 1:  # a step of decoding
                    own, seen = slice(start, last), seen[:1]
                result.append(AttentionBlock(rows, queries, own, tuple(span for span in seen if span[0] < span[1])))
            offset += end - begin
        return result

    @functools.cached_property
    def _parts(self) -> _Parts:
        found, offset = [], 0
        row, start, stop, prefix_begin, prefix_end = self._host.T
        for begin, end in self.spans:
            first, last = np.maximum(begin, start), np.minimum(end, stop)
            parts = np.stack([row, offset + first - begin, first, last - first, start, prefix_begin, prefix_end])
            found.append(parts[:, first < last])
            offset += end - begin
        return _Parts(*np.concatenate(found, 1))

    @functools.cached_property
    def own_keys(self) -> PackedSequences:
        """Each part's queries and the keys at the same positions, causal.

        `queries` are places in the query tensor [s, b], `keys` in K and V as given, both flattened.
        """
        parts = self._parts
        rows = np.repeat(parts.row, parts.length)
        queries = _ranges(parts.query, parts.length) * self.rows + rows
        whole = _ranges(parts.first, parts.length) * self.rows + rows
        return self._packed(queries, queries if self.cp > 1 else whole, parts.length, parts.length, causal=True)

    @functools.cached_property
    def earlier_keys(self) -> PackedSequences | None:
        """Queries that see earlier keys, and those: no mask. None where no query of this rank does.

        `queries` are places among those of `own_keys`; `keys` in K and V as given and flattened, or, with cp above 1,
        first those of K and then those of V in what is gathered, [cp, K and V, s / cp, b] flattened. Neighbours that
        see the same spans, as answers to one prompt do, are one sequence.
        """
        parts = self._parts
        own = np.where(parts.begin < parts.first, [parts.begin, parts.first], 0)
        prefix = np.where(parts.prefix_begin < parts.prefix_end, [parts.prefix_begin, parts.prefix_end], 0)
        seeing = np.flatnonzero((own[1] > 0) | (prefix[1] > 0))
        if not seeing.size:
            return None
        seen = np.stack([parts.row, *prefix, *own], 1)[seeing]
        fresh = np.append(True, (seen[1:] != seen[:-1]).any(1) | (np.diff(seeing) > 1))
        lengths, begins = parts.length[seeing], (np.cumsum(parts.length) - parts.length)[seeing]
        query_lengths = np.add.reduceat(lengths, np.flatnonzero(fresh))
        row, *spans = seen[fresh].T
        key_begins, key_ends = np.stack([spans[0], spans[2]], 1), np.stack([spans[1], spans[3]], 1)
        sizes = (key_ends - key_begins).ravel()
        positions, rows = _ranges(key_begins.ravel(), sizes), np.repeat(np.repeat(row, 2), sizes)
        if self.cp > 1:
            keys = self._gathered(positions) * self.rows + rows
            keys = np.append(keys, keys + self.queries * self.rows)
        else:
            keys = positions * self.rows + rows
        return self._packed(_ranges(begins, lengths), keys, query_lengths, sizes.reshape(-1, 2).sum(1), causal=False)

    def _gathered(self, positions: Ints) -> Ints:
        """Where keys of a row stand in what ranks give, [cp, K and V, s / cp] flattened: rank i has chunk i first."""
        size = self.queries // 2
        chunk, place = np.divmod(positions, size)
        mirrored = chunk >= self.cp
        rank = np.where(mirrored, 2 * self.cp - 1 - chunk, chunk)
        return rank * 2 * self.queries + mirrored * size + place

    def _packed(
        self, queries: Ints, keys: Ints, query_lengths: Ints, key_lengths: Ints, causal: bool
    ) -> PackedSequences:
        """On the device. Longest lengths are powers of two, since kernels may be planned for each anew."""
        lengths = query_lengths, key_lengths
        ends = [self._moved(np.append(0, np.cumsum(one)), torch.int32) for one in lengths]
        longest = [min(1 << (int(one.max(initial=1)) - 1).bit_length(), int(one.sum())) for one in lengths]
        return PackedSequences(
            self._places(queries), self._places(keys), ends[0], ends[1], longest[0], longest[1], causal
        )

    def _places(self, taken: Ints) -> Places:
        in_order = np.array_equal(taken, np.arange(taken.size))
        return Places(taken.size, None if in_order else self._moved(taken, torch.int64))

    def _moved(self, array: NDArray[Any], dtype: torch.dtype) -> Tensor:
        on_host = torch.from_numpy(array).to(dtype)
        return on_host.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else on_host


def _ranges(begins: Ints, lengths: Ints) -> Ints:
    """begin, begin + 1, ... of each, one after another."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(begins - before, lengths) + np.arange(int(lengths.sum()))
