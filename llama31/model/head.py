"""Output head and cross entropy in one, a chunk of tokens at a time, so that the logits never exist whole.

With 128,256 words the logits of one 8,192-token sequence take 4 GB in FP32, several times over with their softmax and
gradient. The loss is linear in each token's cross entropy, so the gradient of a chunk is known as soon as its logits
are: `weighted_loss` computes both in the forward pass and keeps only gradients the size of its inputs. Where the loss
is not linear (DPO), `token_losses` computes the logits once more in the backward pass, of the tokens that count.

The gradient of the weight goes into its `main_grad` (FP32, of ZeRO-1) where there is one: the product adds to it, so
that no second tensor of that size exists. On a GPU a chunk's cross entropy and gradient are one kernel, in place
(`loss_kernel`); what stands here is its plain twin.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from llama31.plan import memory

CHUNK_ELEMENTS = dict(memory.LOGITS)  # logits that exist at once


def _chunks(tokens: int, weight: Tensor) -> list[tuple[int, int]]:
    size = max(64, CHUNK_ELEMENTS[weight.device.type] // weight.size(0))
    return [(i, min(i + size, tokens)) for i in range(0, tokens, size)]


def _logits(hidden: Tensor, weight: Tensor, columns: int | None) -> Tensor:
    """Logits [n, v / tp] of hidden [n, h]; from `columns` on they are of no word, and so low that none is theirs.

    Not -inf: a rank may hold nothing but padding, and the maximum of its columns is subtracted from them.
    """
    logits = hidden @ weight.t()
    if columns is not None and columns < logits.size(1):
        logits[:, columns:] = torch.finfo(logits.dtype).min
    return logits


def _log_softmax(logits: Tensor, labels: Tensor, group: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """FP32 logits [n, v / tp] -> log-probabilities [n, v / tp], cross entropy [n], label columns and their owners."""
    if dist.get_world_size(group) == 1:
        logp = torch.log_softmax(logits, -1)
        return logp, -logp.gather(1, labels[:, None])[:, 0], labels, torch.ones_like(labels, dtype=torch.bool)
    width = logits.size(1)
    columns = labels - dist.get_rank(group) * width
    mine = (columns >= 0) & (columns < width)
    columns = columns.clamp(0, width - 1)
    top = logits.amax(-1)
    dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
    logits = logits - top[:, None]
    sums = torch.stack([logits.exp().sum(-1), logits.gather(1, columns[:, None])[:, 0] * mine])
    dist.all_reduce(sums, group=group)
    logsum = sums[0].log()
    return logits - logsum[:, None], logsum - sums[1], columns, mine


def _grad_logits(logp: Tensor, columns: Tensor, mine: Tensor, weights: Tensor) -> Tensor:
    """Gradient [n, v / tp] of the sum of weights [n] x cross entropy; overwrites the log-probabilities."""
    grad = logp.exp_().mul_(weights[:, None])
    return grad.scatter_add_(1, columns[:, None], -(weights * mine)[:, None])


def _fused(logits: Tensor, labels: Tensor, weights: Tensor | None, group: Any) -> Tensor:
    """Cross entropy FP32 [n] by the kernel; with weights [n] the logits [n, v / tp] become their gradient."""
    from llama31.model import loss_kernel

    width = logits.size(1)
    if dist.get_world_size(group) == 1 and weights is not None:
        return loss_kernel.cross_entropy_(logits, labels, weights, width)
    first = dist.get_rank(group) * width
    top, total, of_label = loss_kernel.statistics(logits, labels, first, width)
    if dist.get_world_size(group) > 1:
        highest = top.clone()
        dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=group)
        sums = torch.stack([total.mul_(top.sub_(highest).exp_()), of_label])
        dist.all_reduce(sums, group=group)
        top, total, of_label = highest, sums[0], sums[1]
    if weights is not None:
        loss_kernel.gradient_(logits, labels, weights, top, total, first, width)
    return total.log().add_(top).sub_(of_label)


def _cross_entropy(logits: Tensor, labels: Tensor, group: Any) -> Tensor:
    """Cross entropy FP32 [n] of logits [n, v / tp]."""
    if logits.is_cuda:
        return _fused(logits, labels, None, group)
    return _log_softmax(logits.float(), labels, group)[1]


def _with_gradient(logits: Tensor, labels: Tensor, weights: Tensor, group: Any) -> tuple[Tensor, Tensor]:
    """Cross entropy FP32 [n], and the gradient of its sum with weights [n] by the logits, in their format."""
    if logits.is_cuda:
        return _fused(logits, labels, weights, group), logits
    logp, losses, columns, mine = _log_softmax(logits.float(), labels, group)
    return losses, _grad_logits(logp, columns, mine, weights).to(logits.dtype)


def _add_product(total: Tensor, grad_logits: Tensor, hidden: Tensor) -> None:
    """total FP32 [v / tp, h] += grad_logits^T [v / tp, n] hidden [n, h], summed in FP32 inside the product on a GPU."""
    if hidden.dtype == torch.float32:
        total.addmm_(grad_logits.t(), hidden)
    elif total.is_cuda:
        torch.addmm(total, grad_logits.t(), hidden, out_dtype=torch.float32, out=total)
    else:
        total.add_(grad_logits.t() @ hidden)


def _gradient_of(weight: Tensor) -> tuple[Tensor, Tensor | None]:
    """Where the weight's gradient is summed, and what autograd gets: nothing, where that is its `main_grad`."""
    main_grad = getattr(weight, "main_grad", None)
    if main_grad is not None:
        return main_grad, None
    total = torch.zeros_like(weight, dtype=torch.float32)
    return total, total


