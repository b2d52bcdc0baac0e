"""Packed dialogs and preferences as what a run trains on: rows of a step as a pure function of seed, step and data.

`DialogFeed` knows rows, passes and what is held out; a `Collator` knows what an example becomes and how long that is.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llama31 import config
from llama31.data.mixture import Decision, Skip, dropped, from_record
from llama31.data.stream import permutation
from llama31.dialogs import passes, preferences, rows
from llama31.dialogs.rows import PackedRows, Piece, Response
from llama31.dialogs.store import Store
from llama31.plan import schedule
from llama31.tokens.chat import PROMPT
from llama31.tokens.tokenizers import Tokenizer

Ints = NDArray[np.int64]


class Collator(Protocol):
    """What becomes of an example."""

    @property
    def compares(self) -> bool:
        """Whether responses are compared."""

    def order(self) -> dict[str, Any]:
        """Keys of the config on which it depends which examples are learned, and what they look like."""

    def lengths(self, store: Store) -> Ints:
        """Places that each example takes in a row, 0 where there is nothing to learn of it."""

    def piece(self, store: Store, example: int, key: str, share: float) -> Piece:
        """An example; `key` is the seed of what is random, `share` what `share` gave."""

    def share(self, stores: Sequence[Store], examples: Sequence[Ints]) -> float:
        """Weight of a token of the likelihood term (DPO), from all examples of a step by source."""


@dataclass(frozen=True)
class Supervised:
    """Dialogs, whose parts are 1 where a token is a target."""

    compares: bool = False

    def lengths(self, store: Store) -> Ints:
        """See `Collator`."""
        return store.sizes() - 1

    def piece(self, store: Store, example: int, key: str, share: float) -> Piece:
        """See `Collator`."""
        tokens, targets = store.sequence(example)
        return rows.supervised(tokens, targets)

    def order(self) -> dict[str, Any]:
        """See `Collator`."""
        return {}

    def share(self, stores: Sequence[Store], examples: Sequence[Ints]) -> float:
        """See `Collator`."""
        return 0.0


def _pairs(store: Store, example: int) -> Ints:
    """Pairs of an example, [p, 3]: better, worse, kind."""
    begin, end = np.searchsorted(store.pairs[:, 0], [example, example + 1])
    return store.pairs[begin:end, 1:]


def _answers(store: Store, example: int) -> tuple[NDArray[np.int32], list[Response]]:
    prompt, *answers = store.example(example)
    return prompt[0], [Response(*one) for one in answers]


def _said(answer: Response) -> int:
    """Tokens that the likelihood of an answer counts: the assistant's, and not what tools say in between."""
    return int((answer.parts != PROMPT).sum())


@dataclass(frozen=True)
class Rewarded:
    """A prompt and all its answers, in random order; pairs of records of `strengths`."""

    layout: str = "tree"
    strengths: tuple[str, ...] = ("significantly_better", "better")
    compares: bool = True

    def lengths(self, store: Store) -> Ints:
        """See `Collator`."""
        sizes, count = store.sizes(), np.diff(store.examples)
        whole = np.add.reduceat(sizes, store.examples[:-1]) if count.size else count
        if self.layout == "separate":
            whole = whole + (count - 2) * sizes[store.examples[:-1]]
        learned = store.pairs[preferences.wanted(store.pairs[:, 3], self.strengths), 0]
        return np.where(np.isin(np.arange(count.size), learned), whole, 0)

    def piece(self, store: Store, example: int, key: str, share: float) -> Piece:
        """See `Collator`."""
        prompt, answers = _answers(store, example)
        order = permutation(f"{key}/{example}", len(answers))
        return rows.reward(prompt, answers, _pairs(store, example)[:, :2], order, self.layout)

    def order(self) -> dict[str, Any]:
        """See `Collator`."""
        return {"data.strengths": list(self.strengths), "layout": self.layout}

    def share(self, stores: Sequence[Store], examples: Sequence[Ints]) -> float:
        """See `Collator`."""
        return 0.0


