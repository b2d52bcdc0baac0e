"""Hugging Face's or Meta's weights to a checkpoint and back: a table of names and two rules, one tensor at a time.

The two rules are Megatron's fused tensors: Q, K and V interleaved by KV group, and gate above up. Everything else
keeps its numbers and changes its name. Nothing here needs Megatron or a process group. Sources are mapped files and
targets are written block by block, so memory is that of about one tensor, whatever the model.

The first 405B checkpoints (Meta's for 16 GPUs, and the Hugging Face ones made from them) state 16 KV heads, each of
the 8 stored twice. Copies are found by value and stored once; the model computes the same.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch

from llama31 import config
from llama31.checkpoint import listing, publish
from llama31.checkpoint.shards import Block, Reader, Shard, check_space
from llama31.convert import consolidated, fp8, hf, special_ids
from llama31.convert.hf import Shape, WeightSource
from llama31.tokens import tokenizers

log = logging.getLogger(__name__)
NO_TEMPLATE = (
    "%s gets no chat template: its tokenizer joins the line feeds of a header with what follows, so no template gives "
    "the tokens that were trained on; ask the model by token ids, as recipes.sample does"
)

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
REWARD, SCORE = "reward_head.weight", "score.weight"  # a vector here, a matrix of one row there
QKV = "self_attention.linear_qkv.weight"
LAYER = {  # Megatron's name within a layer -> the Hugging Face tensors that it holds, from top to bottom
    "input_layernorm.weight": ("input_layernorm.weight",),
    QKV: ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "self_attention.linear_proj.weight": ("self_attn.o_proj.weight",),
    "pre_mlp_layernorm.weight": ("post_attention_layernorm.weight",),
    "mlp.linear_fc1.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "mlp.linear_fc2.weight": ("mlp.down_proj.weight",),
}
Progress = Callable[[int, int], None]  # bytes just written, bytes in all


@dataclass(frozen=True)
class Conversion:
    """What a conversion wrote."""

    target: Path
    written_bytes: int
    elapsed_s: float

    @property
    def mb_per_s(self) -> float:
        return self.written_bytes / 1e6 / self.elapsed_s


def run(settings: config.Convert, progress: Progress = lambda done, total: None) -> Conversion:
    """Convert as `settings` say. ValueError: what was given does not fit; CheckpointError: it could not be written."""
    directions = {"from_hf": from_hf, "from_meta": from_meta, "to_hf": to_hf, "to_meta": to_meta}
    if settings.direction not in directions:
        raise ValueError(f"direction={settings.direction}: choose from_hf, from_meta, to_hf or to_meta")
    if settings.dtype not in DTYPES:
        raise ValueError(f"dtype={settings.dtype}: choose bf16 or fp32")
    written, start = 0, time.monotonic()

    def count(done: int, total: int) -> None:
        nonlocal written
        written += done
        progress(done, total)

    target = directions[settings.direction](settings, count)
    return Conversion(target, written, time.monotonic() - start)


def from_hf(settings: config.Convert, progress: Progress) -> Path:
    """A Hugging Face folder to a checkpoint of step 0, for `init_from=`; returns its path.

    Weights in FP8 (`fp8`) are multiplied out, which is told.
    """
    folder = Path(settings.hf)
    raw = hf.read_json(folder / "config.json")
    extra = special_ids.stated(raw)
    if (folder / "generation_config.json").is_file():
        extra["generation_config"] = hf.read_json(folder / "generation_config.json")
    tokens = {"kind": "huggingface", "path": str(folder), "folder": "tokenizer"}
    meta = publish.Meta(asdict(hf.read_model(folder)), precision=settings.dtype, tokenizer=tokens, extra=extra)
    source = fp8.source(folder)
    if isinstance(source, fp8.QuantisedFolder):
        log.warning(fp8.MULTIPLIED, folder, len(source.quantised.names), settings.dtype.upper())
    target = _to_checkpoint(settings, source, meta, progress)
    with publish.publish(_tokenizer_folder(target)) as temporary:
        if "tokenizer.json" not in hf.copy_tokenizer(folder, temporary):
            log.warning("%s has no tokenizer.json: give convert's tokenizer= when exporting", folder)
    return target


def from_meta(settings: config.Convert, progress: Progress) -> Path:
    """Meta's folder (params.json, consolidated.*.pth, tokenizer.model) to a checkpoint of step 0; returns its path."""
    folder = Path(settings.hf)
    source = consolidated.MetaFolder(folder)
    file = folder / "tokenizer.model"
    metas = tokenizers.load(config.Tokenizer(kind="tiktoken", path=str(file))) if file.is_file() else None
    extra = special_ids.of_tokenizer(metas, special_ids.endings(metas)) if metas else {}
    tokens = {"kind": "tiktoken", "path": str(file), "folder": "tokenizer"}
    meta = publish.Meta(asdict(source.model), precision=settings.dtype, tokenizer=tokens, extra=extra)
    target = _to_checkpoint(settings, source, meta, progress)
    if metas is None:
        log.warning("%s has no tokenizer.model: give convert's tokenizer= when exporting", folder)
        return target
    with publish.publish(_tokenizer_folder(target)) as temporary:
        metas.save_hf(temporary)
        hf.copy_tokenizer(folder, temporary)
    return target


