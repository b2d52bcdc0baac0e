"""Recall that is exactly known: of models that copy what they see, and see only so much."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llama31 import config
from llama31.config import Needle
from llama31.data.batches import Rows
from llama31.engine.pipeline import Forward
from llama31.engine.scoring import ScoreRequest, answers, score
from llama31.evaluate import haystack, needle, scorecard
from llama31.evaluate.haystack import NeedlePrompt
from llama31.model import head, llama
from llama31.parallel import mesh
from llama31.parallel.mesh import Grid
from llama31.runs import plots
from llama31.tokens import tokenizers
from llama31.tokens.tokenizers import Tokenizer
from tests.evaluate.test_evaluate import made  # noqa: F401 - a fixture
from tests.model.test_model import FP32, MODEL, ONE, logits_of

pytestmark = pytest.mark.torch

SHAPE = replace(MODEL, init_std=0.15, vocab_size=560)
LETTERS = haystack.alphabet(range(20, 120))
DEPTHS = [0.0, 0.25, 0.5, 0.75, 1.0]
TEXT = "A sentence of some words stands here. Another one follows it, a little longer than the first! And so on? "


@pytest.fixture(scope="module")
def grid() -> Iterator[Grid]:
    yield mesh.create(ONE)
    mesh.close()


@pytest.fixture(scope="module")
def forward(grid: Grid) -> Forward:
    return Forward(llama.build(SHAPE, FP32, ONE, grid, seed=4), grid)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tokenizers.train_bpe([TEXT * 20], 560, tmp_path_factory.mktemp("words"))


# --- scores, which all else stands on ---------------------------------------------------------------------------------


def test_answers_are_what_the_logits_say(forward: Forward) -> None:
    random = np.random.default_rng(0)
    tokens = [random.integers(0, SHAPE.vocab_size, size).tolist() for size in (2, 30, 7, 30, 19)]
    chunk = forward.chunks[0]
    for row in tokens[2:4]:  # an answer that greedy decoding gives
        for _ in range(3):
            row.append(int(logits_of(chunk, torch.tensor([row]))[0, -1].argmax()))
    requests = [ScoreRequest(row, answer) for row, answer in zip(tokens, (1, 6, 3, 4, 18), strict=True)]
    for micro_batch in (1, 2, 5):
        result = answers(forward, requests, micro_batch)
        for request, (losses, right) in zip(requests, result, strict=True):
            logp = logits_of(chunk, torch.tensor([list(request.tokens)]))[0].log_softmax(-1)
            labels = torch.tensor(list(request.tokens[-request.answer :]))
            logp = logp[-request.answer - 1 : -1]
            assert losses == pytest.approx(-logp[torch.arange(request.answer), labels].numpy(), abs=1e-4)
            assert right.tolist() == (logp.argmax(-1) == labels).tolist()
        assert result[2][1].all() and result[3][1][1:].all() and not result[4][1].all()


def test_rows_beyond_one_reduction(forward: Forward) -> None:
    rows = np.random.default_rng(1).integers(0, SHAPE.vocab_size, (37, 9))

    def fetch(indices: np.ndarray) -> Rows:
        inside = indices < 37
        tokens = np.where(inside[:, None], rows[np.minimum(indices, 36)], 0)
        mask = np.repeat(inside[:, None], 8, 1).astype(np.float32)
        documents = np.zeros((indices.size, 8), np.int32)
        return Rows(tokens[:, :-1], tokens[:, 1:], mask, documents, np.zeros(indices.size, np.int64))

    result = score(forward, fetch, 37, 5)
    logp = logits_of(forward.chunks[0], torch.from_numpy(rows[:, :-1])).log_softmax(-1)
    expected = -logp.gather(-1, torch.from_numpy(rows[:, 1:, None]))[..., 0]
    assert result.losses == pytest.approx(expected.numpy(), abs=1e-4)
    assert (result.likeliest == logp.argmax(-1).numpy()).all()


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (ScoreRequest([1, 2], 2), r"requests\[0\]: an answer of 2 of 2 tokens"),
        (ScoreRequest([1, 2], 0), "an answer of 0"),
        (ScoreRequest([1, 560], 1), "the model has 0 to 559"),
        (ScoreRequest([1] * 8194, 1), "model.max_positions=8192"),
    ],
)
def test_requests_that_cannot_be_asked(forward: Forward, request_: ScoreRequest, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        answers(forward, [request_], 1)


# --- recall -----------------------------------------------------------------------------------------------------------


def test_recall_is_that_of_the_planted_answers(forward: Forward, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that finds even values and misses odd ones; the same head on other prompts finds other shares."""
    prompts = haystack.token_prompts(Needle(kind="tokens", depths=DEPTHS, inserted=4, asked=2), LETTERS, [48, 96])
    assert needle.recall(forward, prompts, 3).sum() <= 1  # untrained: what luck gives

    def even(
        hidden: Tensor, weight: Tensor, labels: Tensor, wanted: Tensor, group: Any, *_: object
    ) -> tuple[Tensor, Tensor]:
        result = torch.where(wanted & (labels % 2 == 0), labels, -1)
        return torch.zeros_like(labels, dtype=torch.float32), result

    monkeypatch.setattr(head, "scores", even)
    expected = [float(prompt.answer[0] % 2 == 0) for prompt in prompts]
    assert needle.recall(forward, prompts, 3).tolist() == expected and 0 < sum(expected) < len(expected)


