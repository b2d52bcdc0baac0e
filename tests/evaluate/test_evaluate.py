"""Perplexity against plain torch, and the recipe from a checkpoint to its figures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from llama31 import config
from llama31.checkpoint import publish, shards
from llama31.command import inputs
from llama31.data import batches
from llama31.engine.pipeline import Forward
from llama31.evaluate import perplexity
from llama31.model import llama
from llama31.parallel import mesh
from llama31.parallel.mesh import Grid
from llama31.tokens import pack, tokenizers
from recipes import evaluate as recipe
from tests import plain_trainer
from tests.model.test_model import FP32, MODEL, ONE

pytestmark = pytest.mark.torch

LENGTH = 24
SHAPE = replace(MODEL, init_std=0.1)


class Planted:
    """Held-out rows of documents of odd lengths, in the place of packed files: 5 rows, 1 row, and a source of none."""

    def __init__(self) -> None:
        self.names, self.rows_of = ["a", "b", "empty"], {"a": 5, "b": 1, "empty": 0}

    def count(self, name: str) -> int:
        return self.rows_of[name]

    def rows(self, name: str, indices: np.ndarray) -> batches.Rows:
        parts = [self.row(name, int(i)) for i in indices]
        stacked = [np.stack(column) for column in zip(*parts, strict=True)]
        return batches.Rows(*stacked, np.zeros(len(indices), np.int64))

    def row(self, name: str, index: int) -> tuple[np.ndarray, ...]:
        random = np.random.default_rng([ord(name[0]), index])
        stream = random.integers(0, SHAPE.vocab_size, LENGTH + 1)
        starts = random.random(LENGTH) < 0.1
        starts[0] = False
        documents = np.cumsum(starts).astype(np.int32)
        mask = np.zeros(LENGTH, np.float32)
        if index < self.count(name):
            mask[: LENGTH - 4 * index] = 1  # rows count differently, so a mean of means would be wrong
        return stream[:-1], stream[1:], mask, documents


def planted_losses(chunks: list[llama.Llama], grid: Grid, micro_batch: int) -> dict[str, tuple[float, int]]:
    heldout = cast(batches.HeldoutText, Planted())
    return perplexity.heldout_losses(Forward(chunks, grid), heldout, grid, micro_batch)


@pytest.fixture
def grid() -> Iterator[Grid]:
    yield mesh.create(ONE)
    mesh.close()


@dataclass
class Whole:
    tokens: Any
    labels: Any
    loss_mask: Any
    documents: Any


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_losses_are_those_of_plain_torch(grid: Grid, micro_batch: int) -> None:
    chunks = llama.build(SHAPE, FP32, ONE, grid, seed=6)
    weights = {shard.name: shard.parameter.detach() for shard in llama.shards(chunks, SHAPE, grid)}
    result, planted = planted_losses(chunks, grid, micro_batch), Planted()
    assert list(result) == ["a", "b"]
    for name, (loss, tokens) in result.items():
        rows = planted.rows(name, np.arange(planted.count(name)))
        whole = Whole(rows.tokens, rows.labels, rows.loss_mask, rows.documents)
        assert tokens == rows.loss_mask.sum()
        assert loss == pytest.approx(plain_trainer.loss_of(weights, SHAPE, whole).item(), rel=1e-5)


def test_losses_of_single_tokens_are_those_of_plain_torch(grid: Grid) -> None:
    chunks = llama.build(SHAPE, FP32, ONE, grid, seed=6)
    weights = {shard.name: shard.parameter.detach() for shard in llama.shards(chunks, SHAPE, grid)}
    planted = Planted()
    result = perplexity.token_losses(Forward(chunks, grid), cast(batches.HeldoutText, planted), 2)
    assert list(result) == ["a", "b"] and chunks[0].training and not chunks[0].scoring
    for name, tokens in result.items():
        rows = planted.rows(name, np.arange(planted.count(name)))
        single = []
        for row, column in zip(*np.nonzero(rows.loss_mask), strict=True):
            mask = np.zeros_like(rows.loss_mask)
            mask[row, column] = 1
            whole = Whole(rows.tokens, rows.labels, mask, rows.documents)
            single.append(plain_trainer.loss_of(weights, SHAPE, whole).item())
        assert tokens.losses == pytest.approx(single, rel=1e-5)


def test_places_are_counted_within_documents() -> None:
    documents = np.array([[0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 2, 2], [0, 0, 0, 1, 1, 1]], np.int32)
    mask = np.ones((3, 6), np.float32)
    mask[0, 1] = mask[1, 5] = 0  # the first row's last document goes on in the second, whose last one ends with it
    rows = batches.Rows(documents, documents, mask, documents, np.zeros(3, np.int64))  # type: ignore[arg-type]
    seen, document = perplexity.places(rows)
    assert seen.tolist() == [[1, 2, 1, 2, 3, 4], [1, 1, 2, 3, 1, 2], [1, 2, 3, 1, 2, 3]]
    assert document.tolist() == [[1, 1, 2, 2, 2, 2], [2, 3, 3, 3, 4, 4], [5, 5, 5, 6, 6, 6]]
    unmasked = replace(rows, documents=np.zeros_like(documents), loss_mask=np.ones_like(mask))
    seen, document = perplexity.places(unmasked)
    assert seen[2].tolist() == [1, 2, 3, 4, 5, 6] and document[:, 0].tolist() == [1, 2, 3]


def token_losses(losses: list[float], seen: list[int], document: list[int]) -> perplexity.TokenLosses:
    return perplexity.TokenLosses(
        np.float32(losses), np.ones(len(losses), np.float32), np.array(seen), np.array(document)
    )


def test_the_total_weighs_each_token_alike() -> None:
    long, short = token_losses([2.0] * 300, [1] * 300, [0] * 300), token_losses([4.0] * 100, [3] * 100, [0] * 100)
    result = perplexity.perplexity({"long": long, "short": short})
    total, single = result["total"], result["sources"]["short"]
    assert (total["loss"], total["perplexity"], total["tokens"]) == (2.5, pytest.approx(math.exp(2.5)), 400)
    assert single == {
        "loss": 4.0, "loss_ci95": None, "perplexity": pytest.approx(math.exp(4)), "low": None, "high": None,
        "tokens": 100,
    }  # fmt: skip
    # two documents: residuals 300 x -0.5 and 100 x 1.5, so the variance of their ratio is 2 (150^2 + 150^2) / 400^2
    assert total["loss_ci95"] == pytest.approx(1.96 * math.sqrt(2 * 2 * 150**2) / 400)
    assert total["high"] == pytest.approx(math.exp(2.5 + total["loss_ci95"]))
    wild = perplexity.perplexity({"wild": token_losses([1000.0], [1], [0])})
    assert wild["total"]["perplexity"] == math.inf


def test_positions_are_binned_by_powers_of_two() -> None:
    seen = [1, 2, 3, 4, 7, 8, 1023, 1024]
    result = perplexity.perplexity({"a": token_losses([float(n) for n in seen], seen, list(range(8)))})["positions"][
        "a"
    ]
    assert [(one["from"], one["to"], one["loss"], one["tokens"]) for one in result] == [
        (1, 1, 1.0, 1), (2, 3, 2.5, 2), (4, 7, 5.5, 2), (8, 15, 8.0, 1), (512, 1023, 1023.0, 1), (1024, 2047, 1024.0, 1)
    ]  # fmt: skip


def test_rows_are_as_long_as_at_the_end_of_training() -> None:
    trained = {"sequence_length": 512, "ramp": [{"from_tokens": 9, "sequence_length": 2048}]}
    assert perplexity.sequence_length(None, trained, MODEL) == 2048
    assert perplexity.sequence_length(None, {"sequence_length": 512, "ramp": []}, MODEL) == 512
    assert perplexity.sequence_length(None, {}, MODEL) == 8192
    assert perplexity.sequence_length(None, {}, replace(MODEL, max_positions=1024)) == 1024
    assert perplexity.sequence_length(64, trained, MODEL) == 64
    with pytest.raises(ValueError, match="sequence_length=9000"):
        perplexity.sequence_length(9000, trained, MODEL)


Made = Callable[..., config.Evaluate]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> config.Evaluate:
    """Packed text, a tokenizer and the checkpoint of an untrained model, in a run folder."""
    top = tmp_path_factory.mktemp("evaluate")
    (top / "text").mkdir()
    for i in range(40):
        (top / "text" / f"{i}.txt").write_text(f"some words number {i} and some more, Wörter auch\n" * 8)
    words = config.Tokenizer(kind="bpe", path=str(top / "words"), vocab_size=560)
    source = config.Source(input=str(top / "text"), format="text", suffixes=".txt")
    data = config.Data(folder=str(top / "data"), sources={"mine": source}, heldout_fraction=0.3, workers=1)
    pack.train_tokenizer(data, words)
    pack.pack(data, "mine", words, overwrite=False)
    run, shape = top / "run", replace(SHAPE, vocab_size=640)
    tokenizers.load(words).save_hf(run / "tokenizer")
    grid = mesh.create(ONE)
    built = llama.build(shape, FP32, ONE, grid, seed=8)
    saved = [
        shards.Shard(s.name, s.shape, [shards.Block(offset, block) for offset, block in s.blocks(s.parameter.data)])
        for s in llama.shards(built, shape, grid)
    ]
    trained = {"precision": "fp32", "schedule": {"sequence_length": 32}, "tokenizer": {"folder": "tokenizer"}}
    meta = publish.Meta(asdict(shape), step=3, **trained)
    publish.save(run / "checkpoints", meta, saved)
    mesh.close()
    beside = config.Tokenizer(kind="huggingface", path="")
    return config.Evaluate(checkpoint=str(run), data=data, tokenizer=beside, max_new_tokens=5)


def test_the_recipe_prints_and_writes_its_figures(
    made: config.Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "result.json"
    result = recipe.main(replace(made, output=str(output), prompts=["some words", "Wörter"], tokens=1000))
    printed = capsys.readouterr().out
    assert json.loads(output.read_text()) == result and "held-out text" in printed and "{" not in printed
    assert result["checkpoint"].endswith("step-00000003")
    mine = result["sources"]["mine"]
    assert result["total"] == mine and 0 < mine["tokens"] <= 1000
    assert sum(part["tokens"] for part in result["positions"]["mine"]) == mine["tokens"]
    assert mine["low"] < mine["perplexity"] < mine["high"]
    assert mine["perplexity"] == pytest.approx(math.exp(mine["loss"])) and abs(mine["loss"] - math.log(640)) < 1
    assert [item["prompt"] for item in result["continuations"]] == ["some words", "Wörter"]
    assert all(item["continuation"] for item in result["continuations"])
    longer = recipe.main(replace(made, sequence_length=64, tokens=1000, against=made.checkpoint))
    against = longer["against"]
    assert against["checkpoint"] == result["checkpoint"] and against["total"]["kl_max"] == 0
    assert against["total"]["tokens"] == longer["total"]["tokens"] and "against" not in result
    with pytest.raises(config.ConfigError, match="there is no text on which to compare"):
        inputs.check(replace(made, data=config.Data(folder=""), against=made.checkpoint))
    assert longer["total"]["tokens"] == pytest.approx(mine["tokens"], abs=40)
    assert longer["total"]["loss"] != mine["loss"]


def test_prompts_need_no_data(made: config.Evaluate, capsys: pytest.CaptureFixture[str]) -> None:
    result = recipe.main(replace(made, data=config.Data(folder=""), prompts=["some"]))
    assert "total" not in result and len(result["continuations"]) == 1
    printed = capsys.readouterr().out
    assert json.loads(printed[printed.index("\n{\n") :]) == result  # without output=, below the tables


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"checkpoint": "nowhere"}, "nowhere does not exist"),
        ({"parallel": config.Parallel(tp=3)}, "parallel.tp=3"),
        ({"parallel": config.Parallel(pp=2)}, "process"),
        ({"tokenizer": config.Tokenizer(kind="huggingface", path="nowhere")}, "tokenizer.path=nowhere"),
    ],
)
def test_what_is_wrong_is_named(made: config.Evaluate, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe.main(replace(made, **change))


def test_text_of_another_tokenizer_is_refused(made: config.Evaluate, tmp_path: Path) -> None:
    other = tokenizers.train_bpe(["altogether other text"] * 9, 520, tmp_path)
    other.save_hf(tmp_path)
    with pytest.raises(ValueError, match="tokenizer.path"):
        recipe.main(replace(made, tokenizer=config.Tokenizer(kind="huggingface", path=str(tmp_path))))


def test_special_tokens_that_prompts_spell_are_told() -> None:
    words: Any = SimpleNamespace(special={"<|begin_of_text|>": 1, "<|eot_id|>": 2})
    assert perplexity.spelled(["Once", "<|eot_id"], words) == []
    (line,) = perplexity.spelled(["Once", "Hi<|eot_id|>"], words)
    assert line.startswith("prompts[1]: <|eot_id|> is read as text, not as the token; ")