def to_hf(settings: config.Convert, progress: Progress) -> Path:
    """A checkpoint (the newest, where a run is given) to a Hugging Face folder; returns its path.

    Reward models become LlamaForSequenceClassification with one label, whose score is the reward. With `fp8` the
    weights of `fp8.quantised` are written in FP8, each as it comes.
    """
    meta, reader, folder = _exported(settings)
    model, target, dtype = meta.shape(), Path(settings.hf), DTYPES[settings.dtype]
    tokens = special_ids.of_export(settings.tokenizer, meta, folder)
    formats = fp8.number_formats(model) if settings.fp8 else {}
    shapes = fp8.with_scales(hf_shapes(model), formats)
    _check_target(settings, "config.json")
    with publish.publish(target) as temporary:
        writer = hf.SafetensorsWriter(temporary, shapes, dtype, settings.max_shard_bytes, formats)
        check_space(temporary, writer.total_bytes)
        try:
            for whole, tensor in _unfused(model, reader):
                for name, part in fp8.quantise(tensor, whole) if whole in formats else ((whole, tensor),):
                    writer.write(name, part)
                    progress(writer.bytes_of(name), writer.total_bytes)
            writer.finish()
        finally:
            writer.close()
        kept = meta.extra.get("generation_config")
        generation = dict(kept or {"_from_model_config": True})
        if not kept or settings.tokenizer:  # or else its ids are those of the tokenizer that came along
            generation |= tokens
        quantisation = {"quantization_config": fp8.settings(model)} if settings.fp8 else {}
        hf.write_json(temporary / "config.json", hf.config_json(model, dtype, tokens) | quantisation)
        if model.head == "tokens":
            hf.write_json(temporary / "generation_config.json", generation)
        copied = hf.copy_tokenizer(folder, temporary)
        if "order" in meta.extra and "tokenizer.json" in copied and not tokenizers.write_template(temporary):
            log.warning(NO_TEMPLATE, target)
    return target


def to_meta(settings: config.Convert, progress: Progress) -> Path:
    """A checkpoint (the newest, where a run is given) to a folder in Meta's format; returns its path.

    params.json has no room for `model.max_positions` and `init_std`: what reads it takes Llama 3.1's.
    """
    meta, reader, folder = _exported(settings)
    model, target, dtype = meta.shape(), Path(settings.hf), DTYPES[settings.dtype]
    params = consolidated.params(model, settings.meta_files)
    _check_target(settings, "params.json")
    total = sum(torch.Size(shape).numel() for shape in hf_shapes(model).values()) * dtype.itemsize
    with publish.publish(target) as temporary:
        check_space(temporary, 2 * total)  # scratch files that are filled, and the archives made of them
        writer = consolidated.Writer(temporary, model, settings.meta_files, dtype)
        for name, tensor in _unfused(model, reader):
            writer.write(name, tensor)
            progress(tensor.numel() * dtype.itemsize, total)
        writer.finish()
        hf.write_json(temporary / "params.json", params)
        if (folder / "tokenizer.model").is_file():
            shutil.copyfile(folder / "tokenizer.model", temporary / "tokenizer.model")
        elif not tokenizers.save_meta(folder, temporary / "tokenizer.model"):
            log.warning("%s is no tokenizer that Meta's format can hold: no tokenizer.model is written", folder)
    return target


def _exported(settings: config.Convert) -> tuple[publish.Meta, Reader, Path]:
    """What is known of the checkpoint to export, its weights, all there, and the folder of its tokenizer."""
    source = listing.resolve(settings.checkpoint)
    meta, reader = publish.read_meta(source), Reader(source / "weights")
    model = meta.shape()
    reader.check({name: _stacked(model, parts) for name, parts in table(model).items()})
    return meta, reader, Path(settings.tokenizer) if settings.tokenizer else _tokenizer_folder(source, meta)


def _check_target(settings: config.Convert, config_name: str) -> None:
    """ValueError where something stands at hf= that is no model, or that may not be replaced."""
    target = Path(settings.hf)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        _refuse_existing(target, settings.overwrite and (target / config_name).is_file(), "hf")


# --- the table and the two rules --------------------------------------------------------------------------------------


