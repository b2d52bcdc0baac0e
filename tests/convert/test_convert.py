"""Weights survive both ways bit by bit, mean the same to transformers and Meta's formula, and never fill the memory."""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from llama31 import config
from llama31.checkpoint import listing, publish, shards
from llama31.checkpoint.shards import Block, Shard
from llama31.convert import checkpoints, consolidated, hf
from llama31.tokens import template, tokenizers
from tests.conftest import Command

pytestmark = pytest.mark.torch

MODEL = config.Model(
    name="small",
    layers=2,
    hidden_size=32,
    ffn_hidden_size=48,
    heads=8,
    kv_heads=2,
    vocab_size=80,
    max_positions=131072,
)
IDS = {"bos_token_id": 70, "eos_token_id": [71, 72]}


def settings(direction: str, hf_folder: Path, run: Path, **others: Any) -> config.Convert:
    return config.Convert(direction=direction, hf=str(hf_folder), checkpoint=str(run), **others)


def weights_of(model: config.Model, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn(shape).to(dtype) for name, shape in checkpoints.hf_shapes(model).items()}


def write_hf(folder: Path, model: config.Model, weights: dict[str, torch.Tensor], **changes: Any) -> Path:
    """A Hugging Face folder as transformers writes it; `changes` go into config.json (None removes a key)."""
    folder.mkdir(parents=True, exist_ok=True)
    dtype = next(iter(weights.values())).dtype
    content = hf.config_json(model, dtype, IDS) | changes
    hf.write_json(folder / "config.json", {key: value for key, value in content.items() if value != "remove"})
    hf.write_json(folder / "generation_config.json", {"temperature": 0.6, **IDS})
    (folder / "tokenizer.json").write_text("{}")
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")
    return folder


def read_hf(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a folder, through its index and the safetensors library."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    result = {}
    for name, file in index["weight_map"].items():
        with safe_open(folder / file, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
            result[name] = opened.get_tensor(name).clone()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in result.values())
    return result


def assert_equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]), name


# --- round trips ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("tied", [False, True])
def test_hugging_face_and_back_is_bit_equal(dtype: str, tied: bool, tmp_path: Path) -> None:
    model = replace(MODEL, tied_embeddings=tied)
    weights = weights_of(model, checkpoints.DTYPES[dtype])
    source = write_hf(tmp_path / "small", model, weights)
    seen: list[tuple[int, int]] = []
    report = checkpoints.run(
        settings("from_hf", source, tmp_path / "run", dtype=dtype), lambda done, total: seen.append((done, total))
    )
    assert report.target == tmp_path / "run" / "checkpoints" / "step-00000000"
    assert sum(done for done, _ in seen) == seen[0][1] == report.written_bytes > 0
    meta = publish.read_meta(report.target)
    assert meta.shape() == model and (meta.step, meta.tokens, meta.run, meta.precision) == (0, 0, "run", dtype)
    assert (tmp_path / "run" / "tokenizer" / "tokenizer.json").is_file()
    checkpoints.run(settings("to_hf", tmp_path / "out", tmp_path / "run", dtype=dtype, max_shard_bytes=10_000))
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 2
    assert_equal(read_hf(tmp_path / "out"), weights)
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_text() == (source / name).read_text()
    if not tied:
        assert_same_checkpoint_again(tmp_path, dtype)


def assert_same_checkpoint_again(tmp_path: Path, dtype: str) -> None:
    """Checkpoint -> Hugging Face -> checkpoint."""
    checkpoints.run(settings("from_hf", tmp_path / "out", tmp_path / "again", dtype=dtype))
    first, second = (shards.Reader(listing.resolve(tmp_path / run) / "weights") for run in ("run", "again"))
    assert first.names() == second.names()
    assert all(torch.equal(first.read(name), second.read(name)) for name in first.names())


def test_the_two_rules_spelled_out(tmp_path: Path) -> None:
    weights = weights_of(MODEL)
    checkpoints.run(settings("from_hf", write_hf(tmp_path / "hf", MODEL, weights), tmp_path / "run", dtype="fp32"))
    reader = shards.Reader(listing.resolve(tmp_path / "run") / "weights")
    size, queries = MODEL.head_dim, MODEL.heads // MODEL.kv_heads
    q, k, v = (weights[f"model.layers.1.self_attn.{part}_proj.weight"] for part in "qkv")
    rows = []
    for group in range(MODEL.kv_heads):
        rows += [q[head * size : (head + 1) * size] for head in range(group * queries, (group + 1) * queries)]
        rows += [k[group * size : (group + 1) * size], v[group * size : (group + 1) * size]]
    assert torch.equal(reader.read("decoder.layers.1.self_attention.linear_qkv.weight"), torch.cat(rows))
    mlp = "model.layers.0.mlp.{}_proj.weight"
    gate_up = torch.cat([weights[mlp.format("gate")], weights[mlp.format("up")]])
    assert torch.equal(reader.read("decoder.layers.0.mlp.linear_fc1.weight"), gate_up)
    assert reader.names()["output_layer.weight"] == ((80, 32), torch.float32)
    assert len(reader.names()) == 2 * 6 + 3


