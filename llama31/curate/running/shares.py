"""Between two passes over scores and classes: what all tasks counted, to what is kept of each language and class."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from datatrove.data import DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from llama31 import config
from llama31.curate.mixing import knowledge
from llama31.curate.scoring import ranking
from llama31.runs import files

CLASSES = "classes.json"
WARNING = "warning: "  # what a count begins with that people should see


class ClassCounter(PipelineStep):
    """Counts the characters of documents by class of knowledge, a file per task, and passes the documents on."""

    type, name = "STATS", "Classes of knowledge"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """The same documents."""
        counts: Counter[str] = Counter()
        for document in data:
            counts[str(document.metadata.get("knowledge", ""))] += len(document.text)
            yield document
        self.folder.mkdir(parents=True, exist_ok=True)
        files.write_whole(self.folder / f"{rank:05d}.json", json.dumps(dict(sorted(counts.items()))) + "\n")


class Shares(PipelineStep):
    """Of all counts one file for scores, `ranking.json`, and one for classes, `classes.json`."""

    type, name = "STATS", "Shares"

    def __init__(
        self, counted: Sequence[Path], out: Path, best: config.BestOfLanguage, classes: config.KnowledgeClasses
    ) -> None:
        super().__init__()
        self.counted, self.out, self.best, self.classes = counted, out, best, classes

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """No documents."""
        if data:
            yield from data
        self.out.mkdir(parents=True)
        if self.best.score:
            scores = [path for path in self.counted if path.parent.name == "scores"]
            for path in scores:
                shutil.copy(path, self.out / path.name)
            found = ranking.merge(self.out, self.best.share, self.best.shares)["languages"]
            for language in sorted(self.best.shares.keys() - found.keys()):
                self.stat_update(f"{WARNING}best.shares.{language}: no document is in this language")
            for path in scores:
                (self.out / path.name).unlink()
        if self.classes.model:
            total: Counter[str] = Counter()
            for path in self.counted:
                if path.parent.name == "classes":
                    total.update(json.loads(path.read_text(encoding="utf-8")))
            kept = knowledge.kept_parts(total, self._largest(total), self.classes.largest_shares)
            files.write_whole(self.out / CLASSES, json.dumps(kept, indent=1) + "\n")

    def _largest(self, total: Counter[str]) -> float:
        """The share that no class may exceed; 1, counted, where there are too few classes for such a share of each."""
        single, most = self.classes.largest_shares, self.classes.largest_share
        there = [name for name, count in total.items() if count]
        free = [name for name in there if name not in single]
        if sum(single.get(name, most) for name in there) >= 1 or not free:
            return most
        least = (1 - sum(single.get(name, 0.0) for name in there)) / len(free)
        self.stat_update(
            f"{WARNING}knowledge.largest_share={most:g}: {len(there)} classes are too few for it, and none of the "
            f"others is made smaller; give {math.ceil(100 * least) / 100:g} or more"
        )
        return 1.0


def kept_classes(folder: Path) -> dict[str, float]:
    """Which part of each class is kept."""
    kept: dict[str, float] = json.loads((folder / CLASSES).read_text(encoding="utf-8"))
    return kept