@dataclass(frozen=True)
class Stepwise:
    """Solutions whose steps have labels, 0 to 1; those above `hard_above` count as 1 and others as 0, unless None."""

    layout: str = "tree"
    hard_above: float | None = None
    compares: bool = True

    def lengths(self, store: Store) -> Ints:
        """See `Collator`."""
        sizes = store.sizes() + (store.prefixes if self.layout == "separate" else 0)
        return np.add.reduceat(sizes, store.examples[:-1]) if len(store.examples) > 1 else sizes

    def piece(self, store: Store, example: int, key: str, share: float) -> Piece:
        """See `Collator`."""
        *ends, whole = (tokens for tokens, _ in store.example(example))
        span = slice(store.examples[example], store.examples[example + 1])
        made = rows.steps(whole, ends, [int(prefix) for prefix in store.prefixes[span][:-1]], self.layout)
        return replace(made, targets=self.labels(store, example))

    def labels(self, store: Store, example: int) -> NDArray[np.float32]:
        """Labels of an example's steps, in their order."""
        given = store.labels[store.examples[example] : store.examples[example + 1]]
        return given if self.hard_above is None else (given > self.hard_above).astype(np.float32)

    def order(self) -> dict[str, Any]:
        """See `Collator`."""
        return {"objective": "steps", "layout": self.layout, "hard_above": self.hard_above}

    def share(self, stores: Sequence[Store], examples: Sequence[Ints]) -> float:
        """See `Collator`."""
        return 0.0


@dataclass(frozen=True)
class Preferred:
    """The best and the worst answer to a prompt; see `rows.dpo`.

    The likelihood term is `nll` x the mean over the assistant's tokens of the step's chosen answers, or over answers of
    their means (`nll_mean`: tokens or dialogs).
    """

    nll: float = 0.2
    nll_mean: str = "tokens"
    masked: bool = True
    strengths: tuple[str, ...] = ("significantly_better", "better")
    compares: bool = True

    def lengths(self, store: Store) -> Ints:
        """See `Collator`."""
        sizes, count = store.sizes(), np.diff(store.examples)
        first, last = store.examples[:-1], store.examples[1:] - 1
        whole = 2 * sizes[first] + sizes[np.minimum(first + 1, last)] + sizes[last] - 2
        extremes = (store.pairs[:, 1] == 0) & (store.pairs[:, 2] == count[store.pairs[:, 0]] - 2)
        learned = store.pairs[extremes & preferences.wanted(store.pairs[:, 3], self.strengths), 0]
        return np.where(np.isin(np.arange(count.size), learned), whole, 0)

    def piece(self, store: Store, example: int, key: str, share: float) -> Piece:
        """See `Collator`."""
        prompt, answers = _answers(store, example)
        weight = share if self.nll_mean == "tokens" else self.nll / max(_said(answers[0]), 1)
        return rows.dpo(prompt, answers[0], answers[-1], weight, self.masked)

    def order(self) -> dict[str, Any]:
        """See `Collator`."""
        return {"data.strengths": list(self.strengths)}

    def loss_keys(self) -> dict[str, Any]:
        """Keys of DPO's loss that stand here: with another value it would be another loss from the middle on."""
        return {"masked": self.masked, "nll": self.nll, "nll_mean": self.nll_mean}

    def share(self, stores: Sequence[Store], examples: Sequence[Ints]) -> float:
        """See `Collator`."""
        answers = (_answers(one, int(number))[1][0] for one, chosen in zip(stores, examples) for number in chosen)
        tokens = sum(_said(answer) for answer in answers)
        return self.nll * sum(len(chosen) for chosen in examples) / max(tokens, 1)