def test_a_sharded_checkpoint_of_a_trained_run_is_exported(tmp_path: Path) -> None:
    """Blocks as tensor-parallel ranks leave them: rows of QKV, columns of the projections, two row blocks of fc1."""
    weights = weights_of(MODEL)
    checkpoints.run(settings("from_hf", write_hf(tmp_path / "hf", MODEL, weights), tmp_path / "one", dtype="fp32"))
    reader = shards.Reader(listing.resolve(tmp_path / "one") / "weights")
    pieces = []
    for name, (shape, _) in reader.names().items():
        axis = 1 if name.endswith(("linear_proj.weight", "linear_fc2.weight")) else 0
        parts = reader.read(name).tensor_split(4, dim=axis)
        starts = [sum(part.shape[axis] for part in parts[:i]) for i in range(4)]
        offsets = [tuple(start if dim == axis else 0 for dim in range(len(shape))) for start in starts]
        pieces.append(Shard(name, shape, [Block(offset, part) for offset, part in zip(offsets, parts)]))
    (tmp_path / "many" / "tokenizer").mkdir(parents=True)
    meta = publish.Meta(asdict(MODEL), step=7, extra=dict(IDS))
    publish.save(tmp_path / "many" / "checkpoints", meta, pieces)
    checkpoints.run(settings("to_hf", tmp_path / "out", tmp_path / "many", dtype="fp32"))
    assert_equal(read_hf(tmp_path / "out"), weights)


def test_number_formats_convert(tmp_path: Path) -> None:
    weights = weights_of(MODEL)
    source = write_hf(tmp_path / "hf", MODEL, weights)
    checkpoints.run(settings("from_hf", source, tmp_path / "run"))
    checkpoints.run(settings("to_hf", tmp_path / "out", tmp_path / "run", dtype="fp32"))
    assert_equal(read_hf(tmp_path / "out"), {name: tensor.bfloat16().float() for name, tensor in weights.items()})


