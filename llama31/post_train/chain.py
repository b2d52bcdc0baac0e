"""Rounds of post-training as a chain of Slurm jobs, which may be submitted again at any time.

What is queued stays and is waited for; what is neither done nor queued is submitted, with all that comes after it. A
job is known by its comment, the stage's place on disk: numbers come again where a controller was set up anew, and
sbatch may give up after its job is in the queue.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from llama31 import config
from llama31.post_train import rounds
from llama31.post_train.rounds import Stage
from llama31.slurm import jobs

Queue = dict[str, jobs.Queued]  # by the name of a stage
ENDING_S = 120  # that a cancelled job may take: Slurm kills after 30 s, and an epilog has its time


def submit(run: config.PostTrain, found: Sequence[Stage], say: Callable[[str], None]) -> None:
    """Submit what is neither done nor queued, each after those that it needs; print it alone with `dry_run`.

    Raises ValueError, before anything is submitted, for jobs that do not fit the command, and RunError with what
    Slurm said.
    """
    if "--comment" in run.job.options:
        raise ValueError(f"job.options={run.job.options}: by its comment a job is known again; leave --comment out")
    try:
        queue = _settled(run, found, say)
    except config.RunError as error:
        if not run.dry_run:
            raise
        say(f"# what is queued is not known: {error}")
        queue = {}
    fresh = missing(run, found, queue)
    numbers = {name: job.number for name, job in queue.items()}
    for stage in found:
        if stage in fresh:
            numbers[stage.name] = _submitted(run, stage, numbers, queue.get(stage.name), say)
        elif stage.done():
            say(f"# {stage.name}: done")
        else:
            say(f"# {stage.name}: queued as job {numbers[stage.name]} ({queue[stage.name].state})")


def missing(run: config.PostTrain, found: Sequence[Stage], queue: Queue) -> list[Stage]:
    """Stages to submit: neither done nor queued, or queued behind one that is to be submitted itself.

    Raises ValueError where a stage was done or queued by another command, or runs before it may.
    """
    fresh: list[Stage] = []
    for stage in found:
        if rounds.state(run, stage):
            continue
        job, before = queue.get(stage.name), [one.name for one in fresh if one.name in stage.after]
        if job is not None and before and job.state != "PENDING":
            raise ValueError(
                f"folder={run.folder}: {stage.name} is {job.state} as job {job.number}, but {before[0]}, which it "
                f"needs, is neither done nor queued; wait for the job's end, or scancel {job.number}"
            )
        if job is None or before:
            fresh.append(stage)
        elif other := rounds.differs(run, stage):
            raise ValueError(
                f"folder={run.folder}: {stage.name} is queued as job {job.number} by another command, without {other}; "
                f"give another name, or scancel {job.number} to submit this one"
            )
    return fresh


def refuse_queued(run: config.PostTrain, found: Sequence[Stage]) -> None:
    """Raises ValueError where a stage that would run here is queued, and RunError where that cannot be found out.

    Slurm is asked only where a record says that the stage became a job.
    """
    given = {stage.name: stage for stage in found if not stage.done() and rounds.record(run, stage).get("job")}
    if not given:
        return
    try:
        queue = _queue(run)
    except config.RunError as error:
        path = rounds.record_file(run, next(iter(given.values())))
        raise config.RunError(
            f"{error}. {path} names a job, which may be queued; remove the file if there is none"
        ) from error
    for name in given:
        if name in queue:
            number, state = queue[name].number, queue[name].state
            raise ValueError(
                f"submit=false: {name} is queued as job {number} ({state}); give submit=true, or scancel {number}"
            )


def _queue(run: config.PostTrain) -> Queue:
    """Jobs of these rounds that have not ended."""
    place, found = _comment(run, ""), Queue()
    for job in jobs.queued():
        name = job.comment.removeprefix(place)
        if name == job.comment:
            continue
        if name in found:
            raise ValueError(
                f"folder={run.folder}: {name} is queued twice, as jobs {found[name].number} and {job.number}; "
                f"scancel one of them"
            )
        found[name] = job
    return found


def _settled(run: config.PostTrain, found: Sequence[Stage], say: Callable[[str], None]) -> Queue:
    """The same, where no stage's job is just ending: whether it comes back, and what follows with it, is not yet known.

    Raises RunError where that takes too long.
    """
    end, told = time.monotonic() + ENDING_S, False
    while True:
        queue = _queue(run)
        ending = [
            job for stage in found if (job := queue.get(stage.name)) and job.state == "COMPLETING" and not stage.done()
        ]
        if not ending or run.dry_run:
            return queue
        if time.monotonic() > end:
            raise config.RunError(
                f"job {ending[0].number} has been ending for {ENDING_S} s; wait until squeue shows it no more"
            )
        if not told:
            say(f"# job {ending[0].number} is ending; waiting for that")
        told = True
        time.sleep(1)


def _submitted(
    run: config.PostTrain,
    stage: Stage,
    numbers: dict[str, str],
    doomed: jobs.Queued | None,
    say: Callable[[str], None],
) -> str:
    """Submit a stage, or print that; the number of its job. `doomed` is one that waits for a job that is gone."""
    label = stage.name.replace("/", "-")
    # not the folder that it works in: a link cannot take the place of a folder later
    logs = Path(run.folder) / stage.name / "logs"
    step = jobs.Step(f"{stage.recipe}.{label}", list(stage.arguments), rounds.compose(stage, run.job), logs)
    after = ":".join(numbers[name] for name in stage.after if name in numbers) or None
    command = jobs.command(step, run.job, after, _comment(run, stage.name))
    if doomed:
        cancel = ["scancel", doomed.number]
        say(f"# {stage.name}: job {doomed.number} waits for one that is gone\n{shlex.join(cancel)}")
        if not run.dry_run:
            jobs.ask(cancel)
    elif before := rounds.record(run, stage).get("job"):
        say(f"# {stage.name}: job {before} is gone, and this is not done")
    if run.dry_run:
        say(f"# {stage.name}\n{shlex.join(command)}")
        return label.replace("-", "_").upper() + "_JOB_ID"
    rounds.note(run, stage)
    number = jobs.submit(step, command)
    rounds.note(run, stage, number)
    say(f"{stage.name}: job {number}")
    return number


def _comment(run: config.PostTrain, name: str) -> str:
    return f"{Path(run.folder).resolve()}/{name}"
