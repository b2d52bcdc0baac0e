"""A recipe, or a chain of recipes, to Slurm: checked and priced here, before it waits in a queue.

Example: python -m recipes.submit recipe=pretrain dry_run=true name=first model=8b parallel=8b_1node schedule=8b ...
"""

from __future__ import annotations

import shlex
import sys

from llama31 import config
from llama31.command import inputs, written
from llama31.slurm import jobs, sbatch
from recipes import start


def main(run: config.Submit) -> None:
    """Submit what `run` names, or print it. All of a chain is right before any of it is submitted."""
    job = run.submit
    steps = jobs.steps(job, jobs.split(sys.argv[1:])[1])
    if not job.dry_run and sbatch.option(shlex.split(job.options), "dependency", "d") is None:
        inputs.check(steps[0].run)  # what later ones read is not there yet
    if job.facts:
        print(jobs.facts(steps[0], job))
        return
    after = None
    for step in steps:
        command = jobs.command(step, job, after)
        if isinstance(step.run, config.Training):
            print(f"# {step.part}: {jobs.bill(step.run, jobs.world_size(step.run, job), job.mfu)}")
        if short := jobs.short(step, job):
            print(f"# {step.part}: {short}")
        if job.dry_run:
            after = f"{step.part.upper()}_JOB_ID"
            print(shlex.join(command), written.to_yaml(step.run), sep="\n")
        else:
            after = jobs.submit(step, command)
            print(f"{step.part}: job {after}", flush=True)


if __name__ == "__main__":
    start(main, config.Submit, "submit", jobs.split(sys.argv[1:])[0])
