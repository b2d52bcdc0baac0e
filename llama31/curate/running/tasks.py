"""One task of one stage: checked, run, and recorded, in whatever process of whatever machine."""

from __future__ import annotations

import dataclasses
import json
import resource
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.utils.logging import logger

from llama31 import config
from llama31.curate.passage.meters import BlockMeter, RemovedDocuments, Samples, counts
from llama31.curate.running import blocks, ledger
from llama31.curate.running.assignment import Assignment
from llama31.curate.running.stages import CurationStage
from llama31.runs import files


@dataclass(frozen=True)
class Outcome:
    """How a task ended: whether it was done before, and what passed through it."""

    was_done: bool
    documents: int = 0
    seconds: float = 0.0


def before(
    run: config.Curate, stage: CurationStage, rank: int, known: dict[str, CurationStage]
) -> list[dict[str, Any]]:
    """The records of the tasks whose files a task reads, without others. Raises RunError where one is not done."""
    folder, wanted = Path(run.folder), [(f"{stage.reads}/documents", rank)] if stage.reads else []
    for needed in stage.needs:
        ranks = range(known[needed.partition("/")[0]].tasks)
        wanted += [(needed, number) for number in (ranks[rank :: stage.tasks] if stage.shared else ranks)]
    records = []
    for needed, number in wanted:
        name, _, part = needed.partition("/")
        record = ledger.read(folder, name, number)
        if record is None:
            raise config.RunError(f"{stage.name}, task {rank}: task {number} of {name} is not done; run that first")
        left = [one for one in record["left"] if not part or one["path"].startswith(f"{part}/")]
        records.append({"stage": name, "rank": number, "left": left})
    return records


def missing(run: config.Curate, known: list[CurationStage]) -> dict[str, list[int]]:
    """Of every stage the tasks that have to run, as far as their records tell; files are looked at when they do."""
    found: dict[str, list[int]] = {}
    by_name = {stage.name: stage for stage in known}
    for stage in known:
        if any(found[name] for name in stage.depends):
            found[stage.name] = list(range(stage.tasks))
        else:
            found[stage.name] = [rank for rank in range(stage.tasks) if not _is_recorded(run, stage, rank, by_name)]
    return found


def _is_recorded(run: config.Curate, stage: CurationStage, rank: int, known: dict[str, CurationStage]) -> bool:
    folder = Path(run.folder)
    record = ledger.read(folder, stage.name, rank)
    if record is None:
        return False
    decisive = [*before(run, stage, rank, known), *_files(folder, stage, rank)]
    there = all((folder / stage.name / one.path).is_file() for one in ledger.left(record))
    return there and record["key"] == ledger.key(run, stage, rank, decisive)


def execute(run: config.Curate, stage: CurationStage, rank: int, known: dict[str, CurationStage]) -> Outcome:
    """Run a task unless it is done, with the same keys and inputs, and its files are as they were written.

    Raises RunError where a file that it reads is not what was written, and ValueError where a block refuses a key.
    """
    folder = Path(run.folder)
    inputs = before(run, stage, rank, known)
    decisive = [*inputs, *_files(folder, stage, rank)]
    key, record = ledger.key(run, stage, rank, decisive), ledger.read(folder, stage.name, rank)
    if record is not None and record["key"] == key:
        if (wrong := ledger.damage(folder, record)) is None:
            return Outcome(True, _passed(record))
        print(f"{stage.name}, task {rank}: {wrong}; it is made again", flush=True)
    for one in inputs:
        if wrong := ledger.damage(folder, one):
            raise config.RunError(f"{stage.name}, task {rank}: {wrong}; run {one['stage']} again, which makes it anew")
    return _run(run, stage, rank, inputs, key)


def _files(folder: Path, stage: CurationStage, rank: int) -> list[dict[str, Any]]:
    if stage.reads != "":
        return []
    return [{"stage": "", "rank": rank, "left": blocks.share(folder, rank)}]


def _passed(record: dict[str, Any]) -> int:
    return max((int(block["documents"]) for block in record["blocks"]), default=0)


