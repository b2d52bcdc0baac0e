"""FP8 for serving (report, section 6): weights of the middle layers' SwiGLU in e4m3, one scale per output row.

A folder in the layout `fbgemm_fp8`, as Meta published its 405B: of gate_proj, up_proj and down_proj in all layers but
the first and the last there are `weight` (float8_e4m3fn [rows, columns]) and `weight_scale` (FP32 [rows, 1], by which
an entry is multiplied); all else stays BF16. A server quantises what goes into these products as it comes, by token,
with a scale that is bounded above: a rare token with one huge activation would else round all its others to nothing.

Reading gives such weights multiplied out. A live model may compute with them as a server does (`attach`), on any
device, through BF16 or FP32 products; the products themselves are not those of an FP8 kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llama31 import config
from llama31.convert import hf
from llama31.convert.hf import Shape
from llama31.plan import shapes
from llama31.quantise import formats

E4M3 = formats.E4M3
LARGEST = formats.largest(E4M3)  # 448; torch's cast makes it of all that is larger, infinity too, and says nothing
SMALLEST = 1e-12  # a row's largest entry counts as no less, as in FBGEMM: rows of zeros have a scale to divide by
BOUND = 1200.0  # of a token's largest activation (report, section 6.2)
SCALE = "_scale"  # behind a weight's name
MULTIPLIED = (
    "%s: %d weights are in FP8; multiplied out to %s they keep what FP8 made of them: go on from the BF16 weights "
    "where you have them"
)
BLOCK = 2**22  # elements that are quantised at once: 16 MB in FP32


def quantised(model: config.Model) -> list[str]:
    """Hugging Face's names of the weights that an export in FP8 quantises. ValueError where there are none."""
    if model.layers < 3:
        raise ValueError(
            f"fp8=true: the first and the last layer stay BF16, and this model has {model.layers}; export it in BF16"
        )
    parts = ("gate_proj", "up_proj", "down_proj")
    return [f"model.layers.{i}.mlp.{part}.weight" for i in shapes.fp8_layers(model) for part in parts]


def number_formats(model: config.Model) -> dict[str, torch.dtype]:
    """Number formats of what is not BF16 in an export: weights in FP8, and their scales."""
    names = quantised(model)
    return dict.fromkeys(names, E4M3) | {name + SCALE: torch.float32 for name in names}


def with_scales(names: dict[str, Shape], given: dict[str, torch.dtype]) -> dict[str, Shape]:
    """The shapes of an export, each scale behind its weight; `given` as of `number_formats`."""
    result = {}
    for name, shape in names.items():
        result[name] = shape
        if name in given:
            result[name + SCALE] = (shape[0], 1)
    return result


def settings(model: config.Model) -> dict[str, Any]:
    """What config.json says of an export, as `quantization_config`: every linear layer that is not quantised by name.

    vLLM compares names as a whole, transformers also as beginnings and ends of others.
    """
    mlp, attention = ("gate_proj", "up_proj", "down_proj"), ("q_proj", "k_proj", "v_proj", "o_proj")
    chosen = set(quantised(model))
    every = [f"model.layers.{i}.self_attn.{part}" for i in range(model.layers) for part in attention]
    every += [f"model.layers.{i}.mlp.{part}" for i in range(model.layers) for part in mlp]
    kept = [name for name in every if f"{name}.weight" not in chosen]
    kept.append("score" if model.head == "reward" else "lm_head")
    return {"quant_method": hf.FBGEMM, "activation_scale_ub": BOUND, "modules_to_not_convert": kept}


# --- numbers ---


