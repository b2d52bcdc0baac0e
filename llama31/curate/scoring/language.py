"""In which language a document is written: a fastText model by path, and a small trainer of one.

The report identifies 176 languages by fastText (section 3.1.2), whose public model `lid.176.bin` has labels such as
`__label__de`; GlotLID's and OpenLID's have `__label__deu_Latn`. All of them are read, and so is what `train` writes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.disk_base import DiskWriter

from llama31.curate.codes import language_of
from llama31.curate.fast_text import model as fasttext_model
from llama31.curate.fast_text.model import FastText, FastTextSettings
from llama31.curate.scoring import calibration
from llama31.curate.scoring.quality import held_out

CHARACTERS = 4000
# As lid.176, with parts of words for features, but smaller.
SETTINGS = FastTextSettings(dimension=16, word_ngrams=1, shortest=2, longest=4, buckets=100_000, epochs=15)
LETTER = re.compile(r"[^\W\d_]")


class LanguageFilter(BaseFilter):
    """Sets metadata's `language` (ISO 639-1), `language_probability` and, where the model says it, `script`.

    What the document said of itself before goes to `declared_language`, where that was another. Drops documents that
    the model is not sure of, as `language de below 0.5`, those of languages that are not wanted, as `language de is
    not wanted`, and those without a letter, as `language unknown: no letters`. Counts what is kept by language, and
    `declared otherwise`.

    Args:
        model: path of a fastText model. It is read anew at every start.
        threshold: least probability; CCNet's 0.5 (Wenzek et al. 2020), for the report states none. 0 keeps all.
        thresholds: others for single languages.
        languages: ISO 639-1 of those that are wanted; None: all.
        characters: how much of a document is looked at: four pieces, evenly spread. 4,000, ours; 0: all of it.
        exclusion_writer: takes what is dropped.
    """

    name = "Language"

    def __init__(
        self,
        model: str,
        threshold: float = 0.5,
        thresholds: Mapping[str, float] | None = None,
        languages: Collection[str] | None = None,
        characters: int = CHARACTERS,
        exclusion_writer: DiskWriter | None = None,
    ) -> None:
        super().__init__(exclusion_writer)
        for key, value in {"threshold": threshold, **(thresholds or {})}.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{key}={value}: a threshold is a probability; give 0 to 1")
        self.model, self.threshold, self.thresholds = model, threshold, dict(thresholds or {})
        self.languages = None if languages is None else frozenset(languages)
        self.characters = characters
        self._loaded: FastText | None = None

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether the document is kept, or why not."""
        if self._loaded is None:
            self._loaded = FastText(self.model)
        language, script, probability = identify(self._loaded, doc.text, self.characters)
        declared = doc.metadata.get("language", "")
        if declared and declared != language:
            doc.metadata["declared_language"] = declared
            self.stat_update("declared otherwise")
        doc.metadata["language"], doc.metadata["language_probability"] = language, round(probability, 4)
        if script:
            doc.metadata["script"] = script
        if not language:
            return False, "language unknown: no letters"
        threshold = self.thresholds.get(language, self.threshold)
        if probability < threshold:
            return False, f"language {language} below {threshold:g}"
        if self.languages is not None and language not in self.languages:
            return False, f"language {language} is not wanted"
        self.stat_update(f"language {language}")
        return True


def identify(model: FastText, text: str, characters: int = CHARACTERS) -> tuple[str, str, float]:
    """Language, script ("" where the model does not say it) and probability; ("", "", 0) for a text without letters."""
    prepared = fasttext_model.line(text, characters)
    if LETTER.search(prepared) is None:
        return "", "", 0.0
    label, probability = model.best(prepared)
    return *language_of(label), probability


def pieces(text: str, characters: int) -> Iterator[str]:
    """A text in pieces of at least so many characters, cut at white space; what is left at its end may be shorter."""
    at = 0
    while at < len(text):
        space = re.compile(r"\s").search(text, at + characters)
        end = space.start() if space else len(text)
        if piece := text[at:end].strip():
            yield piece
        at = end + 1


def train(
    texts: Iterable[tuple[str, str]],
    path: str | Path,
    characters: int = 200,
    settings: FastTextSettings = SETTINGS,
    share: float = 0.0,
) -> dict[str, Any]:
    """Train a model of (label, text) and write it to `path`; its record is returned.

    Labels as in `codes.language_of`. Texts are cut into pieces of `characters`, for a model that has seen whole pages
    alone knows no short ones. Parts of words of two to four characters are features, as in lid.176; the rest of
    `settings` is ours. Of `share`, whole texts that are held out by their hash, it is judged piece by piece; beside the
    record stands a reliability diagram, `PATH.png` then.

    Raises ValueError where a label has no text left to train on, and where none is left to judge by.
    """
    parts: dict[bool, list[tuple[str, str]]] = {False: [], True: []}
    for label, text in texts:
        lines = (fasttext_model.line(piece) for piece in pieces(text, characters))
        held = share > 0 and held_out(text, share, settings.seed)
        parts[held] += [(label, one if LETTER.search(one) else "") for one in lines]
    judged = [(label, one) for label, one in parts[True] if one]
    if lost := {label for label, _ in judged} - {label for label, one in parts[False] if one}:
        raise ValueError(f"{min(lost)}: no document left to train on; give more of them, or another share={share}")
    if share > 0 and not judged:
        raise ValueError(f"documents: none is left to judge by; give more of them, or another share={share}")
    described = fasttext_model.train(parts[False], path, settings, use="language", characters=characters, share=share)
    if not judged:
        return described
    model = FastText(path)
    figures = calibration.of_classes([model.best(one) for _, one in judged], [label for label, _ in judged])
    calibration.reliability(f"{path}.png", Path(path).name, {"held out": figures})
    return fasttext_model.add_to_record(path, held_out=figures)
