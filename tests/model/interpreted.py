"""The loss kernel in Triton's interpreter against its plain twin: TRITON_INTERPRET=1 and `-m tests.model.interpreted`.

Prints a JSON object: of each case its largest errors (losses, gradients), relative to the largest right number; of
cases named `fault` those of a kernel that was called wrongly.
"""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from llama31.model import head, loss_kernel

Errors = dict[str, float]
SUM, MAX = torch.distributed.ReduceOp.SUM, torch.distributed.ReduceOp.MAX


def ranks(number: int, rank: int, parts: list[tuple[Tensor, Tensor, Tensor]]) -> Any:
    """torch.distributed for one of `number` ranks, the statistics of all of which are known: `parts`."""

    def all_reduce(mine: Tensor, op: Any = SUM, group: Any = None) -> None:
        highest = torch.stack([top for top, _, _ in parts]).amax(0)
        if op == MAX:
            mine.copy_(highest)
        else:
            mine.copy_(sum(torch.stack([total * (top - highest).exp(), label]) for top, total, label in parts))

    return types.SimpleNamespace(
        get_world_size=lambda group: number,
        get_rank=lambda group: rank,
        all_reduce=all_reduce,
        ReduceOp=head.dist.ReduceOp,
    )


def apart(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected.double()).abs().max() / expected.double().abs().max().clamp(min=1e-30)).item()


def errors(dtype: torch.dtype, tokens: int, width: int, tp: int = 1, padding: int = 0, fault: bool = False) -> Errors:
    """Losses with and without gradient, and the gradient, of `tokens` rows of `width` columns on each of `tp` ranks."""
    generator = torch.Generator().manual_seed(width)
    hidden = torch.randn(tokens, 8, generator=generator).to(dtype)
    weights = torch.rand(tokens, generator=generator) * (torch.arange(tokens) % 3 > 0)  # every third does not count
    words = tp * width - padding
    matrix = torch.randn(tp * width, 8, generator=generator).to(dtype)
    labels = torch.randint(words, (tokens,), generator=generator)
    labels[:3] = torch.tensor([0, words - 1, min(width, words - 1)])
    columns = [min(max(words - rank * width, 0), width) for rank in range(tp)]

    logits = torch.cat([head._logits(hidden, matrix[i * width :][:width], columns[i]) for i in range(tp)], 1)
    head.dist = ranks(1, 0, [])
    logp, losses, places, mine = head._log_softmax(logits.float(), labels, None)
    gradient = head._grad_logits(logp, places, mine, weights).to(dtype)

    result = Errors()
    halves = [half.clone() for half in logits.split(width, 1)]
    parts = [loss_kernel.statistics(half, labels, rank * width, width) for rank, half in enumerate(halves)]
    for rank, half in enumerate(halves):
        head.dist = ranks(tp, rank, parts)
        alone = head._fused(half.clone(), labels, None, None)
        asked = labels + 1 if fault else labels
        together = head._fused(half, asked, weights, None)
        result[f"losses {rank}"] = max(apart(alone, losses), apart(together, losses))
        result[f"gradient {rank}"] = apart(half, gradient[:, rank * width :][:, :width])
        result[f"padding {rank}"] = half[:, columns[rank] :].abs().sum().item()
    return result


def cases() -> Iterator[tuple[str, Callable[[], Errors]]]:
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        yield f"{name} one block", lambda d=dtype: errors(d, 7, 50)
        yield f"{name} many blocks", lambda d=dtype: errors(d, 5, 300, padding=9)
        yield f"{name} two ranks", lambda d=dtype: errors(d, 6, 130, tp=2)
        yield f"{name} a rank of padding", lambda d=dtype: errors(d, 6, 70, tp=3, padding=75)
    yield "fault", lambda: errors(torch.float32, 5, 300, fault=True)


if __name__ == "__main__":
    loss_kernel.BLOCK = 64
    print(json.dumps({name: work() for name, work in cases()}))
