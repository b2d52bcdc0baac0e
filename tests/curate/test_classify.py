"""`recipes.classify`: labels from a server, and models trained on them and on documents."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from datatrove.data import Document

from llama31 import config
from llama31.command import entry, inputs
from llama31.curate.fast_text import model as fasttext_model
from llama31.curate.fast_text.model import FastText
from llama31.curate.scoring import knowledge, labels, language, quality
from llama31.curate.scoring.criteria import KNOWLEDGE
from recipes import classify
from tests.sampling.scripted import Script, serving

KNOWLEDGE_OF_TWO = replace(KNOWLEDGE, answers={"bread": "baking", "sea": "ships"})
FLOUR, TIDE = "flour water salt oven bread crust", "tide ship sail harbour wave anchor"


@dataclass
class Librarian(Script):
    """A chat model that files documents by their words."""

    def text(self, number: int, prompt: Any, body: Mapping[str, Any], choice: int) -> str:
        return f"Class: {'bread' if 'flour' in prompt[0]['content'].partition('=====')[2] else 'sea'}"


def records(path: Path, words: str, count: int, **more: str) -> Path:
    """Documents of the same words in other orders."""
    each = words.split()
    texts = [" ".join(each[i % len(each) :] + each[: i % len(each)]) + f" {words[:5]}{i}" for i in range(count)]
    path.write_text("".join(json.dumps({"text": text, **more}) + "\n" for text in texts), encoding="utf-8")
    return path


def run(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """What a command prints."""
    classify.main(entry.read(config.Classify, "classify", list(words))[0])
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    return said


def test_labels_of_a_server_become_a_model_of_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = tmp_path / "pages.jsonl"
    parts = [records(tmp_path / name, words, 40).read_text() for name, words in (("a", FLOUR), ("b", TIDE))]
    both.write_text("".join(parts))
    folder = tmp_path / "labels"
    with serving(Librarian()) as url:
        asked = [f"documents={both}", f"output={folder}", f"server.urls=[{url}]", "criteria=knowledge"]
        said = run(capsys, "task=label", *asked, "classes={bread: baking, sea: ships}", "limit=70")
    assert said["labels"] == {"bread": 33, "sea": 37}  # drawn from all of the file, not its first lines
    said = run(capsys, "task=knowledge", f"labels={folder}", f"output={tmp_path}/kind.bin", "fast_text.dimension=8")
    by_class = {name: one["accuracy"] for name, one in said["held_out"]["by_class"].items()}
    assert by_class == {"bread": 1, "sea": 1} and (tmp_path / "kind.bin.png").is_file()
    assert said["held_out"]["accuracy"] == 1 and FastText(tmp_path / "kind.bin").best("flour and salt")[0] == "bread"


def test_cited_pages_are_told_from_others_and_languages_from_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bread, sea = (
        records(tmp_path / "a.jsonl", FLOUR, 60, language="xa"),
        records(tmp_path / "b.jsonl", TIDE, 60, language="xb"),
    )
    given = [f"documents={bread}", f"others={sea}", f"output={tmp_path}/cited.bin", "fast_text.dimension=8"]
    said = run(capsys, "task=cited", *given, "fast_text.seed=3")
    assert said["held_out"]["auc"] == 1 and (tmp_path / "cited.bin.png").is_file()
    assert said["settings"]["seed"] == 3
    (tmp_path / "c.jsonl").write_text(bread.read_text() + sea.read_text())
    given = [f"documents={tmp_path}/c.jsonl", f"output={tmp_path}/language.bin", "fast_text.dimension=8"]
    said = run(capsys, "task=language", *given, "fast_text.share=0.2")
    settings = said["settings"]  # what is not given is a language model's own
    assert (settings["dimension"], settings["epochs"], settings["longest"]) == (8, 15, 4)
    assert said["held_out"]["by_class"].keys() == {"xa", "xb"} and said["held_out"]["accuracy"] > 0.9
    assert sum(said["lines"].values()) + said["held_out"]["documents"] == 120
    assert (tmp_path / "language.bin.png").is_file()
    assert language.identify(FastText(tmp_path / "language.bin"), "harbour and anchor")[0] == "xb"
    with pytest.raises(ValueError, match="2 of 2 records have no language; give each the field `language`"):
        records(tmp_path / "d.jsonl", FLOUR, 2)
        run(capsys, "task=language", f"documents={tmp_path}/d.jsonl", f"output={tmp_path}/other.bin")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["task=label", "documents=a"],
            r"server.urls=\[\]: labels come from a chat model behind a server",
        ),
        (["task=encoder", "labels=/tmp"], "base=: task=encoder needs it; give the folder of a model"),
        (["task=knowledge", "labels=conf"], "labels=conf: there are no labels in it; make them by task=label"),
        (["task=encoder", "labels=/tmp", "base=/tmp"], "base=/tmp: there is no config.json in it"),
        (["task=cited", "documents=a"], "others=: task=cited needs it; give JSON lines"),
        (["task=language"], "documents=: task=language needs it"),
        (["task=cited", "documents=conf/*.yaml", "others=a/**/b"], r"^others=a/\*\*/b: there is no such file"),
        (["task=encoder", "labels=/tmp", "base=/tmp", "output=conf"], "output=conf: it is there already; take it away"),
        (["task=label", "documents=a", "output=README.md"], "output=README.md: is no folder"),
        (["task=label", "documents=a", "classes={a: b}"], "classes=a: grades have none; give criteria=knowledge too"),
        (["task=label", "criteria=knowledge", "classes={a: b}"], "classes=a: one class tells nothing apart; give two"),
        (
            ["task=language", "documents=a", "limit=5"],
            "limit=5: task=language does not take it; leave it out; task=label does",
        ),
        (["task=knowledge", "encoder.seed=1"], r"encoder=\.\.\.: task=knowledge does not take it"),
    ],
)
def test_what_a_task_needs_and_does_not_take_is_said(words: list[str], said: str) -> None:
    with pytest.raises(config.ConfigError, match=said):
        inputs.check(entry.read(config.Classify, "classify", ["output=x", *words])[0])


def test_labels_of_another_kind_and_files_without_text_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "labels.jsonl").write_text("")
    words = [f"labels={tmp_path}", f"output={tmp_path}/x.bin"]
    given = entry.read(config.Classify, "classify", ["task=knowledge", *words])[0]
    with pytest.raises(config.ConfigError, match="there are no labels in it; make them by task=label"):
        inputs.check(given)
    (tmp_path / "labels.jsonl").write_text(json.dumps({"document": "a", "label": "3"}) + "\n")
    (tmp_path / "criteria.json").write_text(json.dumps({"criteria": {"name": "code", "passing": "3"}}))
    with pytest.raises(config.ConfigError, match="they are grades of criteria=code, and no classes; give those of"):
        inputs.check(given)
    (tmp_path / "pages.jsonl").write_text('{"content": "text"}\n' * 2)
    words = ["task=cited", f"documents={records(tmp_path / 'a', FLOUR, 9)}", f"output={tmp_path}/x.bin"]
    with pytest.raises(
        ValueError, match=r"others=.*pages\.jsonl: no document in it \(left out: without text: 2\); give"
    ):
        run(capsys, *words, f"others={tmp_path}/pages.jsonl")


def test_words_of_classes_are_those_of_the_language(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """French puts its elided words apart: as the model is asked, so it learns."""
    learned: list[tuple[str, str]] = []
    monkeypatch.setattr(fasttext_model, "train", lambda lines, path, *_, **__: learned.extend(lines))
    folder = tmp_path / "labels"
    texts = {f"{i}": f"l'eau et l'air de {i}" for i in range(30)}
    given = [Document(text=text, id=i, metadata={"language": "fr"}) for i, text in texts.items()]
    with serving(Librarian()) as url:
        labels.collect(folder, given, KNOWLEDGE_OF_TWO, config.Server(urls=[url]))
    with pytest.raises(ValueError, match="no such file"):  # none was written
        knowledge.train(labels.read(folder)[0], tmp_path / "x.bin")
    assert learned and all(line.startswith("l' eau et l' air de ") for _, line in learned)


def test_a_language_that_is_held_out_whole_and_nothing_to_judge_by_are_told(tmp_path: Path) -> None:
    texts = [("xa", f"{FLOUR} {i}") for i in range(20)] + [("xb", f"{TIDE} {i}") for i in range(20)]
    held = next(text for i in range(99) if quality.held_out(text := f"only one {i}", 0.1))
    with pytest.raises(ValueError, match="xc: no document left to train on; give more of them"):
        language.train([*texts, ("xc", held)], tmp_path / "x.bin", share=0.1)
    kept = [one for one in texts if not quality.held_out(one[1], 0.1)]
    with pytest.raises(ValueError, match="documents: none is left to judge by"):
        language.train(kept, tmp_path / "x.bin", share=0.1)
    assert not [*tmp_path.iterdir()]
