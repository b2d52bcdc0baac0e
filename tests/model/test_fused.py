"""Written-out backward passes against autograd through the few lines that say what they mean."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(3, 2, 16), (1, 1, 8), (5, 40)])
def test_rms_norm(dtype: str, shape: tuple[int, ...]) -> None:
    import torch

    from llama31.model import fused

    torch.manual_seed(0)
    x = torch.randn(shape).mul_(3).to(getattr(torch, dtype)).requires_grad_()
    weight = torch.randn(shape[-1]).to(x.dtype).requires_grad_()
    grad = torch.randn(shape).to(x.dtype)
    x32, weight32 = (t.detach().double().requires_grad_() for t in (x, weight))
    expected = x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + 1e-5) * weight32
    result, residual = fused.rms_norm(x, weight, 1e-5)
    assert result.dtype == x.dtype and torch.equal(residual, x)
    for other in (None, torch.randn(shape).to(x.dtype)):  # the gradient of who goes on with x itself
        outputs, upstream = ([result], [grad]) if other is None else ([result, residual], [grad, other])
        ours = torch.autograd.grad(outputs, (x, weight), upstream, retain_graph=True)
        wanted = torch.autograd.grad(expected, (x32, weight32), grad.double(), retain_graph=True)
        wanted = wanted if other is None else (wanted[0] + other.double(), wanted[1])
        for one, reference in zip([result, *ours], [expected, *wanted], strict=True):
            torch.testing.assert_close(one.double(), reference, **_bounds(dtype))


class _Engine:
    """Transformer Engine's functions for rows [n, h], with its order of arguments (2.12 and 2.20), in FP32."""

    class DType:
        kBFloat16 = "bf16"

    @staticmethod
    def rmsnorm_fwd(
        x: Any, weight: Any, eps: float, out: None, quantizer: None, dtype: str, sm_margin: int, zero_centered: bool
    ) -> Any:
        assert x.ndim == 2 and (out, quantizer, dtype, sm_margin, zero_centered) == (None, None, "bf16", 0, False)
        scale = x.float().pow(2).mean(-1).add(eps).rsqrt()
        return (x.float() * scale[:, None] * weight).to(x.dtype), None, scale

    @staticmethod
    def rmsnorm_bwd(grad: Any, x: Any, scale: Any, weight: Any, sm_margin: int, zero_centered: bool) -> Any:
        assert grad.ndim == x.ndim == 2 and scale.ndim == 1 and (sm_margin, zero_centered) == (0, False)
        normed, inner = x.float() * scale[:, None], grad.float() * weight
        grad_x = (inner - normed * (inner * normed).mean(-1, keepdim=True)) * scale[:, None]
        return grad_x.to(x.dtype), (grad.float() * normed).sum(0).to(weight.dtype)

    @classmethod
    def rmsnorm_bwd_add(
        cls, grad: Any, x: Any, add: Any, scale: Any, weight: Any, sm_margin: int, zero_centered: bool
    ) -> Any:
        grad_x, grad_weight = cls.rmsnorm_bwd(grad, x, scale, weight, sm_margin, zero_centered)
        return grad_x + add, grad_weight


def test_rms_norm_calls_transformer_engine_as_it_wants_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from llama31.model import fused

    torch.manual_seed(0)
    x, weight = torch.randn(3, 2, 16, requires_grad=True), torch.randn(16, requires_grad=True)
    upstream = [torch.randn(2, 3, 16).transpose(0, 1), torch.randn(2, 3, 16).transpose(0, 1)]  # no whole rows

    def outputs_and_gradients(used: int) -> list[torch.Tensor]:
        out = fused.rms_norm(x, weight, 1e-5)[:used]
        return [*out, *torch.autograd.grad(out, (x, weight), upstream[:used])]

    ours = [outputs_and_gradients(used) for used in (1, 2)]
    monkeypatch.setattr(fused, "_transformer_engine", lambda _: _Engine)
    for used, wanted in zip((1, 2), ours, strict=True):
        for one, other in zip(outputs_and_gradients(used), wanted, strict=True):
            torch.testing.assert_close(one, other, **_bounds("float32"))


def test_rms_norm_of_zeros_is_zero() -> None:
    import torch

    from llama31.model import fused

    x = torch.zeros(2, 4, requires_grad=True)
    fused.rms_norm(x, torch.ones(4), 1e-5)[0].sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_swiglu(dtype: str) -> None:
    import torch
    import torch.nn.functional as F

    from llama31.model import fused

    torch.manual_seed(0)
    x = torch.randn(3, 2, 24).to(getattr(torch, dtype)).requires_grad_()
    grad = torch.randn(3, 2, 12).to(x.dtype)
    x64 = x.detach().double().requires_grad_()
    expected = F.silu(x64[..., :12]) * x64[..., 12:]
    result = fused.swiglu(x)
    torch.testing.assert_close(result.double(), expected, **_bounds(dtype))
    (ours,), (reference,) = torch.autograd.grad(result, x, grad), torch.autograd.grad(expected, x64, grad.double())
    torch.testing.assert_close(ours.double(), reference, **_bounds(dtype))


def test_nothing_but_the_input_is_kept() -> None:
    import torch

    from llama31.model import fused

    x = torch.randn(8, 32, requires_grad=True)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        fused.swiglu(x).sum()
        fused.rms_norm(x, torch.ones(32), 1e-5)[0].sum()
    assert sum(kept) <= 2 * x.numel() + 32 + 8


def _bounds(dtype: str) -> dict[str, float]:
    return {"atol": 1e-5, "rtol": 1e-5} if dtype == "float32" else {"atol": 6e-2, "rtol": 2e-2}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 2], ids=["positions of a row", "positions of each row"])
def test_rotary_embedding_is_megatrons(rows: int, dtype: str) -> None:
    """Bit for bit; of a view of the fused projection, and of rows one after another, as a GPU's kernel gets them."""
    import torch
    from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_bshd

    from llama31.model import fused

    torch.manual_seed(0)
    whole = torch.randn(6, 2, 3, 24).to(getattr(torch, dtype)).requires_grad_()
    half = torch.randn(6, rows, 1, 4) * 9
    angles = torch.cat([half, half], -1)
    result, expected = (
        fused.rotate(whole[..., :8], fused.Rotary(angles)),
        _apply_rotary_pos_emb_bshd(whole[..., :8], angles),
    )
    assert torch.equal(result, expected)
    grad = torch.randn(result.shape).to(result.dtype)
    for ours, megatrons in zip(torch.autograd.grad(result, whole, grad), torch.autograd.grad(expected, whole, grad)):
        torch.testing.assert_close(ours, megatrons, **_bounds(dtype))
    if rows == 2:
        one_row = fused.Rotary(angles.flatten(0, 1).unsqueeze(1))
        assert torch.equal(fused.rotate(whole[..., :8].flatten(0, 1).unsqueeze(1), one_row).view(6, 2, 3, 8), result)
