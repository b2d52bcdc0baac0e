"""What FP8 holds of numbers, with each kind of scale."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.torch


def test_a_scale_brings_the_largest_value_to_the_formats_largest() -> None:
    import torch

    from llama31.quantise import formats

    x = torch.tensor([0.0, 1e-3, -2e-3, 3e-3])
    for kind, bound in ((formats.E4M3, 448.0), (formats.E5M2, 57344.0)):
        assert formats.largest(kind) == bound
        assert formats.scale_of(x.abs().amax(), kind) == pytest.approx(bound / 3e-3)
        held = formats.per_tensor(x, kind)
        assert held[3] == pytest.approx(3e-3) and held[0] == 0
        assert (held - x).abs().max() <= 3e-3 * 2**-4
    assert formats.per_tensor(x, formats.E4M3)[1] != x[1], "three bits of mantissa are not 23"


def test_a_cast_without_a_scale_loses_what_a_scale_keeps() -> None:
    import torch

    from llama31.quantise import formats

    gradients = torch.tensor([1e-6, -3e-6])
    assert formats.rounded(gradients, 1.0, formats.E5M2).abs().max() == 0
    assert formats.per_tensor(gradients, formats.E5M2) == pytest.approx(gradients, rel=0.125)
    assert formats.rounded(torch.tensor([1e4, -1e4]), 1.0, formats.E4M3).tolist() == [448.0, -448.0]


def test_what_is_not_finite() -> None:
    """As Transformer Engine's casts: infinity saturates, NaN stays; neither makes a scale of 0."""
    import torch

    from llama31.quantise import formats

    held = formats.per_tensor(torch.tensor([1.0, float("inf"), float("nan")]), formats.E4M3)
    assert held[0] == 1 and held[2].isnan()
    assert formats.per_tensor(torch.tensor([1.0, float("inf")]), formats.E4M3).tolist() == [1.0, 448.0]
    for amax in (0.0, float("inf"), float("nan")):
        assert formats.scale_of(torch.tensor(amax), formats.E4M3) == 1
    assert formats.scale_of(torch.tensor(1e-38), formats.E4M3).isfinite()


@pytest.mark.parametrize(("rows", "columns"), [(1, 128), (128, 1), (128, 128), (1, 32), (32, 1)])
def test_blocks_have_powers_of_two(rows: int, columns: int) -> None:
    """Each block as if it stood alone, ones cut off at the edge too."""
    import torch

    from llama31.quantise import formats

    x = torch.randn(200, 300, generator=torch.Generator().manual_seed(1)) * torch.logspace(-6, 3, 300)
    held = formats.per_block(x, rows, columns, formats.E4M3)
    assert held.shape == x.shape
    for top, left in ((0, 0), ((200 - 1) // rows * rows, (300 - 1) // columns * columns)):
        block = x[top : top + rows, left : left + columns]
        scale = 2.0 ** torch.floor(torch.log2(448 / block.abs().max()))
        wanted = formats.rounded(block, scale, formats.E4M3)
        assert torch.equal(held[top : top + rows, left : left + columns], wanted)
    assert formats.per_block(torch.zeros(3, 5), rows, columns, formats.E4M3).abs().max() == 0
