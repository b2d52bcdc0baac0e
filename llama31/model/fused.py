"""RMSNorm, SwiGLU, rotary embedding and the lookup of embeddings, with backward passes of their own that keep little.

As a chain of torch operations each keeps an intermediate or two for autograd; these are the widest activations of a
layer. What is not kept is computed again in the backward pass, which costs less than writing and reading it did.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llama31.model import precision


def _transformer_engine(x: Tensor) -> ModuleType | None:
    """Transformer Engine's operations, for a BF16 tensor on a GPU, where it is installed."""
    if not x.is_cuda or x.dtype != torch.bfloat16 or not precision.have_transformer_engine():
        return None
    import transformer_engine_torch  # the library that it needs is loaded by now

    return transformer_engine_torch  # type: ignore[no-any-return]


class _RMSNorm(torch.autograd.Function):
    """The norm of x, and x: its other user's gradient is added to that of the norm before it is rounded."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)  # who takes the norm alone has no other gradient, nor zeros to add
        if engine := _transformer_engine(x):
            normed, _, scale = engine.rmsnorm_fwd(
                x.flatten(0, -2), weight, eps, None, None, engine.DType.kBFloat16, 0, False
            )
            ctx.save_for_backward(x, weight, scale)
            return normed.view(x.shape), x
        x32 = x.float()
        mean_square = torch.linalg.vector_norm(x32, dim=-1, keepdim=True).square_().div_(x.size(-1))
        scale = mean_square.add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x32 * scale).mul_(weight).to(x.dtype), x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        upstream, other = grads
        assert upstream is not None, "the norm is why this was called"
        if engine := _transformer_engine(x):
            flat = upstream.contiguous().flatten(0, -2), x.flatten(0, -2)
            if other is None:
                grad_x, grad_weight = engine.rmsnorm_bwd(*flat, scale, weight, 0, False)
            else:
                rows = other.contiguous().flatten(0, -2)
                grad_x, grad_weight = engine.rmsnorm_bwd_add(*flat, rows, scale, weight, 0, False)
            return grad_x.view(x.shape), grad_weight, None
        grad, normed = upstream.float(), x.float() * scale
        grad_weight = (grad * normed).flatten(0, -2).sum(0).to(weight.dtype)
        grad = grad * weight
        along = torch.linalg.vecdot(grad, normed).unsqueeze(-1).div_(x.size(-1))
        grad = grad.sub_(normed.mul_(along)).mul_(scale)
        return (grad if other is None else grad.add_(other)).to(x.dtype), grad_weight, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x [..., h] over its root mean square, times weight [h], and x itself; computed in FP32.

    Whoever goes on with both adds two gradients of x; as a second output its own comes into the norm's backward pass,
    where adding costs nothing. Transformer Engine's kernels on a GPU in BF16, torch's where it is not installed.
    """
    if x.is_cuda and _transformer_engine(x) is None:
        return F.rms_norm(x, (x.size(-1),), weight, eps), x
    normed: tuple[Tensor, Tensor] = _RMSNorm.apply(x, weight, eps)
    return normed


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        if engine := _transformer_engine(x):
            return engine.swiglu(x, None)  # type: ignore[no-any-return]
        gate, up = x.chunk(2, -1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor]:
        (x,) = ctx.saved_tensors
        if engine := _transformer_engine(x):
            return (engine.dswiglu(grads[0].contiguous(), x, None),)
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


def compute_again(kept: Tensor, user: Tensor, compute: Callable[[], Tensor]) -> None:
    """Free the memory of `kept` until the gradient of `user` arrives; then `compute` fills it again, bit for bit.

    For what only the nodes behind `user` keep, and nothing reads before the backward pass. No random state is kept:
    there is no dropout. Megatron's own `CheckpointWithoutOutput` keeps it, and compiles a C++ extension as it runs.
    """
    if not user.requires_grad:
        return
    size = kept.untyped_storage().nbytes()
    kept.untyped_storage().resize_(0)
    # `data` counts versions of its own: autograd sees no change. A hook lives as long as the whole graph: what it held
    # on to would be there until the backward pass of all layers has ended, so it is let go of as it is used.
    held = [(kept.data, compute)]

    def restore(_: Tensor) -> None:
        if held:
            there, once_more = held.pop()
            there.untyped_storage().resize_(size)
            with torch.no_grad():
                there.copy_(once_more())

    user.register_hook(restore)


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.main_grad = weight.main_grad  # type: ignore[attr-defined]
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:
        (ids,) = ctx.saved_tensors
        rows = grads[0].flatten(0, -2)
        ctx.main_grad.index_add_(0, ids.flatten(), rows.to(ctx.main_grad.dtype))
        return None, None


def embedding(ids: Tensor, weight: Tensor) -> Tensor:
    """Rows of weight [v, h] for ids int64 [...]; returns [..., h].

    Where the weight has a `main_grad` [v, h], FP32, its gradient is added to the rows that were looked up, and none of
    the size of the table is made.
    """
    if getattr(weight, "main_grad", None) is None or not (torch.is_grad_enabled() and weight.requires_grad):
        return F.embedding(ids, weight)
    rows: Tensor = _Lookup.apply(ids, weight)
    return rows


class Rotary:
    """Angles FP32 [s, b or 1, 1, d] of the rotary embedding, as Megatron makes them: each twice along d.

    Their cosine and sine [s, b or 1, 1, d / 2] are made at first use, and then shared by queries, keys and layers.
    """

    def __init__(self, angles: Tensor) -> None:
        self.angles = angles
        self._factors: dict[torch.dtype, tuple[Tensor, Tensor]] = {}

    def factors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosine and sine in the format of the activations."""
        if dtype not in self._factors:
            half = self.angles[..., : self.angles.size(-1) // 2]
            self._factors[dtype] = half.cos().to(dtype), half.sin().to(dtype)
        return self._factors[dtype]


shared_rotary = functools.lru_cache(maxsize=8)(Rotary)  # of one table of angles, however many batches it serves


class _Rotate(torch.autograd.Function):
    """Pairs (x[i], x[i + d / 2]) turned by an angle; their gradients are turned back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        return _turned(x, cosine, sine)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        return _turned(grads[0], cosine, -sine), None, None


def _turned(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    (a, b), out = x.chunk(2, -1), torch.empty(x.shape, dtype=x.dtype, device=x.device)
    first, second = out.chunk(2, -1)
    torch.mul(a, cosine, out=first).sub_(b * sine)
    torch.mul(b, cosine, out=second).add_(a * sine)
    return out


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """x [s, b, heads, d] with the rotary embedding applied; on a GPU by Transformer Engine's kernel.

    The kernel knows one position for each place of a row. Rows whose positions differ are for it one long row.
    """
    if x.is_cuda and precision.have_transformer_engine():
        from transformer_engine.pytorch.attention.rope import apply_rotary_pos_emb

        of_each_row = rotary.angles.size(1) > 1
        one, angles = (t.flatten(0, 1).unsqueeze(1) if of_each_row else t for t in (x, rotary.angles))
        turned: Tensor = apply_rotary_pos_emb(one, angles, tensor_format="sbhd", fused=True)
        return turned.view(x.shape)
    out: Tensor = _Rotate.apply(x, *rotary.factors(x.dtype))
    return out
