"""The model against transformers' and Meta's own, and what its initial weights have to be."""

from __future__ import annotations

import functools
import inspect
import math
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from llama31 import config
from llama31.engine.objectives import MicroBatch
from llama31.engine.pipeline import Forward
from llama31.model import llama
from llama31.model.llama import Llama
from llama31.model.sequences import SequenceTable
from llama31.parallel import mesh
from llama31.parallel.mesh import Grid
from llama31.plan import shapes
from tests.conftest import ROOT
from tests.engine.test_plain_trainer import named, transformers_llama

pytestmark = pytest.mark.torch

FP32 = config.Precision(params="fp32")
ONE = config.Parallel()
MODEL = config.Model(
    name="t", layers=2, hidden_size=64, ffn_hidden_size=192, heads=4, kv_heads=2, vocab_size=320, max_positions=8192
)


@pytest.fixture(scope="module")
def grid() -> Iterator[Grid]:
    yield mesh.create(ONE)
    mesh.close()


@torch.no_grad()
def fill(chunks: list[Llama], shape: config.Model, grid: Grid, weights: dict[str, Tensor]) -> None:
    """Set the weights of this rank from whole tensors by global name."""
    for shard in llama.shards(chunks, shape, grid):
        assert tuple(weights[shard.name].shape) == shard.shape
        for offset, block in shard.blocks(shard.parameter.data):
            place = tuple(slice(begin, begin + size) for begin, size in zip(offset, block.shape, strict=True))
            block.copy_(weights[shard.name][place])


def one_document_per_row(tokens: Tensor) -> Tensor:
    return torch.tensor([(row, 0, tokens.size(1)) for row in range(tokens.size(0))], dtype=torch.int32)


@torch.no_grad()
def logits_of(chunk: Llama, tokens: Tensor, documents: Tensor | None = None) -> Tensor:
    """[b, s, vocab], by the same call as in training, without labels."""
    return chunk(tokens, None, one_document_per_row(tokens) if documents is None else documents)


