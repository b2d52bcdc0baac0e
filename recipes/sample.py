"""Rejection sampling: K answers per prompt from a policy, ranked by a reward model, the best kept.

Example: python -m recipes.sample folder=runs/first/sample prompts=prompts.jsonl policy=runs/first reward=runs/reward
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llama31 import config
from recipes import start

if TYPE_CHECKING:
    from llama31.judging.rejection import Pending, Session
    from llama31.sampling.drawing import AnswerSource, Task


def main(run: config.Sample) -> None:
    """Draw what is missing, rank it, and write dialogs and pairs of the best. The same command goes on where it was."""
    from llama31.judging import rejection
    from llama31.parallel import mesh

    session = rejection.open_session(run)
    if run.part != "rank" and (tasks := rejection.to_draw(session)):
        rejection.draw(session, tasks, source_of(session, tasks))
    if run.part != "draw" and run.reward is not None:
        pending = rejection.to_rank(session, run.reward)
        if pending.unscored:  # else no reward model is built, and no GPU needed
            score(session, pending, run.reward)
        rejection.publish(session, pending)
    mesh.close()


def source_of(session: Session, tasks: Sequence[Task]) -> AnswerSource:
    """Servers, where the config names any, or the policy on these processes."""
    from llama31.judging import rejection
    from llama31.parallel import mesh

    run = session.run
    if run.server.urls:
        return rejection.connect(session, tasks)
    return rejection.load_policy(session, mesh.create(run.parallel, run.cluster.timeout_s))


def score(session: Session, pending: Pending, reward: str) -> None:
    """Load the reward model where the policy was, and let it score the answers."""
    from llama31.judging import rejection
    from llama31.judging.score import RewardScorer
    from llama31.parallel import mesh

    run = session.run
    gc.collect()  # the policy is done
    grid = mesh.create(run.parallel, run.cluster.timeout_s)
    rejection.score(session, pending, RewardScorer(reward, run.parallel, run.precision, grid))


if __name__ == "__main__":
    start(main, config.Sample, "sample")
