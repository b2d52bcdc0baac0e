"""Head and loss in chunks against PyTorch's cross entropy on whole logits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llama31 import config
from llama31.model import head
from llama31.parallel import mesh
from llama31.parallel.mesh import Grid

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def grid() -> Iterator[Grid]:
    yield mesh.create(config.Parallel())
    mesh.close()


def inputs(tokens: int, vocab: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    hidden = torch.randn(tokens, 16, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(vocab, 16, generator=generator).to(dtype).requires_grad_()
    labels = torch.randint(vocab, (tokens,), generator=generator)
    weights = torch.rand(tokens, generator=generator) * (torch.rand(tokens, generator=generator) > 0.3) / tokens
    return hidden, weight, labels, weights


def reference(hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Whole FP64 logits of the same numbers."""
    losses = F.cross_entropy(hidden.double() @ weight.double().t(), labels, reduction="none")
    return (losses * weights).sum(), losses


# 64 tokens are the smallest chunk: one token, one chunk, a chunk and a token, several and a rest.
@pytest.mark.parametrize("tokens", [1, 64, 65, 200])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_loss_and_gradients_equal_those_on_whole_logits(
    grid: Grid, monkeypatch: pytest.MonkeyPatch, tokens: int, dtype: torch.dtype, bound: float
) -> None:
    monkeypatch.setitem(head.CHUNK_ELEMENTS, "cpu", 1)
    hidden, weight, labels, weights = inputs(tokens, 300, dtype)
    loss, losses = head.weighted_loss(hidden, weight, labels, weights, grid.tp_group)
    expected, each = reference(hidden, weight, labels, weights)
    torch.testing.assert_close(losses.double(), each, rtol=0, atol=bound * each.max().item())
    torch.testing.assert_close(loss.double(), expected, rtol=bound, atol=1e-9)
    assert not losses.requires_grad
    # A factor upstream, as an engine that scales its loss would give.
    grads = torch.autograd.grad(loss * 3, (hidden, weight))
    wanted = torch.autograd.grad(expected * 3, (hidden, weight))
    for grad, want in zip(grads, wanted, strict=True):
        assert (grad.double() - want).abs().max() <= bound * want.abs().max() + 1e-12


def test_chunks_do_not_change_the_loss(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, labels, weights = inputs(200, 300, torch.float32)
    result = []
    for elements in (1, 2**30):
        monkeypatch.setitem(head.CHUNK_ELEMENTS, "cpu", elements)
        loss, losses = head.weighted_loss(hidden, weight, labels, weights, grid.tp_group)
        result.append((loss, losses, *torch.autograd.grad(loss, (hidden, weight))))
    for one, other in zip(*result, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_tokens_without_weight_leave_no_gradient(grid: Grid) -> None:
    hidden, weight, labels, weights = inputs(50, 40, torch.float32)
    loss, _ = head.weighted_loss(hidden, weight, labels, weights, grid.tp_group)
    loss.backward()
    assert hidden.grad is not None
    assert not hidden.grad[weights == 0].any() and hidden.grad[weights > 0].any(1).all()


def test_extreme_logits_stay_finite(grid: Grid) -> None:
    hidden = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    weight = torch.tensor([[1.0], [0.0], [-1.0]], requires_grad=True)
    loss, losses = head.weighted_loss(hidden, weight, torch.tensor([0, 0]), torch.ones(2), grid.tp_group)
    assert losses.tolist() == [0.0, 2e4]
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(loss, (hidden, weight)))


def test_without_gradients_none_is_computed(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluation pays for one matrix product per chunk, not three."""
    calls = []
    mm = torch.mm
    monkeypatch.setattr(torch, "mm", lambda *args, **kwargs: calls.append(1) or mm(*args, **kwargs))
    with torch.no_grad():
        head.weighted_loss(*inputs(50, 40, torch.float32), grid.tp_group)
    assert not calls


def test_a_loss_whose_gradient_is_summed_cannot_be_scaled_afterwards(grid) -> None:
    hidden, weight, labels, weights = inputs(50, 40, torch.float32)
    want = torch.autograd.grad(head.weighted_loss(hidden, weight, labels, weights, grid.tp_group)[0], weight)[0]
    weight.main_grad = torch.zeros_like(weight)
    loss, _ = head.weighted_loss(hidden, weight, labels, weights, grid.tp_group)
    loss.backward()
    assert weight.grad is None
    torch.testing.assert_close(weight.main_grad, want)
    with pytest.raises(RuntimeError, match="scale its weights"):
        (head.weighted_loss(hidden, weight, labels, weights, grid.tp_group)[0] * 2).backward()
    hidden.grad = None
    (head.weighted_loss(hidden, weight, labels, weights, grid.tp_group)[0] * torch.nan).backward()
    assert hidden.grad.isnan().all(), "one that is no number spoils the step, whose verdict is its norm's"
