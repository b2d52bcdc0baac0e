"""Models of a ladder: from a number of parameters to a shape of Llama, and to its learning rate. Ours throughout.

The report says 40M to 16B and neither shapes nor what is counted. Here layers are counted without embedding and head,
which at 128,256 rows outweigh a model of 40M. Heads are 64 wide below a width of 3,072 and 128 from there on, as in
Llama 3.2 1B and 3B, and never fewer than four; key/value heads are eight, or fewer where that does not divide them; a
layer's SwiGLU is 3.5 times as wide as the residual stream, as in 8B. Width for each layer grows with the root of the
width, from 64 at 1,024 to 128 at 4,096, where 8B stands, and no further; it is 24 at least.
"""

from __future__ import annotations

import math

from llama31 import config
from llama31.plan import shapes

HEAD_DIM, WIDE_HEAD_DIM, WIDE = 64, 128, 3072
FEWEST_HEADS = 4
KV_HEADS = 8
FFN = 3.5
FFN_MULTIPLE = 32
NARROWEST = 24.0  # width for each layer: five layers of 32 learned less than two of 48 (docs/scaling.md)
WIDTHS = (
    16,
    24,
    *range(32, 256, 16),
    256,
    384,
    *range(512, 3072, 256),
    *range(3072, 8192 + 1, 1024),
)  # whole groups of heads


def named(parameters: float) -> str:
    """40m, 133m, 1.5b: a size as names of runs say it."""
    unit, letter = next((u, x) for u, x in ((1e9, "b"), (1e6, "m"), (1e3, "k"), (1, "")) if parameters >= 0.9995 * u)
    return f"{parameters / unit:.{2 if parameters < 99.5 * unit else 3}g}{letter}"


def sizes(smallest: float, largest: float, count: int) -> list[float]:
    """`count` numbers of parameters at equal ratios, both ends among them."""
    return [smallest * (largest / smallest) ** (i / (count - 1)) for i in range(count)]


def aspect(width: int) -> float:
    """Width for each layer that a model of this width should have."""
    return max(NARROWEST, min(128.0, 64.0 * math.sqrt(width / 1024)))


def model(parameters: float, vocab_size: int, sequence_length: int) -> config.Model:
    """The Llama whose layers have about so many parameters, at most 12 % off, its depth as `aspect` asks for.

    Raises ValueError where no width can have so few or so many.
    """
    candidates = []
    for width in WIDTHS:
        one = _shaped(width, 1, vocab_size, sequence_length)
        layers = max(2, round((parameters - width) / shapes.parameters_per_layer(one)))
        shape = _shaped(width, layers, vocab_size, sequence_length)
        error = math.log(shapes.non_embedding(shape) / parameters)
        depth = math.log(width / layers / aspect(width))
        if abs(error) <= math.log(1.12):
            candidates.append((depth**2 + (8 * error) ** 2, shape))
    if not candidates:
        least, most = (
            shapes.non_embedding(_shaped(width, layers, 1, 1))
            for width, layers in ((WIDTHS[0], 2), (WIDTHS[-1], round(WIDTHS[-1] / 32)))
        )
        raise ValueError(
            f"ladder: no shape has {parameters:,.0f} parameters in its layers; give sizes between {least:,} and "
            f"{most:,} as ladder.smallest and ladder.largest"
        )
    chosen = min(candidates, key=lambda candidate: candidate[0])[1]
    chosen.name = f"ladder-{named(parameters)}"
    return chosen


def _shaped(width: int, layers: int, vocab_size: int, sequence_length: int) -> config.Model:
    heads = max(FEWEST_HEADS, width // (HEAD_DIM if width < WIDE else WIDE_HEAD_DIM))
    kv_heads = max(n for n in (1, 2, 4, KV_HEADS) if heads % n == 0 and n <= max(1, heads // 2))
    ffn = round(FFN * width / FFN_MULTIPLE) * FFN_MULTIPLE
    return config.Model(
        "ladder", layers, width, ffn, heads, kv_heads, vocab_size, max_positions=sequence_length, rope_factor=0.0
    )


def learning_rate(parameters: float, ladder: config.Ladder) -> float:
    """Peak learning rate of a model, by the logarithm of its size between both ends (report: 2e-4 to 4e-4)."""
    share = math.log(parameters / ladder.smallest) / math.log(ladder.largest / ladder.smallest)
    rate = ladder.smallest_model_lr * (ladder.largest_model_lr / ladder.smallest_model_lr) ** share
    return float(f"{rate:.3g}")
