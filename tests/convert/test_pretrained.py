"""A Hugging Face folder is read into the live model as its conversion would be, without a checkpoint in between."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llama31 import config
from llama31.checkpoint import publish
from llama31.checkpoint.shards import Block, Shard
from llama31.convert import checkpoints, pretrained
from llama31.model import llama
from llama31.model.llama import Llama
from llama31.parallel import mesh
from llama31.parallel.mesh import Grid
from tests.convert.test_convert import MODEL, settings, weights_of, write_hf
from tests.model.test_model import FP32, ONE, logits_of

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def grid() -> Iterator[Grid]:
    yield mesh.create(ONE)
    mesh.close()


def loaded(path: Path, grid: Grid) -> tuple[config.Model, list[Llama]]:
    result = pretrained.find(str(path))
    chunks = llama.build(result.shape, FP32, ONE, grid)
    for parameter in chunks[0].parameters():
        parameter.data.fill_(torch.nan)
    result.load(chunks, grid)
    return result.shape, chunks


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_those_of_the_converted_checkpoint(
    tmp_path: Path, grid: Grid, tied: bool, dtype: torch.dtype
) -> None:
    shape = replace(MODEL, tied_embeddings=tied)
    folder = write_hf(tmp_path / "hf", shape, weights_of(shape, dtype))
    checkpoints.run(settings("from_hf", folder, tmp_path / "run", dtype="fp32"))
    direct, converted = loaded(folder, grid), loaded(tmp_path / "run", grid)
    assert asdict(direct[0]) == asdict(converted[0])
    pairs = zip(direct[1][0].named_parameters(), converted[1][0].named_parameters(), strict=True)
    for (name, mine), (other, theirs) in pairs:
        assert name == other and torch.equal(mine, theirs), name
    assert not (tmp_path / "hf" / "checkpoints").exists()


def test_copies_of_kv_heads_are_taken_once(tmp_path: Path, grid: Grid) -> None:
    weights = weights_of(MODEL)
    folder = write_hf(tmp_path / "plain", MODEL, weights)
    twice = {
        name: tensor.unflatten(0, (MODEL.kv_heads, -1)).repeat_interleave(2, 0).flatten(0, 1)
        if "k_proj" in name or "v_proj" in name
        else tensor
        for name, tensor in weights.items()
    }
    copied = write_hf(tmp_path / "twice", replace(MODEL, kv_heads=4), twice)
    (shape, direct), (_, expected) = loaded(copied, grid), loaded(folder, grid)
    assert shape.kv_heads == MODEL.kv_heads
    for mine, theirs in zip(direct[0].parameters(), expected[0].parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_only_what_lies_in_a_shard_is_copied() -> None:
    whole = torch.arange(48.0).view(8, 6)
    stored = [Block((0, 0), whole[:5]), Block((5, 0), whole[5:])]
    wanted = [Block((1, 2), torch.full((3, 2), -1.0)), Block((4, 2), torch.full((3, 2), -1.0))]
    pretrained._copy(Shard("x", (8, 6), stored), Shard("x", (8, 6), wanted))
    for block, rows in zip(wanted, (whole[1:4, 2:4], whole[4:7, 2:4]), strict=True):
        assert torch.equal(block.resolve(), rows)


def test_the_tokenizer_is_the_one_beside_the_weights(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "hf", MODEL, weights_of(MODEL))
    (folder / "tokenizer.model").touch()
    result = pretrained.find(str(folder))
    beside = config.Tokenizer(kind="huggingface", path="")
    assert result.tokenizer(beside) == config.Tokenizer(kind="huggingface", path=str(folder))
    (folder / "tokenizer.json").unlink()
    assert result.tokenizer(beside) == config.Tokenizer(kind="tiktoken", path=str(folder))
    given = config.Tokenizer(kind="bpe", path="elsewhere")
    assert result.tokenizer(given) == given
    run = pretrained.Pretrained(tmp_path / "run/checkpoints/step-00000001", publish.Meta({}))
    assert run.tokenizer(beside).path == str(tmp_path / "run" / "tokenizer")


@pytest.mark.parametrize(
    ("stated", "stored", "params"),
    [
        ("bfloat16", torch.bfloat16, "bf16"),
        ("float32", torch.float32, "fp32"),
        (None, torch.bfloat16, "bf16"),
        (None, torch.float32, "fp32"),
        ("float16", torch.float32, "fp32"),
    ],
)
def test_a_folder_is_computed_with_in_its_format(
    stated: str | None, stored: torch.dtype, params: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = weights_of(MODEL, stored)
    record = dict.fromkeys(("dtype", "torch_dtype"), stated or "remove")
    result = pretrained.find(str(write_hf(tmp_path, MODEL, weights, **record)))
    assert result.precision(config.TrainedPrecision()).params == params
    assert ("holds float16: computing in FP32; precision=bf16 takes" in caplog.text) == (stated == "float16")
    assert result.precision(config.TrainedPrecision(params="bf16")).params == "bf16"
    assert result.precision(config.TrainedPrecision(fp8="delayed")).params == "bf16"


@pytest.mark.parametrize("trained", ["bf16", "fp32"])
def test_a_checkpoint_is_computed_with_in_what_it_was_trained_in(trained: str) -> None:
    result = pretrained.Pretrained(Path("x"), publish.Meta({}, precision=trained))
    assert result.precision(config.TrainedPrecision()) == config.TrainedPrecision(params=trained)
    assert result.precision(config.TrainedPrecision(params="fp32")).params == "fp32"


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    weights: dict[str, Any] = weights_of(MODEL)
    name = "model.layers.1.mlp.up_proj.weight"
    broken = write_hf(tmp_path / "hf", MODEL, {n: t for n, t in weights.items() if n != name})
    with pytest.raises(ValueError, match=f"checkpoint=.*hf: {name} is missing"):
        pretrained.find(str(broken))
    with pytest.raises(ValueError, match="hidden_act=gelu: has to be silu"):
        pretrained.find(str(write_hf(tmp_path / "gelu", MODEL, weights, hidden_act="gelu")))
    with pytest.raises(ValueError, match="nowhere does not exist"):
        pretrained.find("nowhere")


def test_rewards_equal_the_scores_of_transformers(tmp_path: Path, grid: Grid) -> None:
    """Read as it stands: a reward is the score of the last token."""
    from transformers import AutoModelForSequenceClassification

    shape = replace(MODEL, head="reward")
    folder = write_hf(tmp_path / "hf", shape, weights_of(shape), pad_token_id=79)
    theirs = AutoModelForSequenceClassification.from_pretrained(folder, dtype="auto").eval()
    tokens = torch.arange(2 * 21).view(2, 21) % 78
    with torch.no_grad():
        wanted = theirs(tokens).logits[:, 0]
        result = logits_of(loaded(folder, grid)[1][0], tokens)[:, -1]
    assert wanted.abs().min() > 0.1
    torch.testing.assert_close(result, wanted, rtol=1e-5, atol=1e-4)
