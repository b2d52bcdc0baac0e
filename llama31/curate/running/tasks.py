"""One task of one stage: checked, run, and recorded, in whatever process of whatever machine."""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.utils.logging import logger

from llama31 import config
from llama31.curate.passage import meters
from llama31.curate.passage.meters import BlockMeter, RemovedDocuments, Samples, Shortened, counts
from llama31.curate.running import attempts, blocks, ledger, progress
from llama31.curate.running import folder as sharing
from llama31.curate.running.assignment import Assignment
from llama31.curate.running.stages import CurationStage
from llama31.runs import files

Lookup = Callable[[Path, str, int], list[dict[str, Any]] | None]  # the files of a task, by stage and number


@dataclass(frozen=True)
class Outcome:
    """How a task ended: whether it was done before, and what passed through it."""

    was_done: bool
    documents: int = 0
    bytes: int = 0
    seconds: float = 0.0


def _left(folder: Path, stage: str, rank: int) -> list[dict[str, Any]] | None:
    record = ledger.read(folder, stage, rank)
    return None if record is None else list(record["left"])


def before(
    run: config.Curate, stage: CurationStage, rank: int, known: dict[str, CurationStage], left: Lookup = _left
) -> list[dict[str, Any]]:
    """The records of the tasks whose files a task reads, without others. Raises RunError where one is not done."""
    folder, wanted = Path(run.folder), [(f"{stage.reads}/documents", rank)] if stage.reads else []
    for needed in stage.needs:
        ranks = range(known[needed.partition("/")[0]].tasks)
        wanted += [(needed, number) for number in (ranks[rank :: stage.tasks] if stage.shared else ranks)]
    records = []
    for needed, number in wanted:
        name, _, part = needed.partition("/")
        found = left(folder, name, number)
        if found is None:
            raise config.RunError(f"{stage.name}, task {rank}: task {number} of {name} is not done; run that first")
        found = [one for one in found if not part or one["path"].startswith(f"{part}/")]
        records.append({"stage": name, "rank": number, "left": found})
    return records


def missing(run: config.Curate, known: list[CurationStage]) -> dict[str, list[int]]:
    """Of every stage the tasks that have to run, as records, sizes and times tell; what files hold is read later.

    Records are read once, of which a corpus of thousands of shards has as many for each task behind a barrier.
    """
    found: dict[str, list[int]] = {}
    by_name, left = {stage.name: stage for stage in known}, functools.cache(_left)
    for stage in known:
        if any(found[name] for name in stage.depends):
            found[stage.name] = list(range(stage.tasks))
        else:
            decisive = ledger.sections(run, stage)
            ranks = range(stage.tasks)
            found[stage.name] = [n for n in ranks if not _is_recorded(run, stage, n, by_name, decisive, left)]
    return found


def _is_recorded(
    run: config.Curate,
    stage: CurationStage,
    rank: int,
    known: dict[str, CurationStage],
    decisive: dict[str, Any],
    left: Lookup,
) -> bool:
    folder = Path(run.folder)
    record = ledger.read(folder, stage.name, rank)
    if record is None or ledger.doubtful(folder, record):
        return False
    inputs = [*before(run, stage, rank, known, left), *_files(folder, stage, rank)]
    return bool(record["key"] == ledger.key(decisive, stage, rank, inputs))


def execute(run: config.Curate, stage: CurationStage, rank: int, known: dict[str, CurationStage]) -> Outcome:
    """Run a task unless it is done, with the same keys and inputs, and its files are as they were written.

    Raises RunError where a file that it reads is not what was written, and ValueError where a block refuses a key.
    """
    folder = Path(run.folder)
    inputs = before(run, stage, rank, known)
    mine = _files(folder, stage, rank)
    key = ledger.key(ledger.sections(run, stage), stage, rank, [*inputs, *mine])
    record = ledger.read(folder, stage.name, rank)
    if record is not None and record["key"] == key:
        if (wrong := ledger.damage(folder, record)) is None:
            if ledger.doubtful(folder, record):
                ledger.confirm(folder, record)
            return Outcome(True, *_passed(record))
        # One write with its end, for many processes have the same terminal.
        print(f"{stage.name}, task {rank}: {wrong}; it is made again\n", end="", flush=True)
    _refuse_damage(stage, rank, folder, inputs)
    for share in mine:
        if wrong := sharing.changed(run, share["left"]):
            raise config.RunError(f"{stage.name}, task {rank}: {wrong}; give it back, or overwrite=true without task=")
    return _run(run, stage, rank, inputs, key)


def _refuse_damage(stage: CurationStage, rank: int, folder: Path, inputs: list[dict[str, Any]]) -> None:
    """Raise RunError where a file is not what was written: of the one shard that a task reads by what it holds.

    Of files that all tasks of a stage read a part of, what they hold is looked at only where they were changed since:
    else each task would read all that all others left, which for thousands takes longer than its work.
    """
    for one in inputs:
        whole = stage.shared or one["stage"] == stage.reads or ledger.doubtful(folder, one)
        if whole and (wrong := ledger.damage(folder, one)):
            remedy = f"run {one['stage']} again, which makes it anew"
            raise config.RunError(f"{stage.name}, task {rank}: {wrong}; {remedy}")


