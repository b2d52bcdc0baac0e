"""Linear layers that compute what FP8 layers compute, without FP8's products: on a CPU, or beside them on a GPU.

Every product takes what FP8 holds of its two factors, and sums in FP32. Which layers round, and how, `place` is told;
the others stay Megatron's. The recipes are Transformer Engine's: `tensorwise` (a scale per tensor, from its own
maximum), `delayed` (from earlier maxima), `blockwise` (1 x 128 values of activations and gradients, 128 x 128 of
weights) and `mxfp8` (32 values), the latter two with powers of two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from torch import Tensor

from llama31.quantise import formats
from llama31.quantise.formats import E4M3, E5M2

BLOCK, MX = 128, 32  # values that share a scale


class Cast(Protocol):
    """What FP8 holds of the three factors, each for products along its last and along its first dimension."""

    def begin(self) -> None: ...
    def input(self, x: Tensor) -> tuple[Tensor, Tensor]: ...
    def weight(self, weight: Tensor) -> tuple[Tensor, Tensor]: ...
    def gradient(self, grad: Tensor) -> tuple[Tensor, Tensor]: ...
    def end_backward(self) -> None: ...


class Tensorwise:
    """One scale per tensor, from its own largest value."""

    def begin(self) -> None:
        return None

    def input(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [n, k]."""
        held = formats.per_tensor(x, E4M3)
        return held, held

    def weight(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """weight [m, k]."""
        return self.input(weight)

    def gradient(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        """grad [n, m]."""
        held = formats.per_tensor(grad, E5M2)
        return held, held

    def end_backward(self) -> None:
        return None


class Blocks(Tensorwise):
    """One scale per `size` values along the dimension that a product sums over; E4M3 for gradients as well."""

    def __init__(self, size: int, square: bool) -> None:
        """`square`: weights share a scale in blocks of size x size."""
        self.size, self.square = size, square

    def input(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [n, k]."""
        return formats.per_block(x, 1, self.size, E4M3), formats.per_block(x, self.size, 1, E4M3)

    def weight(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """weight [m, k]."""
        if not self.square:
            return self.input(weight)
        held = formats.per_block(weight, self.size, self.size, E4M3)
        return held, held

    def gradient(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        """grad [n, m]."""
        return self.input(grad)


STATELESS: dict[str, Callable[[], Cast]] = {
    "tensorwise": Tensorwise,
    "blockwise": lambda: Blocks(BLOCK, square=True),
    "mxfp8": lambda: Blocks(MX, square=False),
}


class _Product(torch.autograd.Function):
    """x [..., k] times weight [m, k], transposed: all three products of rounded factors."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, held: tuple[Tensor, Tensor], cast: Cast) -> Tensor:
        rows, columns = cast.input(x.flatten(0, -2))
        ctx.save_for_backward(columns, held[1])
        ctx.cast, ctx.formats = cast, (x.dtype, weight.dtype)
        return (rows @ held[0].t()).to(x.dtype).unflatten(0, x.shape[:-1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        columns, weight = ctx.saved_tensors
        rows, across = ctx.cast.gradient(grads[0].flatten(0, -2))
        grad = (rows @ weight).to(ctx.formats[0]).unflatten(0, grads[0].shape[:-1])
        grad_weight = (across.t() @ columns).to(ctx.formats[1])
        ctx.cast.end_backward()
        return grad, grad_weight, None, None


class _Rounds:
    """What both kinds of layer have: a cast, and the weights as it holds them, kept for all micro-batches of a step."""

    cast: Cast | None = None
    weight_casts = 0  # so far
    is_first_microbatch = True  # set by the model before each step, as of Transformer Engine's layers

    def product(self: Any, x: Tensor) -> Tensor:
        """x [..., k] by the weight."""
        self.cast.begin()
        if self.is_first_microbatch or self.config.disable_parameter_transpose_cache:
            self.held = self.cast.weight(self.weight.detach())
            self.weight_casts += 1
        self.is_first_microbatch = False
        out: Tensor = _Product.apply(x, self.weight, self.held, self.cast)
        return out


class TwinColumn(_Rounds, ColumnParallelLinear):
    """Megatron's column-parallel layer, rounding where it has a cast."""

    def forward(self, x: Tensor, *given: Any, **named: Any) -> tuple[Tensor, None]:
        if self.cast is None:
            return super().forward(x, *given, **named)  # type: ignore[no-any-return]
        if self.sequence_parallel:
            x = gather_from_sequence_parallel_region(x, tensor_parallel_output_grad=True, group=self.tp_group)
        else:
            x = copy_to_tensor_model_parallel_region(x, group=self.tp_group)
        return self.product(x), None


class TwinRow(_Rounds, RowParallelLinear):
    """Megatron's row-parallel layer, rounding where it has a cast."""

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        if self.cast is None:
            return super().forward(x)  # type: ignore[no-any-return]
        out = self.product(x)
        if self.sequence_parallel:
            return reduce_scatter_to_sequence_parallel_region(out, group=self.tp_group), None
        return reduce_from_tensor_model_parallel_region(out, group=self.tp_group), None
