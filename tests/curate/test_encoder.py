"""An encoder learns labels, says how sure it is, and scores documents in batches as one by one."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datatrove.data import Document
from transformers import RobertaConfig

from llama31 import config
from llama31.command import entry
from llama31.curate.scoring import encoder, knowledge, labels, language, training
from llama31.curate.scoring.criteria import GENERAL
from llama31.curate.scoring.encoder import Encoder, EncoderFilter, softmax
from llama31.curate.scoring.labels import Labelled
from llama31.curate.scoring.training import EncoderSettings
from recipes import classify
from tests.curate import multilingual, roberta

pytestmark = pytest.mark.torch

QUICK = EncoderSettings(epochs=3, learning_rate=2e-3, batch_size=16, max_tokens=64, share=0.3)


@pytest.fixture(scope="module")
def pages() -> list[tuple[str, str, str]]:
    return multilingual.texts(60)


@pytest.fixture(scope="module")
def base(pages: list[tuple[str, str, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return roberta.write(tmp_path_factory.mktemp("base"), (text for _, _, text in pages))


def pieces(pages: list[tuple[str, str, str]], languages: dict[str, str]) -> list[Labelled]:
    cut = [
        (languages[code], piece)
        for code, _, text in pages
        if code in languages
        for piece in [*language.pieces(text, 150)][:6]
    ]
    return [Labelled(f"{i:04d}", piece, label) for i, (label, piece) in enumerate(cut)]


@pytest.fixture(scope="module")
def graded(pages: list[tuple[str, str, str]], base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scorer that holds German for good."""
    folder = tmp_path_factory.mktemp("graded") / "scorer"
    examples = pieces(pages, {"de": "4", "fr": "1", "es": "2"})
    training.train(examples, folder, base, target=GENERAL.target, settings=QUICK, criteria="general")
    return folder