def _files(folder: Path, stage: CurationStage, rank: int) -> list[dict[str, Any]]:
    if stage.reads != "":
        return []
    return [{"stage": "", "rank": rank, "left": sharing.share(folder, rank)}]


def _passed(record: dict[str, Any]) -> tuple[int, int]:
    """Documents and bytes of the block that most have passed."""
    passed = [(int(block["documents"]), int(block["bytes"])) for block in record["blocks"]]
    return max(passed, default=(0, 0))


def _run(run: config.Curate, stage: CurationStage, rank: int, inputs: list[dict[str, Any]], key: str) -> Outcome:
    folder = Path(run.folder)
    staged = attempts.begin(folder, stage.name, rank)
    begun, cpu = time.monotonic(), time.process_time()
    meters.reset_peak()
    try:
        pipeline = blocks.build(Assignment(run, stage, rank, staged, inputs))
        passage = _Passage(run, pipeline, staged, rank, stage.tasks)
        with progress.told(staged, passage.passed, _fraction(folder, stage, rank, pipeline, passage)):
            passage.drain()
        left = attempts.publish(staged, folder, stage.name, rank)
    finally:
        attempts.end(staged)
    samples = folder / stage.name / "samples" / ledger.manifest(folder, stage.name, rank).name
    samples.parent.mkdir(parents=True, exist_ok=True)
    files.write_whole(samples, json.dumps(passage.samples(), ensure_ascii=True) + "\n")
    beside = [path for block in pipeline for path in getattr(block, "beside", ())]
    vouched = [dataclasses.replace(ledger.recorded(path.parent, path), path=str(path)) for path in beside]
    record: dict[str, Any] = {
        "stage": stage.name,
        "rank": rank,
        "tasks": stage.tasks,
        "key": key,
        "left": [dataclasses.asdict(one) for one in left],
        "samples": [dataclasses.asdict(ledger.recorded(folder / stage.name, samples))],
        "beside": [dataclasses.asdict(one) for one in vouched],
        "blocks": passage.record(),
        "seconds": round(time.monotonic() - begun, 3),
        "cpu_seconds": round(time.process_time() - cpu, 3),
        "peak_bytes": meters.peak_bytes(),
    }
    ledger.write(folder, record)
    return Outcome(False, *_passed(record), seconds=record["seconds"])


def _fraction(
    folder: Path, stage: CurationStage, rank: int, pipeline: list[PipelineStep], passage: _Passage
) -> Callable[[], float | None]:
    """How much of what a task reads has been read; None where nobody knows how much there is."""
    if stage.reads == "":
        total, readers = (
            sharing.share(folder, rank)["bytes"],
            [one for one in pipeline if isinstance(one, blocks.Files)],
        )
        return lambda: min(1.0, sum(one.read_bytes for one in readers) / total) if total else None
    record = ledger.read(folder, stage.reads, rank) if stage.reads else None
    written = [one["documents"] for one in record["blocks"] if one["class"] == "ShardWriter"] if record else []
    return lambda: passage.meters[0].documents / written[-1] if written and written[-1] else None


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
        self.shortened: dict[str, Shortened] = {}
        most, chars = run.report.samples, run.report.sample_chars
        self.kept = Samples(most, chars)
        for block, meter in zip(pipeline, self.meters):
            if isinstance(block, BaseFilter) and block.exclusion_writer is None:
                if isinstance(block, blocks.SHORTENING):
                    self.shortened[meter.name] = Shortened(Samples(most, chars))
                self.removed[meter.name] = RemovedDocuments(most, chars, self.shortened.get(meter.name))
                block.exclusion_writer = self.removed[meter.name]

    def drain(self) -> None:
        """Run it."""
        logger.remove()  # datatrove's own log goes to the console; what counts is in the record
        data: Iterable[Any] | None = ()  # a task may have no files, and its blocks get no documents then
        for block, meter in zip(self.pipeline, self.meters):
            begun, cut = time.thread_time(), self.shortened.get(meter.name)
            data = block.run(cut.before(data) if cut is not None and data else data, self.rank, self.tasks)
            meter.seconds += time.thread_time() - begun
            data = meter.behind(data) if data is not None else None
            data = cut.behind(data) if cut is not None and data is not None else data
        for document in data or ():
            self.kept.add(document)

    def passed(self) -> tuple[int, int]:
        """Documents and bytes so far, of the block that most have passed."""
        return max(((meter.documents, meter.bytes) for meter in self.meters), default=(0, 0))

    def record(self) -> list[dict[str, Any]]:
        """What each block did."""
        return list(self._blocks())

    def _blocks(self) -> Iterator[dict[str, Any]]:
        earlier = 0.0
        for block, meter in zip(self.pipeline, self.meters):
            reasons = self.removed[meter.name].reasons if meter.name in self.removed else {}
            cut = self.shortened.get(meter.name)
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
                **({"shortened": {"documents": cut.documents, "bytes": cut.bytes}} if cut is not None else {}),
            }
            earlier = meter.seconds

    def samples(self) -> dict[str, Any]:
        """Texts to look at: kept ones, removed ones by block and reason, and by block lines of those that stay."""
        removed = {
            name: {reason: one.samples.all() for reason, one in sorted(found.reasons.items())}
            for name, found in self.removed.items()
        }
        shortened = {name: cut.samples.all() for name, cut in self.shortened.items() if cut.documents}
        return {"kept": self.kept.all(), "removed": removed, "shortened": shortened}
