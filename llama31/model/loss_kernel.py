"""Cross entropy of a chunk of logits in one Triton kernel: sums in FP32, the gradient in the place of the logits.

A program reads one row of the vocabulary, twice where it also writes the gradient; the second reading comes from the
cache. As a chain of torch operations the same took a cast to FP32, a softmax, an exponential, a scaling, a scatter and
a cast back: 95 ms of a step in which this one takes 10 to 16 (docs/benchmarks.md). The plain twin, which also serves
CPUs, is `head._log_softmax` and `head._grad_logits`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 8192  # columns at a time
WARPS = 16


@triton.jit
def _row(  # type: ignore[no-untyped-def]  # Triton's own types: pointers, and constants of the compiler
    logits_ptr,
    row_stride,
    labels_ptr,
    weights_ptr,
    top_ptr,
    sum_ptr,
    label_ptr,
    first,
    columns,
    LABELLED: tl.constexpr,
    STATISTICS: tl.constexpr,
    GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row: (maximum, sum of exponentials, logit of the label) computed or given, then the gradient in place."""
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * row_stride
    label = -1
    if LABELLED:
        label = (tl.load(labels_ptr + row) - first).to(tl.int32)
    at = tl.arange(0, BLOCK)
    if STATISTICS:
        top = float("-inf")
        total = 0.0
        for begin in range(0, columns, BLOCK):
            x = tl.load(logits_ptr + begin + at, mask=begin + at < columns, other=float("-inf")).to(tl.float32)
            higher = tl.maximum(top, tl.max(x, 0))
            total = total * tl.exp(top - higher) + tl.sum(tl.exp(x - higher), 0)
            top = higher
        mine = (label >= 0) & (label < columns)
        of_label = tl.load(logits_ptr + tl.where(mine, label, 0)).to(tl.float32)
        tl.store(top_ptr + row, top)
        tl.store(sum_ptr + row, total)
        tl.store(label_ptr + row, tl.where(mine, of_label, 0.0))
    else:
        top = tl.load(top_ptr + row)
        total = tl.load(sum_ptr + row)
    if GRADIENT:
        weight = tl.load(weights_ptr + row)
        logsum = top + tl.log(total)
        for begin in range(0, columns, BLOCK):
            place = logits_ptr + begin + at
            x = tl.load(place, mask=begin + at < columns, other=float("-inf"))
            p = tl.exp(x.to(tl.float32) - logsum)
            gradient = tl.where(begin + at == label, p - 1.0, p) * weight
            tl.store(place, gradient.to(x.dtype), mask=begin + at < columns)


def _launch(
    logits: Tensor,
    labels: Tensor | None,
    weights: Tensor | None,
    given: tuple[Tensor, Tensor] | None,
    first: int,
    columns: int,
) -> tuple[Tensor, Tensor, Tensor]:
    rows = logits.size(0)
    assert logits.stride(1) == 1 and columns > 0
    top, total = given or (logits.new_empty(rows, dtype=torch.float32) for _ in range(2))
    of_label = logits.new_empty(rows, dtype=torch.float32)
    if rows:
        _row[(rows,)](
            logits,
            logits.stride(0),
            logits if labels is None else labels,
            logits if weights is None else weights,
            top,
            total,
            of_label,
            first,
            columns,
            LABELLED=labels is not None,
            STATISTICS=given is None,
            GRADIENT=weights is not None,
            BLOCK=min(BLOCK, triton.next_power_of_2(columns)),
            num_warps=WARPS,
        )
    return top, total, of_label


def statistics(logits: Tensor, labels: Tensor, first: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of each row of logits [n, width]: its maximum, the sum of exp(logit - maximum), and the logit of its label.

    All FP32 [n], over the first `columns` columns, which are numbers `first` and up of the vocabulary. labels int64
    [n]; where the label is none of them, its logit is 0.
    """
    return _launch(logits, labels, None, None, first, columns)


def gradient_(
    logits: Tensor, labels: Tensor, weights: Tensor, top: Tensor, total: Tensor, first: int, columns: int
) -> None:
    """Overwrite logits with the gradient of the sum of weights x cross entropy; top and total are of the whole row."""
    _launch(logits, labels, weights, (top, total), first, columns)


def cross_entropy_(logits: Tensor, labels: Tensor, weights: Tensor, columns: int) -> Tensor:
    """Cross entropy FP32 [n] of whole rows; overwrites logits [n, v] with the gradient of its weighted sum."""
    top, total, of_label = _launch(logits, labels, weights, None, 0, columns)
    return total.log_().add_(top).sub_(of_label)
