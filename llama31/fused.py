"""RMSNorm and SwiGLU whose backward pass is written out, so that they keep their inputs and nothing else.

As a chain of torch operations each keeps an intermediate or two for autograd; these are the widest activations of a
layer. What is not kept is computed again in the backward pass, which costs less than writing and reading it did.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x32 = x.float()
        mean_square = torch.linalg.vector_norm(x32, dim=-1, keepdim=True).square_().div_(x.size(-1))
        scale = mean_square.add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x32 * scale).mul_(weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        grad, normed = grads[0].float(), x.float() * scale
        grad_weight = (grad * normed).flatten(0, -2).sum(0).to(weight.dtype)
        grad = grad * weight
        along = torch.linalg.vecdot(grad, normed).unsqueeze(-1).div_(x.size(-1))
        return grad.sub_(normed.mul_(along)).mul_(scale).to(x.dtype), grad_weight, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., h] over its root mean square, times weight [h]; computed in FP32 (torch's own kernel on a GPU)."""
    if x.is_cuda:
        return F.rms_norm(x, (x.size(-1),), weight, eps)
    normed: Tensor = _RMSNorm.apply(x, weight, eps)
    return normed


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        gate, up = x.chunk(2, -1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor]:
        (x,) = ctx.saved_tensors
        gate, up = x.chunk(2, -1)
        grad = torch.empty_like(x)
        grad_gate, grad_up = grad.chunk(2, -1)
        torch.mul(grads[0], F.silu(gate), out=grad_up)
        grad_gate.copy_(torch.ops.aten.silu_backward(grads[0] * up, gate))
        return (grad,)


def swiglu(x: Tensor) -> Tensor:
    """silu(gate) * up for x [..., 2 f] = [gate, up]; returns [..., f]."""
    out: Tensor = _SwiGLU.apply(x)
    return out
