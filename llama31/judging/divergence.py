"""How far a model's predictions are from another's, token by token: what FP8 costs, before anybody sees it in a score.

Of each token that counts, KL(p || q) in nats between what the other model (p, in BF16 say) and this one (q) say comes
next, over the whole vocabulary; and whether both find the same token likeliest. Benchmarks may stay where they are
while rare tokens go wrong (report, section 6.2), so the tail is told beside the mean.

Both models are in memory, on the same layout, and the logits of one micro-batch of both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from llama31 import config
from llama31.data.batches import HeldoutText
from llama31.engine import scoring
from llama31.engine.objectives import LossFunction, MicroBatch
from llama31.engine.pipeline import Forward
from llama31.evaluate import perplexity
from llama31.evaluate.confidence import mean_over
from llama31.model import head, llama
from llama31.model.sequences import take_chunks
from llama31.parallel.mesh import Grid

TOKENS = 512  # whose log-probabilities exist in FP32 at once


@dataclass(frozen=True)
class TokenDivergences:
    """Every token of a source that counted: four columns of equal length."""

    kl: NDArray[np.float32]  # nats
    same: NDArray[np.float32]  # 1 where both find the same token likeliest
    weights: NDArray[np.float32]
    document: NDArray[np.int64]


def check(other: config.Model, this: config.Model, length: int) -> None:
    """ValueError (key `against`) where two models cannot be asked about the same tokens in rows of `length`."""
    if other.head != "tokens" or other.vocab_size != this.vocab_size:
        raise ValueError(
            f"against: it predicts {other.vocab_size if other.head == 'tokens' else 'no'} tokens, checkpoint "
            f"{this.vocab_size}; give a model with the same tokenizer"
        )
    if other.max_positions < length:
        raise ValueError(f"sequence_length={length}: against has {other.max_positions} positions; give at most that")


def compare(this: Forward, other: Forward, heldout: HeldoutText, micro_batch: int) -> dict[str, Any]:
    """-> {"sources": {name: figures}, "total": figures} of KL(other || this), ready for JSON. Collective.

    Figures: `kl`, its mean in nats per token, and `same`, the share of tokens on whose likeliest successor both agree,
    each with the half width of its 95 % interval over documents (null for a single one); `kl_p50`, `kl_p99`, `kl_max`;
    `tokens`.
    """
    found = {}
    for name in heldout.names:
        if count := heldout.count(name):
            blocks = [
                _block(this, other, heldout, name, first, micro_batch)
                for first in range(0, count, _rows_at_once(this, micro_batch))
            ]
            kl, same = np.concatenate(blocks, 1)[:, :count]
            rows = heldout.rows(name, np.arange(count))
            kept = rows.loss_mask > 0
            document = perplexity.places(rows)[1]
            found[name] = TokenDivergences(kl[kept], same[kept], rows.loss_mask[kept], document[kept])
    return {
        "sources": {name: figures(one) for name, one in found.items()},
        "total": figures(_joined(list(found.values()))) if found else {},
    }


def figures(found: TokenDivergences) -> dict[str, float | int | None]:
    """What `compare` tells of one source. ValueError where no token counts."""
    kl, kl_ci95 = mean_over(found.document, found.kl, found.weights)
    same, same_ci95 = mean_over(found.document, found.same, found.weights)
    counted = found.kl[found.weights > 0]
    middle, tail = (float(one) for one in np.quantile(counted, (0.5, 0.99)))
    return {
        "kl": kl, "kl_ci95": kl_ci95, "kl_p50": middle, "kl_p99": tail, "kl_max": float(counted.max()),
        "same": same, "same_ci95": same_ci95, "tokens": int(counted.size),
    }  # fmt: skip


def _joined(parts: list[TokenDivergences]) -> TokenDivergences:
    """All sources as one, their documents kept apart."""
    shift = np.cumsum([0, *(part.document.max(initial=0) + 1 for part in parts)])
    documents = [part.document + int(offset) for part, offset in zip(parts, shift)]
    kl, same, weights = (
        np.concatenate(column) for column in zip(*((one.kl, one.same, one.weights) for one in parts), strict=True)
    )
    return TokenDivergences(kl, same, weights, np.concatenate(documents))


def _rows_at_once(forward: Forward, micro_batch: int) -> int:
    """Rows of all replicas that a schedule takes at least: logits are kept from one model's pass to the other's."""
    return scoring.whole_batches(forward.chunks, forward.grid) * micro_batch * forward.grid.dp


def _block(
    this: Forward, other: Forward, heldout: HeldoutText, name: str, first: int, micro_batch: int
) -> NDArray[np.float32]:
    """KL and agreement of `_rows_at_once` rows, FP32 [2, rows, length], equal on all ranks."""
    grid = this.grid
    indices = scoring.rows_of_replica(_rows_at_once(this, micro_batch), this.chunks, grid, micro_batch)
    batches = [MicroBatch.from_rows(heldout.rows(name, part + first), grid.device) for part in indices]
    length = batches[0].tokens.size(1)
    result = torch.zeros(2, _rows_at_once(this, micro_batch), length, device=grid.device)
    positions = take_chunks(torch.arange(length), grid.cp, grid.cp_rank, 0)
    places = {id(batch): torch.from_numpy(part) for batch, part in zip(batches, indices, strict=True)}
    kept: dict[int, Tensor] = {}

    def keep(batch: MicroBatch, logits: Tensor) -> None:
        kept[id(batch)] = logits

    def subtract(batch: MicroBatch, logits: Tensor) -> None:
        columns = llama.real_rows(this.chunks[-1].vocab_size, logits.size(-1), grid.tp_rank)
        kl, same = divergence(kept.pop(id(batch)), logits, columns, this.chunks[-1].tp_group)
        if grid.tp_rank == 0:  # the group agrees, and the sum over all ranks is to count once
            place = places[id(batch)][:, None], positions[None]
            result[0][place], result[1][place] = kl, same.float()

    for forward, take in ((other, keep), (this, subtract)):
        _logits(forward, batches, take)
    dist.all_reduce(result)  # each number has one owner
    return result.cpu().numpy()


def _logits(forward: Forward, batches: list[MicroBatch], take: Any) -> None:
    """Call `take` with each micro-batch and its logits [b, s / cp, v / tp], where the last stage is."""

    def step(chunk: Any, batch: MicroBatch, grid: Grid) -> tuple[Any, LossFunction]:
        def taken(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            take(batch, logits)
            nothing = torch.zeros((), device=grid.device)
            return nothing, torch.zeros((), dtype=torch.int), nothing

        return chunk(take_chunks(batch.tokens, grid.cp, grid.cp_rank, 1), None, batch.sequences(grid)), taken

    with torch.no_grad(), _evaluating(forward):
        forward.forward_backward(batches, step, forward_only=True)


@contextlib.contextmanager
def _evaluating(forward: Forward) -> Iterator[None]:
    training = [chunk.training for chunk in forward.chunks]
    for chunk in forward.chunks:
        chunk.eval()
    try:
        yield
    finally:
        for chunk, before in zip(forward.chunks, training, strict=True):
            chunk.train(before)


def divergence(other: Tensor, this: Tensor, columns: int, group: Any) -> tuple[Tensor, Tensor]:
    """Logits [..., v / tp] of two models -> KL(other || this) FP32 [...], and whether the likeliest token is the same.

    The first `columns` of this rank's logits are words, the others padding. `group`: the tensor-parallel one.
    """
    shape, width = other.shape[:-1], other.shape[-1]
    kl, same = torch.empty(shape.numel(), device=other.device), torch.empty(shape.numel(), device=other.device).bool()
    pairs = zip(other.reshape(-1, width).split(TOKENS), this.reshape(-1, width).split(TOKENS), strict=True)
    for number, pair in enumerate(pairs):
        at = slice(number * TOKENS, number * TOKENS + len(pair[0]))
        logits = [one.float() for one in pair]
        for one in logits:
            one[:, columns:] = torch.finfo(torch.float32).min
        first, second = (_log_probabilities(one, group) for one in logits)
        parts = (first.exp() * (first - second))[:, :columns].sum(-1)
        dist.all_reduce(parts, group=group)
        kl[at] = parts.clamp_(min=0)  # of equal ones rounding leaves a little on either side
        same[at] = head.first_maximum(logits[0], group) == head.first_maximum(logits[1], group)
    return kl.view(shape), same.view(shape)


def _log_probabilities(logits: Tensor, group: Any) -> Tensor:
    """FP32 logits [n, v / tp] -> log-probabilities [n, v / tp]."""
    top = logits.amax(-1, keepdim=True)
    dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
    shifted = logits - top
    total = shifted.exp().sum(-1, keepdim=True)
    dist.all_reduce(total, group=group)
    return shifted - total.log()
