"""A recipe, or a chain of recipes, to Slurm: checked and priced here, before it waits in a queue.

Example: python -m recipes.submit recipe=pretrain dry_run=true name=first model=8b parallel=8b_1node schedule=8b ...
Example: python -m recipes.submit chain=405b_long_context dry_run=true name=first pretrained=runs/405b ...
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from llama31 import config
from llama31.command import inputs, usage, written
from llama31.slurm import bills, chains, jobs, sbatch, submission
from recipes import start

PROGRAM = usage.program(config.Submit)
CHAINS = Path("runs/chains")  # a folder for each chain that was submitted: what became of its stages


def main(run: config.Submit) -> None:
    """Submit what `run` names, or print it. All of a chain is right before any of it is submitted."""
    (own, arguments), job = jobs.split(sys.argv[1:]), run.submit
    chained = run.chain.stages or any(text.startswith("chain=") for text in own)
    if chained and job.recipe is not None:
        reason = "a chain names its recipes itself"
        raise ValueError(f"submit.recipe={job.recipe}: {reason}; give one of recipe= and chain=")
    if chained:
        chain(run.chain, arguments, job)
    elif job.recipe is not None:
        single(job.recipe, arguments, job)
    else:
        raise ValueError(f"submit.recipe=null: give recipe=R, of {', '.join(jobs.SCHEMAS)}, or chain=NAME")


def single(recipe: str, arguments: Sequence[str], job: config.Job) -> None:
    """Submit one recipe, as often as it is asked."""
    step = jobs.single(recipe, arguments, job)
    if not job.dry_run and not waits(job):
        inputs.check(step.run)
    if job.facts:
        print(jobs.facts(step, job))
        return
    command = jobs.command(step, job)
    if bill := bills.of(step, job):
        print(f"# {recipe}: {bill}")
    tell_short([step], job)
    if not job.dry_run:
        print(f"{recipe}: job {jobs.submit(step, command)}", flush=True)
        return
    print(shlex.join(command))
    if job.configs is not False:
        print(written.to_yaml(step.run))


def chain(given: config.Chain, arguments: Sequence[str], job: config.Job) -> None:
    """Submit what is neither done nor queued of a chain."""
    name, stages, issues = chains.stages(given, arguments)
    files = False if waits(job) else None if job.dry_run else True
    steps = chains.checked(PROGRAM, stages, lambda _, run: jobs.world_size(run, job), issues, files)
    print(bills.table(steps, job), flush=True)
    tell_short(steps, job)
    for issue in chains.missing(steps) if job.dry_run else []:
        print(f"# not there yet: {issue}")
    for step in steps if job.configs else []:
        print(f"# {step.name}", written.to_yaml(step.run), sep="\n")
    submission.submit(
        submission.Submission(f"name={name}", CHAINS / name, steps, job), lambda text: print(text, flush=True)
    )


def waits(job: config.Job) -> bool:
    """Whether the first job waits for others, which may make what it reads."""
    return sbatch.option(shlex.split(job.options), "dependency", "d") is not None


def tell_short(steps: Sequence[jobs.Step], job: config.Job) -> None:
    """Name the jobs whose time limits leave them hardly any time."""
    for step in steps:
        if short := jobs.short(step, job):
            print(f"# {step.name}: {short}")


if __name__ == "__main__":
    start(main, config.Submit, "submit", jobs.split(sys.argv[1:])[0])
