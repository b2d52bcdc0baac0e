"""Which documents are code and which mathematics, by the scores of their classifiers; the rest is general."""

from __future__ import annotations

from collections.abc import Mapping

from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.typeshelper import StatHints


class ClassAssigner(PipelineStep):
    """Writes metadata's `class`: that of the highest score that reaches its threshold, or `general`. Drops nothing.

    A class that a document has already, of a source that is all code, stays. Counts documents by class.

    Args:
        scores: metadata's names of the scores by class, as `EncoderFilter` writes them.
        thresholds: least score of each class; 0.5 where none is given: the classifier holds it likelier than not.
    """

    type, name = "CLASSES", "Class of the mixture"

    def __init__(self, scores: Mapping[str, str] | None = None, thresholds: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.scores = dict(scores or {"code": "quality_code", "mathematics": "quality_mathematics"})
        self.thresholds = {name: (thresholds or {}).get(name, 0.5) for name in self.scores}
        if unknown := sorted(set(thresholds or {}) - set(self.scores)):
            raise ValueError(f"thresholds.{unknown[0]}: there is no score of it; give one of {', '.join(self.scores)}")

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """All documents, in their order."""
        for document in data:
            document.metadata["class"] = document.metadata.get("class") or self.class_of(document)
            self.stat_update(StatHints.total, StatHints.forwarded, f"class {document.metadata['class']}")
            yield document

    def class_of(self, document: Document) -> str:
        """The class of a document by its scores."""
        scores = {name: document.metadata.get(key) for name, key in self.scores.items()}
        known = {name: score for name, score in scores.items() if score is not None and score >= self.thresholds[name]}
        return max(known, key=lambda name: (known[name], name)) if known else "general"
