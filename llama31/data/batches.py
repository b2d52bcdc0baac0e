"""Packed tokens -> the rows of a step, and rows of held-out text.

A batch is a pure function of (seed, step, data fingerprint, schedule, decisions): `mixture.py` says from which place
of which source a row comes, `stream.py` or `whole.py` what stands there. There is no iterator, so there is no state to
save.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from llama31 import config
from llama31.data import lengths
from llama31.data.lengths import Lengths
from llama31.data.mixture import Decision, Mixture, plan
from llama31.data.plans import Plans
from llama31.data.stream import Scattered, Stream
from llama31.data.whole import Whole
from llama31.plan.schedule import total_steps
from llama31.tokens import packed
from llama31.tokens.indexed import BLOCK, IndexedReader
from llama31.tokens.packed import Packed

# How epochs of a stream are ordered: block by block, or, in runs that began before there were blocks, as one whole.
ORDER, WHOLE_ORDER = f"blocks of {BLOCK}", "documents"
_MANY_EPOCHS = 4  # up to which repetition costs little (Muennighoff et al. 2023, arXiv:2305.16264)


@dataclass(frozen=True)
class Rows:
    """Rows of text: b rows of s tokens each predict the s tokens that follow."""

    tokens: NDArray[np.int64]  # [b, s]
    labels: NDArray[np.int64]  # [b, s], tokens shifted by one
    loss_mask: NDArray[np.float32]  # [b, s], 0 where the label begins another document or is padding
    documents: NDArray[np.int32]  # [b, s], 0, 1, ... by document within the row; all 0 without a document mask
    source: NDArray[np.int64]  # [b], index into `names`


class TokenSource(Protocol):
    """One source as rows. A position is a number of tokens drawn from it before, padding included."""

    def row(
        self,
        position: int,
        tokens: NDArray[np.int64],
        labels: NDArray[np.int64],
        documents: NDArray[np.int32],
        mask: NDArray[np.float32],
        document_mask: bool,
    ) -> None: ...

    def spans(self, position: int, row_tokens: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]: ...


class Batches:
    """The rows of every step of a schedule, from the training split (or another) of the packed sources.

    `decisions` come on top of what `data.mixture` plans, `order` is that of the documents in a stream. A source that no
    step from `from_step` on draws from need not be there any more. With `plans`, rows of whole documents are planned by
    the process that makes those, for whole steps, when it is asked for its own rows of them.

    Raises ValueError (keys `data.*`) where a source is not packed, damaged, shorter than one row, or packed with
    another tokenizer than the others. Warns where a source is repeated more than 4 times.
    """

    def __init__(
        self,
        data: config.Data,
        schedule: config.Schedule,
        split: str = "train",
        decisions: Sequence[Decision] = (),
        from_step: int = 0,
        order: str = ORDER,
        plans: Plans | None = None,
    ) -> None:
        if order not in (ORDER, WHOLE_ORDER):
            raise ValueError(
                f"data: the checkpoint read its documents in the order {order!r}, which this code does not know; go on "
                "with the code that began the run, or start a new run from its weights with init_from="
            )
        self._data, self._order, self._plans = data, order, plans
        self._prepared = -1
        self.mixture = mixture_of(data, schedule, decisions)
        weights = plan(data)[0].weights
        self.names = self.mixture.names
        end = total_steps(schedule)
        drawn, before = self.mixture.drawn(end), self.mixture.drawn(min(from_step, end))
        retired = {name for name in self.names if drawn[name] == before[name] and not packed.exists(data, name)}
        self.packed = _read_all(data, [name for name in self.names if name not in retired])
        self.fingerprint = fingerprint(self.packed)
        self.vocab_size = max(source.vocab_size for source in self.packed.values())
        self.slot_tokens = slot_tokens(data, schedule)
        longest = max(_longest(schedule), self.slot_tokens - 1)
        self.readers: dict[str, IndexedReader] = {}  # of what is drawn
        self._sources = {
            index: self._open(index, name, split, longest, drawn[name])
            for index, name in enumerate(self.names)
            if (drawn[name] or weights[name]) and name not in retired
        }

    def batch_shape(self, step: int) -> tuple[int, int]:
        """(rows of the global batch, sequence length) of a step."""
        return self.mixture.shape(step)

    def rows(self, step: int, indices: NDArray[np.int64]) -> Rows:
        """The given rows of the step's global batch, in the given order."""
        rows, length = self.mixture.shape(step)
        indices = np.asarray(indices, np.int64)
        if indices.size and (indices.min() < 0 or indices.max() >= rows):
            raise ValueError(f"step {step} has rows 0 to {rows - 1}, not {indices.min()} to {indices.max()}")
        if self._plans is not None and self._plans.makes and step != self._prepared:
            self._prepare(self._plans, step)
            self._prepared = step  # a step's rows are asked for by micro-batch
        draw = self.mixture.draw(step, indices)
        shape = (indices.size, length)
        tokens, labels, documents = np.empty(shape, np.int64), np.empty(shape, np.int64), np.empty(shape, np.int32)
        mask = np.empty(shape, np.float32)
        for i, (source, position) in enumerate(zip(draw.source.tolist(), draw.position.tolist())):
            if source not in self._sources:
                where = packed.folder_of(self._data, self.names[source])
                raise ValueError(f"data.sources.{self.names[source]}: step {step} draws from {where}; put it back")
            self._sources[source].row(position, tokens[i], labels[i], documents[i], mask[i], self._data.document_mask)
        return Rows(tokens, labels, mask, documents, draw.source)

    def lengths(self, step: int, indices: NDArray[np.int64] | None = None) -> Lengths:
        """True lengths of the documents in the step's global batch, or in the given rows of it; no token is read."""
        rows, row_tokens = self.mixture.shape(step)
        draw = self.mixture.draw(step, np.arange(rows) if indices is None else np.asarray(indices, np.int64))
        edges = [bucket.min_tokens for bucket in self._data.length_buckets] or lengths.EDGES
        places = zip(draw.source.tolist(), draw.position.tolist())
        return lengths.measure((self._sources[i].spans(at, row_tokens) for i, at in places), row_tokens, edges)

    def _prepare(self, plans: Plans, step: int) -> None:
        """Plan for all rows of a step: others may wait for what stands in none of this process's."""
        rows, length = self.mixture.shape(step)
        draw, held = self.mixture.draw(step, np.arange(rows)), set[str]()
        for index, source in self._sources.items():
            if isinstance(source, Whole):
                positions = draw.position[draw.source == index]
                if positions.size:
                    source.prepare(positions, length)
                held |= source.held()
        plans.needed(step, held)

    def _open(self, index: int, name: str, split: str, longest: int, drawn: int) -> TokenSource:
        folder, counts = packed.folder_of(self._data, name), self.packed[name].split(split)
        if counts.tokens < longest + 1:
            raise ValueError(
                f"data.sources.{name}: {folder} has {counts.tokens} tokens for {split}, less than one row of "
                f"schedule.sequence_length={longest}; pack more text, or shorten the rows"
            )
        if drawn > _MANY_EPOCHS * counts.tokens:
            warnings.warn(
                f"data.sources.{name}: training reads its {counts.tokens:,} tokens {drawn / counts.tokens:.1f} times; "
                "pack more text, or lower its weight or schedule.total_tokens",
                stacklevel=3,
            )
        key = f"{self._data.seed}/{self.packed[name].fingerprint}"
        reader = self.readers[name] = _checked_reader(self._data, name, split, counts)
        if self._data.packing == "stream":
            return Scattered(Stream(reader, key, self._order == WHOLE_ORDER), self.slot_tokens)
        edges = [bucket.min_tokens for bucket in self._data.length_buckets]
        return Whole(reader, key, self.mixture.chapters(), index, edges, name, self._plans)