def doubled_kv(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every KV head of MODEL stored twice, side by side."""
    return {
        name: tensor.view(2, 4, 32).repeat_interleave(2, 0).reshape(16, 32)
        if name.endswith(("k_proj.weight", "v_proj.weight"))
        else tensor
        for name, tensor in weights.items()
    }


def test_doubled_kv_heads_of_405b_are_stored_once(tmp_path: Path) -> None:
    weights = weights_of(MODEL)
    doubled = replace(MODEL, kv_heads=4)
    twice = doubled_kv(weights)
    checkpoints.run(settings("from_hf", write_hf(tmp_path / "hf", doubled, twice), tmp_path / "run", dtype="fp32"))
    checkpoints.run(settings("to_hf", tmp_path / "out", tmp_path / "run", dtype="fp32"))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_key_value_heads"] == 2
    assert_equal(read_hf(tmp_path / "out"), weights)
    twice["model.layers.1.self_attn.k_proj.weight"][5, 5] += 1
    with pytest.raises(ValueError, match=r"layers.1.self_attn.k_proj.weight: KV heads are copies in layer 0 but not"):
        checkpoints.run(
            settings("from_hf", write_hf(tmp_path / "hf", doubled, twice), tmp_path / "other", dtype="fp32")
        )


def test_a_tied_head_in_the_file_has_to_be_the_embedding(tmp_path: Path) -> None:
    model = replace(MODEL, tied_embeddings=True)
    weights = weights_of(model)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    checkpoints.run(settings("from_hf", write_hf(tmp_path / "hf", model, weights), tmp_path / "run"))
    weights["lm_head.weight"][0, 0] += 1
    with pytest.raises(ValueError, match="lm_head.weight differs.*tie_word_embeddings=false"):
        checkpoints.run(settings("from_hf", write_hf(tmp_path / "hf", model, weights), tmp_path / "other"))


# --- config.json ------------------------------------------------------------------------------------------------------


def test_config_json_serves_all_three_readers() -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    written = hf.config_json(MODEL, torch.bfloat16, {"bos_token_id": 1, "eos_token_id": 2})
    assert json.loads(json.dumps(written)) == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "dtype": "bfloat16",
        "eos_token_id": 2,
        "head_dim": 4,
        "hidden_act": "silu",
        "hidden_size": 32,
        "initializer_range": 0.02,
        "intermediate_size": 48,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "num_attention_heads": 8,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_theta": 500000.0, **scaling},  # transformers 5
        "rope_scaling": scaling,  # transformers 4, vLLM
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.43.0",  # 4.57 warns of a wrong tokenizer where it is missing
        "use_cache": True,
        "vocab_size": 80,
    }
    plain = hf.config_json(replace(MODEL, rope_factor=0.0), torch.float32, {})
    assert plain["rope_scaling"] is None and plain["rope_parameters"] == {"rope_theta": 5e5, "rope_type": "default"}


@pytest.mark.parametrize("form", ["both", "rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("factor", [8.0, 32.0, 0.0])
def test_either_form_of_rope_is_read(form: str, factor: float, tmp_path: Path) -> None:
    model = replace(MODEL, rope_factor=factor, name=tmp_path.name)
    written = hf.config_json(model, torch.bfloat16, IDS)
    drop = {"both": (), "rope_scaling": ("rope_parameters",), "rope_parameters": ("rope_scaling", "rope_theta")}[form]
    hf.write_json(tmp_path / "config.json", {key: value for key, value in written.items() if key not in drop})
    assert hf.read_model(tmp_path) == model


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, **hf.ROPE}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["MistralForCausalLM"]},
            r"architectures=\['MistralForCausalLM'\].*only LlamaForCausalLM and Llam",
        ),
        ({"attention_bias": True}, "attention_bias=True: has to be False"),
        ({"hidden_act": "gelu"}, "hidden_act=gelu: has to be silu"),
        (
            {"quantization_config": {"quant_method": "fp8"}},
            "quantization_config: fp8 weights are not read; take the BF16",
        ),
        ({"head_dim": 16}, "head_dim=16: has to be hidden_size / heads = 4"),
        ({"vocab_size": "remove"}, "vocab_size is missing"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling.rope_type=yarn: only default and llama3"),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": 2.0}}, "rope_scaling.low_freq_factor=2.0: Llama 3.1 has 1"),
        ({"rope_scaling": {**LLAMA3, "factor": 4.0}}, r"disagree \(factors \[4.0, 8.0\]\)"),
    ],
)
def test_other_architectures_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    source = write_hf(tmp_path / "hf", MODEL, weights_of(MODEL), **changes)
    with pytest.raises(ValueError, match=message):
        checkpoints.run(settings("from_hf", source, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


# --- what can be wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda weights: weights.pop("lm_head.weight"), "lm_head.weight is missing"),
        (lambda weights: weights.update({"model.norm.weight": torch.ones(7)}), r"model.norm.weight has shape \[7\]"),
        (lambda weights: weights.update({"model.layers.0.bias": torch.ones(7)}), "layers.0.bias is not a part"),
        (
            lambda weights: weights.update({"lm_head.weight_scale_inv": torch.ones(1, 1)}),
            "are quantised.*take the BF16",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(spoil: Callable[[Any], Any], message: str, tmp_path: Path) -> None:
    weights = weights_of(MODEL)
    spoil(weights)
    with pytest.raises(ValueError, match=message):
        checkpoints.run(settings("from_hf", write_hf(tmp_path / "hf", MODEL, weights), tmp_path / "run"))


def test_damaged_and_absent_files_are_named(tmp_path: Path) -> None:
    source = write_hf(tmp_path / "hf", MODEL, weights_of(MODEL))
    os.truncate(source / "model.safetensors", 5000)
    with pytest.raises(ValueError, match="model.safetensors is missing or damaged"):
        checkpoints.run(settings("from_hf", source, tmp_path / "run"))
    (source / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="neither model.safetensors.index.json nor model.safetensors"):
        checkpoints.run(settings("from_hf", source, tmp_path / "run"))
    with pytest.raises(ValueError, match="direction=sideways: choose from_hf"):
        checkpoints.run(settings("sideways", source, tmp_path / "run"))
    with pytest.raises(ValueError, match="dtype=fp8: choose bf16 or fp32"):
        checkpoints.run(settings("from_hf", source, tmp_path / "run", dtype="fp8"))


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    source = write_hf(tmp_path / "hf", MODEL, weights_of(MODEL))
    into, out = settings("from_hf", source, tmp_path / "run"), settings("to_hf", tmp_path / "out", tmp_path / "run")
    checkpoints.run(into)
    checkpoints.run(out)
    for again in (into, out):
        with pytest.raises(ValueError, match="is already there: .*overwrite=true"):
            checkpoints.run(again)
        checkpoints.run(replace(again, overwrite=True))
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").touch()
    with pytest.raises(ValueError, match="is already there"):
        checkpoints.run(replace(out, hf=str(tmp_path / "precious"), overwrite=True))


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    source = write_hf(tmp_path / "hf", MODEL, weights_of(MODEL))
    checkpoints.run(settings("from_hf", source, tmp_path / "run"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for direction, folder, run in (("to_hf", "out", "run"), ("from_hf", "hf", "other")):
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # a real error of write(2)
        try:
            with pytest.raises(publish.CheckpointError, match=r"not written.*File too large.*free space"):
                checkpoints.run(settings(direction, tmp_path / folder, tmp_path / run))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("*")) == ["hf", "other", "run"]
    assert list((tmp_path / "other").rglob("*")) == [tmp_path / "other" / "checkpoints"]


def test_an_export_needs_a_tokenizer_that_fits(tmp_path: Path) -> None:
    weights = [Shard("w", (1,), [Block((0,), torch.zeros(1))])]
    publish.save(tmp_path / "run" / "checkpoints", publish.Meta(asdict(MODEL)), weights)
    with pytest.raises(ValueError, match="output_layer.weight.* is missing|is missing.*model="):
        checkpoints.run(settings("to_hf", tmp_path / "out", tmp_path / "run"))
    source = write_hf(tmp_path / "hf", MODEL, weights_of(MODEL))
    checkpoints.run(settings("from_hf", source, tmp_path / "run", overwrite=True))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no tokenizer.json in"):
        checkpoints.run(settings("to_hf", tmp_path / "out", tmp_path / "run", tokenizer=str(tmp_path / "empty")))


def test_a_trained_run_is_exported_with_its_tokenizer(tmp_path: Path) -> None:
    """No ids in the checkpoint: they come from the run's tokenizer, which transformers then loads."""
    from transformers import AutoTokenizer

    words = tokenizers.train_bpe(["to be or not to be"], 520, tmp_path / "run" / "tokenizer")
    for vocabulary in (600, 500):
        model = replace(MODEL, vocab_size=vocabulary)
        pieces = [Shard(name, shape, [Block((0,) * len(shape), torch.ones(shape))]) for name, shape in megatron(model)]
        publish.save(tmp_path / "run" / "checkpoints", publish.Meta(asdict(model), step=1), pieces)
        if vocabulary == 500:
            with pytest.raises(ValueError, match="has 5[0-9]+ ids, the model 500"):
                checkpoints.run(settings("to_hf", tmp_path / "other", tmp_path / "run"))
            continue
        checkpoints.run(settings("to_hf", tmp_path / "out", tmp_path / "run"))
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["bos_token_id"] == words.bos_id
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert loaded.encode("to be", add_special_tokens=False) == words.encode("to be")


def test_a_pad_token_that_the_model_has_no_row_for_is_no_obstacle(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from transformers import AutoTokenizer

    words = tokenizers.train_bpe(["to be or not to be"], 520, tmp_path / "plain")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "plain")
    loaded.add_special_tokens({"pad_token": "[PAD]"})
    loaded.save_pretrained(tmp_path / "run" / "tokenizer")
    padded = tokenizers.load(config.Tokenizer(kind="huggingface", path=str(tmp_path / "run" / "tokenizer")))
    assert padded.vocab_size == words.vocab_size == padded.pad_id and padded.encode("to be") == words.encode("to be")
    model = replace(MODEL, vocab_size=words.vocab_size)
    pieces = [Shard(name, shape, [Block((0,) * len(shape), torch.ones(shape))]) for name, shape in megatron(model)]
    publish.save(tmp_path / "run" / "checkpoints", publish.Meta(asdict(model), step=1), pieces)
    checkpoints.run(settings("to_hf", tmp_path / "out", tmp_path / "run"))
    assert read_hf(tmp_path / "out")["lm_head.weight"].shape == (words.vocab_size, MODEL.hidden_size)
    assert f"the pad token's id {words.vocab_size} has no row in the model" in caplog.text


def test_what_transformers_5_saves_is_written_for_4_too(tmp_path: Path) -> None:
    """4.57.6 raises for both, 5 reads both forms; all else is copied as it is."""
    (tmp_path / "five").mkdir()
    record = {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<a>"], "eos_token": "ü"}
    hf.write_json(tmp_path / "five" / "tokenizer_config.json", record)
    hf.copy_tokenizer(tmp_path / "five", tmp_path / "out")
    assert hf.read_json(tmp_path / "out" / "tokenizer_config.json") == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "additional_special_tokens": ["<a>"],
        "eos_token": "ü",
    }
    (tmp_path / "five" / "tokenizer_config.json").write_text('{"tokenizer_class":   "PreTrainedTokenizerFast"}')
    hf.copy_tokenizer(tmp_path / "five", tmp_path / "out")
    assert (
        tmp_path / "out" / "tokenizer_config.json"
    ).read_text() == '{"tokenizer_class":   "PreTrainedTokenizerFast"}'


def exported(tmp_path: Path, extra: dict[str, Any], tokenizer_folder: Path | None = None) -> list[Any]:
    """What config.json and generation_config.json of an export say ends an answer."""
    model = replace(MODEL, vocab_size=600)
    pieces = [Shard(name, shape, [Block((0,) * len(shape), torch.ones(shape))]) for name, shape in megatron(model)]
    publish.save(tmp_path / "run" / "checkpoints", publish.Meta(asdict(model), step=1, extra=extra), pieces)
    more = {"tokenizer": str(tokenizer_folder)} if tokenizer_folder else {}
    checkpoints.run(settings("to_hf", tmp_path / "out", tmp_path / "run", **more))
    names = ("config.json", "generation_config.json")
    return [json.loads((tmp_path / "out" / name).read_text())["eos_token_id"] for name in names]


@pytest.mark.parametrize(
    ("extra", "aligned"),
    [({"updates": 1, "order": {"data.seed": 1}}, True), ({"updates": 1, "packing": "whole"}, False), ({}, True)],
)
def test_an_exported_model_ends_its_turns_as_metas_releases_do(
    extra: dict[str, Any], aligned: bool, tmp_path: Path
) -> None:
    from transformers import AutoConfig, GenerationConfig

    words = tokenizers.train_bpe(["to be or not to be"], 520, tmp_path / "run" / "tokenizer")
    ends = [words.special[f"<|{name}|>"] for name in ("end_of_text", "eom_id", "eot_id")]
    (tmp_path / "run" / "tokenizer" / "chat_template.jinja").write_text("its author's")
    assert exported(tmp_path, extra) == [ends if aligned else words.eos_id] * 2
    trained = "order" in extra  # on dialogs, which have our template
    served = (tmp_path / "out" / "chat_template.jinja").read_text()
    assert served == (template.TEMPLATE if trained else "its author's")
    for kind in (AutoConfig, GenerationConfig):
        assert kind.from_pretrained(tmp_path / "out").eos_token_id == (ends if aligned else words.eos_id)


def test_another_tokenizer_ends_the_turns_of_an_imported_model(tmp_path: Path) -> None:
    """The ids that came along are those of the tokenizer that came along."""
    words = tokenizers.train_bpe(["to be or not to be"], 520, tmp_path / "other")
    came = {**IDS, "generation_config": {"temperature": 0.6, **IDS}}
    ends = [words.special[f"<|{name}|>"] for name in ("end_of_text", "eom_id", "eot_id")]
    assert exported(tmp_path, came, tmp_path / "other") == [ends] * 2
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["temperature"] == 0.6 and generation["bos_token_id"] == words.bos_id


def test_metas_own_weights_stop_whatever_they_are(tmp_path: Path) -> None:
    """Nothing in Meta's folder tells base from Instruct."""
    package = pytest.importorskip("llama_models.llama3.tokenizer")
    model = replace(MODEL, vocab_size=128_256, hidden_size=8, heads=4)
    source = write_meta(tmp_path / "small", weights_of(model), model, 1)
    shutil.copyfile(Path(package.__file__).parent / "tokenizer.model", source / "tokenizer.model")
    checkpoints.run(settings("from_meta", source, tmp_path / "run"))
    checkpoints.run(settings("to_hf", tmp_path / "out", tmp_path / "run"))
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "out" / name).read_text())["eos_token_id"] == [128001, 128008, 128009]


