"""Direct preference optimisation: `torchrun ... -m recipes.dpo name=dpo model=8b init_from=runs/sft ...`.

The model that training begins with is the reference; its log-probabilities are computed once, before the first step.
"""

from __future__ import annotations

from llama31 import config
from recipes import start


def main(run: config.Dpo) -> None:
    """Encode preferences and compute the reference where that is not done yet, then train to the end."""
    from llama31.engine import preference
    from llama31.parallel import mesh
    from llama31.train import feeds, loop, reference, setup

    with setup.placed(run) as place:
        pairs = feeds.preferred(run)
        reference.attach(pairs, run, place.grid)
        loop.fit(setup.setup(run, place, pairs), preference.DpoObjective(run.beta, run.length_normalised))
    mesh.close()


if __name__ == "__main__":
    start(main, config.Dpo, "dpo")
