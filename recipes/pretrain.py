"""Train on the next token: `torchrun --nproc-per-node 2 -m recipes.pretrain --config-name demo`.

`--config-name` chooses another recipe of the same kind; `--help` lists every key.
"""

from __future__ import annotations

from llama31 import config
from recipes import start


def main(run: config.Pretrain) -> None:
    """Train from where the run stands to its end."""
    from llama31.parallel import mesh
    from llama31.train import feeds, loop, setup

    with setup.placed(run) as place:
        loop.fit(setup.setup(run, place, feeds.TextFeed(run.data, run.schedule, place.replica, place.plans)))
    mesh.close()  # a process that leaves while gloo's threads run may abort


if __name__ == "__main__":
    start(main, config.Pretrain, "pretrain")
