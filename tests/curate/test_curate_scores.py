"""Scores and the best of each language as stages: what a model says decides who stays, on any number of tasks."""

from __future__ import annotations

import json
from pathlib import Path

from datatrove.data import Document

from llama31 import config
from llama31.command import entry
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