def test_parts_of_an_answer_count_for_themselves(forward: Forward, words: Tokenizer) -> None:
    hay = np.array(words.encode(TEXT * 30), np.int64)
    (prompt,) = haystack.text_prompts(Needle(kind="text", depths=[0.5], inserted=3, asked=3), words, hay, [360])
    tokens = [int(logits_of(forward.chunks[0], torch.from_numpy(prompt.tokens)[None])[0, -1].argmax())]
    planted = replace(prompt, answer=np.array([*tokens, 5, 6]), spans=((0, 1), (1, 3)), values=("a", "b"))
    assert needle.recall(forward, [planted], 1).tolist() == [0.5]


class Nearsighted:
    """Decodes as a model that copies facts out of the last `window` tokens, and answers nonsense otherwise."""

    def __init__(self, words: Tokenizer, window: int) -> None:
        self.words, self.window = words, window

    def __call__(
        self, chunks: Any, grid: Grid, prompts: Sequence[list[int]], new: int, stops: set[int], **_: Any
    ) -> list[list[int]]:
        return [self.answer(prompt[-self.window :], new) for prompt in prompts]

    def answer(self, seen: list[int], new: int) -> list[int]:
        import re

        text = self.words.decode(seen)
        record = dict(re.findall(r"magic number of (\w+) is (\d{7})", text))
        asked = re.findall(r"[A-Z]\w+", text.split("Answer: The magic number")[1])
        return self.words.encode(" " + " and ".join(record.get(city, "0") for city in asked))[:new]


@pytest.mark.parametrize(("inserted", "asked"), [(1, 1), (4, 2)])
def test_text_recall_is_that_of_a_nearsighted_model(
    forward: Forward, words: Tokenizer, monkeypatch: pytest.MonkeyPatch, inserted: int, asked: int
) -> None:
    wanted = Needle(kind="text", depths=DEPTHS, inserted=inserted, asked=asked, lengths=[400, 800])
    hay = np.array(words.encode(TEXT * 200), np.int64)
    prompts = haystack.text_prompts(wanted, words, hay, wanted.lengths)
    monkeypatch.setattr(needle, "generate", Nearsighted(words, 10_000))
    assert needle.evaluate(forward, wanted, prompts, words, 2)["total"]["score"] == 1
    monkeypatch.setattr(needle, "generate", Nearsighted(words, 330))
    result = needle.evaluate(forward, wanted, prompts, words, 2)
    expected = [np.mean([f"is {v}." in words.decode(p.tokens[-322:].tolist()) for v in p.values]) for p in prompts]
    assert result["recall"] == [[expected[i], expected[5 + i]] for i in range(5)]
    assert 0 < result["total"]["score"] < 1 and result["total"]["count"] == 10 * asked
    if inserted == 1:
        assert [line[1] for line in result["recall"]] == [0, 0, 0, 1, 1]  # the last 330 of 800 tokens


def test_decoding_and_judging_without_agree(forward: Forward, words: Tokenizer) -> None:
    """Prompts of which half ask for what the untrained model writes anyway."""
    prompts = haystack.token_prompts(Needle(kind="tokens", depths=DEPTHS, trials=2), LETTERS, [33, 48])
    for index in range(0, len(prompts), 2):
        logits = logits_of(forward.chunks[0], torch.from_numpy(prompts[index].tokens)[None])
        prompts[index] = replace(prompts[index], answer=logits[0, -1, : words.vocab_size].argmax(-1)[None].numpy())
    judged = needle.recall(forward, prompts, 4)
    assert judged.tolist() == needle.decoded_recall(forward, prompts, words, 4, 9).tolist()
    assert judged[::2].all() and judged.mean() < 0.7