class HeldoutText:
    """The first `tokens` predictions per source of a split, as rows in the order of packing, padded at the end.

    The same tokens are predicted whatever the sequence length. A source without held-out documents has no rows.
    Raises ValueError (keys `data.*`) as `Batches` does, and where no source has any rows.
    """

    def __init__(self, data: config.Data, sequence_length: int, tokens: int, split: str = "heldout") -> None:
        self._data, self._length = data, sequence_length
        self.names = sorted(name for name, source in data.sources.items() if source.weight or packed.exists(data, name))
        self.packed = _read_all(data, self.names)
        self.fingerprint = fingerprint(self.packed)
        self.vocab_size = max(source.vocab_size for source in self.packed.values())
        self._predicted = {
            name: max(0, min(tokens, source.split(split).tokens - 1)) for name, source in self.packed.items()
        }
        if not holds(self.packed, split):
            raise ValueError(
                f"data.sources: none of {', '.join(self.names)} has a split {split}; pack again with overwrite=true "
                f"and data.heldout_fraction above {data.heldout_fraction}, or with more documents"
            )
        self._streams = {
            name: Stream(_checked_reader(data, name, split, self.packed[name].split(split)), None)
            for name, predicted in self._predicted.items()
            if predicted
        }

    def count(self, name: str) -> int:
        """Rows of a source."""
        return -(-self._predicted[name] // self._length)

    def rows(self, name: str, indices: NDArray[np.int64]) -> Rows:
        """The given rows of a source; those at or beyond `count` are padding alone, to fill a batch."""
        indices = np.asarray(indices, np.int64)
        shape = (indices.size, self._length + 1)
        tokens, documents = np.zeros(shape, np.int64), np.zeros(shape, np.int32)
        mask = np.zeros((indices.size, self._length), np.float32)
        for i, begin in enumerate(indices * self._length):
            predicted = int(np.clip(self._predicted[name] - begin, 0, self._length))
            if predicted:
                read = documents[i, : predicted + 1]
                self._streams[name].read(int(begin), tokens[i, : predicted + 1], read)
                documents[i, predicted + 1 :] = read[-1] + 1  # padding is a document of its own
                mask[i, :predicted] = read[1:] == read[:-1] if self._data.document_mask else 1
        source = np.full(indices.size, self.names.index(name), np.int64)
        if not self._data.document_mask:
            documents[:] = 0
        return Rows(tokens[:, :-1], tokens[:, 1:], mask, documents[:, :-1], source)


def mixture_of(data: config.Data, schedule: config.Schedule, decisions: Sequence[Decision] = ()) -> Mixture:
    """What `data.mixture` plans, and the decisions on top of it."""
    first, *changes = plan(data)
    return Mixture(first.weights, schedule, [*changes, *decisions], first.lengths or ())


def slot_tokens(data: config.Data, schedule: config.Schedule) -> int:
    """Tokens of a slot of a stream: as long as the longest row, where `data.slot_tokens` says nothing."""
    return data.slot_tokens or _longest(schedule)


def _longest(schedule: config.Schedule) -> int:
    return max([schedule.sequence_length, *(ramp.sequence_length for ramp in schedule.ramp)])


def rank_rows(global_batch: int, micro_batch: int, dp: int, rank: int) -> list[NDArray[np.int64]]:
    """Row indices of each micro-batch of data-parallel rank `rank`; together the ranks take every row once.

    Raises ValueError where the rows do not divide up.
    """
    if global_batch % (micro_batch * dp):
        raise ValueError(
            f"schedule.batch_tokens: {global_batch} rows per step are no multiple of parallel.micro_batch={micro_batch}"
            f" x dp={dp}; change one of them"
        )
    firsts = range(rank * micro_batch, global_batch, dp * micro_batch)
    return [np.arange(first, first + micro_batch) for first in firsts]


def holds(sources: dict[str, Packed], split: str) -> bool:
    """Whether any source has a token to predict in a split."""
    return any(source.split(split).tokens > 1 for source in sources.values())


def fingerprint(sources: dict[str, Packed]) -> str:
    """One fingerprint of all sources: equal as long as names, tokens and packing are."""
    content = "".join(f"{name}={sources[name].fingerprint}\n" for name in sorted(sources))
    return hashlib.sha256(content.encode()).hexdigest()


def check_vocabulary(batches: Batches | HeldoutText, model: config.Model) -> None:
    """Raises ValueError (key `model.vocab_size`) where the data hold ids that the model has no embedding for."""
    if batches.vocab_size > model.vocab_size:
        raise ValueError(
            f"model.vocab_size={model.vocab_size}: the data were packed with a tokenizer of {batches.vocab_size} ids; "
            f"give model.vocab_size={batches.vocab_size} or more, or pack with a smaller tokenizer"
        )


def check_tokenizer(batches: Batches | HeldoutText, fingerprint: str) -> None:
    """Raises ValueError (key `tokenizer.path`) where the run's tokenizer is not the one that packed the data."""
    name, source = next(iter(batches.packed.items()))
    if source.tokenizer_fingerprint != fingerprint:
        raise ValueError(
            f"tokenizer.path: the run's tokenizer is not the one that packed data.sources.{name} "
            f"({source.tokenizer_kind}, {source.vocab_size} ids); give that one, or pack again with overwrite=true"
        )


def check_ends(data: config.Data, batches: Batches, eos_id: int, resumed: bool) -> None:
    """Raises ValueError (key `data.sources.NAME`) where documents do not end as this tokenizer ends them.

    A run that began with such data goes on with them, warned.
    """
    for name, reader in batches.readers.items():
        wrong = packed.wrong_end(data, name, batches.packed[name], reader, eos_id)
        if wrong and not resumed:
            raise ValueError(f"{wrong}; pack it again with overwrite=true")
        if wrong:
            warnings.warn(f"{wrong}; this run began with them and goes on with them", stacklevel=2)


def _read_all(data: config.Data, names: list[str]) -> dict[str, Packed]:
    if not names:
        raise ValueError("data.sources is empty: name at least one, data.sources.NAME.input=FOLDER, and pack it")
    sources = {name: packed.read(data, name) for name in names}
    first = names[0]
    for name, source in sources.items():
        if source.tokenizer_fingerprint != sources[first].tokenizer_fingerprint:
            raise ValueError(
                f"data.sources.{name} and data.sources.{first} were packed with different tokenizers; pack one of them "
                "again with overwrite=true"
            )
    return sources


def _checked_reader(data: config.Data, name: str, split: str, counts: packed.Split) -> IndexedReader:
    """Raises ValueError where the files are damaged or are not those that packed.json speaks of."""
    reader = IndexedReader(packed.folder_of(data, name) / split)
    if (reader.tokens.size, len(reader)) != (counts.tokens, counts.documents):
        raise ValueError(
            f"data.sources.{name}: {packed.folder_of(data, name)}/{split} holds {reader.tokens.size} tokens in "
            f"{len(reader)} documents, packed.json says {counts.tokens} in {counts.documents}; pack it again with "
            "overwrite=true"
        )
    return reader
