"""Embeddings of whole dialogs: transformers' mean of all tokens, in windows, kept; and what a real encoder finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerFast, RobertaConfig, RobertaModel

from llama31 import config
from llama31.sampling.drawing import read_lines
from llama31.synth.quality import embedding, outcome
from llama31.synth.quality.embedding import DialogEmbedder
from recipes import filter_data
from tests import minilm
from tests.synth.test_filter_data import dialog, loaded

pytestmark = pytest.mark.torch

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
TEXTS = ["one two three", "", "four " * 70, "six\n\nseven half \ud800 zero \0 end", "eight nine " * 40, "one two three"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small RoBERTa that reads 30 tokens, with a tokenizer of its own."""
    folder = tmp_path_factory.mktemp("encoder")
    words = Tokenizer(models.BPE(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.train_from_iterator(
        ["one two three four five six seven eight nine"],
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    words.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", cls_token="<s>", eos_token="</s>", sep_token="</s>", pad_token="<pad>",
        unk_token="<unk>", mask_token="<mask>",
    ).save_pretrained(folder)  # fmt: skip
    torch.manual_seed(0)
    RobertaModel(
        RobertaConfig(
            vocab_size=words.get_vocab_size(), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=64, max_position_embeddings=32, pad_token_id=1, type_vocab_size=1, initializer_range=0.5,
        )
    ).save_pretrained(folder)  # fmt: skip
    return str(folder)


def plainly(folder: str, text: str, window: int) -> Any:
    """The mean of the states of all tokens of a text, one window at a time."""
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(text.replace("\0", " ").replace("\ud800", "?"))["input_ids"]
    inner = ids[1:-1]
    windows = [inner[i : i + window - 2] for i in range(0, max(1, len(inner)), window - 2)]
    with torch.inference_mode():
        states = torch.cat([model(torch.tensor([[ids[0], *one, ids[-1]]])).last_hidden_state[0] for one in windows])
    mean = states.double().mean(0).numpy()
    return mean / np.linalg.norm(mean)


@pytest.mark.parametrize("batch_tokens", [40, 4000])
@pytest.mark.parametrize(("max_tokens", "window"), [(512, 30), (16, 16)])
def test_embeddings_are_the_mean_of_all_tokens_of_all_windows(
    encoder: str, batch_tokens: int, max_tokens: int, window: int
) -> None:
    model = DialogEmbedder(
        config.SemanticDeduplication(encoder=encoder, max_tokens=max_tokens, batch_tokens=batch_tokens)
    )
    found = model.embed(TEXTS)
    expected = np.stack([plainly(encoder, text, window) for text in TEXTS])
    assert np.abs(found - expected).max() < 1e-5 and found.dtype == np.float32
    assert model.windows > len(TEXTS) and np.allclose(np.linalg.norm(found, axis=1), 1)
    assert (expected[0] @ expected[[2, 3, 4]].T).max() < 0.99  # they tell texts apart


def test_pieces_of_a_long_text_lose_nothing(encoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "PIECE_CHARACTERS", 50)
    for text in ("one two " * 40, "x" * 120, "", "one\ntwo " + "y" * 60):
        pieces = list(embedding._pieces(text))
        assert "".join(pieces) == text and max(map(len, pieces)) <= 50
    model = DialogEmbedder(config.SemanticDeduplication(encoder=encoder))
    (found,) = model.embed(["one two " * 40])
    assert found @ plainly(encoder, "one two " * 40, 30) > 0.999


def test_chunks_are_kept_and_made_anew_where_something_else_is_asked(
    encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "CHUNK", 2)
    asked = config.SemanticDeduplication(encoder=encoder)
    named = [(f"id{number}", text) for number, text in enumerate(TEXTS[:5])]
    done: list[int] = []
    first = embedding.embedded(tmp_path, named, asked, done.append)
    assert first.shape == (5, 32) and done == [0, 2, 4, 5] and len(list(tmp_path.rglob("*.npz"))) == 3
    assert np.allclose(first, DialogEmbedder(asked).embed(TEXTS[:5]), atol=1e-5)
    made: list[list[str]] = []
    embed = DialogEmbedder.embed
    monkeypatch.setattr(DialogEmbedder, "embed", lambda self, texts: made.append(texts) or embed(self, texts))
    assert (embedding.embedded(tmp_path, named, asked) == first).all() and made == []
    other = embedding.embedded(tmp_path, [named[4], ("new", "another"), named[0]], asked)
    assert made == [["another"]] and (other[[0, 2]] == first[[4, 0]]).all() and len(list(tmp_path.rglob("*.npz"))) == 4
    embedding.embedded(tmp_path, named[:2], config.SemanticDeduplication(encoder=encoder, max_tokens=16))
    assert made == [["another"], TEXTS[:2]]
    assert embedding.embedded(tmp_path, (), asked).shape == (0, 1)
    with pytest.raises(ValueError, match="deduplication.encoder=/nowhere: no config.json"):
        DialogEmbedder(config.SemanticDeduplication(encoder="/nowhere"))


def test_a_real_encoder_finds_what_says_the_same(tmp_path: Path) -> None:
    """Of paraphrases the one with the greater reward is kept, wherever it stands; unlike dialogs stay."""
    given = [
        dialog("How do I boil an egg?", "Put the egg into boiling water for eight minutes, then cool it.", reward=1),
        dialog("What is the tallest mountain on Earth?", "Mount Everest, at 8,849 metres above the sea.", reward=2),
        dialog("How can I boil eggs?", "Put the eggs in boiling water for eight minutes, then cool them.", reward=3),
        dialog("Which mountain is the tallest on Earth?", "Mount Everest, 8,849 metres above sea level.", reward=1),
        dialog("Reverse a list in Python.", "Call reverse(), or take a slice with a step of minus one.", reward=1),
    ]  # fmt: skip
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(one) + "\n" for one in given))
    off = [
        f"{name}.enabled=false" for name in ("topic", "intentions", "difficulty", "quality.judge", "decontamination")
    ]
    arguments = [
        "name=x", f"folder={tmp_path}/out", f"input={tmp_path}/in.jsonl", "quality.reward.share=1", *off,
        f"deduplication.encoder={minilm.folder()}", "deduplication.threshold=0.9",
    ]  # fmt: skip
    filter_data.main(loaded(arguments))
    kept = [one["messages"][0]["content"] for one in read_lines(tmp_path / "out" / outcome.KEPT)]
    assert kept == [given[i]["messages"][0]["content"] for i in (1, 2, 4)]
    gone = read_lines(tmp_path / "out" / outcome.DROPPED)
    assert all(0.9 <= one["quality"]["cosine"] <= 1 for one in gone) and len(gone) == 2