def test_haystacks_from_files(words: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "hay.txt").write_text(TEXT * 40)
    data, asked = config.Data(folder=""), Needle(kind="text", lengths=[300], depths=[0.5])
    (prompt,) = needle.prompts_of(replace(asked, haystack=str(tmp_path / "hay.txt")), data, "heldout", words, 300, 300)
    assert prompt.tokens.size == 300 - asked.answer_tokens and "Another one follows" in words.decode(prompt.tokens)
    (tmp_path / "hay.txt").write_bytes(b"\xff" * 9)
    for name, message in ((str(tmp_path / "hay.txt"), "utf-8"), ("nowhere", "No such file")):
        with pytest.raises(ValueError, match=f"needle.haystack={name}: cannot be read .*{message}"):
            needle.prompts_of(replace(asked, haystack=name), data, "heldout", words, 300, 300)


def test_cells_and_intervals() -> None:
    def prompt(length: int, depth: float, spans: int) -> NeedlePrompt:
        return NeedlePrompt(length, depth, np.arange(3), np.arange(2), ((0, 1),) * spans)

    prompts = [prompt(8, 0.0, 2), prompt(8, 1.0, 2), prompt(16, 0.0, 2), prompt(16, 1.0, 2), prompt(16, 1.0, 2)]
    result = needle.table(prompts, np.array([1.0, 0.5, 0.0, 1.0, 0.5]))
    assert (result["lengths"], result["depths"]) == ([8, 16], [0.0, 1.0])
    assert result["recall"] == [[1.0, 0.0], [0.5, 0.75]]
    assert [one["score"] for one in result["by_length"]] == [0.75, 0.5]
    total = result["total"]
    assert (total["score"], total["count"]) == (0.6, 10)
    assert total["ci95"] == pytest.approx(1.96 * (0.6 * 0.4 / 10) ** 0.5)


def test_the_heat_map_shows_the_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    written: list[tuple[float, float, str]] = []
    original = Axes.text
    monkeypatch.setattr(
        Axes, "text", lambda self, x, y, s, **k: written.append((x, y, s)) or original(self, x, y, s, **k)
    )
    result = {"kind": "text", "inserted": 4, "asked": 2, "total": {"score": 0.5}, "lengths": [8, 16, 32]}
    result |= {"depths": [0.0, 1.0], "recall": [[1.0, 0.25, 0.0], [0.5, 0.75, 1.0]]}
    picture = plots.draw_recall(tmp_path / "map.png", result)
    assert picture.read_bytes().startswith(b"\x89PNG") and [path.name for path in tmp_path.iterdir()] == ["map.png"]
    assert [(x, y) for x, y, _ in written] == [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)]
    assert [text for *_, text in written] == ["100", "25", "0", "50", "75", "100"]


def test_the_recipe_asks_everything(made: config.Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    from recipes import evaluate as recipe

    (tmp_path / "task.jsonl").write_text(json.dumps({"query": "some", "choices": ["words", "more"], "gold": 0}) + "\n")
    tasks = {"mine": config.Task(str(tmp_path / "task.jsonl"))}
    asked = Needle(kind="text", lengths=[200, 260], depths=[0.0, 1.0], inserted=2, asked=2)
    given = replace(made, output=str(tmp_path / "all.json"), tasks=tasks, needle=asked, tokens=500)
    result = recipe.main(replace(given, sequence_length=300, details=True))
    assert json.loads((tmp_path / "all.json").read_text()) == result
    assert (tmp_path / "all.png").read_bytes().startswith(b"\x89PNG")
    assert result["tasks"]["mine"]["acc"]["count"] == 1 and len(result["tasks"]["mine"]["examples"]) == 1
    assert result["needle"]["recall"] == [[0, 0], [0, 0]] and result["needle"]["total"]["count"] == 8
    printed = capsys.readouterr().out
    for part in ("held-out text", "loss by tokens seen", "acc_norm", "recall by depth", "heat map: "):
        assert part in printed
    assert scorecard.text(result) in printed
    tokens = replace(given, data=config.Data(folder=""), tasks={}, needle=Needle(kind="tokens", decode=False))
    result = recipe.main(replace(tokens, sequence_length=100))
    assert result["needle"]["lengths"] == list(range(10, 101, 10)) and result["needle"]["total"]["count"] == 110
