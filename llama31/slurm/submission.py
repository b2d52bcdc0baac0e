"""Chains of jobs on Slurm, which may be submitted again at any time.

What is queued stays and is waited for; what is neither done nor queued is submitted, with all that comes after it. A
job is known by its comment, the stage's place on disk: numbers come again where a controller was set up anew, and
sbatch may give up after its job is in the queue.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama31 import config
from llama31.runs import files
from llama31.slurm import jobs
from llama31.slurm.chains import makes
from llama31.slurm.jobs import Step

Queue = dict[str, jobs.Queued]  # by the name of a stage
Say = Callable[[str], None]
ADDRESSES = ("server.urls=", "judge.urls=", "reward.urls=")  # arguments that say where servers are, not what is made
RECORD = "stages"  # folder of one file per stage: the command that made it, the number of its job
ENDING_S = 120  # that a cancelled job may take: Slurm kills after 30 s, and an epilog has its time


@dataclass(frozen=True)
class Submission:
    """The jobs of one command, as `key`, the argument that names them, and the folder by which they are known again.

    `section` is that of the config which says what is asked of Slurm.
    """

    key: str
    folder: Path
    steps: Sequence[Step]
    job: config.Job
    section: str = "submit"

    def comment(self, name: str) -> str:
        """By which the job of a stage is known."""
        return f"{self.folder.resolve()}/{name}"


# --- what is kept, and what is done ---


def record_file(folder: Path, name: str) -> Path:
    """Where a stage's start is kept."""
    return folder / RECORD / f"{name.replace('/', '-')}.json"


def record(folder: Path, name: str) -> dict[str, Any]:
    """What is kept of a stage's start: its arguments, and the number of its job. Empty where it was not started."""
    return files.read_object(record_file(folder, name)) or {}


def note(folder: Path, step: Any, command: Sequence[str], job: str | None = None) -> None:
    """Keep the command of a stage, by which a later start sees whether it is still the same, and its job's number."""
    path = record_file(folder, step.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "stage": step.name,
        "recipe": step.recipe,
        "arguments": step.arguments,
        "command": shlex.join(command),
        "job": job,
    }
    files.write_whole(path, json.dumps(content, indent=1) + "\n")


def differs(folder: Path, name: str, arguments: Sequence[str], passed_over: tuple[str, ...] = ()) -> str | None:
    """Arguments that a stage was not started with, as far as it was started and there is a difference.

    What begins with one of `passed_over` makes none.
    """
    before = record(folder, name).get("arguments")
    if before is None:
        return None
    old, new = ([text for text in given if not text.startswith(passed_over)] for given in (before, arguments))
    other = [text for text in new if text not in old] or old
    return None if old == new else shlex.join(other[:4])


def is_done(chain: Submission, step: Step) -> bool:
    """Whether a stage is done. Raises ValueError where it was done by another command than it would be now."""
    if not _left(chain, step):
        return False
    refuse_another(chain.key, chain.folder, step)
    return True


def refuse_another(key: str, folder: Path, step: Any) -> None:
    """Raises ValueError where a stage, which is done, was started with other arguments than it would be now.

    Servers may answer from elsewhere by now.
    """
    if other := differs(folder, step.name, step.arguments, ADDRESSES):
        raise ValueError(
            f"{key}: {step.name} was made by another command, without {other}; give another name, or remove what it "
            "made to have it made again"
        )


def _left(chain: Submission, step: Step) -> bool:
    """Whether a stage has left what it is to leave, since it was submitted as part of this chain."""
    if step.done is not None:
        return step.done()
    begun, left = record_file(chain.folder, step.name), _leaves(step.run)
    if not begun.is_file() or left is None or not left.is_file() or left.stat().st_mtime < begun.stat().st_mtime:
        return False
    return not isinstance(step.run, config.Training) or (files.read_object(left) or {}).get("outcome") == "finished"


def _leaves(run: Any) -> Path | None:
    """The file that shows a recipe's end; None for those that go on with what is missing whenever they are begun."""
    if isinstance(run, config.Training) and not isinstance(run, config.Probe):
        return Path(run.folder) / "outcome.json"
    if isinstance(run, config.Evaluate | config.Score):
        return None if run.output is None else Path(run.output)
    if isinstance(run, config.Convert | config.Average):
        names = ("config.json", "params.json", "checkpoint.json", "checkpoints/*/checkpoint.json")
        left = [path for written in makes(run) for name in names for path in Path(written).glob(name)]
        return max(left, key=lambda path: path.stat().st_mtime, default=None)
    return None


# --- submission ---


