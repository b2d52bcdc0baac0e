"""Dialogs that hold what benchmarks ask (report, sections 4.2.3 and 5.1.4).

A prompt of a benchmark counts as seen by the share of its words that lie in an n-gram which the text has as well, as
the report measures contamination of its corpus; from its set's T_D on it is contaminated. Here the text is one dialog,
which is dropped then, however long it is beside the prompt. Words are those of `curate.words`, whatever case and
punctuation. A prompt with fewer words than an n-gram is found by exact match alone.

What is held in memory is the benchmarks. N-grams are compared as such; hashes only say which are worth comparing.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama31 import config
from llama31.curate import words
from llama31.dialogs import store

FIELD = re.compile(r"\{([A-Za-z_][\w.]*)\}")
Grams = NDArray[np.int64]  # numbers of n-grams of benchmarks


@dataclass(frozen=True)
class BenchmarkPrompt:
    """A prompt of a benchmark: its set, where it stands, how many words it has, and the share that contaminates."""

    benchmark: str
    place: str
    size: int
    threshold: float


@dataclass(frozen=True)
class Overlap:
    """What a dialog has of a benchmark: `share` of the words of its prompt at `place`; `exact`: it is the prompt."""

    benchmark: str
    place: str
    share: float
    exact: bool = False


def tokens(text: str) -> list[str]:
    """The words that are compared."""
    return words.split(text.casefold(), "")


@dataclass
class Benchmarks:
    """The prompts of all benchmarks, by their n-grams. Add all of them, then look for them."""

    ngram: int
    prompts: list[BenchmarkPrompt] = field(default_factory=list)
    whole: dict[tuple[str, ...], int] = field(default_factory=dict)  # a prompt's words -> its number
    _ids: dict[str, int] = field(default_factory=dict)  # words; 0 is none of them
    _grams: dict[tuple[int, ...], int] = field(default_factory=dict)
    _at: list[list[tuple[int, int]]] = field(default_factory=list)  # of an n-gram: prompts, and where in them
    _hashes: NDArray[np.uint64] | None = None

    def __post_init__(self) -> None:
        self._factors = np.random.default_rng(0).integers(1, 2**63, self.ngram, np.uint64) | np.uint64(1)

    def add(self, benchmark: str, place: str, text: str, threshold: float) -> None:
        """A prompt; one without words is left out (`prompts` has it with size 0)."""
        said = tokens(text)
        number = len(self.prompts)
        self.prompts.append(BenchmarkPrompt(benchmark, place, len(said), threshold))
        if said:
            self.whole.setdefault(tuple(said), number)
        ids = [self._ids.setdefault(word, len(self._ids) + 1) for word in said]
        for begin in range(len(ids) - self.ngram + 1):
            gram = self._grams.setdefault(tuple(ids[begin : begin + self.ngram]), len(self._grams))
            if gram == len(self._at):
                self._at.append([])
            self._at[gram].append((number, begin))
        self._hashes = None

    def grams(self, texts: Iterable[str]) -> Grams:
        """Numbers, each once and in order, of the benchmarks' n-grams that stand within one of the texts."""
        known = self._known()
        result: set[int] = set()
        for text in texts:
            ids = np.array([self._ids.get(word, 0) for word in tokens(text)], np.uint64)
            if len(ids) < self.ngram or not len(known):
                continue
            windows = np.lib.stride_tricks.sliding_window_view(ids, self.ngram)
            windows = windows[(windows > 0).all(1)]
            hashes = self._hash(windows)
            places = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
            found = windows[known[places] == hashes]
            result.update(self._grams.get(tuple(gram), -1) for gram in found.tolist())
        return np.array(sorted(result - {-1}), np.int64)

    def shares(self, grams: Grams) -> dict[int, float]:
        """Of prompts that have one of these n-grams, by their number: the share of words that lie in any of them."""
        covered: defaultdict[int, set[int]] = defaultdict(set)
        for gram in grams.tolist():
            for number, begin in self._at[gram]:
                covered[number].update(range(begin, begin + self.ngram))
        return {number: len(places) / self.prompts[number].size for number, places in sorted(covered.items())}

    def overlap(self, prompts: Sequence[str], grams: Grams, exact: bool = True) -> Overlap | None:
        """What a dialog with these n-grams and users' `prompts` has of a contaminated prompt; None where there is none.

        Of several by n-grams it is the one with the largest share; an exact match comes before them.
        """
        for text in prompts if exact else ():
            if (number := self.whole.get(tuple(tokens(text)))) is not None:
                return Overlap(self.prompts[number].benchmark, self.prompts[number].place, 1.0, exact=True)
        shares = {number: share for number, share in self.shares(grams).items() if self._contaminated(number, share)}
        if not shares:
            return None
        number = max(shares, key=lambda one: (shares[one], -one))
        return Overlap(self.prompts[number].benchmark, self.prompts[number].place, shares[number])

    def table(self, grams: Grams) -> dict[str, dict[str, Any]]:
        """By set: prompts, those too short for an n-gram, and those that n-grams of a whole corpus contaminate."""
        counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for one in self.prompts:
            counts[one.benchmark]["prompts"] += 1
            counts[one.benchmark]["short"] += one.size < self.ngram
        for number, share in self.shares(grams).items():
            counts[self.prompts[number].benchmark]["contaminated"] += self._contaminated(number, share)
        names = ("prompts", "short", "contaminated")
        return {benchmark: {name: found[name] for name in names} for benchmark, found in counts.items()}

    def _contaminated(self, number: int, share: float) -> bool:
        return share >= self.prompts[number].threshold - 1e-9  # 3 / 5 is not 0.6

    def _hash(self, windows: NDArray[np.uint64]) -> NDArray[np.uint64]:
        return np.asarray((windows * self._factors).sum(1, dtype=np.uint64))

    def _known(self) -> NDArray[np.uint64]:
        if self._hashes is None:
            keys = np.array([*self._grams], np.uint64).reshape(-1, self.ngram)
            self._hashes = np.unique(self._hash(keys))
        return self._hashes


def read(ngram: int, sets: Mapping[str, config.BenchmarkSet]) -> Benchmarks:
    """The benchmarks of a config. Raises ValueError (keys `decontamination.sets.NAME...`) with file and line."""
    benchmarks = Benchmarks(ngram)
    for name, given in sets.items():
        key = f"decontamination.sets.{name}"
        before = len(benchmarks.prompts)

        def prompt(record: dict[str, Any], template: str = given.prompt) -> str:
            return FIELD.sub(lambda match: _text(record, match[1]), template)

        for place, _, text in store.records(store.files(given.path), key, prompt):
            benchmarks.add(name, place, text, given.threshold)
        if len(benchmarks.prompts) == before:
            raise ValueError(f"{key}.path={given.path}: there is no record in it; give JSON lines or Parquet")
    return benchmarks


def _text(record: Mapping[str, Any], path: str) -> str:
    """The text of a field, dots leading into objects; a list of texts (choices) line by line."""
    value: Any = record
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            there = ", ".join(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
            raise ValueError(f"prompt: there is no field {path}, but {there or 'nothing'}; name one of every record")
        value = value[part]
    return "\n".join(_plain(value, path))


def _plain(value: Any, path: str) -> Iterator[str]:
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, bool) or not isinstance(one, str | int | float):
            raise ValueError(f"prompt: {path} is {type(one).__name__}; name a field with a text, or a list of them")
        yield str(one)
