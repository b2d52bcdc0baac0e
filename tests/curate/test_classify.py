"""`recipes.classify`: labels from a server, and models trained on them and on documents."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llama31 import config
from llama31.command import entry, inputs
from llama31.curate.fast_text.model import FastText
from llama31.curate.scoring import language
from recipes import classify
from tests.sampling.scripted import Script, serving

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
    run(capsys, "task=language", f"documents={tmp_path}/c.jsonl", f"output={tmp_path}/language.bin")
    assert language.identify(FastText(tmp_path / "language.bin"), "harbour and anchor")[0] == "xb"
    with pytest.raises(ValueError, match="a record has no language; give each the field `language`"):
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
    ],
)
def test_what_a_task_needs_is_said(words: list[str], said: str) -> None:
    with pytest.raises(config.ConfigError, match=said):
        inputs.check(entry.read(config.Classify, "classify", ["output=x", *words])[0])
