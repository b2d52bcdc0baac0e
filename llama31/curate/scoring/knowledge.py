"""What a document is about: a class of knowledge, by fastText or by an encoder, trained on labels of a chat model.

The report (section 3.1.2) classifies web data so, to down-sample what the web has too much of, as arts and
entertainment; `mixing.knowledge` does that. The classes are those of `criteria.CLASSES`, or any others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from datatrove.data import DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.typeshelper import StatHints

from llama31.curate.fast_text import model as fasttext_model
from llama31.curate.fast_text.model import FastText, FastTextSettings
from llama31.curate.scoring import calibration, encoder
from llama31.curate.scoring.labels import Labelled
from llama31.curate.scoring.quality import CHARACTERS, held_out


class Classifier(Protocol):
    """Probabilities of all classes, by name, for texts in these languages."""

    def all(self, texts: Sequence[str], languages: Sequence[str]) -> list[dict[str, float]]: ...


class FastTextClasses:
    """A fastText model of classes, with texts prepared as its record says. Names have `_` where classes have spaces."""

    def __init__(self, path: str | Path) -> None:
        self.model = FastText(path)
        described = {"by_words": False, "characters": CHARACTERS} | fasttext_model.record(path)
        self.by_words, self.characters = described["by_words"], described["characters"]

    def all(self, texts: Sequence[str], languages: Sequence[str]) -> list[dict[str, float]]:
        """Probabilities of all classes, by name; none of them for a text without words."""
        lines = [
            fasttext_model.line(text, self.characters, self.by_words, language)
            for text, language in zip(texts, languages, strict=True)
        ]
        return [
            {name.replace("_", " "): value for name, value in self.model.all(line).items()} if line else {}
            for line in lines
        ]


def train(
    examples: Sequence[Labelled],
    path: str | Path,
    share: float = 0.1,
    settings: FastTextSettings | None = None,
) -> dict[str, Any]:
    """Train a fastText model of classes, judge it on the share that was held out, and return its record.

    Beside the model stand its record and a reliability diagram, `PATH.png`, of the likeliest class of each text. An
    encoder is trained by `training.train(..., classes=...)` instead. Raises ValueError where nothing is held out.
    """
    chosen = settings or FastTextSettings()
    parts: dict[bool, list[tuple[str, str]]] = {False: [], True: []}
    for one in sorted(examples, key=lambda one: one.document):
        prepared = fasttext_model.line(one.text, CHARACTERS, by_words=True, language=one.language)
        parts[held_out(one.text, share, chosen.seed)].append((one.label.replace(" ", "_"), prepared))
    if not parts[True]:
        raise ValueError(f"labels={len(examples)}: none is left to judge by; give more, or another share={share}")
    fasttext_model.train(parts[False], path, chosen, use="knowledge", by_words=True, characters=CHARACTERS, share=share)
    model = FastText(path)
    judged = calibration.of_classes([model.best(line) for _, line in parts[True]], [label for label, _ in parts[True]])
    calibration.reliability(f"{path}.png", Path(path).name, {"held out": judged})
    return fasttext_model.add_to_record(path, held_out=judged)


class KnowledgeLabeller(PipelineStep):
    """Writes the likeliest class to metadata, `knowledge`, and its probability, `knowledge_probability`. Drops nothing.

    Counts documents by class. A document without words, and one that the model is not sure of, is of the class `other`.

    Args:
        model: path of a fastText model, or folder of an encoder.
        key: metadata's name.
        least: probability below which a document is of no class but `other`; 0, ours: the likeliest counts.
        window: documents that are asked about together.
        settings: of `encoder.Encoder`.
    """

    type, name = "CLASSES", "Class of knowledge"

    def __init__(
        self,
        model: str,
        key: str = "knowledge",
        least: float = 0.0,
        window: int = 2048,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.key, self.least, self.window, self.settings = model, key, least, window, dict(settings or {})
        self._loaded: Classifier | None = None

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """All documents, in their order."""
        for window in encoder.windows(data, self.window):
            with self.track_time("window"):
                texts = [one.text for one in window]
                found = self._classifier().all(texts, [one.metadata.get("language", "") for one in window])
            for document, classes in zip(window, found, strict=True):
                name, probability = max(classes.items(), key=lambda one: (one[1], one[0]), default=("other", 0.0))
                if not document.text.strip() or probability < self.least:
                    name = "other"
                document.metadata[self.key] = name
                document.metadata[f"{self.key}_probability"] = round(probability, 4)
                self.stat_update(StatHints.total, StatHints.forwarded, f"class {name}")
                self.update_doc_stats(document)
                yield document

    def _classifier(self) -> Classifier:
        if self._loaded is None:
            folder = Path(self.model).is_dir()
            self._loaded = encoder.Encoder(self.model, **self.settings) if folder else FastTextClasses(self.model)
        return self._loaded
