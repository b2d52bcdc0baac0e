"""What a run trains on, behind one protocol: packed text, or encoded dialogs and preferences (`dialogs/feed.py`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llama31 import config
from llama31.data import batches
from llama31.data.mixture import Decision
from llama31.dialogs import columns, feed, preferences, store
from llama31.dialogs.rows import PackedRows
from llama31.evaluate.perplexity import Heldout
from llama31.parallel.collectives import on_first_rank, rank_of
from llama31.resilience import resume
from llama31.tokens import chat, tokenizers

Rows = batches.Rows | PackedRows


class Feed(Protocol):
    """Rows of a step as a pure function of the config, the data and the decisions that hold."""

    prefetch: int
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
    """Packed text, in the mixture that decisions may change."""

    def __init__(self, run: config.Pretrain) -> None:
        self._run, self.prefetch = run, run.data.prefetch

    def begin(self, start: resume.Start) -> list[Decision]:
        """The decisions since step 0. Raises ValueError where the data cannot be read."""
        self._start = start
        if start.resumed is not None:
            resume.check_order(self._run.data, start.resumed)
            resume.check_rows(self._run.schedule, self._run.data.packing, start.resumed)
        self._weights, decisions = resume.decisions_of(self._run, start)
        self.follow(decisions)
        return decisions

    def follow(self, decisions: Sequence[Decision]) -> None:
        """Read by these decisions from now on."""
        data = resume.data_of(self._run, self._start, self._weights)
        self._batches = batches.Batches(data, self._run.schedule, decisions=decisions, from_step=self._start.step)
        self.fingerprints = {name: source.fingerprint for name, source in self._batches.packed.items()}

    def check(self, model: config.Model, tokenizer: tokenizers.Tokenizer) -> None:
        """ValueError where the data hold other ids than the model, or were packed with another tokenizer."""
        batches.check_vocabulary(self._batches, model)
        batches.check_tokenizer(self._batches, tokenizer.fingerprint)
        batches.check_ends(self._run.data, self._batches, tokenizer.eos_id, self._start.resumed is not None)

    def batch_shape(self, step: int) -> tuple[int, int]:
        """(rows of the global batch, sequence length) of a step."""
        return self._batches.batch_shape(step)

    def rows(self, step: int, indices: NDArray[np.int64]) -> batches.Rows:
        """The given rows of the step's global batch."""
        return self._batches.rows(step, indices)

    def heldout(self, length: int, tokens: int) -> Heldout | None:
        """Held-out text in rows of `length`; None where no source has any."""
        if not batches.holds(self._batches.packed, "heldout"):
            return None
        return batches.HeldoutText(self._run.data, length, tokens)

    def facts(self, step: int) -> dict[str, Any]:
        """For the record: true lengths of the step's documents, of rows that hold whole ones. Some ms."""
        return self._batches.lengths(step).record() if self._run.data.packing == "whole" else {}

    def extra(self) -> dict[str, Any]:
        """What a checkpoint keeps of the data."""
        known = self._start.resumed.extra.get("sources", {}) if self._start.resumed else {}
        return {
            "weights": self._weights,
            "slot_tokens": self._batches.slot_tokens,
            "data_seed": self._run.data.seed,
            "packing": self._run.data.packing,
            "length_buckets": self._batches.length_buckets,
            "sources": {**known, **self.fingerprints},  # those that are drawn no more, and gone, stay known
        }


def dialogs(run: config.Sft) -> feed.DialogFeed:
    """Encode the dialogs where that is not done yet, and lay them into rows. Collective; raises ValueError."""
    tokenizer = tokenizers.load(run.tokenizer)
    form, targets = chat.Format(tokenizer), run.data.targets

    def encode(record: dict[str, Any], source: config.Records) -> store.Example | str:
        encoded = form.encode(chat.read(columns.dialog(record)))
        learned = encoded.targets(targets)
        return store.Example([(encoded.tokens, learned.astype(np.int8))]) if learned.any() else "without a target"

    stores = _stores(run.data, tokenizer, {"kind": "dialogs", "targets": targets}, encode)
    return _feed(run, run.data, stores, feed.Supervised())


def rewarded(run: config.Reward, strengths: Sequence[str] | None = None) -> feed.DialogFeed:
    """Preferences for a reward model, of the config's strengths unless others are given. Collective."""
    collator = feed.Rewarded(run.layout, tuple(strengths or run.data.strengths))
    return _feed(run, run.data, _preferences(run, run.data), collator, quiet=strengths is not None)


def preferred(run: config.Dpo) -> feed.DialogFeed:
    """Preferences for DPO, to which `reference.attach` gives the reference's log-probabilities. Collective."""
    collator = feed.Preferred(run.nll, run.nll_mean, run.masked, tuple(run.data.strengths))
    result = _feed(run, run.data, _preferences(run, run.data), collator)
    result.objective = feed.objective(run)
    return result


def _preferences(run: config.Training, data: config.Preferences) -> dict[str, store.Store]:
    tokenizer = tokenizers.load(run.tokenizer)
    form = chat.Format(tokenizer)

    def encode(record: dict[str, Any], source: config.Records) -> store.Example | str:
        return preferences.encode(record, form, data.similarity, _strength(source))

    return _stores(data, tokenizer, {"kind": "preferences", "similarity": data.similarity}, encode)


def _strength(source: config.Records) -> str | None:
    return source.strength if isinstance(source, config.Ranked) else None


def _stores(
    data: config.Dialogs | config.Preferences,
    tokenizer: tokenizers.Tokenizer,
    settings: dict[str, Any],
    encode: Callable[[dict[str, Any], config.Records], store.Example | str],
) -> dict[str, store.Store]:
    """Every source, encoded by the first rank and read by all."""
    settings = {**settings, "tokenizer": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size}

    def prepared(name: str, source: config.Records) -> Path:
        own = {"strength": _strength(source)} if _strength(source) else {}
        return store.prepare(
            Path(data.folder), name, source.input, settings | own, data.seed, data.heldout_fraction,
            lambda record: encode(record, source),
        )  # fmt: skip

    folders = on_first_rank(lambda: {name: prepared(name, source) for name, source in data.sources.items()})
    return {name: store.read(folder) for name, folder in folders.items()}


def _feed(
    run: config.Training,
    data: config.Dialogs | config.Preferences,
    stores: dict[str, store.Store],
    collator: feed.Collator,
    quiet: bool = False,
) -> feed.DialogFeed:
    epochs = {name: source.epochs for name, source in data.sources.items()}
    made = feed.DialogFeed(stores, epochs, collator, run.schedule, data.seed, data.prefetch)
    if rank_of(None) == 0 and not quiet:
        print(f"data: {made.summary()}", flush=True)
    return made