def table(model: config.Model) -> dict[str, tuple[str, ...]]:
    """Megatron's global names -> the Hugging Face tensors that each holds, in the order of the model."""
    names: dict[str, tuple[str, ...]] = {"embedding.word_embeddings.weight": (EMBEDDING,)}
    for i in range(model.layers):
        for name, parts in LAYER.items():
            names[f"decoder.layers.{i}.{name}"] = tuple(f"model.layers.{i}.{part}" for part in parts)
    names["decoder.final_layernorm.weight"] = ("model.norm.weight",)
    if model.head == "reward":
        names[REWARD] = (SCORE,)
    elif not model.tied_embeddings:
        names["output_layer.weight"] = (HEAD,)
    return names


def hf_shapes(model: config.Model) -> dict[str, Shape]:
    """Every Hugging Face tensor and its shape, in the order of the model."""
    return {part: _shape(model, part) for parts in table(model).values() for part in parts}


def fuse_qkv(parts: list[torch.Tensor], groups: int, dtype: torch.dtype) -> torch.Tensor:
    """Q [heads * d, h], K and V [groups * d, h] -> [(heads + 2 * groups) * d, h]: per group its queries, then K, V."""
    width = parts[0].shape[1]
    fused = torch.empty(sum(part.shape[0] for part in parts), width, dtype=dtype)
    row = 0
    for part in parts:
        rows = part.shape[0] // groups
        fused.view(groups, -1, width)[:, row : row + rows].copy_(part.view(groups, rows, width))
        row += rows
    return fused


def split_qkv(fused: torch.Tensor, heads: int, groups: int) -> Iterator[torch.Tensor]:
    """The reverse of `fuse_qkv`: Q, K, V one after the other."""
    width = fused.shape[1]
    size = fused.shape[0] // (heads + 2 * groups)
    queries = heads // groups * size
    for rows in (slice(0, queries), slice(queries, queries + size), slice(queries + size, None)):
        yield fused.view(groups, -1, width)[:, rows].reshape(-1, width)


def _shape(model: config.Model, name: str) -> Shape:
    hidden, ffn, kv = model.hidden_size, model.ffn_hidden_size, model.kv_heads * model.head_dim
    kind = name.split(".")[-2]
    table_rows = {"embed_tokens": model.vocab_size, "lm_head": model.vocab_size, "gate_proj": ffn, "up_proj": ffn}
    rows = table_rows | {"q_proj": hidden, "o_proj": hidden, "k_proj": kv, "v_proj": kv}
    if kind == "down_proj":
        return (hidden, ffn)
    if name == SCORE:
        return (1, hidden)
    return (rows[kind], hidden) if kind in rows else (hidden,)


def _stacked(model: config.Model, parts: tuple[str, ...]) -> Shape:
    if parts == (SCORE,):
        return (model.hidden_size,)
    shapes = [_shape(model, part) for part in parts]
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


# --- into a checkpoint ------------------------------------------------------------------------------------------------


