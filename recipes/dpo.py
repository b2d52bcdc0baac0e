"""Direct preference optimisation: `torchrun ... -m recipes.dpo name=dpo model=8b init_from=runs/sft ...`.

The model that training begins with is the reference; its log-probabilities are computed once, before the first step.
"""

from __future__ import annotations

from dataclasses import asdict

from llama31 import config
from recipes import start


def main(run: config.Dpo) -> None:
    """Encode preferences and compute the reference where that is not done yet, then train to the end."""
    from llama31.dialogs.feed import Preferred
    from llama31.engine import preference
    from llama31.parallel import mesh
    from llama31.train import feeds, loop, reference, setup

    with setup.placed(run) as place:
        collator = Preferred(run.nll, run.nll_mean, run.masked, tuple(run.data.strengths))
        pairs = feeds.preferences(run.data, run.tokenizer, run.schedule, collator)
        objective = preference.DpoObjective(run.beta, run.length_normalised)
        pairs.objective = {**collator.loss_keys(), **asdict(objective)}
        assert run.init_from is not None, "validation asks for it"
        held_to = reference.Reference(run.init_from, run.model, run.precision, run.parallel)
        reference.attach(pairs, held_to, run.data.folder, place.grid)
        loop.fit(setup.setup(run, place, pairs), objective)
    mesh.close()


if __name__ == "__main__":
    start(main, config.Dpo, "dpo")