def megatron(model: config.Model) -> list[tuple[str, tuple[int, ...]]]:
    """Every global tensor of a checkpoint of `model` and its shape."""
    shapes = checkpoints.hf_shapes(model)
    stacked = {name: [shapes[part] for part in parts] for name, parts in checkpoints.table(model).items()}
    return [(name, (sum(shape[0] for shape in parts), *parts[0][1:])) for name, parts in stacked.items()]


# --- other implementations --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
def test_transformers_computes_the_same(tied: bool, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    original = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=80,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=131072,
            rms_norm_eps=1e-5,
            tie_word_embeddings=tied,
            rope_parameters={"rope_theta": 500000.0, **LLAMA3},
        )
    ).eval()
    original.save_pretrained(tmp_path / "hf")
    checkpoints.run(settings("from_hf", tmp_path / "hf", tmp_path / "run", dtype="fp32"))
    assert publish.read_meta(listing.resolve(tmp_path / "run")).shape().rope_factor == 8.0
    checkpoints.run(settings("to_hf", tmp_path / "out", tmp_path / "run", dtype="fp32", max_shard_bytes=100_000))
    copy = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").eval()
    assert type(copy) is LlamaForCausalLM and copy.dtype == torch.float32
    assert copy.config.rope_parameters == original.config.rope_parameters
    assert torch.equal(copy.model.rotary_emb.inv_freq, original.model.rotary_emb.inv_freq)
    tokens = torch.randint(0, 80, (2, 33))
    with torch.no_grad():
        assert torch.equal(copy(tokens).logits, original(tokens).logits)