def _to_checkpoint(settings: config.Convert, source: WeightSource, meta: publish.Meta, progress: Progress) -> Path:
    target = _target(settings.checkpoint)
    for path in (target, _tokenizer_folder(target)):
        if path.exists():
            _refuse_existing(path, settings.overwrite, "checkpoint")
    stated = meta.shape()
    check(f"hf={settings.hf}", source, stated)
    copies = kv_copies(source, stated)
    if copies > 1:
        log.warning("%s stores each KV head %d times: %d are kept", settings.hf, copies, stated.kv_heads // copies)
    model = replace(stated, kv_heads=stated.kv_heads // copies)
    meta = replace(meta, model=asdict(model), run=listing.run_folder(target).name)
    return publish.write(target, meta, list(shards_of(model, source, copies, DTYPES[settings.dtype], progress)))


def shards_of(
    model: config.Model,
    source: WeightSource,
    copies: int,
    dtype: torch.dtype,
    progress: Progress = lambda done, total: None,
) -> Iterator[Shard]:
    """Every tensor under Megatron's name, as blocks that read their part of the source when they are resolved.

    `model` has each KV head once, the source `copies` times (`kv_copies`).
    """
    names = table(model)
    total = sum(torch.Size(_stacked(model, parts)).numel() for parts in names.values()) * dtype.itemsize

    def plain(part: str) -> torch.Tensor:
        tensor = source.read(part).to(dtype)
        progress(tensor.nbytes, total)
        return tensor

    def vector(part: str) -> torch.Tensor:
        return plain(part)[0]

    def fused(query: str, key: str, value: str) -> torch.Tensor:
        distinct = [_distinct(source.read(part), model.kv_heads, copies, part) for part in (key, value)]
        tensor = fuse_qkv([source.read(query), *distinct], model.kv_heads, dtype)
        progress(tensor.nbytes, total)
        return tensor

    for name, parts in names.items():
        shape = _stacked(model, parts)
        if name.endswith(QKV):
            yield Shard(name, shape, [Block((0, 0), partial(fused, *parts), shape, dtype)])
            continue
        if name == REWARD:
            yield Shard(name, shape, [Block((0,), partial(vector, *parts), shape, dtype)])
            continue
        blocks, row = [], 0
        for part in parts:
            size = _shape(model, part)
            blocks.append(Block((row, *[0] * (len(size) - 1)), partial(plain, part), size, dtype))
            row += size[0]
        yield Shard(name, shape, blocks)


def check(given: str, source: WeightSource, model: config.Model) -> None:
    """ValueError, beginning with `given`, unless the source holds exactly the tensors of `model`, in their shapes."""
    actual, expected = source.shapes(), hf_shapes(model)
    if any(name.endswith((".weight_scale", ".weight_scale_inv", ".weight_packed")) for name in actual):
        raise ValueError(f"{given}: its weights are quantised, with scales beside them; {hf.UNQUANTISED}")
    problems = [f"{name} is missing" for name in expected if name not in actual]
    problems += [
        f"{name} has shape {list(actual[name])}, its config means {list(shape)}"
        for name, shape in expected.items()
        if name in actual and actual[name] != shape
    ]
    spare = set(actual) - set(expected)
    tied = HEAD in spare and model.head == "tokens"
    if tied and not torch.equal(source.read(HEAD), source.read(EMBEDDING)):
        problems.append(f"{HEAD} differs from {EMBEDDING} though the config ties them: set tie_word_embeddings=false")
    spare -= {HEAD} if tied else set()
    unknown = sorted(name for name in spare if not name.endswith("rotary_emb.inv_freq"))
    problems += [f"{name} is not a part of Llama 3.1" for name in unknown]
    if problems:
        shown = "; ".join(problems[:6]) + (f"; and {len(problems) - 6} more" if len(problems) > 6 else "")
        raise ValueError(f"{given}: {shown}. Give the config and all the weights of one Llama model")


def kv_copies(source: WeightSource, model: config.Model) -> int:
    """How often each KV head of the first layer is stored; 1 normally."""
    tensors = [source.read(f"model.layers.0.{part}").view(model.kv_heads, -1) for part in LAYER[QKV][1:]]
    for copies in range(model.kv_heads // 2, 1, -1):
        if model.kv_heads % copies == 0 and all(_repeats(tensor, copies) for tensor in tensors):
            return copies
    return 1


def _repeats(heads: torch.Tensor, copies: int) -> bool:
    """Whether neighbours are copies; not so for heads that are all alike (zeros), of which nothing can be told."""
    grouped = heads.view(heads.shape[0] // copies, copies, -1)
    alike = all(torch.equal(grouped[:, i], grouped[:, 0]) for i in range(1, copies))
    return alike and not torch.equal(grouped[0, 0], grouped[1, 0])


def _distinct(weight: torch.Tensor, kv_heads: int, copies: int, name: str) -> torch.Tensor:
    """[kv_heads * copies * d, h] -> [kv_heads * d, h]."""
    if copies == 1:
        return weight
    grouped = weight.view(kv_heads, copies, -1, weight.shape[1])
    if not all(torch.equal(grouped[:, i], grouped[:, 0]) for i in range(1, copies)):
        raise ValueError(f"{name}: KV heads are copies in layer 0 but not here; fetch the weights again")
    return grouped[:, 0].reshape(-1, weight.shape[1])


def _target(given: str) -> Path:
    """The checkpoint folder that `checkpoint=` means: itself, or step 0 of a run folder."""
    path = Path(given)
    return path if publish.STEP.fullmatch(path.name) else path / "checkpoints" / publish.name_of(0)


def _tokenizer_folder(source: Path, meta: publish.Meta | None = None) -> Path:
    return listing.run_folder(source) / (meta.tokenizer.get("folder", "tokenizer") if meta else "tokenizer")


def _refuse_existing(path: Path, overwrite: bool, key: str) -> None:
    if not overwrite:
        raise ValueError(f"{key}={path} is already there: choose another folder, or overwrite=true to replace a model")


# --- out of a checkpoint ----------------------------------------------------------------------------------------------


def _unfused(model: config.Model, reader: Reader) -> Iterator[tuple[str, torch.Tensor]]:
    """Every Hugging Face tensor, in the order of `hf_shapes`; one is alive at a time."""
    for name, parts in table(model).items():
        if name.endswith(QKV):
            yield from zip(parts, split_qkv(reader.read(name), model.heads, model.kv_heads))
            continue
        if name == REWARD:
            yield parts[0], reader.read(name)[None]
            continue
        row = 0
        for part in parts:
            rows = _shape(model, part)[0]
            yield part, reader.read(name, row, rows)
            row += rows
