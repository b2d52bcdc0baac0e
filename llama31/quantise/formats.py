"""Rounding to FP8 with scales, in the tensor's own format: what FP8 holds of a tensor, without FP8's products.

E4M3 has three bits of mantissa and reaches 448, E5M2 two and reaches 57,344 (OCP, "8-bit floating point
specification", 2023). A scale brings the largest value of what shares it to the format's largest. Values beyond it
saturate, infinity too, as Transformer Engine's casts do; NaN stays NaN.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def largest(kind: torch.dtype) -> float:
    """The largest number of a format."""
    return torch.finfo(kind).max


def rounded(x: Tensor, scale: Tensor | float, kind: torch.dtype) -> Tensor:
    """FP32 numbers of x [...] as the format holds them at a scale, one for all or one per element."""
    bound = largest(kind)
    return (x.float() * scale).clamp_(-bound, bound).to(kind).float() / scale


def scale_of(amax: Tensor, kind: torch.dtype) -> Tensor:
    """FP32 scale for the largest absolute value FP32 [...]; 1 where that is 0 or not finite."""
    scale = largest(kind) / amax
    scale = torch.where((amax > 0) & amax.isfinite(), scale, torch.ones_like(scale))
    return scale.clamp_(max=torch.finfo(torch.float32).max)


def per_tensor(x: Tensor, kind: torch.dtype) -> Tensor:
    """x [...] rounded with one scale, from its own largest value."""
    return rounded(x, scale_of(x.abs().amax().float(), kind), kind)


def per_block(x: Tensor, rows: int, columns: int, kind: torch.dtype) -> Tensor:
    """x [n, m] rounded with one scale, a power of two, for each block of rows x columns; the last ones may be smaller.

    The power of two is the largest that keeps the block's largest value within the format.
    """
    height, width = x.shape
    padded = F.pad(x.float(), (0, -width % columns, 0, -height % rows))
    blocks = padded.view(padded.size(0) // rows, rows, padded.size(1) // columns, columns)
    _, exponent = torch.frexp(scale_of(blocks.abs().amax((1, 3), keepdim=True), kind))
    held = rounded(blocks, torch.ldexp(torch.ones(()), exponent - 1).to(x.device), kind)
    return held.view_as(padded)[:height, :width]
