"""Rounds of post-training: reward model, sampling, SFT, DPO, averages, judge; the best of a round feeds the next.

Example: python -m recipes.post_train dry_run=true name=rounds pretrained=runs/first ... ; every command is printed.
"""

from __future__ import annotations

import shlex

from llama31 import config
from llama31.post_train import rounds
from llama31.slurm import bills, submission
from recipes import start


def say(text: str) -> None:
    """Print at once: what a command prints follows."""
    print(text, flush=True)


def main(run: config.PostTrain) -> None:
    """Run, submit or print what is not done. The same command goes on where it stopped."""
    stages = rounds.stages(run)
    chain = rounds.chain(run, stages)
    if run.submit:
        say(bills.table(chain.steps, chain.job))
        submission.submit(chain, say)
    elif run.dry_run:
        for stage in stages:
            done = " (done)" if rounds.state(run, stage) else ""
            say(f"# {stage.name}{done}\n{shlex.join(stage.words())}")
    else:
        submission.refuse_queued(chain)
        rounds.execute(run, stages, say)


if __name__ == "__main__":
    start(main, config.PostTrain, "post_train")