@pytest.fixture(scope="module")
def classes(pages: list[tuple[str, str, str]], base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classes") / "classes"
    examples = pieces(pages, {"de": "german", "fr": "french", "es": "other"})
    training.train(examples, folder, base, classes=["german", "french", "other"], settings=QUICK)
    return folder


def test_a_scorer_learns_and_is_calibrated(graded: Path) -> None:
    described = json.loads((graded / "scorer.json").read_text())
    judged, raw = described["held_out"], described["uncalibrated"]
    assert judged["auc"] > 0.95 and judged["documents"] > 60 and described["losses"][-1] < described["losses"][0]
    assert judged["calibration_error"] < 0.12 and judged["auc"] == pytest.approx(raw["auc"])
    assert described["criteria"] == "general" and set(described["counts"]) == {"train", "calibrate", "judge"}
    assert (graded / "reliability.png").read_bytes()[1:4] == b"PNG"


def test_classes_are_told_apart(classes: Path, pages: list[tuple[str, str, str]]) -> None:
    described = json.loads((classes / "scorer.json").read_text())
    assert described["accuracy"] > 0.85 and 0.049 < described["temperature"] < 1.5
    assert RobertaConfig.from_pretrained(classes).id2label == {0: "german", 1: "french", 2: "other"}
    german = next(text for code, _, text in pages if code == "de")
    block = knowledge.KnowledgeLabeller(str(classes), settings={"max_tokens": 64})
    given = [Document(german, "a"), Document("", "b"), Document("\ud800 \0", "c")]
    found = [*block.run(iter(given))]
    assert [one.id for one in found] == ["a", "b", "c"] and found[0].metadata["knowledge"] == "german"
    assert found[1].metadata["knowledge"] == "other" and 0 < found[0].metadata["knowledge_probability"] <= 1
    with pytest.raises(ValueError, match="label=good: the model knows german, french, other"):
        [*EncoderFilter(str(classes), label="good").run(iter(given[:1]))]
    with pytest.raises(ValueError, match="it knows classes"):
        [*EncoderFilter(str(classes)).run(iter(given[:1]))]
    (one,) = EncoderFilter(str(classes), label="german", max_tokens=64).run(iter(given[:1]))
    assert one.metadata["quality"] == one.metadata["knowledge_probability"]
    model = Encoder(classes)
    calibrated = softmax(model.logits([german]) / described["temperature"])
    assert described["temperature"] != 1 and np.allclose(model.probabilities([german]), calibrated)


def test_the_same_seed_gives_the_same_bits(pages: list[tuple[str, str, str]], base: Path, tmp_path: Path) -> None:
    examples = pieces(pages, {"de": "4", "fr": "1"})[::3]
    shuffled = random.Random(3).sample(examples, len(examples))
    for name, given in (("a", examples), ("b", shuffled)):
        training.train(given, tmp_path / name, base, target=GENERAL.target, settings=QUICK)
    contents = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert contents[0] == contents[1]
    # What was trained can be taken on, with another number of outputs.
    again = training.train(examples, tmp_path / "c", tmp_path / "a", classes=["1", "4"], settings=QUICK)
    fresh = training.train(examples, tmp_path / "d", base, classes=["1", "4"], settings=QUICK)
    assert again["losses"][0] < fresh["losses"][0]


def test_batches_change_no_score(graded: Path, pages: list[tuple[str, str, str]]) -> None:
    """In batches by length, with padding, as one by one and by transformers alone."""
    chance = random.Random(5)
    texts = ["", " ", *(text[: chance.randint(1, 400)] for _, _, text in pages[::4])]
    batched = Encoder(graded, max_tokens=64, batch_tokens=512)
    one_by_one = Encoder(graded, max_tokens=64, batch_tokens=1)
    scores = batched.scores(texts)
    np.testing.assert_allclose(scores, one_by_one.scores(texts), atol=1e-5)
    assert one_by_one.padded == one_by_one.tokens == batched.tokens < batched.padded < 1.25 * batched.tokens
    slope, intercept = batched.described["scale"]
    for text, score in list(zip(texts, scores))[2:12]:
        encoded = batched.tokenizer(text, truncation=True, max_length=64, return_tensors="pt")
        with torch.inference_mode():
            logit = float(batched.network(**encoded).logits)
        assert score == pytest.approx(1 / (1 + np.exp(-slope * logit - intercept)), abs=1e-5)
    assert batched.cut == sum(len(batched.tokenizer(text)["input_ids"]) > 64 for text in texts) > 0


def documents(pages: list[tuple[str, str, str]], count: int) -> list[Document]:
    return [
        Document(
            text[: 40 + 20 * (i % 9)],
            f"d{i}",
            metadata={"language": code, "file_path": f"{i // 7}.jsonl", "extraction": kind},
        )
        for i, ((code, _, text), kind) in enumerate(zip(pages[:count], ["general", "technical"] * count))
    ]


def test_scores_do_not_depend_on_the_tasks(graded: Path, pages: list[tuple[str, str, str]]) -> None:
    """Files that one task reads one after the other, and two tasks each in part: the same digits in the same order."""
    alone = [*EncoderFilter(str(graded), max_tokens=64, window=5).run(iter(documents(pages, 42)))]
    shared: list[Document] = []
    for files in ("024", "135"):
        given = [one for one in documents(pages, 42) if one.metadata["file_path"][0] in files]
        shared += EncoderFilter(str(graded), max_tokens=64, window=5).run(iter(given))
    assert {one.id: one.metadata["quality"] for one in alone} == {one.id: one.metadata["quality"] for one in shared}
    assert [one.id for one in alone] == [f"d{i}" for i in range(42)]


def test_documents_are_filtered_and_counted(graded: Path, pages: list[tuple[str, str, str]]) -> None:
    mixed = sorted(pages, key=lambda one: hash_of(one[2]))
    given = [*documents(mixed, 60), Document(" ", "empty", metadata={"extraction": "technical"})]
    given.append(Document("long word " * 100_000, "long", metadata={"extraction": "technical"}))
    block = EncoderFilter(
        str(graded), threshold=0.5, thresholds={"fr": 0.0}, only={"extraction": "technical"}, max_tokens=64
    )
    kept = [*block.run(iter(given))]
    counts = {name: int(stat.total) for name, stat in block.stats.stats.items()}
    assert counts["not asked about"] == 30 == sum("quality" not in one.metadata for one in kept)
    assert all(one.metadata["quality"] >= 0.5 for one in kept if one.metadata.get("language") not in ("fr", None)
               and "quality" in one.metadata)  # fmt: skip
    dropped = [one for one in given if one not in kept]
    assert {"empty", "long"} >= {one.id for one in dropped if "language" not in one.metadata} >= {"empty"}
    assert {one.metadata.get("language") for one in kept if "quality" in one.metadata} >= {"de", "fr"}
    assert counts["dropped"] == counts["dropped_quality below 0.5"] == len(dropped) > 5 and counts["cut"] > 5
    assert 0 < counts["padding"] < 0.25 * counts["tokens"]


def hash_of(text: str) -> int:
    return sum(text.encode())


def test_batches_hold_everything_once_within_their_budget() -> None:
    chance = random.Random(7)
    for _ in range(200):
        lengths = [chance.randint(1, 60) for _ in range(chance.randint(0, 40))]
        budget = chance.randint(1, 200)
        cut = encoder.batches(lengths, budget)
        assert sorted(place for batch in cut for place in batch) == [*range(len(lengths))]
        for batch, behind in zip(cut, [*cut[1:], None]):
            longest = max(lengths[place] for place in batch)
            assert len(batch) * longest <= budget or len(batch) == 1
            assert min(lengths[place] for place in batch) >= 0.8 * longest
            if behind is not None:  # no room was left, or what comes is much shorter
                longest_behind = max(lengths[place] for place in behind)
                assert (len(batch) + 1) * longest > budget or longest_behind < 0.8 * longest
                assert longest_behind <= longest


def test_windows_are_runs_of_one_file(monkeypatch: pytest.MonkeyPatch) -> None:
    given = [
        Document("x" * 10, f"d{i}", metadata={"file_path": path} if path else {}) for i, path in enumerate("aaabbb")
    ]
    cut = [[one.id for one in window] for window in encoder.windows(given, 2)]
    assert cut == [["d0", "d1"], ["d2"], ["d3", "d4"], ["d5"]]
    monkeypatch.setattr(encoder, "WINDOW_CHARACTERS", 15)
    assert [len(window) for window in encoder.windows(given, 100)] == [2, 1, 2, 1]
    assert [*encoder.windows([], 5)] == []


def test_an_epoch_visits_everything_once_in_an_order_of_its_own() -> None:
    lengths = [random.Random(i).randint(1, 99) for i in range(1000)]
    orders = [[*training.order(lengths, 8, seed)] for seed in (0, 0, 1)]
    assert sorted(place for batch in orders[0] for place in batch) == [*range(1000)]
    assert orders[0] == orders[1] != orders[2]
    spread = np.mean([max(lengths[i] for i in batch) - min(lengths[i] for i in batch) for batch in orders[0]])
    assert spread < 10


def test_what_cannot_be_trained_is_refused(base: Path, tmp_path: Path) -> None:
    few = [Labelled(f"{i}", f"text {i}", "1") for i in range(3)]
    many = [Labelled(f"{i}", f"text {i}", str(i % 2)) for i in range(60)]
    good = [Labelled(f"{i}", f"text {i}", "1") for i in range(60)]
    rare = [replace(one, label=str(int(i < 2))) for i, one in enumerate(many)]
    cases: list[tuple[str, Any]] = [
        ("labels=3: none is left to", {"examples": few, "target": float}),
        ("give one of them", {"examples": many}),
        ("there are labels beside them, 0, 1", {"examples": many, "classes": ["2", "3"]}),
        ("labels=60: all 46 to train on are good; label other documents", {"examples": good, "target": float}),
        ("labels=60: all 46 to train on are of one class", {"examples": good, "classes": ["0", "1"]}),
        ("labels=60: all [0-9]+ to (calibrate|judge) by are bad", {"examples": rare, "target": float}),
        ("base=.*no config.json", {"examples": many, "target": float, "base": tmp_path}),
        ("folder=.*there already", {"examples": many, "target": float, "folder": base}),
    ]
    for said, given in cases:
        with pytest.raises(ValueError, match=said):
            training.train(**{"folder": tmp_path / "x", "base": base, "settings": QUICK, **given})
    with pytest.raises(ValueError, match="model=.*no config.json"):
        Encoder(tmp_path)
    assert not [*tmp_path.iterdir()]


def test_the_recipe_trains_on_what_was_asked(pages: list[tuple[str, str, str]], base: Path, tmp_path: Path) -> None:
    """Grades by the question that stands with the labels."""
    examples = sorted(pieces(pages, {"de": "4", "fr": "1"}), key=lambda one: one.text[::-1])[:160]  # of both languages
    folder = tmp_path / "labels"
    labels._settle(folder, GENERAL, 500)
    for name, each in (
        ("documents", [{"document": one.document, "text": one.text} for one in examples]),
        ("labels", [{"document": one.document, "label": one.label} for one in examples]),
    ):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in each))
    keys = ["encoder.epochs=1", "encoder.learning_rate=2e-3", "encoder.batch_size=16", "encoder.share=0.3"]
    words = ["task=encoder", f"labels={folder}", f"base={base}", f"output={tmp_path}/model", *keys]
    classify.main(entry.read(config.Classify, "classify", words)[0])
    described = json.loads((tmp_path / "model/scorer.json").read_text())
    assert described["criteria"]["name"] == "general" and described["settings"]["learning_rate"] == 2e-3
    assert Encoder(tmp_path / "model").scores([one.text for one in examples[:4]]) is not None
