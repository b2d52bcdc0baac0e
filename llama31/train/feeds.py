"""What a run trains on, behind one protocol: packed text, or encoded dialogs and preferences (`dialogs/feed.py`)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llama31 import config
from llama31.data import batches, mixture
from llama31.data.mixture import Decision
from llama31.data.plans import Plans
from llama31.dialogs import columns, feed, stepwise, store
from llama31.dialogs import preferences as pairs
from llama31.dialogs.rows import PackedRows
from llama31.engine.reading import Heldout
from llama31.parallel.collectives import on_first_rank, rank_of
from llama31.parallel.replica import ALONE, Replica
from llama31.resilience import resume
from llama31.tokens import chat, tokenizers

Rows = batches.Rows | PackedRows


class Feed(Protocol):
    """Rows of a step as a pure function of the config, the data and the decisions that hold."""

    prefetch: int
    interrupted: threading.Event  # while it is set, `rows` waits for no other process
    fingerprints: dict[str, str]

    def begin(self, start: Any) -> list[Decision]: ...
    def follow(self, decisions: Sequence[Decision]) -> None: ...
    def check(self, model: config.Model, tokenizer: tokenizers.Tokenizer) -> None: ...
    def batch_shape(self, step: int) -> tuple[int, int]: ...
    def rows(self, step: int, indices: NDArray[np.int64]) -> Any: ...
    def heldout(self, length: int, tokens: int) -> Heldout | None: ...
    def facts(self, step: int) -> dict[str, Any]: ...
    def extra(self) -> dict[str, Any]: ...


class TextFeed:
    """Packed text, in the mixture that decisions may change.

    The first rank of each model replica opens the files, and the others only hear what it found: `begin`, `follow` and
    `check` are collective over the replica, `rows`, `heldout` and `facts` are asked of its first rank alone. `plans`
    keep where rows of whole documents come from.
    """

    _batches: batches.Batches  # of the first rank

    def __init__(
        self, data: config.Data, wanted: config.Schedule, replica: Replica = ALONE, plans: Plans | None = None
    ) -> None:
        self._data, self._schedule, self._replica, self._plans = data, wanted, replica, plans
        self.interrupted = plans.interrupted if plans else threading.Event()
        self.prefetch = data.prefetch

    def begin(self, start: resume.Start) -> list[Decision]:
        """The decisions since step 0. Raises ValueError where the data cannot be read."""
        self._start = start
        if start.resumed is not None:
            resume.check_order(self._data, start.resumed)
            resume.check_rows(self._schedule, self._data.packing, start.resumed)
        self._weights, decisions = mixture.begun(self._data, start.resumed)
        self.follow(decisions)
        return decisions

    def follow(self, decisions: Sequence[Decision]) -> None:
        """Read by these decisions from now on."""
        self._begun = mixture.as_begun(self._data, self._start.resumed, self._weights)
        self._mixture = batches.mixture_of(self._begun, self._schedule, decisions)
        self.fingerprints = self._replica.shared(lambda: self._opened(decisions))

    def _opened(self, decisions: Sequence[Decision]) -> dict[str, str]:
        begun = self._start.step, self._order()
        self._batches = batches.Batches(self._begun, self._schedule, "train", decisions, *begun, self._plans)
        return {name: source.fingerprint for name, source in self._batches.packed.items()}

    def check(self, model: config.Model, tokenizer: tokenizers.Tokenizer) -> None:
        """ValueError where the data hold other ids than the model, or were packed with another tokenizer."""
        self._replica.shared(lambda: self._check(model, tokenizer))

    def _check(self, model: config.Model, tokenizer: tokenizers.Tokenizer) -> None:
        batches.check_vocabulary(self._batches, model)
        batches.check_tokenizer(self._batches, tokenizer.fingerprint)
        batches.check_ends(self._data, self._batches, tokenizer.eos_id, self._start.resumed is not None)

    def batch_shape(self, step: int) -> tuple[int, int]:
        """(rows of the global batch, sequence length) of a step."""
        return self._mixture.shape(step)

    def rows(self, step: int, indices: NDArray[np.int64]) -> batches.Rows:
        """The given rows of the step's global batch."""
        return self._batches.rows(step, indices)

    def heldout(self, length: int, tokens: int) -> Heldout | None:
        """Held-out text in rows of `length`; None where no source has any."""
        if not batches.holds(self._batches.packed, "heldout"):
            return None
        return batches.HeldoutText(self._data, length, tokens)

    def facts(self, step: int) -> dict[str, Any]:
        """For the record: true lengths of the step's documents, of rows that hold whole ones. Some ms."""
        return self._batches.lengths(step).record() if self._data.packing == "whole" else {}

    def _order(self) -> str:
        """A run goes on in the order in which it began; none was written down before there were two."""
        resumed = self._start.resumed
        return batches.ORDER if resumed is None else str(resumed.extra.get("order", batches.WHOLE_ORDER))

    def extra(self) -> dict[str, Any]:
        """What a checkpoint keeps of the data."""
        known = self._start.resumed.extra.get("sources", {}) if self._start.resumed else {}
        return {
            "weights": self._weights,
            "slot_tokens": batches.slot_tokens(self._begun, self._schedule),
            "data_seed": self._data.seed,
            "packing": self._data.packing,
            "order": self._order(),
            "length_buckets": [(bucket.min_tokens, bucket.weight) for bucket in self._begun.length_buckets],
            "sources": {**known, **self.fingerprints},  # those that are drawn no more, and gone, stay known
        }