def quantise(weight: Tensor, name: str) -> Iterator[tuple[str, Tensor]]:
    """What is written of a weight [rows, columns]: e4m3 of that shape, then scales FP32 [rows, 1], with their names.

    A row is its scale x e4m3, its largest entry being 448. ValueError for numbers that are not finite, of which the
    cast would make 448, or let them through.
    """
    result, scales = torch.empty(weight.shape, dtype=E4M3), torch.empty(weight.shape[0], 1)
    step = max(1, BLOCK // weight.shape[1])
    for first in range(0, weight.shape[0], step):
        rows = weight[first : first + step].float()
        largest = rows.abs().amax(1, keepdim=True)
        if not largest.isfinite().all():
            row = first + int((~largest.isfinite()).nonzero()[0, 0])
            raise ValueError(
                f"{name}: row {row} holds numbers that are not finite, for which FP8 has none; export a checkpoint "
                "from before the loss was lost"
            )
        scale = largest.clamp(min=SMALLEST) / LARGEST
        scales[first : first + step] = scale
        result[first : first + step] = (rows / scale).clamp_(-LARGEST, LARGEST).to(E4M3)
    yield name, result
    yield name + SCALE, scales


def dequantise(weight: Tensor, scale: Tensor) -> Tensor:
    """FP32 [rows, columns] of e4m3 and its scales [rows, 1]."""
    return weight.float().mul_(scale.float().view(-1, 1))


def rounded(x: Tensor, bound: float = BOUND) -> Tensor:
    """Activations [..., columns] as a server's FP8 product sees them: each token rounded to e4m3 by a scale of its own.

    The scale is the largest entry, `bound` at most, over 448; what is beyond `bound` is cut off there, infinity
    too; NaN stays NaN.
    """
    largest = x.abs().amax(-1, keepdim=True).float().clamp(SMALLEST, bound)
    return formats.rounded(x, LARGEST / largest, E4M3).to(x.dtype)


# --- folders ---


@dataclass(frozen=True)
class Quantised:
    """What of a folder's weights is in FP8: the names, and the bound of what they are multiplied with."""

    names: frozenset[str]
    bound: float


class QuantisedFolder:
    """A folder of `fbgemm_fp8` as a source of plain weights: those in FP8 are multiplied out, in FP32."""

    def __init__(self, folder: Path, files: hf.SafetensorsFolder) -> None:
        self._files, every = files, files.shapes()
        self._shapes = {name: shape for name, shape in every.items() if not self._is_scale(name, every)}
        names = {name for name in self._shapes if files.dtype(name) == E4M3}
        for name in sorted(names):
            rows = every[name][0]
            if every.get(name + SCALE) not in ((rows, 1), (rows,)):
                raise ValueError(
                    f"{folder}: {name} is in FP8, but {name}{SCALE} with a number for each of its {rows} rows is not "
                    "there; fetch the folder again"
                )
        given = hf.read_json(folder / "config.json").get("quantization_config") or {}
        self.quantised = Quantised(frozenset(names), float(given.get("activation_scale_ub") or BOUND))

    @staticmethod
    def _is_scale(name: str, every: dict[str, Shape]) -> bool:
        return name.endswith(SCALE) and name.removesuffix(SCALE) in every

    def shapes(self) -> dict[str, Shape]:
        """Name -> shape, of weights alone."""
        return self._shapes

    def read(self, name: str) -> Tensor:
        """One tensor; read-only."""
        tensor = self._files.read(name)
        return dequantise(tensor, self._files.read(name + SCALE)) if name in self.quantised.names else tensor


def source(folder: Path) -> hf.SafetensorsFolder | QuantisedFolder:
    """The weights of a Hugging Face folder, in FP8 or not. ValueError where they are in FP8 and nothing says how."""
    files = hf.SafetensorsFolder(folder)
    if hf.is_quantised(folder):
        return QuantisedFolder(folder, files)
    for name in files.shapes():
        if files.dtype(name).itemsize == 1:
            raise ValueError(
                f"{folder}: {name} is {files.dtype(name)}, and config.json has no quantization_config: its scales are "
                "not known; take the folder's own config.json"
            )
    return files


# --- a live model ---


def attach(chunks: Sequence[nn.Module], parameters: Sequence[nn.Parameter], bound: float) -> None:
    """From now on, round what goes into the layers of `chunks` whose weights are `parameters` to FP8.

    A rank of tensor parallelism rounds by the part of a token that it holds, as a server's does.
    """
    wanted = {id(parameter) for parameter in parameters}
    for chunk in chunks:
        for module in chunk.modules():
            if id(getattr(module, "weight", None)) in wanted:
                module.register_forward_pre_hook(partial(_round_input, bound))


def _round_input(bound: float, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (rounded(inputs[0], bound), *inputs[1:])