class DialogFeed:
    """What `loop.fit` reads: rows of every step, held-out rows, and what a checkpoint has to know of the data.

    `stores` and `epochs` by source. Raises ValueError (key `data.sources`) where nothing fits into a row.
    """

    def __init__(
        self,
        stores: Mapping[str, Store],
        epochs: Mapping[str, float],
        collator: Collator,
        wanted: config.Schedule,
        seed: int,
        prefetch: int,
    ) -> None:
        self.names = sorted(stores)
        self.stores = [stores[name] for name in self.names]
        self.collator, self.schedule, self.seed, self.prefetch = collator, wanted, seed, prefetch
        self.interrupted = threading.Event()  # `rows` waits for nobody
        self._epochs = dict(epochs)
        lengths = {name: collator.lengths(store) for name, store in zip(self.names, self.stores)}
        kept = {name: np.where(stores[name].heldout, 0, sizes) for name, sizes in lengths.items()}
        held = {name: np.where(stores[name].heldout, sizes, 0) for name, sizes in lengths.items()}
        self.plan = passes.PassPlan(kept, epochs, wanted.sequence_length, seed)
        self._held = held
        self.reference: NDArray[np.float32] | None = None  # [examples, 2], by number
        self.reference_key = ""  # of what those are the log-probabilities
        self.objective: dict[str, Any] = {}  # keys of the config that say what is learned of the rows
        self._skipped: list[tuple[int, int]] = []
        self.examples = int(self.plan.firsts[-1])
        self.vocab_size = max((int(store.header["vocab_size"]) for store in self.stores), default=0)
        self.tokenizer_fingerprint = str(self.stores[0].header["tokenizer"])
        self.fingerprints = {name: stores[name].fingerprint for name in self.names}

    def begin(self, start: Any) -> list[Decision]:
        """The decisions since step 0: those of the checkpoint that a run goes on from (`runs.Start`).

        Raises ValueError where that run read other rows, or learned something else of them.
        """
        if start.resumed is None:
            self.follow([])
            return []
        self._check(start.resumed.extra)
        decisions = [from_record(record) for record in start.resumed.decisions]
        self.follow(decisions)
        return decisions

    def _check(self, was: Mapping[str, Any]) -> None:
        new = "start a new run from these weights with init_from="
        if "order" not in was:
            raise ValueError(f"resume: the checkpoint was not trained on dialogs or preferences; {new}")
        changes = _changed(self.order(), was["order"], "read its data")
        changes += _changed(self.objective, was.get("objective", self.objective), "was trained")
        if changes:
            raise ValueError(f"{'; '.join(changes)}; give what it had again, or {new}")

    def order(self) -> dict[str, Any]:
        """Keys of the config on which it depends what stands in which row."""
        epochs = {f"data.sources.{name}.epochs": self._epochs[name] for name in self.names}
        length = self.schedule.sequence_length
        settings = {"data.seed": self.seed, "schedule.sequence_length": length, **epochs, **self.collator.order()}
        return settings | ({"init_from (its weights)": self.reference_key} if self.reference_key else {})

    def check(self, model: config.Model, tokenizer: Tokenizer) -> None:
        """ValueError where the data hold ids that the model has no embedding for."""
        if self.vocab_size > model.vocab_size:
            raise ValueError(
                f"model.vocab_size={model.vocab_size}: the tokenizer has {self.vocab_size} ids; give the tokenizer of "
                "the model that training begins with, or give that model rows for them first (transformers' "
                "resize_token_embeddings, then recipes.convert)"
            )
        assert tokenizer.fingerprint == self.tokenizer_fingerprint, "encoded with the run's own tokenizer"

    def follow(self, decisions: Sequence[Decision]) -> None:
        """From now on give the rows that these decisions leave."""
        self._skipped = dropped([decision for decision in decisions if isinstance(decision, Skip)])

    def batch_shape(self, step: int) -> tuple[int, int]:
        """(rows of the global batch, sequence length) of a step."""
        stage = schedule.batch_at(self.schedule, schedule.step_tokens(self.schedule, step))
        return stage.rows, stage.sequence_length

    def rows(self, step: int, indices: Ints) -> PackedRows:
        """The given rows of the step's global batch, in the given order."""
        _, length = self.batch_shape(step)
        drawn = self._drawn(step)
        share = self._share([examples for _, examples in drawn])
        return self._pack([drawn[int(place)] for place in indices], length, share)

    def _drawn(self, step: int) -> list[tuple[int, Ints]]:
        """(pass, examples) of every row of the step."""
        count, length = self.batch_shape(step)
        behind = step + sum(steps for at, steps in self._skipped if at <= step)
        first = schedule.step_tokens(self.schedule, behind) // length
        return [self.plan.row(first + place) for place in range(count)]

    def facts(self, step: int) -> dict[str, Any]:
        """For the record: the pass over the data, from 0, and how full the step's rows are."""
        drawn = self._drawn(step)
        used = passes.fill([examples for _, examples in drawn], self.plan.lengths, self.schedule.sequence_length)
        return {"pass": drawn[-1][0], "fill": round(used, 4)}

    def _share(self, chosen: Sequence[Ints]) -> float:
        numbers = np.concatenate([*chosen, np.zeros(0, np.int64)])
        bounds = zip(self.plan.firsts[:-1], self.plan.firsts[1:])
        split = [numbers[(numbers >= begin) & (numbers < end)] - begin for begin, end in bounds]
        return self.collator.share(self.stores, split)

    def _pack(self, drawn: Sequence[tuple[int, Ints]], length: int, share: float) -> PackedRows:
        pieces = [[self._piece(int(number), which, share) for number in examples] for which, examples in drawn]
        return rows.pack(pieces, length, self.collator.compares)

    def _piece(self, number: int, which: int, share: float) -> Piece:
        place = int(np.searchsorted(self.plan.firsts, number, side="right")) - 1
        key = f"{self.seed}/{which}/{self.names[place]}"
        piece = self.collator.piece(self.stores[place], number - int(self.plan.firsts[place]), key, share)
        return piece if self.reference is None else replace(piece, reference=self.reference[number])

    def heldout(self, length: int, tokens: int) -> HeldoutDialogs | None:
        """Rows of held-out examples, at least one and at most about `tokens` places per source; None without any."""
        held = HeldoutDialogs(self, length, tokens)
        return held if held.names else None

    def everything(self, length: int) -> list[Ints]:
        """Numbers of the examples of each row, such that all examples that fit stand in one, held-out ones too."""
        return [*self.plan.once(), *self.held(length)]

    def held(self, length: int) -> list[Ints]:
        """The same of held-out examples alone."""
        lengths = np.concatenate([self._held[name] for name in self.names])
        fits = np.nonzero((lengths > 0) & (lengths <= length))[0]
        return [fits[row] for row in passes.best_fit(lengths[fits], length)]

    def kinds(self, examples: Ints) -> Ints:
        """Kind of every pair of these examples (`preferences.kind_name`), in the order in which rows hold them."""
        each = [_pairs(store, number)[:, 2] for store, number in self._located(examples)]
        return np.concatenate([*each, np.zeros(0, np.int64)])

    def labels(self, examples: Ints) -> NDArray[np.float32]:
        """Label of every step of these examples, in the order in which rows hold them."""
        assert isinstance(self.collator, Stepwise), "steps alone have labels"
        each = [self.collator.labels(store, number) for store, number in self._located(examples)]
        return np.concatenate([*each, np.zeros(0, np.float32)])

    def _located(self, examples: Ints) -> Iterator[tuple[Store, int]]:
        """The store of each of these examples, and its number there."""
        places = np.searchsorted(self.plan.firsts, examples, side="right") - 1
        for place, number in zip(places, examples):
            yield self.stores[place], int(number - self.plan.firsts[place])

    def alone(self, chosen: Sequence[Ints], length: int) -> PackedRows:
        """Rows of the examples with these numbers; an empty row is padding."""
        return self._pack([(0, examples) for examples in chosen], length, 0.0)

    def extra(self) -> dict[str, Any]:
        """What a checkpoint keeps of the data."""
        return {"order": self.order(), "objective": self.objective, "sources": self.fingerprints}

    def summary(self) -> str:
        """One line on what is there."""
        trained = int((self.plan.lengths > 0).sum()) - self.plan.too_long
        held = sum(int((lengths > 0).sum()) for lengths in self._held.values())
        left: Counter[str] = sum((Counter(store.header["left_out"]) for store in self.stores), Counter())
        reasons = "".join(f"{count:,} {reason}, " for reason, count in sorted(left.items()))
        used = passes.fill(self.plan.once(), self.plan.lengths, self.schedule.sequence_length)
        return (
            f"{trained:,} examples to train on, {held:,} held out; left out: {reasons}{self.plan.too_long:,} longer "
            f"than a row; rows are filled to {used:.0%}"
        )