def dialogs(data: config.Dialogs, tokenizing: config.Tokenizer, wanted: config.Schedule) -> feed.DialogFeed:
    """Encode the dialogs where that is not done yet, and lay them into rows. Collective; raises ValueError."""
    targets = data.targets

    def encode(record: dict[str, Any], source: config.Records, form: chat.Format) -> store.Example | str:
        encoded = form.encode(chat.read(columns.dialog(record)))
        learned = encoded.targets(targets)
        return store.Example([(encoded.tokens, learned.astype(np.int8))]) if learned.any() else "without a target"

    return _feed(data, tokenizing, wanted, feed.Supervised(), {"kind": "dialogs", "targets": targets}, encode)


def preferences(
    data: config.Preferences, tokenizing: config.Tokenizer, wanted: config.Schedule, collator: feed.Collator,
    quiet: bool = False,
) -> feed.DialogFeed:  # fmt: skip
    """Preferences for a reward model or for DPO, as `collator` lays them into rows. Collective; raises ValueError."""

    def encode(record: dict[str, Any], source: config.Records, form: chat.Format) -> store.Example | str:
        return pairs.encode(record, form, data.similarity, _strength(source))

    settings = {"kind": "preferences", "similarity": data.similarity}
    return _feed(data, tokenizing, wanted, collator, settings, encode, quiet)


def steps(
    data: config.Preferences, tokenizing: config.Tokenizer, wanted: config.Schedule, collator: feed.Stepwise,
    quiet: bool = False,
) -> feed.DialogFeed:  # fmt: skip
    """Solutions with labels of their steps for a step-wise reward model. Collective; raises ValueError."""

    def encode(record: dict[str, Any], source: config.Records, form: chat.Format) -> store.Example | str:
        return stepwise.encode(record, form)

    return _feed(data, tokenizing, wanted, collator, {"kind": store.STEPS}, encode, quiet)


def _strength(source: config.Records) -> str | None:
    return source.strength if isinstance(source, config.Ranked) else None


def _feed(
    data: config.Dialogs | config.Preferences,
    tokenizing: config.Tokenizer,
    wanted: config.Schedule,
    collator: feed.Collator,
    settings: dict[str, Any],
    encode: Callable[[dict[str, Any], config.Records, chat.Format], store.Example | str],
    quiet: bool = False,
) -> feed.DialogFeed:
    """Every source, encoded by the first rank and read by all; `settings` are what encoding depends on beside."""
    tokenizer = tokenizers.load(tokenizing)
    form = chat.Format(tokenizer)
    settings = {**settings, "tokenizer": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size}

    def prepared(name: str, source: config.Records) -> Path:
        own = {"strength": _strength(source)} if _strength(source) else {}
        return store.prepare(
            Path(data.folder), name, source.input, settings | own, data.seed, data.heldout_fraction,
            lambda record: encode(record, source, form),
        )  # fmt: skip

    folders = on_first_rank(lambda: {name: prepared(name, source) for name, source in data.sources.items()})
    stores = {name: store.read(folder) for name, folder in folders.items()}
    epochs = {name: source.epochs for name, source in data.sources.items()}
    made = feed.DialogFeed(stores, epochs, collator, wanted, data.seed, data.prefetch)
    if not quiet and rank_of(None) == 0:
        print(f"data: {made.summary()}", flush=True)
    return made
