"""Curation as arrays of Slurm: the token files of a run in processes, and nothing left behind a failure."""

from __future__ import annotations

import hashlib
import json
import random
import re
import sys
from pathlib import Path

import pytest
from datatrove.data import Document

from llama31 import config
from llama31.command import entry
from llama31.curate.outcome import costs
from llama31.curate.running import stages
from llama31.curate.running.stages import CurationStage
from llama31.curate.scoring import quality
from llama31.slurm import arrays
from tests.slurm.conftest import Slurm

pytestmark = [pytest.mark.slurm, pytest.mark.parallel]

SYLLABLES = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
WORDS = [first + second for first in SYLLABLES[:12] for second in SYLLABLES[::7]]


OFTEN = "a line that stands in many documents"


def text(drawn: random.Random, good: bool, words: int = 60) -> str:
    """A document, with the words of good ones or of others."""
    half = len(WORDS) // 2
    return " ".join(drawn.choices(WORDS[:half] if good else WORDS[half:], k=words)) + "."


@pytest.fixture(scope="module")
def cited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that tells good documents."""
    path, drawn = tmp_path_factory.mktemp("model") / "cited.bin", random.Random(9)
    good, bad = ([Document(text(drawn, kind), str(n)) for n in range(60)] for kind in (True, False))
    quality.train(good, bad, path)
    return path


def given(folder: Path, *further: str) -> list[str]:
    """Arguments of a small corpus, and its pages."""
    pages = folder / "pages"
    pages.mkdir(exist_ok=True)
    for number in range(8):
        drawn = random.Random(number)
        texts = [text(drawn, k % 2 == 0, 60 + k) + (f"\n{OFTEN}" if k % 3 == 0 else "") for k in range(40)]
        rows = [{"text": one, "language": "en"} for one in texts]
        (pages / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["name=x", "folder=made", "tasks=4", f"sources.w.input={pages}", "sources.w.format=jsonl"]
    words += [f"{name}.enabled=false" for name in ("repetition", "quality", "c4")]  # no prose
    return [*words, "tokenizer.kind=bpe", "tokenizer.path=bpe", "tokenizer.vocab_size=600", *further]


def scored(model: Path) -> list[str]:
    return [f"cited.model={model}", "best.score=cited", "best.share=0.5"]


def outputs(folder: Path) -> dict[str, str]:
    kept = [path for path in (folder / "made/tokens").rglob("*") if path.suffix in (".bin", ".idx")]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}


def submitted(slurm: Slurm, folder: Path, *words: str, **env: str) -> dict[str, str]:
    """The jobs of the stages."""
    said = slurm.run(sys.executable, "-m", "recipes.curate", *words, "submit=true", cwd=folder, **env)
    slurm.logs = [*(folder / "made/logs").glob("*.out")]
    return dict(re.findall(r"^(\w+): job (\d+)", said, re.MULTILINE))


def test_arrays_make_what_processes_make(slurm: Slurm, cited: Path, tmp_path: Path) -> None:
    """All stages that there are."""
    alone, arrayed = tmp_path / "alone", tmp_path / "arrayed"
    for folder in (alone, arrayed):
        folder.mkdir()
    further = [*scored(cited), "minhash.cluster_tasks=2", "minhash.cluster_rounds=1", "tokens.parts=2"]
    slurm.run(sys.executable, "-m", "recipes.curate", *given(alone, *further), "workers=2", cwd=alone)
    # One element for four tasks; a second submission while the first is queued adds nothing.
    words = [*given(arrayed, *further), "job.array=1"]
    numbers = submitted(slurm, arrayed, *words)
    known = [stage.name for stage in stages.stages(entry.compose(config.Curate, "curate", words), 4)]
    assert [*numbers] == [*known, "report"] and {"minhash_survivors", "lines", "ranking", "select"} <= {*known}
    again = submitted(slurm, arrayed, *words)
    assert not again.keys() & {"tokens", "report"}
    assert slurm.end(numbers["report"]) == "COMPLETED"
    assert outputs(arrayed) == outputs(alone) and outputs(alone)
    assert len(list(arrayed.glob("made/tokens/general-en-*"))) == 2
    assert "Every stage is done." in (arrayed / "made/report.html").read_text()
    assert submitted(slurm, arrayed, *words).keys() == {"report"}  # nothing else is left to do


def test_nothing_waits_behind_a_failure_and_the_next_submission_makes_what_is_missing(
    slurm: Slurm, cited: Path, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/bash\ncase "$*" in *stage=score*task=1) exit 7 ;; esac\n' + f'exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    # Two elements for four tasks.
    words = given(tmp_path, *scored(cited), "urls.enabled=false", "minhash.enabled=false", "job.array=2")
    numbers = submitted(slurm, tmp_path, *words, PYTHON=str(python))
    assert slurm.end(numbers["report"]) == "CANCELLED"
    slurm.until(lambda: not slurm.run("squeue", "-h"), "an empty queue")
    assert sorted(path.name for path in (tmp_path / "made/score/manifests").iterdir()) == ["00000.json", "00002.json"]
    said = slurm.run(sys.executable, "-m", "recipes.curate", *words, "submit=true", "dry_run=true", cwd=tmp_path)
    assert "# lines: done" in said and "--array=1 " in said and "stage=select" in said
    numbers = submitted(slurm, tmp_path, *words)
    assert slurm.end(numbers["report"]) == "COMPLETED" and outputs(tmp_path)


def test_more_tasks_than_an_array_has_room_for(tmp_path: Path) -> None:
    run = entry.compose(config.Curate, "curate", [*given(tmp_path), "job.array=10", "job.at_once=4", "job.time=60"])
    stage = CurationStage("filter", "", 25, 2.0, reads="extract")
    made = arrays.command(run, stage, [3, 13, 14, 24], ["tasks=25", "job.array=10", "submit=true"], ["7", "8"])
    assert "--array=3-4%4" in made and made[-3:] == ["tasks=25", "stage=filter", "stride=10"]
    assert "--dependency=afterok:7:8" in made and "--kill-on-invalid-dep=yes" in made and "--time=60" in made


def test_the_bill_of_the_script_is_that_of_the_code() -> None:
    said = re.search(r"^# bill: --nodes=1 bytes=(\S+)\n#\s+(.*)$", arrays.SCRIPT.read_text(), re.MULTILINE)
    assert said is not None and said[2] == costs.bill(float(said[1]))
