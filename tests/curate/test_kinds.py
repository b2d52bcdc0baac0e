"""Models of another kind than what they are given for: told before anything runs, with what to give instead."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from llama31 import config
from llama31.command import curating, entry, inputs
from llama31.curate.fast_text import model as fasttext_model
from llama31.curate.fast_text import whole
from llama31.curate.fast_text.model import FastText, FastTextSettings
from llama31.curate.scoring import language
from llama31.curate.scoring.kinds import SCORER

SMALL = FastTextSettings(dimension=8, epochs=1, buckets=100)
LABELS = {"language": ("de", "eng_Latn"), "quality": ("cited", "other"), "knowledge": ("bread_and_wine", "sea")}


def encoder(folder: Path, scorer: dict[str, Any] | None, weights: bool = True, **settings: Any) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["RobertaForSequenceClassification"], **settings}))
    if scorer is not None:
        (folder / SCORER).write_text(json.dumps(scorer))
    if weights:
        (folder / "model.safetensors").touch()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`language`, `quality`, `knowledge` of fastText, and encoders of one output, of classes, and unfit ones."""
    made = tmp_path_factory.mktemp("models")
    for use, labels in LABELS.items():
        lines = [(label, f"words of {label} {number}") for label in labels for number in range(4)]
        fasttext_model.train(lines, made / use, SMALL, use=use)
    (made / "half").write_bytes((made / "quality").read_bytes()[:300])
    encoder(made / "score", {"classes": []}, id2label={"0": "LABEL_0"})
    encoder(made / "classes", {"classes": ["bread", "sea"]})
    encoder(made / "others", None)  # of two outputs, whose names are transformers' own
    encoder(made / "bare", None, weights=False)
    encoder(made / "base", None, architectures=["RobertaForMaskedLM"])
    return made


def checked(models: Path, given: list[str]) -> None:
    words = [
        "name=x",
        f"folder={models}/x",
        f"sources.a.input={models}",
        "sources.a.format=html",
        "tokens.enabled=false",
    ]
    run = entry.compose(config.Curate, "curate", [*words, *(re.sub("@", f"{models}/", word) for word in given)])
    assert not curating.problems(run)
    inputs.check(run)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ["cited.model=@language"],
            "cited.model=@language: it knows de, eng_Latn, and no cited; make one by python -m",
        ),
        (["cited.model=@score"], "cited.model=@score: it is a folder; give a model of fastText"),
        (["cited.model=@half"], "cited.model=@half: the file ends in its head; train it again"),
        (["cited.model=s3://a/b.bin"], "cited.model=s3://a/b.bin: there is no such folder or file"),
        (["language.model=@quality"], "language.model=@quality: it knows cited, other, and no language; give lid.176"),
        (["language.model=@language", "language.languages=[en,fr]"], "language.languages=fr: @language knows no such"),
        (["knowledge.model=@language"], "knowledge.model=@language: it knows de, eng_Latn, and no classes of"),
        (["knowledge.model=@score"], "knowledge.model=@score: it gives a score, and no classes of knowledge"),
        (
            ["knowledge.model=@knowledge", "knowledge.largest_shares={bread: 0.1}"],
            "knowledge.largest_shares=bread: @knowledge knows no such class; give some of bread and wine, sea",
        ),
        (
            ["encoders.a.model=@classes"],
            "encoders.a.label=null: which of its classes is scored?; give one of bread, sea",
        ),
        (["encoders.a.model=@classes", "encoders.a.label=wine"], "encoders.a.label=wine: @classes has no such class"),
        (["encoders.a.model=@others"], "encoders.a.label=null: which of its classes is scored?; give one of LABEL_0"),
        (["encoders.a.model=@score", "encoders.a.label=sea"], "encoders.a.label=sea: @score has one output"),
        (["encoders.a.model=@bare"], "encoders.a.model=@bare: there are no weights in it; make one by python -m"),
        (["encoders.a.model=@base"], "encoders.a.model=@base: it was not trained to classify (RobertaForMaskedLM)"),
    ],
)
def test_models_of_another_kind_are_told_before_anything_runs(given: list[str], said: str, models: Path) -> None:
    with pytest.raises(config.ConfigError) as error:
        checked(models, given)
    assert said.replace("@", f"{models}/") in str(error.value)


def test_models_that_fit_are_taken(models: Path) -> None:
    shares = ["knowledge.largest_shares={bread and wine: 0.1, other: 0.2}", "best.score=cited", "best.shares={en: 0.5}"]
    fit = ["language.model=@language", "cited.model=@quality", "knowledge.model=@knowledge", *shares]
    checked(models, [*fit, "encoders.a.model=@score", "encoders.b.model=@classes", "encoders.b.label=sea"])
    checked(models, ["encoders.a.model=@others", "encoders.a.label=LABEL_1", "knowledge.model=@classes"])


def test_no_model_is_asked_for_in_the_folder_of_one(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(models / "bare")
    checked(models, [])


def test_labels_are_those_that_the_library_reads(models: Path, tmp_path: Path) -> None:
    for use, labels in LABELS.items():
        assert whole.check(models / use) == FastText(models / use).labels == labels
    texts = [(f"x{number:04d}", f"word {number} " * 5) for number in range(3000)]  # heads of more than one piece
    language.train(texts, tmp_path / "many.bin", settings=SMALL)
    assert os.path.getsize(tmp_path / "many.bin") > 2 * whole.PIECE
    assert whole.check(tmp_path / "many.bin") == tuple(name for name, _ in texts)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("cited.threshold=0.5", "cited.threshold=0.5: nobody gives that score; give cited.model=FILE too"),
        ("language.threshold=0.9", "language.threshold=0.9: nobody says how sure a language is"),
        ("knowledge.largest_share=0.3", "knowledge.largest_share=0.3: nobody says what a text is about"),
        ("class_threshold=0.7", "class_threshold=0.7: no score gives a class; give encoders.code.model=FOLDER or"),
    ],
)
def test_limits_of_scores_that_nobody_gives_are_refused(given: str, said: str, models: Path) -> None:
    words = ["name=x", f"sources.a.input={models}", "sources.a.format=html", "tokens.enabled=false", given]
    assert said in str(curating.problems(entry.compose(config.Curate, "curate", words))[0])


def test_a_score_of_some_pages_alone_chooses_none(models: Path) -> None:
    words = ["name=x", f"sources.a.input={models}", "sources.a.format=html", "tokens.enabled=false"]
    words += ["encoders.code.model=m", "encoders.code.only=technical", "best.score=code"]
    (issue,) = curating.problems(entry.compose(config.Curate, "curate", words))
    assert "gives it to technical pages alone, and all others would go; leave encoders.code.only out" in str(issue)
