"""An exponential moving average of the FP32 masters, kept while training goes on.

Each rank averages the fragments that it holds, next to them in memory: no communication, and 4 bytes per parameter
shared out like the masters. After every update, average <- average + (1 - decay) * (master - average), in FP32.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from llama31.checkpoint import publish, shards
from llama31.checkpoint.shards import Block, Shard

log = logging.getLogger(__name__)

MASTER, NAME = "fp32.", "ema."


class Ema:
    """Averages live masters: `masters` are shards named `fp32.<parameter>` whose blocks are views of them.

    It starts as a copy of the masters, so it is no average yet for the first 1 / (1 - decay) updates or so. Call
    `update` after each applied step; save `shards()` beside the optimizer's, or fill them to resume. Raises ValueError
    where `decay` is not in [0, 1).
    """

    def __init__(self, masters: Sequence[Shard], decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay}: an average forgets a little with each step; give at least 0 and below 1")
        self.decay = decay
        mine = [shard for shard in masters if shard.name.startswith(MASTER)]
        self._live: list[Tensor] = [block.resolve() for shard in mine for block in shard.blocks]
        self._average = [tensor.to(torch.float32, copy=True) for tensor in self._live]
        kept = iter(self._average)
        self._shards = [
            Shard(
                NAME + shard.name.removeprefix(MASTER),
                shard.shape,
                [Block(block.offset, next(kept)) for block in shard.blocks],
            )
            for shard in mine
        ]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the masters as they are now."""
        if self._average:
            torch._foreach_lerp_(self._average, self._live, 1 - self.decay)

    def shards(self) -> list[Shard]:
        """The average under `ema.<parameter>`: views, to be saved, or to be filled from a checkpoint."""
        return self._shards

    def load(self, folder: Path, main: bool) -> None:
        """Fill it from a checkpoint; one that has none is warned of on the first rank, and it begins anew."""
        if any(name.startswith(NAME) for name in shards.names(folder / "optimizer")):
            publish.load_optimizer(folder, self._shards)
        elif main:
            log.warning("%s holds no moving average: it begins anew, with the masters as they are", folder)