def _run(run: config.Curate, stage: CurationStage, rank: int, inputs: list[dict[str, Any]], key: str) -> Outcome:
    folder = Path(run.folder) / stage.name
    staged = folder / "partial" / f"{rank:05d}-{secrets.token_hex(4)}"
    for old in folder.glob(f"partial/{rank:05d}-*"):  # of a task that was killed
        shutil.rmtree(old, ignore_errors=True)
    ledger.manifest(Path(run.folder), stage.name, rank).unlink(missing_ok=True)
    staged.mkdir(parents=True)
    begun, cpu = time.monotonic(), time.process_time()
    try:
        pipeline = blocks.build(Assignment(run, stage, rank, staged, inputs))
        passage = _Passage(run, pipeline, staged, rank, stage.tasks)
        passage.drain()
        left = _published(staged, folder, ledger.read(Path(run.folder), stage.name, rank))
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    record = {
        "stage": stage.name,
        "rank": rank,
        "tasks": stage.tasks,
        "key": key,
        "left": [dataclasses.asdict(one) for one in left],
        "blocks": passage.record(),
        "seconds": round(time.monotonic() - begun, 3),
        "cpu_seconds": round(time.process_time() - cpu, 3),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    path = ledger.manifest(Path(run.folder), stage.name, rank)
    for place, content in ((folder / "samples" / path.name, passage.samples()), (path, record)):
        place.parent.mkdir(parents=True, exist_ok=True)
        files.write_whole(place, json.dumps(content, ensure_ascii=True) + "\n")
    return Outcome(False, _passed(record), time.process_time() - cpu)


def _published(staged: Path, folder: Path, record: dict[str, Any] | None) -> list[ledger.Left]:
    """Move what was made into its place, and say what it is."""
    moved = []
    for path in sorted(path for path in staged.rglob("*") if path.is_file()):
        target = folder / path.relative_to(staged)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
        moved.append(ledger.recorded(folder, target))
    return moved


def _names(pipeline: list[PipelineStep]) -> list[str]:
    """Names of blocks, each once: "Shards", "Shards 2"."""
    seen: Counter[str] = Counter()
    found = []
    for block in pipeline:
        seen[str(block.name)] += 1
        found.append(f"{block.name} {seen[str(block.name)]}" if seen[str(block.name)] > 1 else str(block.name))
    return found


class _Passage:
    """A pipeline at work, with a meter behind every block."""

    def __init__(self, run: config.Curate, pipeline: list[PipelineStep], staged: Path, rank: int, tasks: int) -> None:
        self.pipeline, self.rank, self.tasks = pipeline, rank, tasks
        self.meters = [BlockMeter(name) for name in _names(pipeline)]
        self.removed: dict[str, RemovedDocuments] = {}
        self.kept = Samples(run.report.samples, run.report.sample_chars)
        for block, meter in zip(pipeline, self.meters):
            if isinstance(block, BaseFilter) and block.exclusion_writer is None:
                self.removed[meter.name] = RemovedDocuments(run.report.samples, run.report.sample_chars)
                block.exclusion_writer = self.removed[meter.name]

    def drain(self) -> None:
        """Run it."""
        logger.remove()  # datatrove's own log goes to the console; what counts is in the record
        data: Iterable[Any] | None = ()  # a task may have no files, and its blocks get no documents then
        for block, meter in zip(self.pipeline, self.meters):
            begun = time.thread_time()
            data = block.run(data, self.rank, self.tasks)
            meter.seconds += time.thread_time() - begun
            data = meter.behind(data) if data is not None else None
        for document in data or ():
            self.kept.add(document)

    def record(self) -> list[dict[str, Any]]:
        """What each block did."""
        return list(self._blocks())

    def _blocks(self) -> Iterator[dict[str, Any]]:
        earlier = 0.0
        for block, meter in zip(self.pipeline, self.meters):
            reasons = self.removed[meter.name].reasons if meter.name in self.removed else {}
            yield {
                "name": meter.name,
                "class": type(block).__name__,
                "documents": meter.documents,
                "bytes": meter.bytes,
                "seconds": round(max(0.0, meter.seconds - earlier), 4),
                "languages": dict(sorted(meter.languages.items())),
                "lengths": {str(length): count for length, count in sorted(meter.lengths.items())},
                "counts": counts(block),
                "removed": {
                    reason: {"documents": one.documents, "bytes": one.bytes} for reason, one in sorted(reasons.items())
                },
            }
            earlier = meter.seconds

    def samples(self) -> dict[str, Any]:
        """Texts to look at: kept ones, and removed ones by block and reason."""
        removed = {
            name: {reason: one.samples.all() for reason, one in sorted(found.reasons.items())}
            for name, found in self.removed.items()
        }
        return {"kept": self.kept.all(), "removed": removed}
