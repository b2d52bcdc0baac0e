"""What `checkpoint=` of an evaluation means: a checkpoint, a run's newest, or a Hugging Face folder as it stands.

A Hugging Face folder is read into the live model: every rank maps the files, takes the rectangles of its share of the
tensors that it and its replicas hold, converts them and sends them on; there is no checkpoint in between. The fused Q,
K and V of one layer is made whole on the rank that reads it, everything else is cut out of the mapped file. That is one
tensor's memory.

A folder in FP8 computes as a server computes with it: weights multiplied out, and what they are multiplied with rounded
to FP8 by token (`fp8`).
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from llama31 import config
from llama31.checkpoint import listing, manifest, publish
from llama31.checkpoint.shards import Shard
from llama31.convert import checkpoints, fp8, hf
from llama31.engine import state
from llama31.model import llama
from llama31.model.llama import Llama
from llama31.parallel.collectives import on_all_ranks
from llama31.parallel.mesh import Grid

log = logging.getLogger(__name__)
PRECISIONS = {"bfloat16": "bf16", "float32": "fp32"}  # by transformers' name


@dataclass(frozen=True)
class Pretrained:
    """Weights on disk and what is known of them.

    Of a Hugging Face folder, `copies` says how often it stores each KV head, `dtype` its number format, and
    `quantised` what of it is in FP8.
    """

    folder: Path
    meta: publish.Meta
    copies: int = 0  # 0: a checkpoint of ours
    dtype: str = ""
    quantised: fp8.Quantised | None = None

    @property
    def shape(self) -> config.Model:
        return self.meta.shape()

    def tokenizer(self, given: config.Tokenizer) -> config.Tokenizer:
        """The tokenizer that is `given`; without a path, the one that lies beside the weights."""
        if given.path:
            return given
        beside = self.folder
        if not self.copies:
            beside = listing.run_folder(self.folder) / self.meta.tokenizer.get("folder", "tokenizer")
        alone = (beside / "tokenizer.model").is_file() and not (self.copies and (beside / "tokenizer.json").is_file())
        return config.Tokenizer(kind="tiktoken" if alone else "huggingface", path=str(beside))

    def precision(self, given: config.Precision) -> config.Precision:
        """The number formats that are `given`; with `auto`, those that the weights were trained in, or come in.

        FP8 goes with BF16. Formats that we do not compute in (FP16) are computed with in FP32, which is told.
        """
        if given.params != "auto":
            return given
        if given.fp8 != "none":
            return replace(given, params="bf16")
        if self.dtype and self.dtype not in PRECISIONS:
            log.warning("%s holds %s: computing in FP32; precision=bf16 takes half the memory", self.folder, self.dtype)
        return replace(given, params=self.meta.precision)

    def load(self, chunks: list[Llama], grid: Grid) -> None:
        """Fill the chunks on any layout. Collective; ValueError on every rank where one cannot."""
        if not self.copies:
            state.load_weights(self.folder, chunks, self.shape, grid)
            return
        dtype = next(chunks[0].parameters()).dtype
        state.fill(chunks, self.shape, grid, lambda wanted: on_all_ranks(None, lambda: self._fill(wanted, dtype)))
        if self.quantised is not None:
            names = _in_fp8(self.shape, self.quantised.names)
            parameters = [shard.parameter for shard in llama.shards(chunks, self.shape, grid) if shard.name in names]
            fp8.attach(chunks, parameters, self.quantised.bound)

    def _fill(self, wanted: list[Shard], dtype: torch.dtype) -> int:
        """Returns the bytes filled."""
        for stored in checkpoints.shards_of(self.shape, fp8.source(self.folder), self.copies, dtype):
            for shard in wanted:
                if shard.name == stored.name:
                    _copy(stored, shard)
        return sum(block.resolve().nbytes for shard in wanted for block in shard.blocks)


def find(path: str) -> Pretrained:
    """What `path` holds. ValueError says what is wrong with it, and what was found there instead."""
    folder = Path(path)
    if not (folder / "config.json").is_file():
        folder = listing.resolve(path, manifest.lacking)  # every rank asks: a size that is wrong, its reader finds
        return Pretrained(folder, publish.read_meta(folder))
    shape = hf.read_model(folder)
    source = fp8.source(folder)
    checkpoints.check(f"checkpoint={path}", source, shape)
    copies = checkpoints.kv_copies(source, shape)
    shape = replace(shape, kv_heads=shape.kv_heads // copies)
    dtype = hf.dtype_of(folder, source)
    meta = publish.Meta(asdict(shape), precision=PRECISIONS.get(dtype, "fp32"))
    quantised = source.quantised if isinstance(source, fp8.QuantisedFolder) else None
    if quantised is not None:
        _in_fp8(shape, quantised.names)
    return Pretrained(folder, meta, copies, dtype, quantised)


def _in_fp8(shape: config.Model, names: Collection[str]) -> set[str]:
    """Our names of the weights of which `names` are parts. ValueError for what is no layer's, or in part alone."""
    found = {ours: {part for part in parts if part in names} for ours, parts in checkpoints.table(shape).items()}
    for ours, parts in checkpoints.table(shape).items():
        if found[ours] and (not ours.startswith("decoder.layers.") or len(found[ours]) < len(parts)):
            raise ValueError(
                f"{min(found[ours])} is in FP8, and with it has to be all that is multiplied with the same activations "
                "within a layer; make a checkpoint of the folder with recipes.convert direction=from_hf"
            )
    return {ours for ours, parts in found.items() if parts}


def _copy(stored: Shard, wanted: Shard) -> None:
    """Every element of `wanted` that lies within a block of `stored`; blocks elsewhere are not read."""
    for source in stored.blocks:
        for target in wanted.blocks:
            begin = [max(a, b) for a, b in zip(source.offset, target.offset, strict=True)]
            ends = zip(source.offset, source.shape, target.offset, target.shape, strict=True)
            end = [min(a + n, b + m) for a, n, b, m in ends]
            if all(low < high for low, high in zip(begin, end, strict=True)):
                _cut(target.resolve(), target.offset, begin, end).copy_(
                    _cut(source.resolve(), source.offset, begin, end)
                )


def _cut(tensor: Tensor, offset: tuple[int, ...], begin: list[int], end: list[int]) -> Tensor:
    return tensor[tuple(slice(b - o, e - o) for o, b, e in zip(offset, begin, end, strict=True))]
