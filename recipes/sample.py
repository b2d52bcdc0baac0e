"""Rejection sampling: K answers per prompt from a policy, ranked by a reward model, the best kept.

Example: python -m recipes.sample folder=runs/first/sample prompts=prompts.jsonl policy=runs/first reward=runs/reward
"""

from __future__ import annotations

from llama31 import config
from recipes import start


def main(run: config.Sample) -> None:
    """Draw what is missing, rank it, and write dialogs and pairs of the best. The same command goes on where it was."""
    from llama31.judging import rejection
    from llama31.parallel import mesh

    session = rejection.open_session(run)
    if run.part != "rank":
        rejection.draw(session)
    if run.part != "draw" and run.reward is not None:
        rejection.rank(session)
    mesh.close()


if __name__ == "__main__":
    start(main, config.Sample, "sample")
