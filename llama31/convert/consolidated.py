"""Meta's own weights (params.json, consolidated.*.pth): seen under Hugging Face's names and layout, and written.

A checkpoint for N GPUs is N files, each with its slice of every matrix. Meta's code rotates neighbouring pairs of rows
of Q and K as complex numbers, Hugging Face and Megatron rotate the two halves of a head: the rows are reordered, which
leaves q.k unchanged.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from llama31 import config
from llama31.convert.hf import Shape, read_json

FACTOR, TIED_FACTOR = 8.0, 32.0  # params.json has no RoPE factor: 3.1 has 8, Llama 3.2's small, tied models 32
OUTER = {  # Hugging Face's name -> Meta's, and the dimension along which the files split it
    "model.embed_tokens.weight": ("tok_embeddings.weight", 0),
    "model.norm.weight": ("norm.weight", None),
    "lm_head.weight": ("output.weight", 0),
}
LAYER = {
    "input_layernorm.weight": ("attention_norm.weight", None),
    "self_attn.q_proj.weight": ("attention.wq.weight", 0),
    "self_attn.k_proj.weight": ("attention.wk.weight", 0),
    "self_attn.v_proj.weight": ("attention.wv.weight", 0),
    "self_attn.o_proj.weight": ("attention.wo.weight", 1),
    "post_attention_layernorm.weight": ("ffn_norm.weight", None),
    "mlp.gate_proj.weight": ("feed_forward.w1.weight", 0),
    "mlp.up_proj.weight": ("feed_forward.w3.weight", 0),
    "mlp.down_proj.weight": ("feed_forward.w2.weight", 1),
}


class MetaFolder:
    """Weights and shape of a folder as Meta releases it. Files are mapped, so reading takes the memory of one tensor.

    `model` is the shape: sizes come from the tensors, since params.json states the SwiGLU only by formula.
    """

    def __init__(self, folder: Path):
        self.params = read_json(folder / "params.json")
        files = sorted(folder.glob("consolidated.*.pth"))
        if not files:
            raise ValueError(f"{folder}: no consolidated.*.pth; give the folder of Meta's original weights")
        self._parts = [_open(file) for file in files]
        missing = [key for key in ("n_layers", "dim", "n_heads", "norm_eps") if key not in self.params]
        missing += [f"tensor {name}" for name in ("tok_embeddings.weight", "layers.0.feed_forward.w1.weight")
                    if name not in self._parts[0]]  # fmt: skip
        if missing:
            raise ValueError(f"{folder}: {', '.join(missing)} missing; only Llama 3 text models can be read")
        self._names = self._table(self.params["n_layers"])
        self.model = self._model(folder.resolve().name)

    def shapes(self) -> dict[str, Shape]:
        """Shape of every tensor by its Hugging Face name; a name that is not in the table is kept as it is."""
        result = {hf_name: self._shape(hf_name) for hf_name, (name, _) in self._names.items() if name in self._parts[0]}
        if self.model.tied_embeddings:
            result.pop("lm_head.weight", None)
        known = {name for name, _ in self._names.values()} | {"rope.freqs"}
        return result | {name: tuple(self._parts[0][name].shape) for name in self._parts[0] if name not in known}

    def read(self, name: str) -> torch.Tensor:
        """One tensor under its Hugging Face name and in its layout."""
        meta_name, axis = self._names[name]
        slices = [part[meta_name] for part in self._parts]
        whole = slices[0] if axis is None or len(slices) == 1 else torch.cat(slices, dim=axis)
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            return halves_from_pairs(whole, self.model.heads if "q_proj" in name else self.model.kv_heads)
        return whole

    def _shape(self, name: str) -> Shape:
        meta_name, axis = self._names[name]
        shape = list(self._parts[0][meta_name].shape)
        if axis is not None:
            shape[axis] = sum(part[meta_name].shape[axis] for part in self._parts)
        return tuple(shape)

    def _table(self, layers: int) -> dict[str, tuple[str, int | None]]:
        table: dict[str, tuple[str, int | None]] = dict(OUTER)
        if self._parts[0]["tok_embeddings.weight"].shape[1] != self.params["dim"]:
            table["model.embed_tokens.weight"] = ("tok_embeddings.weight", 1)  # as Llama 2's files are split
        for i in range(layers):
            for hf_name, (name, axis) in LAYER.items():
                table[f"model.layers.{i}.{hf_name}"] = (f"layers.{i}.{name}", axis)
        return table

    def _model(self, name: str) -> config.Model:
        params, tied = self.params, self._tied()
        factor = TIED_FACTOR if tied else FACTOR
        return config.Model(
            name=name,
            layers=params["n_layers"],
            hidden_size=params["dim"],
            ffn_hidden_size=self._shape("model.layers.0.mlp.gate_proj.weight")[0],
            heads=params["n_heads"],
            kv_heads=params.get("n_kv_heads") or params["n_heads"],
            vocab_size=self._shape("model.embed_tokens.weight")[0],
            tied_embeddings=tied,
            rope_theta=float(params.get("rope_theta", 500000.0)),
            rope_factor=factor if params.get("use_scaled_rope", False) else 0.0,
            norm_eps=params["norm_eps"],
        )

    def _tied(self) -> bool:
        """Meta stores a tied head a second time, so its value tells."""
        pairs = [(part["tok_embeddings.weight"], part.get("output.weight")) for part in self._parts]
        return all(head is None or (table.shape == head.shape and torch.equal(table, head)) for table, head in pairs)


def params(model: config.Model, files: int) -> dict[str, Any]:
    """The content of params.json. ValueError names all that Meta's format or code cannot hold, or `files` not split.

    Meta states the width of the SwiGLU as a factor of 8/3 of the hidden size and a number of which it is a multiple.
    """
    problems = []
    if model.head != "tokens":
        problems.append("a reward model is none of Meta's: export it with direction=to_hf")
    usual = TIED_FACTOR if model.tied_embeddings else FACTOR
    if model.rope_factor not in (0.0, usual):
        problems.append(f"model.rope_factor={model.rope_factor:g}: params.json has no room for it, its readers take "
                        f"{usual:g}; export with direction=to_hf")  # fmt: skip
    widths = {"heads": model.heads, "kv_heads": model.kv_heads, "ffn_hidden_size": model.ffn_hidden_size}
    uneven = [f"{key}={width}" for key, width in (widths | {"vocab_size": model.vocab_size}).items() if width % files]
    if uneven:
        problems.append(f"meta_files={files} does not divide model.{', '.join(uneven)}; give another number, or 1")
    if problems:
        raise ValueError("; ".join(problems))
    factor, multiple = _swiglu(model)
    return {
        "dim": model.hidden_size,
        "n_layers": model.layers,
        "n_heads": model.heads,
        "n_kv_heads": model.kv_heads,
        "vocab_size": model.vocab_size,
        "ffn_dim_multiplier": factor,
        "multiple_of": multiple,
        "norm_eps": model.norm_eps,
        "rope_theta": model.rope_theta,
        "use_scaled_rope": model.rope_factor > 0,
    }


def _swiglu(model: config.Model) -> tuple[float, int]:
    """(ffn_dim_multiplier, multiple_of) from which Meta's code gets the width of the SwiGLU; the shortest factor."""
    width, base = model.ffn_hidden_size, int(2 * 4 * model.hidden_size / 3)
    multiple = math.gcd(width, 1024)
    for digits in range(1, 16):
        factor = math.ceil((width - multiple + 1) / base * 10**digits) / 10**digits
        if multiple * -(-int(factor * base) // multiple) == width:
            return factor, multiple
    return width / base, 1


class Writer:
    """Writes a model as Meta's files, given its tensors under Hugging Face's names.

    Each file's tensors are filled in a scratch file that is mapped, so that no more than one of them is in memory.
    """

    def __init__(self, folder: Path, model: config.Model, files: int, dtype: torch.dtype) -> None:
        self._folder, self._model, self._dtype, self._files = folder, model, dtype, files
        self._parts: list[dict[str, torch.Tensor]] = [{} for _ in range(files)]
        self._scratch = tempfile.TemporaryDirectory(dir=folder, prefix=".scratch-")

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Take over one tensor, converted to the writer's format; every name of the model comes once."""
        layer = name.split(".")[2] if name.startswith("model.layers.") else ""
        own, axis = LAYER[name.split(".", 3)[3]] if layer else OUTER[name]
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            tensor = pairs_from_halves(tensor, self._model.heads if "q_proj" in name else self._model.kv_heads)
        pieces = [tensor] * self._files if axis is None else tensor.chunk(self._files, dim=axis)
        names = [f"layers.{layer}.{own}" if layer else own]
        if name == "model.embed_tokens.weight" and self._model.tied_embeddings:
            names.append(OUTER["lm_head.weight"][0])  # Meta stores a tied head a second time
        for part, (number, piece) in zip(self._parts, enumerate(pieces), strict=True):
            for each in names:
                part[each] = self._mapped(f"{number}.{each}", piece)

    def finish(self) -> None:
        """Write the files."""
        for number, part in enumerate(self._parts):
            torch.save(part, self._folder / f"consolidated.{number:02d}.pth")
            part.clear()
        self._scratch.cleanup()

    def _mapped(self, name: str, piece: torch.Tensor) -> torch.Tensor:
        path = str(Path(self._scratch.name) / name)
        flat = torch.from_file(path, shared=True, size=piece.numel(), dtype=self._dtype)
        return flat.view(piece.shape).copy_(piece)


def pairs_from_halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """The reverse of `halves_from_pairs`."""
    rows, width = weight.shape
    return weight.view(heads, 2, rows // heads // 2, width).transpose(1, 2).reshape(rows, width)


def halves_from_pairs(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows (pair, 2) of each head -> (2, pair): Meta's rotary layout to Hugging Face's. [heads * d, h]."""
    rows, width = weight.shape
    return weight.view(heads, rows // heads // 2, 2, width).transpose(1, 2).reshape(rows, width)


def _open(file: Path) -> dict[str, Any]:
    try:
        return dict(torch.load(file, map_location="cpu", mmap=True, weights_only=True))
    except (OSError, RuntimeError, UnpicklingError, EOFError) as error:
        raise ValueError(f"{file} cannot be read ({error}): fetch it again") from error
