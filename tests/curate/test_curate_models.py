"""From a chat model's labels to stages that ask what was trained on them: an encoder and classes, on Debian's pages."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from llama31 import config
from llama31.command import curating, entry
from llama31.curate.outcome import page, summary
from llama31.curate.passage.shards import ShardReader
from llama31.curate.running import folder, local, stages
from recipes import classify
from tests.curate import debian, multilingual, roberta
from tests.sampling.scripted import Script, serving

pytestmark = pytest.mark.torch

PARTS = {"sbasic": "macros", "scalc": "tables", "swriter": "letters"}  # of LibreOffice's help, by folder


@dataclass
class Reader(Script):
    """A chat model that knows the pages: which part of the help each belongs to, and that macros alone are code."""

    known: dict[str, str] = field(default_factory=dict)

    def text(self, number: int, prompt: Any, body: Mapping[str, Any], choice: int) -> str:
        asked = prompt[0]["content"]
        about = next(PARTS[part] for begin, part in self.known.items() if begin in asked)
        if '"Class: X"' in asked:
            return f"Class: {about}"
        return f"Grade: {5 if about == 'macros' else 0}"


def part(name: str) -> str:
    return next((one for one in PARTS if f"/{one}/" in f"/{name}"), "")


def done(*words: str) -> dict[str, Any]:
    """What `recipes.classify` says of a task."""
    run = entry.read(config.Classify, "classify", list(words))[0]
    does: dict[str, Any] = getattr(classify, run.task)(run)
    return does


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    found = multilingual.english(420)
    return {name: text for name, text in found.items() if part(name)}


@pytest.fixture(scope="module")
def models(pages: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder that grades code and a fastText model of classes, by the commands of `recipes.classify`."""
    made = tmp_path_factory.mktemp("models")
    documents = made / "sample.jsonl"
    documents.write_text("".join(json.dumps({"text": text, "id": name}) + "\n" for name, text in pages.items()))
    roberta.write(made / "base", pages.values())
    known = {text[:250].strip(): part(name) for name, text in pages.items()}
    with serving(Reader(known=known)) as url:
        for criteria, more in (("code", []), ("knowledge", ["classes={macros: '', tables: '', letters: ''}"])):
            asked = [f"documents={documents}", f"output={made}/{criteria}-labels", f"server.urls=[{url}]", *more]
            said = done("task=label", f"criteria={criteria}", "characters=600", *asked)
            assert sum(said["labels"].values()) == len(pages) and "no label" not in said["labels"]
    keys = ["encoder.epochs=12", "encoder.learning_rate=2e-3", "encoder.batch_size=8", "encoder.share=0.3"]
    keys += [f"labels={made}/code-labels", f"base={made}/base", "encoder.max_tokens=128"]
    assert done("task=encoder", f"output={made}/code", *keys)["accuracy"] > 0.85
    done("task=knowledge", f"output={made}/kinds.bin", f"labels={made}/knowledge-labels", "fast_text.dimension=16")
    return made


def curated(models: Path, target: Path, pages: Path, *further: str) -> tuple[Path, dict[str, Any]]:
    """The folder and the report of a run."""
    words = ["name=x", f"folder={target}", f"sources.help.input={pages}", "sources.help.format=html", "workers=1"]
    words += [f"{name}.enabled=false" for name in ("repetition", "quality", "c4", "minhash", "lines", "personal")]
    words += ["tokenizer.kind=bpe", f"tokenizer.path={models}/bpe", "tokenizer.vocab_size=600"]
    words += [f"encoders.code.model={models}/code", f"knowledge.model={models}/kinds.bin", *further]
    run, issues = entry.compose(config.Curate, "curate", words), []
    issues += curating.problems(run) + curating.missing(run)
    assert not issues
    known = stages.stages(run, folder.opened(run).tasks)
    local.execute(run, known, known)
    content = summary.summary(target, "x", known, 2)
    assert "Encoder score: quality_code" in page.html(content)
    return target, content


def selected(target: Path, stage: str) -> dict[str, dict[str, Any]]:
    documents = ShardReader(sorted(target.glob(f"{stage}/documents/*"))).run(None)
    return {document.id: document.metadata for document in documents}


@pytest.fixture(scope="module")
def html(pages: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pages as they come."""
    target = tmp_path_factory.mktemp("html")
    root = debian.folder("libreoffice-help-en-us") / "usr/share/libreoffice/help/en-US"
    for name in pages:
        shutil.copy2(root / name, target / name.replace("/", "_"))
    return target


def test_scores_give_classes_and_fewer_of_what_there_is_much_of(
    pages: dict[str, str], models: Path, html: Path, tmp_path: Path
) -> None:
    """A document is of the class code by its score, and of a kind by fastText; letters are the smallest heap."""
    given = ["knowledge.largest_share=0.35", "tasks=3"]
    target, content = curated(models, tmp_path / "a", html, *given)
    scored, kept = selected(target, "score"), selected(target, "select")
    assert len(scored) == len(pages) and kept.keys() < scored.keys()
    code = {one for one, told in scored.items() if told["class"] == "code"}
    assert all((scored[one]["quality_code"] >= 0.5) == (one in code) for one in scored)
    right = [("sbasic" in one) == (one in code) for one in scored]
    assert sum(right) > 0.85 * len(right)
    kinds = [scored[one]["knowledge"] == PARTS[name] for one in scored for name in PARTS if name in one]
    assert sum(kinds) > 0.85 * len(kinds)
    (block,) = [one for stage in content["stages"] for one in stage["blocks"] if one["name"] == "Fewer of a class"]
    assert sum(one["documents"] for one in block["removed"].values()) == len(scored) - len(kept) > 0
    assert all(reason.startswith("more ") for reason in block["removed"])
    documents = {name: sum(one[split]["documents"] for split in one) for name, one in content["packed"].items()}
    assert documents == Counter(f"{told['class']}-en" for told in kept.values())
    # Other shares ask no model again.
    before = [(target / f"score/manifests/{rank:05d}.json").stat().st_mtime_ns for rank in range(3)]
    curated(models, tmp_path / "a", html, "knowledge.largest_share=0.9", "tasks=3", "overwrite=true")
    assert [(target / f"score/manifests/{rank:05d}.json").stat().st_mtime_ns for rank in range(3)] == before
    assert selected(target, "select").keys() == scored.keys()