def submit(chain: Submission, say: Say) -> None:
    """Submit what is neither done nor queued, each after those that it needs; print it alone in a dry run.

    Raises ValueError, before anything is submitted, for jobs that do not fit the command, and RunError with what
    Slurm said.
    """
    if "--comment" in chain.job.options:
        raise ValueError(
            f"{chain.section}.options={chain.job.options}: by its comment a job is known again; leave --comment out"
        )
    try:
        queue = _settled(chain, say)
    except config.RunError as error:
        if not chain.job.dry_run:
            raise
        say(f"# what is queued is not known: {error}".replace("\n", "\n# "))
        queue = {}
    fresh = missing(chain, queue)
    numbers = {name: job.number for name, job in queue.items()}
    for step in chain.steps:
        if step in fresh:
            numbers[step.name] = _submitted(chain, step, numbers, queue.get(step.name), say)
        elif _left(chain, step):
            say(f"# {step.name}: done")
        else:
            say(f"# {step.name}: queued as job {numbers[step.name]} ({queue[step.name].state})")


def missing(chain: Submission, queue: Queue) -> list[Step]:
    """Stages to submit: neither done nor queued, or queued behind one that is to be submitted itself.

    Raises ValueError where a stage was done or queued by another command, or runs before it may.
    """
    fresh: list[Step] = []
    for step in chain.steps:
        if is_done(chain, step):
            continue
        job, before = queue.get(step.name), [one.name for one in fresh if one.name in step.after]
        if job is not None and before and job.state != "PENDING":
            raise ValueError(
                f"{chain.key}: {step.name} is {job.state} as job {job.number}, but {before[0]}, which it "
                f"needs, is neither done nor queued; wait for the job's end, or scancel {job.number}"
            )
        if job is None or before:
            fresh.append(step)
        elif other := differs(chain.folder, step.name, step.arguments):
            raise ValueError(
                f"{chain.key}: {step.name} is queued as job {job.number} by another command, without {other}; "
                f"give another name, or scancel {job.number} to submit this one"
            )
    return fresh


def refuse_queued(chain: Submission) -> None:
    """Raises ValueError where a stage that would run here is queued, and RunError where that cannot be found out.

    Slurm is asked only where a record says that the stage became a job.
    """
    given = [step.name for step in chain.steps if not _left(chain, step) and record(chain.folder, step.name).get("job")]
    if not given:
        return
    try:
        queue = _queue(chain)
    except config.RunError as error:
        path = record_file(chain.folder, given[0])
        raise config.RunError(
            f"{error}. {path} names a job, which may be queued; remove the file if there is none"
        ) from error
    for name in given:
        if name in queue:
            number, state = queue[name].number, queue[name].state
            raise ValueError(
                f"submit=false: {name} is queued as job {number} ({state}); give submit=true, or scancel {number}"
            )


def _queue(chain: Submission) -> Queue:
    """Jobs of this chain that have not ended."""
    place, queue = chain.comment(""), Queue()
    for job in jobs.queued():
        name = job.comment.removeprefix(place)
        if name == job.comment:
            continue
        if name in queue:
            raise ValueError(
                f"{chain.key}: {name} is queued twice, as jobs {queue[name].number} and {job.number}; "
                "scancel one of them"
            )
        queue[name] = job
    return queue


def _settled(chain: Submission, say: Say) -> Queue:
    """The same, where no stage's job is just ending: whether it comes back, and what follows with it, is not yet known.

    Raises RunError where that takes too long.
    """
    end, waiting = time.monotonic() + ENDING_S, False
    while True:
        queue = _queue(chain)
        ending = [
            job
            for step in chain.steps
            if (job := queue.get(step.name)) and job.state == "COMPLETING" and not _left(chain, step)
        ]
        if not ending or chain.job.dry_run:
            return queue
        if time.monotonic() > end:
            raise config.RunError(
                f"job {ending[0].number} has been ending for {ENDING_S} s; wait until squeue shows it no more"
            )
        if not waiting:
            say(f"# job {ending[0].number} is ending; waiting for that")
        waiting = True
        time.sleep(1)


def _submitted(chain: Submission, step: Step, numbers: Mapping[str, str], doomed: jobs.Queued | None, say: Say) -> str:
    """Submit a stage, or print that; the number of its job. `doomed` is one that waits for a job that is gone."""
    after = ":".join(numbers[name] for name in step.after if name in numbers) or None
    command = jobs.command(step, chain.job, after, chain.comment(step.name), chain.section)
    if doomed:
        cancel = ["scancel", doomed.number]
        say(f"# {step.name}: job {doomed.number} waits for one that is gone\n{shlex.join(cancel)}")
        if not chain.job.dry_run:
            jobs.ask(cancel)
    elif before := record(chain.folder, step.name).get("job"):
        say(f"# {step.name}: job {before} is gone, and this is not done")
    if chain.job.dry_run:
        say(f"# {step.name}\n{shlex.join(command)}")
        return re.sub(r"\W", "_", step.name).upper() + "_JOB_ID"
    typed = ["python", "-m", f"recipes.{step.recipe}", *step.arguments]
    note(chain.folder, step, typed)
    begun = record_file(chain.folder, step.name).stat().st_mtime_ns
    number = jobs.submit(step, command)
    note(chain.folder, step, typed, number)
    os.utime(record_file(chain.folder, step.name), ns=(begun, begun))  # the job may have ended already: `_left`
    say(f"{step.name}: job {number}")
    return number
