"""Decoding with a cache against the obvious way, and the choice of a token against its probabilities."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from llama31 import config
from llama31.evaluate.generate import generate, sample
from llama31.model import llama
from llama31.model.llama import Llama
from llama31.parallel import mesh
from llama31.parallel.mesh import Grid
from tests.engine.test_plain_trainer import named, transformers_llama
from tests.model.test_model import FP32, MODEL, ONE, fill, logits_of

pytestmark = pytest.mark.torch

PROMPTS = [[5, 6, 7], [300], list(range(20, 61)), [1, 2, 3, 4, 5, 6, 7, 8]]
SHAPE = replace(MODEL, init_std=0.15)


@pytest.fixture(scope="module")
def grid() -> Iterator[Grid]:
    yield mesh.create(ONE)
    mesh.close()


@pytest.fixture(scope="module")
def chunks(grid: Grid) -> list[Llama]:
    return llama.build(SHAPE, FP32, ONE, grid, seed=4)


def without_a_cache(chunk: Llama, prompt: list[int], count: int) -> list[int]:
    """The whole text through the model for every token."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(logits_of(chunk, torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]


def test_the_cache_changes_nothing(grid: Grid, chunks: list[Llama]) -> None:
    result = generate(chunks, grid, PROMPTS, 16)
    assert result == [without_a_cache(chunks[0], prompt, 16) for prompt in PROMPTS]
    assert len({tuple(tokens) for tokens in result}) == len(PROMPTS) and all(len(set(tokens)) > 4 for tokens in result)


def test_prompts_of_a_batch_do_not_see_each_other(grid: Grid, chunks: list[Llama]) -> None:
    assert generate(chunks, grid, PROMPTS, 12) == [generate(chunks, grid, [prompt], 12)[0] for prompt in PROMPTS]


def test_tokens_equal_those_of_transformers(grid: Grid) -> None:
    hf = transformers_llama(MODEL)
    ours = llama.build(MODEL, FP32, ONE, grid)
    fill(ours, MODEL, grid, named(hf, MODEL))
    for prompt, result in zip(PROMPTS, generate(ours, grid, PROMPTS, 16), strict=True):
        given = torch.tensor([prompt])
        settings = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        whole = hf.generate(given, attention_mask=torch.ones_like(given), **settings)
        assert result == whole[0, len(prompt) :].tolist()


def test_a_row_ends_with_its_stop_id_and_the_others_go_on(grid: Grid, chunks: list[Llama]) -> None:
    free = generate(chunks, grid, PROMPTS, 12)
    stop = free[0][4]
    result = generate(chunks, grid, PROMPTS, 12, {stop, 319})
    for tokens, unstopped in zip(result, free, strict=True):
        end = min([unstopped.index(s) + 1 for s in (stop, 319) if s in unstopped], default=12)
        assert tokens == unstopped[:end]
    assert len(result[0]) <= 5 and max(map(len, result)) == 12
    assert generate(chunks, grid, PROMPTS[:1], 12, {stop}) == [result[0]]


def test_sampling_follows_the_seed_alone(grid: Grid, chunks: list[Llama]) -> None:
    def draw(prompts: list[list[int]], seed: int) -> list[list[int]]:
        return generate(chunks, grid, prompts, 12, temperature=1.0, seed=seed)

    first = draw(PROMPTS, 1)
    assert draw(PROMPTS, 1) == first
    assert draw(PROMPTS[:1], 1) == first[:1]  # whatever else is in the batch
    assert draw(PROMPTS, 2) != first
    twins = draw([PROMPTS[0]] * 2, 1)
    assert twins[0] != twins[1]
    nearly_greedy = generate(chunks, grid, PROMPTS, 12, temperature=1e-4, seed=3)
    assert nearly_greedy == generate(chunks, grid, PROMPTS, 12)
    assert generate(chunks, grid, PROMPTS, 12, temperature=1.0, top_p=1e-6) == nearly_greedy


def test_rows_may_have_temperatures_of_their_own() -> None:
    logits, uniforms = torch.randn(6, 50, generator=torch.Generator().manual_seed(1)), torch.linspace(0.05, 0.95, 6)
    wanted = [0.2, 1.0, 3.0, 0.2, 1.0, 3.0]
    each = [sample(logits[i : i + 1], one, 0.9, uniforms[i : i + 1].double()) for i, one in enumerate(wanted)]
    rows = torch.tensor(wanted, dtype=torch.float64)[:, None]
    assert torch.equal(sample(logits, rows, 0.9, uniforms.double()), torch.cat(each))
    assert len({int(sample(logits[:1], one, 1.0, torch.tensor([0.9]).double())) for one in wanted}) > 1


