"""Scores and the best of each language as stages: what a model says decides who stays, on any number of tasks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datatrove.data import Document

from llama31 import config
from llama31.command import curating, entry
from llama31.curate.outcome import summary
from llama31.curate.passage.shards import ShardReader
from llama31.curate.running import folder, local, stages
from llama31.curate.scoring import quality

GOOD = "The system of number {} was described by scholars in detail, with references to works on its history {}."
BAD = "click here buy now {} cheap offer button menu open file {} help"


def made(target: Path, model: Path, tasks: int) -> dict[str, float]:
    """Ids and scores of what is selected."""
    words = ["name=x", f"folder={target}", f"sources.a.input={model.parent / 'pages'}", "sources.a.format=jsonl"]
    words += [f"{name}.enabled=false" for name in ("repetition", "quality", "c4", "minhash", "lines", "tokens")]
    words += [f"tasks={tasks}", "workers=1", f"cited.model={model}", "best.score=cited", "best.share=0.5"]
    run = entry.compose(config.Curate, "curate", words)
    known = stages.stages(run, folder.opened(run).tasks)
    assert [stage.name for stage in known][-3:] == ["score", "ranking", "select"]
    local.execute(run, known, known)
    documents = ShardReader(sorted(target.glob("select/documents/*"))).run(None)
    return {document.id: document.metadata["quality_cited"] for document in documents}


def test_the_better_half_stays_whatever_the_number_of_tasks(tmp_path: Path) -> None:
    texts = {kind: [form.format(i, i % 7) for i in range(60)] for kind, form in (("good", GOOD), ("bad", BAD))}
    documents = {
        kind: [Document(text=text, id=f"{kind}-{text}") for text in several] for kind, several in texts.items()
    }
    quality.train(documents["good"], documents["bad"], tmp_path / "cited.bin")
    (tmp_path / "pages").mkdir()
    for number in range(4):
        rows = [
            {"id": f"{kind}-{i}", "text": texts[kind][i], "language": "en"}
            for kind in texts
            for i in range(number, 60, 4)
        ]
        (tmp_path / f"pages/{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    one, three = (made(tmp_path / str(tasks), tmp_path / "cited.bin", tasks) for tasks in (1, 3))
    assert one == three and len(one) == 60
    assert sum(id_.startswith("good") for id_ in one) >= 55


def test_the_best_of_near_duplicates_stays_by_a_field_or_by_a_model(tmp_path: Path) -> None:
    """Of each pair the first is newer and longer, the second better."""
    good, bad = "references to the works of scholars on history", "click here to buy cheap offers now"
    heaps = [[Document(text=f"{words} {i}", id=f"{words}-{i}") for i in range(60)] for words in (good, bad)]
    quality.train(heaps[0], heaps[1], tmp_path / "cited.bin")
    (tmp_path / "pages").mkdir()
    pages = []
    for number in range(5):
        same = " ".join("".join("abcdefghij"[int(digit)] for digit in f"{1000 * number + i:04d}") for i in range(150))
        pages.append({"id": f"bad-{number}", "text": f"{same} {bad}", "grade": 1 + number, "date": "2026-02-02"})
        pages.append({"id": f"good-{number}", "text": f"{same} {good}", "grade": 2.5 + number, "date": "2026-01-01"})
        pages[-2]["text"] += " and more of it"
    (tmp_path / "pages/a.jsonl").write_text("".join(json.dumps({**one, "language": "en"}) + "\n" for one in pages))

    told = dict[str, list[str]]()

    def left(name: str, *further: str) -> set[str]:
        words = ["name=x", f"folder={tmp_path / name}", f"sources.a.input={tmp_path}/pages", "sources.a.format=jsonl"]
        words += [f"{name}.enabled=false" for name in ("repetition", "quality", "c4", "divergence", "tokens", "lines")]
        run = entry.compose(config.Curate, "curate", [*words, "tasks=2", "workers=1", *further])
        assert not curating.problems(run)
        known = stages.stages(run, folder.opened(run).tasks)
        local.execute(run, known, known)
        told[name] = summary.warnings(summary.summary(tmp_path / name, "x", known, 1))
        last = "score" if run.cited.model else "deduplicate"
        return {one.id for one in ShardReader(sorted((tmp_path / name).glob(f"{last}/documents/*"))).run(None)}

    better, newer = ({f"{kind}-{number}" for number in range(5)} for kind in ("good", "bad"))
    assert left("newest") == left("longest", "minhash.keep=longest") == newer
    assert left("field", "minhash.keep=best", "minhash.score=grade") == better
    assert left("model", "minhash.keep=best", "minhash.score=cited", f"cited.model={tmp_path}/cited.bin") == better
    assert len(left("absent", "minhash.keep=best", "minhash.score=grades")) == 5
    (line,) = told.pop("absent")
    assert "minhash.score=grades: no document has a number there" in line and not any(told.values())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["minhash.keep=best"], "minhash.score=: best by which score?; give cited, or the field of records"),
        (["minhash.score=cited"], "minhash.score=cited: keep=newest goes by none; give minhash.keep=best too"),
        (
            ["minhash.keep=best", "minhash.score=cited"],
            "minhash.score=cited: nobody gives that score; give cited.model",
        ),
        (
            ["minhash.keep=best", "minhash.score=code", "encoders.code.model=m"],
            "minhash.score=code: encoders are asked about what near duplicates leave; give cited, or the field of",
        ),
    ],
)
def test_a_score_for_near_duplicates_is_one_that_is_there(given: list[str], said: str, tmp_path: Path) -> None:
    words = ["name=x", f"sources.a.input={tmp_path}", "sources.a.format=jsonl", "tokens.enabled=false"]
    assert any(said in str(issue) for issue in curating.problems(entry.compose(config.Curate, "curate", words + given)))
