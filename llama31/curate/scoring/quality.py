"""fastText scores: "would Wikipedia cite this?", and any other question that two heaps of documents answer.

The report (section 3.1.1) has a fastText classifier that was trained to know text which Wikipedia would reference.
Positives are pages that articles of Wikipedia cite, negatives are pages drawn from the crawl; both come as JSON lines.
"""

from __future__ import annotations

import hashlib
import heapq
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.disk_base import DiskWriter
from datatrove.utils.logging import logger

from llama31.curate.fast_text import model as fasttext_model
from llama31.curate.fast_text.model import FastText, FastTextSettings
from llama31.curate.reading.files import LinesReader
from llama31.curate.scoring import calibration
from llama31.curate.scoring.kinds import GOOD

CHARACTERS = 20_000
BAD = "other"


class FastTextFilter(BaseFilter):
    """Writes the probability of one label to metadata, and drops what is below a threshold if there is one.

    Without a threshold nothing is dropped: the score is there to be ranked by. Documents without a word get 0. Counts
    what is dropped as `KEY below 0.5`, with the language where that has a threshold of its own.

    Args:
        model: path of a fastText model, read anew at every start.
        label: whose probability it is, without `__label__`.
        key: metadata's name of the score.
        threshold: least score; None: keep all. `calibration.threshold` finds the one that keeps a share.
        thresholds: others for single languages.
        by_words: whether the model was trained on words alone in small letters; None: as the record beside it says,
            and as the text stands where there is none.
        characters: how much of a document is looked at: four pieces, evenly spread; 0: all of it. None: as the record
            says, and 20,000 (ours) where there is none.
        exclusion_writer: takes what is dropped.
    """

    name = "fastText score"

    def __init__(
        self,
        model: str,
        label: str = GOOD,
        key: str = "quality_cited",
        threshold: float | None = None,
        thresholds: Mapping[str, float] | None = None,
        by_words: bool | None = None,
        characters: int | None = None,
        exclusion_writer: DiskWriter | None = None,
    ) -> None:
        super().__init__(exclusion_writer)
        self.name = f"{type(self).name}: {key}"  # several may stand in a pipeline
        self.model, self.label, self.key, self.characters = model, label, key, characters
        self.threshold, self.thresholds, self.by_words = threshold, dict(thresholds or {}), by_words
        self._loaded: FastText | None = None
        self._prepared: dict[str, Any] = {}

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether the document is kept, or why not."""
        language = doc.metadata.get("language", "")
        score = round(self.score(doc.text, language), 4)
        doc.metadata[self.key] = score
        if language in self.thresholds:
            least: float | None = self.thresholds[language]
            which = f"{self.key} of {language}"
        else:
            least, which = self.threshold, self.key
        return True if least is None or score >= least else (False, f"{which} below {least:g}")

    def score(self, text: str, language: str = "") -> float:
        """Probability of the label; 0 for a text without words."""
        if self._loaded is None:
            loaded = FastText(self.model)
            if self.label not in loaded.labels:
                raise ValueError(f"label={self.label}: {self.model} knows {', '.join(loaded.labels)}; give one of them")
            trained = {"by_words": False, "characters": CHARACTERS} | fasttext_model.record(self.model)
            given = {"by_words": self.by_words, "characters": self.characters}
            self._prepared = {key: trained[key] if value is None else value for key, value in given.items()}
            self._loaded = loaded
        prepared = fasttext_model.line(text, language=language, **self._prepared)
        return self._loaded.all(prepared)[self.label] if prepared else 0.0


def read(
    path: str, text_key: str = "text", limit: int | None = None, key: str = "path"
) -> tuple[list[Document], dict[str, int]]:
    """Documents of JSON lines, a file or a glob, compressed or not, and what was left out, by kind.

    `limit`: so many of them, drawn by a hash of their text, of all files alike; of a higher one they are a part. No
    more stand in memory. Raises ValueError (`key`, the caller's name of the path) where there is none.
    """
    folder, name = re.fullmatch(r"((?:[^*?\[]*/)?)(.*)", path, re.DOTALL).groups()  # type: ignore[union-attr]
    logger.disable("datatrove.pipeline.readers")  # it says the name of every file
    reader = LinesReader(folder or ".", source=name, text_key=text_key, glob_pattern=name)
    try:
        rows = reader.run()
        documents = [*rows] if limit is None else heapq.nsmallest(limit, rows, key=lambda one: _place(one.text))
    except RuntimeError as error:  # datatrove's, of a pattern that nothing has
        raise ValueError(f"{key}={path}: {error}; give JSON lines") from error
    left_out = {name: int(stat.total) for name, stat in reader.stats.stats.items() if name.startswith("left out")}
    if not documents:
        kinds = ", ".join(f"{name}: {count:,}" for name, count in left_out.items()) or "it is empty"
        remedy = f"give JSON lines with the field {text_key}, or text_key=FIELD"
        raise ValueError(f"{key}={path}: no document in it ({kinds}); {remedy}")
    return documents, left_out


def held_out(text: str, share: float, seed: int = 0) -> bool:
    """Whether a text belongs to the share that is not trained on: by its hash, so that equal ones never part."""
    return _place(text, str(seed)) < share * 2**64


def _place(text: str, key: str = "drawn") -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8, key=key.encode()).digest()
    return int.from_bytes(digest, "big")


def train(
    positives: Iterable[Document],
    negatives: Iterable[Document],
    path: str | Path,
    share: float = 0.1,
    by_words: bool = True,
    characters: int = CHARACTERS,
    settings: FastTextSettings | None = None,
    labels: tuple[str, str] = (GOOD, BAD),
) -> dict[str, Any]:
    """Train a model that tells positives from negatives, judge it on what was held out, and return its record.

    Beside the model stand its record and a reliability diagram, `PATH.png`. The same text twice counts once, and as a
    positive where it is both. Repeatable in what it learns from and in what is held out; see `fast_text.model` for what
    threads do to the rest. Raises ValueError where nothing of a kind is left to train on or to judge by.

    Args:
        share: held out, by the hash of the text. A tenth, ours.
        by_words, characters: how texts are prepared, and later have to be: it stands in the record.
    """
    chosen = settings or FastTextSettings()
    counts, seen = Counter[str](), set[bytes]()
    lines: dict[bool, list[tuple[str, str]]] = {False: [], True: []}
    for label, documents in zip(labels, (positives, negatives)):
        for document in documents:
            digest = hashlib.blake2b(document.text.encode("utf-8", "replace"), digest_size=16).digest()
            if digest in seen:
                counts[f"left out: {label} that stood there before"] += 1
                continue
            seen.add(digest)
            language = document.metadata.get("language", "")
            prepared = fasttext_model.line(document.text, characters, by_words, language)
            lines[held_out(document.text, share, chosen.seed)].append((label, prepared))
    for part, name in ((False, "train on"), (True, "judge by")):
        if missing := [label for label in labels if label not in {one for one, _ in lines[part]}]:
            twice = "".join(f", {count:,} {kind}" for kind, count in counts.items() if missing[0] in kind)
            raise ValueError(
                f"{missing[0]}: no document left to {name}{twice}; give more of them, or another share={share}"
            )
    prepared_as = {"by_words": by_words, "characters": characters, "share": share, "counts": dict(counts)}
    fasttext_model.train(lines[False], path, chosen, use="quality", labels=list(labels), **prepared_as)
    model = FastText(path)
    scores = [model.all(prepared)[labels[0]] if prepared else 0.0 for _, prepared in lines[True]]
    judged = calibration.figures(scores, [label == labels[0] for label, _ in lines[True]])
    calibration.reliability(f"{path}.png", Path(path).name, {"held out": judged})
    return fasttext_model.add_to_record(path, held_out=judged)