def frequencies(logits: Tensor, temperature: float, top_p: float, draws: int = 20_000) -> Tensor:
    uniforms = torch.rand(draws, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    chosen = sample(logits.expand(draws, -1), temperature, top_p, uniforms)
    return torch.bincount(chosen, minlength=logits.numel()) / draws


@pytest.mark.parametrize(
    ("temperature", "top_p", "kept"),
    # Planted probabilities 0.5 0.25 0.15 0.1, out of order. The nucleus is the smallest set that reaches top_p.
    [(1.0, 1.0, 4), (1.0, 0.95, 4), (1.0, 0.85, 3), (1.0, 0.7, 2), (1.0, 0.4, 1), (2.0, 1.0, 4), (0.5, 0.9, 2)],
)
def test_choices_follow_the_probabilities_of_the_nucleus(temperature: float, top_p: float, kept: int) -> None:
    planted = torch.tensor([0.15, 0.5, 0.1, 0.25])
    expected = planted ** (1 / temperature)
    expected[expected.argsort(descending=True)[kept:]] = 0
    result = frequencies(planted.log() + 3, temperature, top_p)
    torch.testing.assert_close(result, expected / expected.sum(), rtol=0, atol=0.015)
    assert not result[expected == 0].any()


def test_choices_at_the_ends_of_chance() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, -math.inf]])
    below_one = torch.tensor([1 - 2**-53], dtype=torch.float64)
    assert sample(logits, 1.0, 1.0, torch.zeros(1)).tolist() == [1]
    assert sample(logits, 1.0, 1.0, below_one).tolist() == [0]
    assert sample(logits, 1.0, 0.9, below_one).tolist() == [2]
    assert sample(logits, 0.0, 1.0, below_one).tolist() == [1]
    assert sample(torch.zeros(1, 128_256), 1.0, 1.0, below_one).item() < 128_256


@pytest.mark.parametrize(
    ("prompts", "given", "message"),
    [
        ([[1], []], {}, r"prompts\[1\] is empty"),
        ([[1, 320]], {}, "the model has 0 to 319"),
        ([[1] * 8190], {}, "max_positions=8192"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens=0"),
        ([[1]], {"top_p": 0.0}, "top_p=0.0"),
        ([[1]], {"temperature": -1.0}, "temperature=-1.0"),
    ],
)
def test_what_is_wrong_is_named(
    grid: Grid, chunks: list[Llama], prompts: list[list[int]], given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        generate(chunks, grid, prompts, **({"max_new_tokens": 4} | given))


@pytest.mark.parametrize("key", ["cp", "vpp"])
def test_layouts_that_cannot_decode_are_refused(grid: Grid, chunks: list[Llama], key: str) -> None:
    with pytest.raises(ValueError, match=f"parallel.{key}=2"):
        generate(chunks, replace(grid, **{key: 2}), [[1]], 4)


def test_sequence_parallelism_is_refused(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = llama.build(SHAPE, FP32, ONE, grid)
    monkeypatch.setattr(chunks[0].config, "sequence_parallel", True)
    with pytest.raises(ValueError, match="sequence_parallel=false"):
        generate(chunks, grid, [[1]], 4)


def test_ids_beyond_the_tokenizer_are_never_chosen(grid: Grid, chunks: list[Llama]) -> None:
    """A vocabulary padded for speed: the tokenizer could not spell the rest."""
    assert max(map(max, generate(chunks, grid, PROMPTS, 12))) >= 100
    assert max(map(max, generate(chunks, grid, PROMPTS, 12, vocab_size=100))) < 100


def test_no_prompts_no_tokens(grid: Grid, chunks: list[Llama]) -> None:
    assert generate(chunks, grid, [], 4) == []


def test_training_goes_on_afterwards(grid: Grid) -> None:
    """Between two steps of training: mode, gradients and cached rotary tables stay usable."""
    fresh = llama.build(SHAPE, FP32, config.Parallel(recompute=["full"]), grid, seed=4)
    generate(fresh, grid, [[1, 2, 3]], 13)
    assert fresh[0].training
    tokens = torch.arange(16)[None]  # as long as the cache was: the same rotary table
    fresh[0](tokens, None, torch.tensor([[0, 0, 16]])).sum().backward()
    assert all(parameter.grad is not None for parameter in fresh[0].parameters())
