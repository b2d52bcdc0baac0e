"""Curation as arrays of Slurm: the token files of a run in processes, and nothing left behind a failure."""

from __future__ import annotations

import hashlib
import json
import random
import re
import sys
from pathlib import Path

import pytest

from llama31 import config
from llama31.command import entry
from llama31.curate.outcome import costs
from llama31.curate.running.stages import CurationStage
from llama31.slurm import arrays
from tests.slurm.conftest import Slurm

pytestmark = [pytest.mark.slurm, pytest.mark.parallel]

SYLLABLES = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
WORDS = [first + second for first in SYLLABLES[:12] for second in SYLLABLES[::7]]


def given(folder: Path) -> list[str]:
    """Arguments of a small corpus, and its pages."""
    pages = folder / "pages"
    pages.mkdir(exist_ok=True)
    for number in range(8):
        drawn = random.Random(number)
        rows = [{"text": " ".join(drawn.choices(WORDS, k=60 + k)) + "."} for k in range(40)]
        (pages / f"{number}.jsonl").write_text("".join(json.dumps(row | {"language": "en"}) + "\n" for row in rows))
    words = ["name=x", "folder=made", "tasks=4", f"sources.w.input={pages}", "sources.w.format=jsonl"]
    words += [f"{name}.enabled=false" for name in ("repetition", "quality", "c4", "lines")]  # no prose
    return [*words, "tokenizer.kind=bpe", "tokenizer.path=bpe", "tokenizer.vocab_size=600"]


def outputs(folder: Path) -> dict[str, str]:
    kept = [path for path in (folder / "made/tokens").rglob("*") if path.suffix in (".bin", ".idx")]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}


def submitted(slurm: Slurm, folder: Path, *words: str, **env: str) -> dict[str, str]:
    """The jobs of the stages."""
    said = slurm.run(sys.executable, "-m", "recipes.curate", *words, "submit=true", cwd=folder, **env)
    slurm.logs = [*(folder / "made/logs").glob("*.out")]
    return dict(re.findall(r"^(\w+): job (\d+)", said, re.MULTILINE))


def test_arrays_make_what_processes_make(slurm: Slurm, tmp_path: Path) -> None:
    alone, arrayed = tmp_path / "alone", tmp_path / "arrayed"
    for folder in (alone, arrayed):
        folder.mkdir()
    slurm.run(sys.executable, "-m", "recipes.curate", *given(alone), "workers=2", cwd=alone)
    # Two elements for four tasks; a second submission while the first is queued adds nothing.
    words = [*given(arrayed), "job.array=2"]
    numbers = submitted(slurm, arrayed, *words)
    assert numbers.keys() >= {"extract", "filter", "tokens", "report"}
    again = submitted(slurm, arrayed, *words)
    assert not again.keys() & {"tokens", "report"}
    assert slurm.end(numbers["report"]) == "COMPLETED"
    assert outputs(arrayed) == outputs(alone) and outputs(alone)
    assert "Every stage is done." in (arrayed / "made/report.html").read_text()
    assert submitted(slurm, arrayed, *words).keys() == {"report"}  # nothing else is left to do


def test_nothing_waits_behind_a_failure_and_the_next_submission_makes_what_is_missing(
    slurm: Slurm, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/bash\ncase "$*" in *stage=filter*task=1) exit 7 ;; esac\n' + f'exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    words = given(tmp_path)
    numbers = submitted(slurm, tmp_path, *words, PYTHON=str(python))
    assert slurm.end(numbers["report"]) == "CANCELLED"
    slurm.until(lambda: not slurm.run("squeue", "-h"), "an empty queue")
    assert not (tmp_path / "made/filter/manifests/00001.json").exists()
    said = slurm.run(sys.executable, "-m", "recipes.curate", *words, "submit=true", "dry_run=true", cwd=tmp_path)
    assert "# extract: done" in said and "--array=1 " in said
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
