"""Synthesis and filters as arrays of Slurm: the records of one process, and the gathering waits for all shards.

As `python -m tests.slurm.test_synthesis_arrays NAME FOLDER` the server that the nodes reach, until its input ends.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.sampling.scripted import Script, serving
from tests.slurm import cluster
from tests.slurm.conftest import LIMIT_S, Slurm
from tests.synth import test_filter_data, test_synthesize

pytestmark = [pytest.mark.slurm, pytest.mark.parallel]
ASKED, ANSWERED = "asked", "answered"  # files by which the judge says what it was asked, and is told to answer it


@dataclass
class Judge(Script):
    """That of the filters' tests; how difficult a slow dialog is, it says once it is told to."""

    folder: Path = Path()

    def text(self, number: int, prompt: Any, body: Mapping[str, Any], choice: int) -> str:
        last, end = prompt[-1]["content"], time.monotonic() + LIMIT_S
        if "How difficult" in last and "slow" in last:
            (self.folder / ASKED).touch()
            while not (self.folder / ANSWERED).exists() and time.monotonic() < end:
                time.sleep(0.05)
        return test_filter_data.judge(last, body["seed"] % 2) if "=====" in last else "Yes."


def inside(slurm: Slurm) -> list[str]:
    """Words that run Python in the network of the nodes."""
    client = Path(shutil.which("squeue", path=slurm.env["PATH"]) or "").read_text()
    return ["nsenter", "-t", re.findall(r"nsenter -t (\d+)", client)[0], "-n", sys.executable, "-m"]


@contextmanager
def served(slurm: Slurm, name: str, folder: Path) -> Iterator[str]:
    """The address of a server."""
    command = [*inside(slurm), "tests.slurm.test_synthesis_arrays", name, str(folder)]
    piped = subprocess.PIPE
    server = subprocess.Popen(command, cwd=ROOT, stdin=piped, stdout=piped, text=True)
    assert server.stdout is not None
    try:
        yield server.stdout.readline().strip()
    finally:
        server.communicate(timeout=LIMIT_S)


def submitted(slurm: Slurm, folder: Path, *words: str, **env: str) -> tuple[dict[str, str], str]:
    """The jobs, and all that was said."""
    said = slurm.run(sys.executable, "-m", *words, "submit=true", **env)
    slurm.logs = [*(folder / "logs").glob("*.out")]
    return dict(re.findall(r"^(\w+): job (\d+)", said, re.MULTILINE)), said


def read(folder: Path, *names: str) -> list[bytes]:
    return [(folder / name).read_bytes() for name in (*names, "summary.json")]


def test_an_array_of_shards_makes_what_one_process_makes(slurm: Slurm, tmp_path: Path) -> None:
    """The second submission has nothing left."""
    with served(slurm, "teacher", tmp_path) as url:
        given = {}
        for name in ("alone", "arrayed"):
            (tmp_path / name).mkdir()
            words = test_synthesize.words(tmp_path / name, url, "shards=2", "job.cpus=1")
            given[name] = ["recipes.synthesize", *words]
        subprocess.run([*inside(slurm), *given["alone"]], check=True, cwd=ROOT, timeout=LIMIT_S)
        jobs, _ = submitted(slurm, tmp_path / "arrayed/made", *given["arrayed"])
        assert [*jobs] == ["make", "gather"] and slurm.end(jobs["gather"]) == "COMPLETED"
        jobs, said = submitted(slurm, tmp_path / "arrayed/made", *given["arrayed"])
        assert not jobs and "# gather: done" in said
    assert read(tmp_path / "alone/made", "dialogs.jsonl") == read(tmp_path / "arrayed/made", "dialogs.jsonl")


def test_filters_go_on_where_a_shard_was_killed_and_another_failed(slurm: Slurm, tmp_path: Path) -> None:
    """Nothing waits behind them, and what one process keeps and drops is kept and dropped."""
    dialogs = [*test_filter_data.DIALOGS, test_filter_data.dialog("plain"), test_filter_data.dialog("slow, hard")]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(one) + "\n" for one in dialogs))
    python = tmp_path / "python"
    python.write_text(f'#!/bin/bash\ncase "$*" in *shard=2) exit 7 ;; esac\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    with served(slurm, "judge", tmp_path) as url:
        words = ["recipes.filter_data", "name=x", f"input={tmp_path}/in.jsonl", f"judge.urls=[{url}]", "job.cpus=1"]
        words += [f"{name}.enabled=false" for name in ("deduplication", "decontamination")]
        arrayed, alone = [*words, f"folder={tmp_path}/arrayed", "shards=3"], [*words, f"folder={tmp_path}/alone"]
        first, _ = submitted(slurm, tmp_path / "arrayed", *arrayed, PYTHON=str(python))
        assert slurm.end(f"{first['make']}_0") == "COMPLETED"
        slurm.until((tmp_path / ASKED).exists, "a question about the slow dialog")
        slurm.run("scancel", f"{first['make']}_1")
        assert slurm.end(first["gather"]) == "CANCELLED"
        slurm.until(lambda: not slurm.run("squeue", "-h"), "an empty queue")
        (tmp_path / ANSWERED).touch()
        again, said = submitted(slurm, tmp_path / "arrayed", *arrayed)
        assert [*again] == ["make", "gather"] and "2 of 3 shards" in said
        subprocess.run([*inside(slurm), *alone], check=True, cwd=ROOT, timeout=LIMIT_S)
        assert slurm.end(again["gather"]) == "COMPLETED"
        left, said = submitted(slurm, tmp_path / "arrayed", *arrayed)
        assert not left and "# gather: done" in said
    logs = {number: (tmp_path / f"arrayed/logs/make-{again['make']}_{number}.out").read_text() for number in (1, 2)}
    assert "topic, shard 1: 4 answered before" in logs[1] and "topic, shard 2: 2 answered\n" in logs[2]
    files = [read(tmp_path / name, "kept.jsonl", "dropped.jsonl") for name in ("alone", "arrayed")]
    assert files[0] == files[1] and b"slow" in files[0][0] and files[0][1]


if __name__ == "__main__":
    script = Judge(folder=Path(sys.argv[2])) if sys.argv[1] == "judge" else test_synthesize.Teacher()
    with serving(script, cluster.LOGIN_IP) as address:
        print(address, flush=True)
        sys.stdin.read()
