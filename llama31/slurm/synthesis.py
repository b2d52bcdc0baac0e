"""Synthesis, and the filters of dialogs, on Slurm: an array of shards, then the job that gathers what they made."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from llama31 import config
from llama31.slurm import arrays, jobs, sbatch

SCRIPT = sbatch.SCRIPTS / "synthesize.sh"
FILTER_SCRIPT = sbatch.SCRIPTS / "filter_data.sh"
OWN = ("submit", "dry_run", "shard", "part")  # what the submitting command keeps to itself
MAKE, GATHER = "make", "gather"


def command(
    run: config.Synthesize | config.FilterData,
    part: str,
    shards: Sequence[int],
    words: Sequence[str],
    after: str | None,
) -> list[str]:
    """The command that submits a part: the array of `shards`, or the gathering once the job `after` has succeeded.

    `words` are the arguments of the recipe.
    """
    options = ["sbatch", "--parsable", f"--job-name={run.name}-{part}", f"--comment={_comment(run, part)}"]
    logs = str((Path(run.folder) / "logs").resolve()).replace("%", "%%")
    if part == MAKE:
        at_once = f"%{run.job.at_once}" if run.job.at_once else ""
        options += [f"--array={arrays.ranges(shards)}{at_once}", f"--cpus-per-task={run.job.cpus}"]
    options.append(f"--output={logs}/{part}-{'%A_%a' if part == MAKE else '%j'}.out")
    further = f"{run.job.options} {run.job.gathering if part == GATHER else ''}".strip()
    key = "job.options and job.gathering" if part == GATHER and run.job.gathering else "job.options"
    options += sbatch.of_job(dataclasses.replace(run.job, options=further), after, os.environ, key)
    kept = [word for word in words if word.partition("=")[0] not in OWN and not word.startswith("job.")]
    script = SCRIPT if isinstance(run, config.Synthesize) else FILTER_SCRIPT
    return [*options, str(script), *kept, *([f"part={GATHER}"] if part == GATHER else [])]


def _comment(run: config.Synthesize | config.FilterData, part: str) -> str:
    """By which a job is known again."""
    return f"{Path(run.folder).resolve()}/{part}"


def submit(
    run: config.Synthesize | config.FilterData,
    missing: Sequence[int],
    gathered: bool,
    words: Sequence[str],
    say: Callable[[str], None],
) -> None:
    """Submit the shards in `missing`, and the gathering after them; in a dry run print it alone.

    Nothing is submitted where none is missing and what they made is `gathered`.

    Raises RunError with what Slurm said, and ValueError where a part of this folder is queued already.
    """
    if not run.dry_run:
        for job in jobs.queued():
            if job.comment in (_comment(run, MAKE), _comment(run, GATHER)):
                raise ValueError(f"folder={run.folder}: it is queued as job {job.number}; wait for it, or scancel it")
        (Path(run.folder) / "logs").mkdir(parents=True, exist_ok=True)
    if not missing:
        say(f"# {MAKE}: done")
    if not missing and gathered:
        say(f"# {GATHER}: done, {run.folder} has it; part={GATHER} without submit does it once more")
        return
    after = None
    for part in (*([MAKE] if missing else []), GATHER):
        built = command(run, part, missing, words, after)
        if run.dry_run:
            say(shlex.join(built))
            after = f"<{part}>"
            continue
        after = jobs.ask(built).strip().split(";")[0]
        say(f"{part}: job {after}" + (f", {len(missing)} of {run.shards} shards" if part == MAKE else ""))
