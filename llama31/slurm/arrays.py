"""Curation on Slurm: an array for each stage, after those that it needs; what is queued already is waited for."""

from __future__ import annotations

import itertools
import math
import os
import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from llama31 import config
from llama31.curate.running.stages import CurationStage
from llama31.slurm import jobs, sbatch

SCRIPT = sbatch.SCRIPTS / "curate.sh"
OWN = ("submit", "dry_run", "stage", "task", "stride", "workers")  # what the submitting command keeps to itself


def ranges(numbers: Iterable[int]) -> str:
    """Numbers as sbatch's --array reads them: 0-4,7."""
    parts = []
    for _, group in itertools.groupby(enumerate(sorted(set(numbers))), lambda pair: pair[1] - pair[0]):
        block = [number for _, number in group]
        parts.append(f"{block[0]}-{block[-1]}" if len(block) > 1 else str(block[0]))
    return ",".join(parts)


def command(
    run: config.Curate, stage: CurationStage, ranks: Sequence[int], words: Sequence[str], after: Sequence[str]
) -> list[str]:
    """The command that submits the tasks `ranks` of a stage, once the jobs `after` have succeeded.

    `words` are the arguments of the recipe. More tasks than `job.array` go to as many elements, each of which runs
    every so many-th.
    """
    size = min(run.job.array, stage.tasks)
    logs = Path(run.folder).resolve() / "logs"
    array = ranges(rank % size for rank in ranks) + (f"%{run.job.at_once}" if run.job.at_once else "")
    options = ["sbatch", "--parsable", f"--job-name={run.name}-{stage.name}", f"--array={array}"]
    options += [f"--mem={math.ceil(stage.memory_gb * 1e9 / 2**20)}M", f"--comment={_comment(run, stage)}"]
    options.append(f"--output={str(logs).replace('%', '%%')}/{stage.name}-%A_%a.out")
    options += sbatch.of_job(run.job, ":".join(after) or None, os.environ)
    kept = [word for word in words if word.partition("=")[0] not in OWN and not word.startswith("job.")]
    stride = [f"stride={size}"] if size < stage.tasks else []
    return [*options, str(SCRIPT), *kept, f"stage={stage.name}", *stride]


def _comment(run: config.Curate, stage: CurationStage) -> str:
    """By which the array of a stage is known again."""
    return f"{Path(run.folder).resolve()}/{stage.name}"


def submit(
    run: config.Curate,
    stages: Sequence[CurationStage],
    missing: dict[str, list[int]],
    words: Sequence[str],
    say: Callable[[str], None],
) -> None:
    """Submit the stages with tasks in `missing`, each after those that it depends on; in a dry run print it alone.

    Raises RunError with what Slurm said, and ValueError where a stage is queued that has to wait for one that is not.
    """
    dry = run.dry_run
    queue = {} if dry else {job.comment: job.number.split("_")[0] for job in jobs.queued()}
    numbers: dict[str, str] = {}
    fresh: set[str] = set()
    for stage in stages:
        ranks, queued = missing[stage.name], queue.get(_comment(run, stage))
        if not ranks:
            say(f"# {stage.name}: done")
            continue
        if queued is not None:
            if late := [name for name in stage.depends if name in fresh]:
                raise ValueError(
                    f"folder={run.folder}: {stage.name} is queued as job {queued}, but {late[0]}, which it needs, was "
                    f"not; scancel {queued}, and submit again"
                )
            numbers[stage.name] = queued
            say(f"# {stage.name}: queued as job {queued}")
            continue
        after = [numbers[name] for name in stage.depends if name in numbers]
        built = command(run, stage, ranks, words, after)
        fresh.add(stage.name)
        if dry:
            numbers[stage.name] = f"<{stage.name}>"
            say(shlex.join(built))
            continue
        (Path(run.folder) / "logs").mkdir(parents=True, exist_ok=True)
        numbers[stage.name] = jobs.ask(built).strip().split(";")[0]
        say(f"{stage.name}: job {numbers[stage.name]}, {len(ranks)} of {stage.tasks} tasks")
