"""fastText (Joulin et al. 2017, "Bag of tricks for efficient text classification"): train, load and ask its models.

What the library (fasttext-numpy2-wheel 0.9.2) does with a text, seen and here taken care of: a newline raises; `</s>`
among the words ends the text there; a word that begins with `__label__` is a label, in training even the text's; half
of a surrogate pair is a TypeError; probabilities reach 1.00001.

What it does in training: the matrix of word vectors is filled in ten parts, one per thread, and what remains of the
division by ten by an eleventh. With fewer threads the rest keeps what the process's memory held before, and training
then ends with "Encountered NaN" or goes on with numbers of a million. Hence 11 threads or more, on any number of cores.
They write without locks (Hogwild, Recht et al. 2011), so two trainings give two models: what is repeatable are the
lines, their order and the verdicts (on 257 pages of LibreOffice's help at least 99.6 %, with scores correlated by
0.9999), not the bits. `record` says by what to know a model again.
The library trains in the order of its file; lines are shuffled here, by the seed.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import itertools
import json
import os
import random
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fasttext

from llama31.curate import words
from llama31.curate.fast_text import whole
from llama31.curate.fast_text.whole import PREFIX, record_path
from llama31.runs import files

FEWEST_THREADS = 11
PIECES = 4


@dataclass(frozen=True)
class FastTextSettings:
    """How a model is trained. Defaults are those of fastText's tutorial on classification, where not said otherwise.

    Args:
        dimension: numbers per word; ours.
        epochs, learning_rate: passes over the lines, and its first step size.
        word_ngrams: longest run of words that is a feature; 2 is a bigram.
        shortest, longest: characters of parts of words that are features; 0 and 0: none.
        buckets: rows that word n-grams and parts of words share by their hash; ours.
        min_count: how often a word has to stand in the lines.
        seed: of the order of the lines and of the first numbers.
        threads: at least 11; see the module.
    """

    dimension: int = 64
    epochs: int = 25
    learning_rate: float = 0.5
    word_ngrams: int = 2
    shortest: int = 0
    longest: int = 0
    buckets: int = 200_000
    min_count: int = 1
    seed: int = 0
    threads: int = FEWEST_THREADS

    def __post_init__(self) -> None:
        if self.threads < FEWEST_THREADS:
            raise ValueError(
                f"threads={self.threads}: fastText leaves a part of its numbers unset with fewer than "
                f"{FEWEST_THREADS}; give {FEWEST_THREADS}, whatever the number of cores"
            )


def excerpt(text: str, characters: int) -> str:
    """At most so many characters of a text: all of it, or four pieces, evenly spread from its begin to its end."""
    if characters < 1 or len(text) <= characters:
        return text
    size = max(1, characters // PIECES)
    step = (len(text) - size) / (PIECES - 1)
    return "\n".join(text[round(i * step) : round(i * step) + size] for i in range(PIECES))


def line(text: str, characters: int = 0, by_words: bool = False, language: str = "") -> str:
    """A text as fastText reads it: one line, nothing in it that the library would take for a mark of its own.

    `characters` as in `excerpt`, 0 for all; `by_words`: words alone, in small letters, apart by spaces, as a model that
    was trained so expects them. Halves of surrogate pairs become question marks.
    """
    text = excerpt(text, characters)
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode()
    if by_words:
        return " ".join(words.split(text.lower(), language)).replace(PREFIX, "_label_")
    text = " ".join(text.split())
    return text.replace("</s>", "</ s>").replace(PREFIX, "_label_")


class FastText:
    """A model by its path. Raises ValueError (key `model`) where there is none, or half of one.

    It is read anew for every object: datatrove's own blocks keep a copy by path under ~/.cache and go on with it when
    the file has changed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.labels = whole.check(self.path)
        self._model = fasttext.load_model(str(self.path))

    def best(self, prepared: str) -> tuple[str, float]:
        """The likeliest label of a `line`, and its probability, 0 to 1."""
        labels, probabilities = self._model.predict(prepared, k=1)
        return (labels[0].removeprefix(PREFIX), min(1.0, float(probabilities[0]))) if labels else ("", 0.0)

    def all(self, prepared: str) -> dict[str, float]:
        """Probabilities of all labels; those that the library leaves out, for they are next to nothing, are 0."""
        labels, probabilities = self._model.predict(prepared, k=-1)
        given = {name.removeprefix(PREFIX): min(1.0, float(one)) for name, one in zip(labels, probabilities)}
        return {name: given.get(name, 0.0) for name in self.labels}


def train(
    lines: Iterable[tuple[str, str]], path: str | Path, settings: FastTextSettings, **also: Any
) -> dict[str, Any]:
    """Train a model of (label, `line`) and write it to `path`, with its record beside it, which is returned.

    All lines stand in memory. Empty ones teach nothing and are counted. Raises ValueError for fewer than two labels and
    for labels with white space. `also` goes into the record.
    """
    kept, counts = [], Counter[str]()
    for label, prepared in lines:
        if not label or label.split() != [label]:
            raise ValueError(f"label={label!r}: a label is one word; give it without white space")
        counts[label if prepared else "left out: empty"] += 1
        if prepared:
            kept.append(f"{PREFIX}{label} {prepared}")
    if len(names := counts.keys() - {"left out: empty"}) < 2:
        raise ValueError(f"labels: {', '.join(names) or 'none'}; give texts of at least two labels")
    kept.sort()
    random.Random(settings.seed).shuffle(kept)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _written(kept) as (name, digest), files.whole(path) as draft:
        _trained(name, settings).save_model(str(draft))
        described = {"sha256": _sha256(draft), "lines_sha256": digest, "lines": dict(sorted(counts.items()))}
    described |= {"fasttext": importlib.metadata.version("fasttext-numpy2-wheel"), "settings": asdict(settings), **also}
    files.write_whole(record_path(path), json.dumps(described, indent=1, ensure_ascii=False) + "\n")
    return described


def add_to_record(path: str | Path, **more: Any) -> dict[str, Any]:
    """The record of a model with more in it, written and returned."""
    described = record(path) | more
    files.write_whole(record_path(path), json.dumps(described, indent=1, ensure_ascii=False) + "\n")
    return described


def record(path: str | Path) -> dict[str, Any]:
    """What stands beside a model that was trained here; {} where nothing does.

    Raises ValueError where it is the record of another file.
    """
    if not record_path(path).is_file():
        return {}
    described: dict[str, Any] = json.loads(record_path(path).read_text("utf-8"))
    if described.get("sha256") != _sha256(Path(path)):
        raise ValueError(
            f"model={path}: {record_path(path).name} beside it is the record of another file; take it away, or train "
            "the model again"
        )
    return described


def _trained(name: str, settings: FastTextSettings) -> Any:
    return fasttext.train_supervised(
        name,
        dim=settings.dimension,
        epoch=settings.epochs,
        lr=settings.learning_rate,
        wordNgrams=settings.word_ngrams,
        minn=settings.shortest,
        maxn=settings.longest,
        bucket=settings.buckets,
        minCount=settings.min_count,
        seed=settings.seed,
        thread=settings.threads,
        verbose=0,
    )


@contextlib.contextmanager
def _written(lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The lines as a file for as long as the block lasts, and their SHA-256."""
    digest = hashlib.sha256()
    handle, name = tempfile.mkstemp(suffix=".fasttext")
    try:
        with os.fdopen(handle, "wb") as file:
            for batch in itertools.batched(lines, 1000):
                data = "".join(f"{one}\n" for one in batch).encode()
                digest.update(data)
                file.write(data)
        yield name, digest.hexdigest()
    finally:
        os.unlink(name)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
