"""Supervised finetuning on dialogs: `torchrun ... -m recipes.sft name=sft model=8b init_from=runs/8b ...`.

Assistants' messages are learned, everything else is context. What a record is stands in llama31/dialogs/__init__.py.
"""

from __future__ import annotations

from llama31 import config
from recipes import start


def main(run: config.Sft) -> None:
    """Encode the dialogs where that is not done yet, then train from where the run stands to its end."""
    from llama31.parallel import mesh
    from llama31.train import feeds, loop, setup

    with setup.placed(run) as place:
        loop.fit(setup.setup(run, place, feeds.dialogs(run.data, run.tokenizer, run.schedule)))
    mesh.close()


if __name__ == "__main__":
    start(main, config.Sft, "sft")