def _changed(given: Mapping[str, Any], was: Mapping[str, Any], did: str) -> list[str]:
    """What is told of each key that is not as the checkpoint had it, or that only one of both has."""
    changes = []
    for key in sorted(given.keys() | was.keys()):
        if key not in was:
            changes.append(f"{key}={given[key]}: the checkpoint {did} without it")
        elif key not in given:
            changes.append(f"{key} is not given: the checkpoint {did} with {was[key]}")
        elif given[key] != was[key]:
            changes.append(f"{key}={given[key]}: the checkpoint {did} with {was[key]}")
    return changes


class HeldoutDialogs:
    """Held-out rows by source, as `perplexity.heldout_means` asks for them."""

    def __init__(self, feed: DialogFeed, length: int, tokens: int) -> None:
        self._feed, self._length = feed, length
        self._rows: dict[str, list[Ints]] = {}
        for place, name in enumerate(feed.names):
            lengths = feed._held[name]
            fits = np.nonzero((lengths > 0) & (lengths <= length))[0]
            packed = passes.best_fit(lengths[fits], length)
            chosen = permutation(f"{feed.seed}/heldout/{name}", len(packed))[: max(1, tokens // length)]
            if packed:
                self._rows[name] = [feed.plan.firsts[place] + fits[packed[row]] for row in chosen]
        self.names = list(self._rows)
        self._shares = {name: feed._share(rows_of) for name, rows_of in self._rows.items()}

    def count(self, name: str) -> int:
        """Rows of a source."""
        return len(self._rows[name])

    def rows(self, name: str, indices: Ints) -> PackedRows:
        """The given rows of a source; those at or beyond `count` are padding alone."""
        there, nothing = self._rows[name], np.zeros(0, np.int64)
        chosen = [(0, there[int(i)] if i < len(there) else nothing) for i in indices]
        return self._feed._pack(chosen, self._length, self._shares[name])
