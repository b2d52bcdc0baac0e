"""The best of each language (the report ranks multilingual documents by quality, section 3.1.1), in two passes.

The first counts scores by language, a file per task; they are merged into thresholds, `ranking.json`; the second keeps
what is above. No document is held, a task writes 10,001 counts per language at most, and what is kept depends on
scores and ids alone: not on the order, nor on how files are shared among tasks.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.disk_base import DiskWriter
from datatrove.utils.typeshelper import StatHints

from llama31.runs import files

STEPS = 10_000  # scores are told apart by four decimals, as blocks write them
RANKING = "ranking.json"
UNITS = ("documents", "characters")


def step(score: float) -> int:
    """The place of a score among 10,001, 0 to 1."""
    return round(min(1.0, max(0.0, score)) * STEPS)


class ScoreCounter(PipelineStep):
    """First pass: counts scores by language into `folder`, a file per task, and passes the documents on.

    Counts `without a score` of those that lack it, which the second pass drops.

    Args:
        folder: of all tasks of this stage; nothing else lies in it.
        key: metadata's name of the score.
        unit: what a share is of, documents or characters.
    """

    type, name = "STATS", "Scores by language"

    def __init__(self, folder: str, key: str, unit: str = "documents") -> None:
        super().__init__()
        if unit not in UNITS:
            raise ValueError(f"unit={unit}: give one of {', '.join(UNITS)}")
        self.folder, self.key, self.unit = folder, key, unit

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """The same documents."""
        counts: defaultdict[str, Counter[int]] = defaultdict(Counter)
        for document in data:
            with self.track_time():
                self.stat_update(StatHints.total)
                score = document.metadata.get(self.key)
                if score is None:
                    self.stat_update("without a score")
                else:
                    worth = 1 if self.unit == "documents" else len(document.text)
                    counts[document.metadata.get("language", "")][step(score)] += worth
            yield document
        path = Path(self.folder) / f"{rank:05d}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {language: {str(place): n for place, n in sorted(one.items())} for language, one in counts.items()}
        files.write_whole(path, json.dumps({"tasks": world_size, "unit": self.unit, "counts": content}) + "\n")


def merge(folder: str | Path, share: float, shares: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Between the passes: thresholds by language out of the counts of all tasks, written to `ranking.json`, returned.

    Of each language the best `share` is kept, or its own of `shares`; of the documents at the threshold itself, those
    with equal scores, a part by the hash of their id, so that many equal scores do not make the share a larger one.

    Raises ValueError for a share outside 0 to 1, and where a task's counts are missing.
    """
    for name, one in {"share": share, **(shares or {})}.items():
        if not 0 <= one <= 1:
            raise ValueError(f"{name}={one}: give a share from 0 to 1")
    languages = {}
    for language, counts in sorted(_merged(Path(folder)).items()):
        languages[language] = _threshold(counts, (shares or {}).get(language, share))
    ranking = {"share": share, "shares": dict(shares or {}), "languages": languages}
    files.write_whole(Path(folder) / RANKING, json.dumps(ranking, indent=1) + "\n")
    return ranking


def _merged(folder: Path) -> dict[str, Counter[int]]:
    paths = sorted(folder.glob("[0-9]*.json"))
    parts = [json.loads(path.read_text("utf-8")) for path in paths]
    if not parts or any(len(parts) != one["tasks"] for one in parts):
        wanted = parts[0]["tasks"] if parts else "some"
        raise ValueError(
            f"folder={folder}: counts of {len(parts)} tasks, and {wanted} are needed; empty the folder and run "
            "the first pass"
        )
    result: defaultdict[str, Counter[int]] = defaultdict(Counter)
    for part in parts:
        for language, counts in part["counts"].items():
            result[language].update({int(place): n for place, n in counts.items()})
    return result


def _threshold(counts: Counter[int], share: float) -> dict[str, Any]:
    """The step from which on is kept, and the part of what stands on it."""
    total = counts.total()
    wanted, above = share * total, 0
    for place in sorted(counts, reverse=True):
        if above + counts[place] >= wanted - 1e-9 * total:
            part = min(1.0, max(0.0, (wanted - above) / counts[place])) if counts[place] else 1.0
            return {"step": place, "part": part, "threshold": place / STEPS, "total": total, "wanted": wanted}
        above += counts[place]
    return {"step": 0, "part": 1.0, "threshold": 0.0, "total": total, "wanted": wanted}


class RankFilter(BaseFilter):
    """Second pass: keeps what `ranking.json` in `folder` says. Counts what it drops as `rank of de`, by language.

    Args:
        folder, key: as of the first pass.
        exclusion_writer: takes what is dropped.
    """

    name = "Best by language"

    def __init__(self, folder: str, key: str, exclusion_writer: DiskWriter | None = None) -> None:
        super().__init__(exclusion_writer)
        self.folder, self.key = folder, key
        self._languages: dict[str, Any] | None = None

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether a document is kept, or why not."""
        if self._languages is None:
            path = Path(self.folder) / RANKING
            if not path.is_file():
                raise ValueError(f"folder={self.folder}: no {RANKING} there; merge the counts of the first pass")
            self._languages = json.loads(path.read_text("utf-8"))["languages"]
        score, language = doc.metadata.get(self.key), doc.metadata.get("language", "")
        if score is None:
            return False, "without a score"
        if language not in self._languages:
            raise ValueError(f"folder={self.folder}: the first pass has seen no {language or 'unknown language'}")
        limit, place = self._languages[language], step(score)
        if place > limit["step"] or (place == limit["step"] and chance(doc.id) < limit["part"]):
            return True
        return False, f"rank of {language or 'unknown'}"


def chance(id_: str, salt: str = "") -> float:
    """A number from 0 to below 1 that follows from an id, evenly spread."""
    digest = hashlib.blake2b(id_.encode("utf-8", "replace"), digest_size=7, key=salt.encode()).digest()
    return int.from_bytes(digest, "big") / 2**56