def random_tokens(shape: config.Model, rows: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(shape.vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "change",
    [{}, {"tied_embeddings": True, "rope_factor": 32.0}, {"rope_factor": 0.0, "kv_heads": 4}, {"kv_heads": 1}],
    ids=["llama-3.1", "llama-3.2", "llama-3", "one-kv-head"],
)
def test_logits_equal_those_of_transformers(grid: Grid, change: dict[str, Any]) -> None:
    shape = replace(MODEL, **change)
    hf = transformers_llama(shape)
    chunks = llama.build(shape, FP32, ONE, grid)
    fill(chunks, shape, grid, named(hf, shape))
    tokens = random_tokens(shape, 2, 200)
    with torch.no_grad():
        expected = hf(tokens).logits
    assert expected.std() > 0.5
    torch.testing.assert_close(logits_of(chunks[0], tokens), expected, rtol=1e-5, atol=1e-5)


def test_logits_equal_those_of_metas_reference(grid: Grid) -> None:
    """Weights go over row by row: Meta rotates neighbouring pairs of a head, where we rotate its two halves."""
    weights = named(transformers_llama(MODEL), MODEL)
    chunks = llama.build(MODEL, FP32, ONE, grid)
    fill(chunks, MODEL, grid, weights)
    tokens = random_tokens(MODEL, 2, 200)
    expected = metas_logits(MODEL, weights, tokens)
    torch.testing.assert_close(logits_of(chunks[0], tokens), expected, rtol=1e-5, atol=1e-5)
    # The test sees the scaling of the frequencies: without it, the same weights give other logits.
    unscaled = llama.build(replace(MODEL, rope_factor=0.0), FP32, ONE, grid)
    fill(unscaled, MODEL, grid, weights)
    assert (logits_of(unscaled[0], tokens) - expected).abs().max() > 1e-3


def metas_logits(shape: config.Model, weights: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """Logits of `llama_models.llama3.model.Transformer` with our weights."""
    from fairscale.nn.model_parallel import initialize
    from llama_models.llama3.args import ModelArgs
    from llama_models.llama3.model import Transformer

    initialize.initialize_model_parallel(1)
    try:
        reference = Transformer(
            ModelArgs(
                dim=shape.hidden_size,
                n_layers=shape.layers,
                n_heads=shape.heads,
                n_kv_heads=shape.kv_heads,
                vocab_size=shape.vocab_size,
                multiple_of=32,  # makes 2/3 x 4 x 64 into 192
                norm_eps=shape.norm_eps,
                rope_theta=shape.rope_theta,
                use_scaled_rope=True,
                max_batch_size=tokens.size(0),
                max_seq_len=tokens.size(1),
            )
        )
        reference.load_state_dict(metas_names(shape, weights))
        return reference(tokens, 0).clone()
    finally:
        initialize.destroy_model_parallel()


def metas_names(shape: config.Model, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under Meta's names; written out, so that it is no copy of the conversion under test elsewhere."""
    result = {
        "tok_embeddings.weight": weights["embedding.word_embeddings.weight"],
        "norm.weight": weights["decoder.final_layernorm.weight"],
        "output.weight": weights["output_layer.weight"],
    }
    for i in range(shape.layers):
        ours, metas = f"decoder.layers.{i}", f"layers.{i}"
        query, key, value = split_heads(weights[f"{ours}.self_attention.linear_qkv.weight"], shape)
        gate, up = weights[f"{ours}.mlp.linear_fc1.weight"].split(shape.ffn_hidden_size)
        result |= {
            f"{metas}.attention.wq.weight": torch.cat([paired(head) for head in query]),
            f"{metas}.attention.wk.weight": torch.cat([paired(head) for head in key]),
            f"{metas}.attention.wv.weight": torch.cat(value),
            f"{metas}.attention.wo.weight": weights[f"{ours}.self_attention.linear_proj.weight"],
            f"{metas}.feed_forward.w1.weight": gate,
            f"{metas}.feed_forward.w3.weight": up,
            f"{metas}.feed_forward.w2.weight": weights[f"{ours}.mlp.linear_fc2.weight"],
            f"{metas}.attention_norm.weight": weights[f"{ours}.input_layernorm.weight"],
            f"{metas}.ffn_norm.weight": weights[f"{ours}.pre_mlp_layernorm.weight"],
        }
    return result


def split_heads(fused: Tensor, shape: config.Model) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Query, key and value heads, each [head_dim, hidden], out of groups of queries, key, value."""
    query: list[Tensor] = []
    key: list[Tensor] = []
    value: list[Tensor] = []
    per_group = shape.heads // shape.kv_heads
    for group in fused.split((per_group + 2) * shape.head_dim):
        *queries, k, v = group.split(shape.head_dim)
        query, key, value = [*query, *queries], [*key, k], [*value, v]
    return query, key, value


def paired(head: Tensor) -> Tensor:
    """Rows 0, half, 1, half + 1, ...: what a rotation of halves turns together becomes neighbours."""
    half = head.size(0) // 2
    return torch.stack([head[row] for i in range(half) for row in (i, half + i)])


@pytest.mark.parametrize("factor", [8, 32])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_frequencies_equal_metas_to_the_bit(grid: Grid, factor: int, head_dim: int) -> None:
    from llama_models.llama3 import model as meta

    source = inspect.getsource(meta.apply_scaling)
    assert "scale_factor = 8\n" in source  # a constant of theirs; Llama 3.2 has another
    scope: dict[str, Any] = {"torch": torch}
    exec(source.replace("scale_factor = 8\n", f"scale_factor = {factor}\n"), scope)
    plain = 1.0 / (500000.0 ** (torch.arange(0, head_dim, 2)[: (head_dim // 2)].float() / head_dim))
    shape = replace(MODEL, heads=2, hidden_size=2 * head_dim, rope_factor=float(factor))
    result = llama.build(shape, FP32, ONE, grid)[0].rotary_pos_emb.inv_freq
    assert result.dtype == torch.float32
    assert torch.equal(result, scope["apply_scaling"](plain))
    assert not torch.equal(result, plain)


def test_a_chunk_is_made_of_our_parts_and_of_nothing_deprecated(grid: Grid, caplog: pytest.LogCaptureFixture) -> None:
    """Megatron takes a spec's attribute that it does not know, and its own part with it, without a word."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        chunk = llama.build(MODEL, FP32, ONE, grid)[0]
    said = [str(warning.message) for warning in warned] + [record.getMessage() for record in caplog.records]
    assert not [line for line in said if "deprecat" in line.lower() or "requires ffn_hidden_size" in line]
    made = {name: type(module).__name__ for name, module in chunk.named_modules()}
    layer = {name.removeprefix("decoder.layers.1."): kind for name, kind in made.items() if ".layers.1." in name}
    assert layer["mlp"] == "SwiGLU" and layer["self_attention.core_attention"] == "DocumentAttention"
    assert layer["input_layernorm"] == layer["pre_mlp_layernorm"] == made["decoder.final_layernorm"] == "RMSNorm"
    assert made["embedding.word_embeddings"] == "WordEmbedding"


def loss_of(chunks: list[Llama], grid: Grid, vocab: int, rows: int, length: int) -> float:
    """Mean loss on random tokens."""
    stream = np.random.default_rng(5).integers(0, vocab, (rows, length + 1))
    ones, documents = np.ones((rows, length), np.float32), np.zeros((rows, length), np.int32)
    batch = MicroBatch.from_numpy(stream[:, :-1], stream[:, 1:], ones, documents, grid.device)
    return Forward(chunks, grid).mean_loss([batch])[0]


def test_first_loss_is_that_of_random_logits(grid: Grid) -> None:
    """The last norm gives unit variance, so logits are normal with variance d std^2: its half is added to ln V."""
    shape = replace(MODEL, hidden_size=1024, heads=8, ffn_hidden_size=512, vocab_size=2048, init_std=0.04)
    excess = shape.hidden_size * shape.init_std**2 / 2
    assert excess > 0.8
    chunks = llama.build(shape, FP32, ONE, grid, seed=1)
    assert loss_of(chunks, grid, 2048, 8, 256) == pytest.approx(math.log(2048) + excess, abs=0.1)
    chunks[0].output_layer.weight.data.zero_()
    assert loss_of(chunks, grid, 2048, 2, 64) == pytest.approx(math.log(2048), abs=1e-6)


def test_blocks_drawn_apart_equal_the_whole() -> None:
    whole = llama._normal(3, "some.weight", (0, 0), (300, 1100))
    for offset, size in (((0, 0), (1, 1)), ((127, 511), (2, 2)), ((100, 500), (150, 600)), ((299, 0), (1, 1100))):
        part = llama._normal(3, "some.weight", offset, size)
        rows, columns = (slice(o, o + n) for o, n in zip(offset, size, strict=True))
        assert np.array_equal(part, whole[rows, columns])
    assert abs(whole.mean()) < 0.01 and abs(whole.std() - 1) < 0.01
    assert len(np.unique(whole)) > 0.98 * whole.size  # no tile repeats another
    assert not np.array_equal(whole[:128, :512], llama._normal(4, "some.weight", (0, 0), (128, 512)))
    assert not np.array_equal(whole[:128, :512], llama._normal(3, "other.weight", (0, 0), (128, 512)))


@pytest.mark.parametrize("tp", [2, 4])
def test_initial_weights_are_equal_on_every_layout(grid: Grid, tp: int) -> None:
    """What each of `tp` ranks would draw, put together, is what one draws alone."""
    shape = replace(MODEL, heads=8, kv_heads=4)
    for shard in llama.shards(llama.build(shape, FP32, ONE, grid, seed=7), shape, grid):
        weight, filled = shard.parameter.data, torch.zeros(shard.shape)
        if weight.ndim == 1:
            assert (weight == 1).all()
            continue
        std = shape.init_std / (2 if shard.name.endswith(("linear_proj.weight", "linear_fc2.weight")) else 1)
        by_row = not shard.name.endswith(("linear_proj.weight", "linear_fc2.weight"))
        local = (weight.size(0) // tp, weight.size(1)) if by_row else (weight.size(0), weight.size(1) // tp)
        for rank in range(tp):
            whole, offsets = llama._layout(shard.name, local, replace(grid, tp=tp, tp_rank=rank))
            assert whole == shard.shape
            for top, left in offsets:
                size = (local[0] // len(offsets), local[1])
                drawn = torch.from_numpy(llama._normal(7, shard.name, (top, left), size)) * std
                filled[top : top + size[0], left : left + size[1]] = drawn
        assert torch.equal(filled, weight), shard.name


@pytest.mark.parametrize("tied", [False, True])
def test_parameters_are_as_many_as_the_table_says(grid: Grid, tied: bool) -> None:
    table = yaml.safe_load((ROOT / "conf/model/tiny.yaml").read_text())
    tiny = replace(config.Model(**table), tied_embeddings=tied)
    chunk = llama.build(tiny, FP32, ONE, grid)[0]
    assert sum(parameter.numel() for parameter in chunk.parameters()) == shapes.parameters(tiny)
    assert not any(name.endswith("bias") for name, _ in chunk.named_parameters())


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_a_table_of_documents_serves_all_layers_and_passes(
    recompute: str, monkeypatch: pytest.MonkeyPatch, grid: Grid
) -> None:
    """Nothing of it is made again, neither by another layer nor by one that is recomputed after another batch's."""
    made: list[int] = []
    for name in ("blocks", "own_keys", "earlier_keys"):
        original = getattr(SequenceTable, name).func
        counted = functools.cached_property(lambda self, make=original: (made.append(id(self)), make(self))[1])
        counted.__set_name__(SequenceTable, name)
        monkeypatch.setattr(SequenceTable, name, counted)
    chunk = llama.build(MODEL, FP32, replace(ONE, recompute=recompute), grid, seed=2)[0]
    tokens = random_tokens(MODEL, 2, 24)
    documents = np.repeat([[0, 1], [0, 0]], 12, axis=1)
    ones = np.ones((2, 24), np.float32)
    batches = [
        MicroBatch.from_numpy(tokens.numpy(), tokens.numpy(), ones, part, grid.device)
        for part in (documents, documents * 0)
    ]
    losses = [chunk(batch.tokens, None, batch.sequences(grid), batch.labels, batch.weights)[0] for batch in batches]
    sum(losses).backward()
    assert len(made) == len(set(made)) == 2
    assert batches[0].scaled(torch.tensor(2.0)).sequences(grid) is batches[0].sequences(grid)


def test_documents_of_a_row_do_not_see_each_other(grid: Grid) -> None:
    chunk = llama.build(replace(MODEL, init_std=0.15), FP32, ONE, grid, seed=2)[0]
    tokens = random_tokens(MODEL, 2, 60)
    pieces = [(0, 0, 7), (0, 7, 8), (0, 8, 60), (1, 0, 31), (1, 31, 60)]
    packed = logits_of(chunk, tokens, torch.tensor(pieces))
    for row, begin, end in pieces:
        alone = logits_of(chunk, tokens[row : row + 1, begin:end])[0]
        torch.testing.assert_close(packed[row, begin:end], alone, rtol=1e-4, atol=1e-4)  # a shifted rotation rounds
    assert (packed - logits_of(chunk, tokens))[0, 8:].abs().max() > 0.1
    other = tokens.clone()
    other[:, :7] = (other[:, :7] + 1) % MODEL.vocab_size
    assert torch.equal(logits_of(chunk, other, torch.tensor(pieces))[0, 7:], packed[0, 7:])