class _WeightedLoss(torch.autograd.Function):
    """The backward pass has nothing left to do but to scale; a `main_grad` is complete before, for a scale of 1."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor, group: Any, columns: int | None
    ) -> tuple[Tensor, Tensor]:
        losses = torch.empty_like(weights)
        needs_grad = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        grad_hidden = torch.empty_like(hidden) if needs_grad else None
        total, grad_weight = _gradient_of(weight) if needs_grad else (None, None)
        for begin, end in _chunks(hidden.size(0), weight):
            h, logits = hidden[begin:end], _logits(hidden[begin:end], weight, columns)
            if grad_hidden is None or total is None:
                losses[begin:end] = _cross_entropy(logits, labels[begin:end], group)
                continue
            losses[begin:end], grad = _with_gradient(logits, labels[begin:end], weights[begin:end], group)
            torch.mm(grad, weight, out=grad_hidden[begin:end])
            _add_product(total, grad, h)
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.complete = needs_grad and grad_weight is None
        ctx.mark_non_differentiable(losses)
        return (losses * weights).sum(), losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        if ctx.complete:
            factor = grads[0]  # one that is not finite spoils the other gradients, and so the norm of the step
            right = (factor == 1) | ~factor.isfinite()
            torch._assert_async(right, "the loss was multiplied after its gradient was summed: scale its weights")
            return grad_hidden.mul_(factor.to(grad_hidden.dtype)), None, None, None, None, None
        scaled = grad_hidden.mul_(grads[0].to(grad_hidden.dtype))
        return scaled, grad_weight.mul_(grads[0]), None, None, None, None


def weighted_loss(
    hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor, group: Any, columns: int | None = None
) -> tuple[Tensor, Tensor]:
    """Sum over tokens of weight x cross entropy, and each token's cross entropy (without gradient).

    hidden [n, h], weight [v / tp, h] (this rank's rows of the vocabulary), labels int64 [n], weights FP32 [n],
    group: the tensor-parallel group. Rows of the weight from `columns` on are padding of this rank's part: no loss and
    no gradient sees them. The gradient of hidden is this rank's part of a sum over the group.

    Where the weight has a `main_grad`, its gradient is added there at once: what scales the loss has to stand in
    `weights`. Raises RuntimeError in the backward pass where the loss was multiplied afterwards by a finite number.
    """
    if not torch.is_grad_enabled():  # parameters count as wanting gradients even then
        hidden, weight = hidden.detach(), weight.detach()
    loss, losses = _WeightedLoss.apply(hidden, weight, labels, weights, group, columns)
    return loss, losses


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, group: Any, columns: int | None) -> Tensor:
        losses = torch.empty(labels.shape, dtype=torch.float32, device=labels.device)
        for begin, end in _chunks(hidden.size(0), weight):
            losses[begin:end] = _cross_entropy(_logits(hidden[begin:end], weight, columns), labels[begin:end], group)
        ctx.save_for_backward(hidden, weight, labels)
        ctx.group, ctx.columns = group, columns
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        hidden, weight, labels = ctx.saved_tensors
        grad_hidden, (total, grad_weight) = torch.empty_like(hidden), _gradient_of(weight)
        upstream = grads[0].contiguous()
        for begin, end in _chunks(hidden.size(0), weight):
            h = hidden[begin:end]
            _, grad = _with_gradient(_logits(h, weight, ctx.columns), labels[begin:end], upstream[begin:end], ctx.group)
            torch.mm(grad, weight, out=grad_hidden[begin:end])
            _add_product(total, grad, h)
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None, None, None


def token_losses(hidden: Tensor, weight: Tensor, labels: Tensor, group: Any, columns: int | None = None) -> Tensor:
    """Each token's cross entropy, FP32 [n], differentiable; 0, and never computed, where the label is negative.

    hidden [n, h], weight [v / tp, h], labels int64 [n], the same on all ranks of the tensor-parallel `group`; `columns`
    as for `weighted_loss`. The gradient of hidden is this rank's part of a sum over the group.
    """
    wanted = (labels >= 0).nonzero().flatten()
    losses = _TokenLosses.apply(hidden[wanted], weight, labels[wanted], group, columns)
    return losses.new_zeros(labels.shape).index_put((wanted,), losses)


@torch.no_grad()
def scores(
    hidden: Tensor, weight: Tensor, labels: Tensor, wanted: Tensor, group: Any, columns: int | None = None
) -> tuple[Tensor, Tensor]:
    """Cross entropy FP32 [n] of the labels and the likeliest token int64 [n]; 0 and -1 where not `wanted` (bool [n]).

    Arguments as for `weighted_loss`. Of equally likely tokens the first is taken, as greedy decoding does. Logits are
    made for wanted tokens alone: of a long prompt only the answer's, if only that is asked about.
    """
    losses, likeliest = torch.zeros_like(labels, dtype=torch.float32), torch.full_like(labels, -1)
    places = wanted.nonzero()[:, 0]
    for begin, end in _chunks(places.numel(), weight):
        at = places[begin:end]
        logits = _logits(hidden[at], weight, columns).float()
        losses[at] = _cross_entropy(logits, labels[at], group)
        likeliest[at] = first_maximum(logits, group)
    return losses, likeliest


def first_maximum(logits: Tensor, group: Any) -> Tensor:
    """Column [n] of the whole vocabulary at which each row of logits [n, v / tp] is largest."""
    top, column = logits.max(-1)
    column = column + dist.get_rank(group) * logits.size(1)
    if dist.get_world_size(group) == 1:
        return column
    highest = top.clone()
    dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=group)
    column = column.masked_fill(top < highest, torch.iinfo(column.dtype).max)
    dist.all_reduce(column, op=dist.ReduceOp.MIN, group=group)
    return column
