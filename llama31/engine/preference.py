"""Objectives of whole responses: the reward models' and DPO's (report, sections 4.1.2, 4.1.4 and 4.3.3).

The number of a response is a sum over its positions, which context parallelism spreads over ranks. `responses` sums
them so that every rank knows the numbers, computes the same loss from them, and carries its own positions' gradient:
gradients of ranks are summed afterwards, so none may be counted twice. For the same reason a rank reports its share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from llama31.dialogs import stepwise
from llama31.engine.objectives import Compared, LossFunction, MicroBatch
from llama31.model.sequences import take_chunks
from llama31.parallel.mesh import Grid

NOTHING = torch.zeros((), dtype=torch.int)


class _SumOverRanks(torch.autograd.Function):
    """All-reduce whose gradient stays as it is: all ranks go on with the same numbers."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor, group: Any) -> Tensor:
        total = mine.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def responses(values: Tensor, compared: Compared, grid: Grid) -> Tensor:
    """Sum of `values` [b, s / cp] over the positions of each response, FP32 [number], on all context-parallel ranks."""
    of_token = take_chunks(compared.of_token, grid.cp, grid.cp_rank, 1).flatten()
    counted = (of_token >= 0).nonzero().flatten()
    sums = torch.zeros(compared.number, dtype=torch.float32, device=values.device)
    sums = sums.index_add(0, of_token[counted], values.flatten()[counted])
    return _SumOverRanks.apply(sums, grid.cp_group) if grid.cp > 1 else sums


def _responses(batch: MicroBatch) -> Compared:
    assert batch.compared is not None, "this objective is of responses"
    return batch.compared


def _labels(batch: MicroBatch, grid: Grid) -> Tensor:
    """This rank's labels [b, s / cp], -1 where neither a weight nor a response asks for one."""
    asked = (batch.weights > 0) | (_responses(batch).of_token >= 0)
    return take_chunks(torch.where(asked, batch.labels, -1), grid.cp, grid.cp_rank, 1)


@dataclass(frozen=True)
class RewardObjective:
    """Mean over pairs of -log sigmoid(reward of the better - reward of the worse): Llama 2's, without the margin."""

    measures: ClassVar[tuple[str, ...]] = ("accuracy", "margin")

    def __call__(self, chunk: Any, batch: MicroBatch, grid: Grid) -> tuple[Any, LossFunction]:
        def loss(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            compared = _responses(batch)
            better, worse = responses(scores, compared, grid)[compared.pairs].unbind(1)
            margin = better - worse
            total = -F.logsigmoid(margin).sum() * batch.scale
            sums = torch.stack([total, _right(margin) * batch.scale, margin.sum() * batch.scale])
            return total, NOTHING, sums.detach() / grid.cp

        return _scores(chunk, batch, grid), loss


@dataclass(frozen=True)
class StepObjective:
    """Mean over steps of the cross entropy between a step's label, 0 to 1, and sigmoid(its reward).

    Lightman et al. 2023 (arXiv:2305.20050) and Math-Shepherd (arXiv:2312.08935), here at the token that ends a message.
    Measures: accuracy at 0.5, for which a label of 0.5 is right; the mean of sigmoid(reward), and of the labels.
    """

    measures: ClassVar[tuple[str, ...]] = ("accuracy", "score", "label")

    def __call__(self, chunk: Any, batch: MicroBatch, grid: Grid) -> tuple[Any, LossFunction]:
        def loss(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            compared = _responses(batch)
            logits, labels = responses(scores, compared, grid), compared.targets
            total = F.binary_cross_entropy_with_logits(logits, labels, reduction="sum") * batch.scale
            right = _right(torch.where(labels >= stepwise.RIGHT, logits, -logits))
            counts = torch.stack([right, logits.sigmoid().sum(), labels.sum()]) * batch.scale
            return total, NOTHING, torch.cat([total[None], counts]).detach() / grid.cp

        return _scores(chunk, batch, grid), loss


@dataclass(frozen=True)
class DpoObjective:
    """Mean over pairs of -log sigmoid(beta x difference of log-ratios), plus the batch's weighted cross entropy.

    A response's log-ratio is that of policy and reference, summed over the positions that `compared` names; divided by
    their number where `length_normalised`. Weights are relative to the pairs of the whole batch (`dialogs/rows.py`).
    Its measures: beta x the log-ratios as rewards of the chosen and of the rejected, and the weighted cross entropy.
    """

    beta: float = 0.1
    length_normalised: bool = False
    measures: ClassVar[tuple[str, ...]] = ("accuracy", "margin", "chosen", "rejected", "nll")

    def __call__(self, chunk: Any, batch: MicroBatch, grid: Grid) -> tuple[Any, LossFunction]:
        def loss(losses: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            compared = _responses(batch)
            ratios = responses(-losses, compared, grid) - compared.reference
            if self.length_normalised:
                ratios = ratios / lengths(compared)
            better, worse = (self.beta * ratios)[compared.pairs].unbind(1)
            margin = better - worse
            term = -F.logsigmoid(margin).sum() * batch.scale
            likelihood = (losses * take_chunks(batch.weights, grid.cp, grid.cp_rank, 1)).sum()
            counts = torch.stack([_right(margin), margin.sum(), better.sum(), worse.sum()])
            shared = torch.cat([term[None], counts * batch.scale]) / grid.cp
            sums = torch.cat([shared[:1] + likelihood, shared[1:], likelihood[None]])
            return term + likelihood, NOTHING, sums.detach()

        return _token_losses(chunk, batch, grid), loss


def _right(margin: Tensor) -> Tensor:
    """How many margins are on the right side of 0; a tie is half of one, as in `judging/calibration.py`."""
    return (margin > 0).sum() + (margin == 0).sum() / 2


def lengths(compared: Compared) -> Tensor:
    """Positions that count for each response, int64 [number]; at least 1."""
    counted = compared.of_token[compared.of_token >= 0]
    return torch.bincount(counted, minlength=compared.number).clamp(min=1)


def log_probabilities(chunk: Any, batch: MicroBatch, grid: Grid) -> tuple[Any, LossFunction]:
    """Not to be learned: told are the responses' log-probabilities, FP32 [number]."""

    def loss(losses: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return losses.sum(), NOTHING, responses(-losses, _responses(batch), grid).detach()

    return _token_losses(chunk, batch, grid), loss


def rewards(chunk: Any, batch: MicroBatch, grid: Grid) -> tuple[Any, LossFunction]:
    """Not to be learned: told are the responses' rewards, FP32 [number]."""

    def loss(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return scores.sum(), NOTHING, responses(scores, _responses(batch), grid).detach()

    return _scores(chunk, batch, grid), loss


def _local(whole: Tensor | None, grid: Grid) -> Tensor | None:
    return None if whole is None else take_chunks(whole, grid.cp, grid.cp_rank, 1)


def _scores(chunk: Any, batch: MicroBatch, grid: Grid) -> Any:
    return chunk(_local(batch.tokens, grid), _local(batch.positions, grid), batch.sequences(grid))


def _token_losses(chunk: Any, batch: MicroBatch, grid: Grid) -> Any:
    positions = _local(batch.positions, grid)
    return chunk(_local(batch.tokens, grid), positions, batch.sequences(grid), labels=_labels(batch, grid))