def test_reward_models_come_in_and_go_out(tmp_path: Path) -> None:
    """As LlamaForSequenceClassification: bit-equal, and its scores are the numbers of our reward head."""
    from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(0)
    sizes = {"vocab_size": 80, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_labels": 1, "pad_token_id": 79}
    rope: Any = {"rope_theta": 500000.0, **LLAMA3}
    settings_of = LlamaConfig(**sizes, **heads, rms_norm_eps=1e-5, rope_parameters=rope)
    original = LlamaForSequenceClassification(settings_of).eval()
    original.save_pretrained(tmp_path / "hf")
    checkpoints.run(settings("from_hf", tmp_path / "hf", tmp_path / "run", dtype="fp32"))
    path = listing.resolve(tmp_path / "run")
    assert publish.read_meta(path).shape().head == "reward"
    assert torch.equal(shards.read(path / "weights", "reward_head.weight"), original.score.weight[0])
    checkpoints.run(settings("to_hf", tmp_path / "out", tmp_path / "run", dtype="fp32"))
    assert not (tmp_path / "out" / "generation_config.json").exists()
    copy = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", dtype="auto").eval()
    assert type(copy) is LlamaForSequenceClassification and copy.config.num_labels == 1
    tokens = torch.randint(0, 78, (2, 33))
    tokens[1, 20:] = 79
    with torch.no_grad():
        assert torch.equal(copy(tokens).logits, original(tokens).logits)


def pairs_from_halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Hugging Face's rows -> Meta's, by definition: row 2j is row j of the first half, row 2j + 1 of the second."""
    size = weight.shape[0] // heads
    order = [head * size + half * size // 2 + j for head in range(heads) for j in range(size // 2) for half in (0, 1)]
    return weight[order]


def write_meta(folder: Path, weights: dict[str, torch.Tensor], model: config.Model, files: int) -> Path:
    names = {
        **{
            "embed_tokens": "tok_embeddings",
            "model.norm": "norm",
            "lm_head": "output",
            "input_layernorm": "attention_norm",
        },
        **{
            "post_attention_layernorm": "ffn_norm",
            "mlp.gate_proj": "feed_forward.w1",
            "mlp.down_proj": "feed_forward.w2",
        },
        **{"mlp.up_proj": "feed_forward.w3"},
        **{f"self_attn.{part}_proj": f"attention.w{part}" for part in "qkvo"},
    }
    parts: list[dict[str, torch.Tensor]] = [{"rope.freqs": torch.ones(2)} for _ in range(files)]
    for name, tensor in weights.items():
        if "q_proj" in name or "k_proj" in name:
            tensor = pairs_from_halves(tensor, model.heads if "q_proj" in name else model.kv_heads)
        kind = next(key for key in names if key in name)
        prefix = ".".join(name.split(".")[1:3]) + "." if ".layers." in name else ""
        axis = 1 if kind.endswith(("o_proj", "down_proj")) else 0
        cuts = [tensor] * files if "norm" in kind else tensor.tensor_split(files, dim=axis)
        for part, piece in zip(parts, cuts):
            part[f"{prefix}{names[kind]}.weight"] = piece.clone()
    folder.mkdir()
    for i, part in enumerate(parts):
        torch.save(part, folder / f"consolidated.{i:02d}.pth")
    sizes = {"dim": model.hidden_size, "n_layers": model.layers, "n_heads": model.heads, "n_kv_heads": model.kv_heads}
    rest = {"norm_eps": 1e-5, "rope_theta": 500000.0, "use_scaled_rope": True, "vocab_size": model.vocab_size}
    hf.write_json(folder / "params.json", {**sizes, **rest})
    return folder


def as_meta_stores(tied: bool) -> tuple[config.Model, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A model, its weights, and these with the head that Meta's files hold although it is the embedding's."""
    model = replace(MODEL, tied_embeddings=tied, rope_factor=32.0 if tied else 8.0)
    weights = weights_of(model)
    return model, weights, weights | ({"lm_head.weight": weights["model.embed_tokens.weight"]} if tied else {})


@pytest.mark.parametrize(("files", "tied"), [(1, False), (2, False), (2, True)])
def test_exports_in_metas_format_are_metas_files(files: int, tied: bool, tmp_path: Path) -> None:
    """Against files made by definition, and read again: bit-equal."""
    model, weights, stored = as_meta_stores(tied)
    wanted = write_meta(tmp_path / "wanted", stored, model, files)
    checkpoints.run(settings("from_hf", write_hf(tmp_path / "hf", model, weights), tmp_path / "run", dtype="fp32"))
    out = tmp_path / "small"
    checkpoints.run(settings("to_meta", out, tmp_path / "run", dtype="fp32", meta_files=files))
    assert sorted(path.name for path in out.iterdir()) == [
        *(f"consolidated.{i:02d}.pth" for i in range(files)), "params.json"
    ]  # fmt: skip
    for file in sorted(wanted.glob("*.pth")):
        ours, theirs = (torch.load(folder / file.name, weights_only=True) for folder in (out, wanted))
        theirs.pop("rope.freqs")
        assert_equal(dict(sorted(ours.items())), dict(sorted(theirs.items())))
    checkpoints.run(settings("from_meta", out, tmp_path / "again", dtype="fp32"))
    first, second = (listing.resolve(tmp_path / run) for run in ("run", "again"))
    assert publish.read_meta(second).shape() == model
    readers = [shards.Reader(path / "weights") for path in (first, second)]
    assert readers[0].names() == readers[1].names()
    assert all(torch.equal(readers[0].read(name), readers[1].read(name)) for name in readers[0].names())


@pytest.mark.parametrize(("hidden", "width", "factor"), [(4096, 14336, 1.3), (8192, 28672, 1.3), (16384, 53248, 1.2)])
def test_params_json_means_the_width_of_the_swiglu(hidden: int, width: int, factor: float) -> None:
    """By Meta's formula; the factors of 8B, 70B and 405B are those of the releases."""
    model = replace(MODEL, hidden_size=hidden, ffn_hidden_size=width)
    record = consolidated.params(model, 1)
    assert record["ffn_dim_multiplier"] == factor
    for odd in (48, 50, 100, 173, 5461, width):
        record = consolidated.params(replace(model, ffn_hidden_size=odd), 1)
        size = int(record["ffn_dim_multiplier"] * int(2 * 4 * hidden / 3))
        assert record["multiple_of"] * ((size + record["multiple_of"] - 1) // record["multiple_of"]) == odd


def test_what_metas_format_cannot_hold_is_named() -> None:
    with pytest.raises(ValueError, match=r"reward model.*rope_factor=4: .*takes? 8.*meta_files=3 does not divide"):
        consolidated.params(replace(MODEL, head="reward", rope_factor=4.0), 3)


def test_metas_tokenizer_is_written_and_read_alike(tmp_path: Path) -> None:
    words = tokenizers.train_bpe(["to be or not to be"], 520, tmp_path / "bpe")
    assert tokenizers.save_meta(tmp_path / "bpe", tmp_path / "tokenizer.model")
    again = tokenizers.load(config.Tokenizer(kind="tiktoken", path=str(tmp_path / "tokenizer.model")))
    assert again.fingerprint == words.fingerprint and again.vocab_size == words.vocab_size
    assert not tokenizers.save_meta(tmp_path, tmp_path / "tokenizer.model")


@pytest.mark.parametrize(("files", "tied"), [(1, False), (2, False), (1, True)])
def test_meta_weights_become_the_same_model(files: int, tied: bool, tmp_path: Path) -> None:
    model, weights, stored = as_meta_stores(tied)
    source = write_meta(tmp_path / "small", stored, model, files)
    checkpoints.run(settings("from_meta", source, tmp_path / "run", dtype="fp32"))
    assert publish.read_meta(listing.resolve(tmp_path / "run")).shape() == model
    path = listing.resolve(tmp_path / "run")
    for name, parts in checkpoints.table(model).items():
        if len(parts) == 1:
            assert torch.equal(shards.read(path / "weights", name), weights[parts[0]]), name
        elif name.endswith("linear_qkv.weight"):
            fused = checkpoints.fuse_qkv([weights[part] for part in parts], model.kv_heads, torch.float32)
            assert torch.equal(shards.read(path / "weights", name), fused)


def test_meta_weights_for_more_gpus_than_kv_heads(tmp_path: Path) -> None:
    """405B for 16 GPUs: 16 files, 16 KV heads, each of the 8 twice."""
    weights = weights_of(MODEL)
    source = write_meta(tmp_path / "meta", doubled_kv(weights), replace(MODEL, kv_heads=4), 4)
    checkpoints.run(settings("from_meta", source, tmp_path / "run", dtype="fp32"))
    checkpoints.run(settings("from_hf", write_hf(tmp_path / "hf", MODEL, weights), tmp_path / "other", dtype="fp32"))
    ours, other = (shards.Reader(listing.resolve(tmp_path / run) / "weights") for run in ("run", "other"))
    assert ours.names() == other.names()
    assert all(torch.equal(ours.read(name), other.read(name)) for name in ours.names())


def test_the_rotary_layouts_agree_on_attention_scores() -> None:
    """q.k under Meta's complex rotation of pairs = q.k under the rotation of halves, after the rows are reordered."""
    from llama31.convert.consolidated import halves_from_pairs

    torch.manual_seed(0)
    heads, size, length = 2, 8, 6
    states = torch.randn(length, 32, dtype=torch.float64)
    pairs = [torch.randn(heads * size, 32, dtype=torch.float64) for _ in "qk"]
    angle = torch.outer(torch.arange(length).double(), 10000.0 ** (-torch.arange(0, size, 2).double() / size))

    def of_pairs(weight: torch.Tensor) -> torch.Tensor:
        rotated = torch.view_as_complex((states @ weight.t()).view(length, heads, -1, 2))
        return torch.view_as_real(rotated * torch.polar(torch.ones_like(angle), angle)[:, None]).flatten(2)

    def of_halves(weight: torch.Tensor) -> torch.Tensor:
        first, second = (states @ weight.t()).view(length, heads, size).chunk(2, dim=-1)
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    def scores(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return torch.einsum("shd,thd->hst", q, k)

    reordered = [halves_from_pairs(weight, heads) for weight in pairs]
    assert torch.equal(pairs_from_halves(reordered[0], heads), pairs[0])
    meta, ours = scores(*map(of_pairs, pairs)), scores(*map(of_halves, reordered))
    torch.testing.assert_close(ours, meta, rtol=1e-12, atol=1e-12)


# --- memory -----------------------------------------------------------------------------------------------------------

MEMORY = """
import re, sys, threading, time
from pathlib import Path
import torch
from llama31 import config
from llama31.checkpoint import publish as checkpoint
from llama31.convert import checkpoints as convert, hf

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

folder = Path(sys.argv[1])
shape = dict(layers=int(sys.argv[2]), hidden_size=1024, ffn_hidden_size=2816, heads=8, kv_heads=2, vocab_size=8192)
model = config.Model(name="many", **shape)
(folder / "hf").mkdir()
writer = hf.SafetensorsWriter(folder / "hf", convert.hf_shapes(model), torch.bfloat16, 300_000_000)
numbers = torch.randn(8192 * 1024).bfloat16()
for name, shape in convert.hf_shapes(model).items():
    writer.write(name, numbers[: torch.Size(shape).numel()].view(shape))
writer.finish()
ids = {"bos_token_id": 0, "eos_token_id": 1}
hf.write_json(folder / "hf" / "config.json", hf.config_json(model, torch.bfloat16, ids))
del numbers

level, peak, end = anonymous(), 0, threading.Event()
def watch():
    global peak
    while not end.wait(0.001):
        peak = max(peak, anonymous())
thread = threading.Thread(target=watch)
thread.start()
into = config.Convert("from_hf", str(folder / "hf"), str(folder / "run"))
out = config.Convert("to_hf", str(folder / "out"), str(folder / "run"))
fp8 = config.Convert("to_hf", str(folder / "fp8"), str(folder / "run"), fp8=True)
reports = [convert.run(settings) for settings in (into, out, fp8)]
end.set()
thread.join()
largest = max(convert._stacked(model, parts)[0] for parts in convert.table(model).values()) * 1024 * 2
print(reports[0].written_bytes, peak - level, largest, *(round(report.mb_per_s) for report in reports))
"""


def test_memory_is_that_of_one_tensor(tmp_path: Path, command: Command) -> None:
    result = command("-c", MEMORY, tmp_path, "16", check=True)
    whole, peak, largest, *_ = (int(word) for word in result.stdout.split())
    bound = 2 * largest + 256_000_000
    assert whole > 1.3 * bound, "the model has to be too large for the bound, or this proves nothing"
    assert 0 < peak < bound


def test_the_command_converts_and_refuses(tmp_path: Path, command: Command) -> None:
    source = write_hf(tmp_path / "hf", MODEL, weights_of(MODEL))
    words = ("-m", "recipes.convert", "direction=from_hf", f"hf={source}", f"checkpoint={tmp_path / 'run'}")
    assert "MB/s" in command(*words, check=True).stdout
    again = command(*words)
    assert again.returncode == 1 and "is already there" in again.stderr and "Traceback" not in again.stderr
