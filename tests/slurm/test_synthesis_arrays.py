"""Synthesis as an array of Slurm: the records of one process, and the gathering waits for all shards.

As `python -m tests.slurm.test_synthesis_arrays` the server that the nodes reach, until its input ends.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.sampling.scripted import serving
from tests.slurm import cluster
from tests.slurm.conftest import LIMIT_S, Slurm
from tests.synth.test_synthesize import Teacher, words

pytestmark = [pytest.mark.slurm, pytest.mark.parallel]


def made(folder: Path) -> list[bytes]:
    return [(folder / "made" / file).read_bytes() for file in ("dialogs.jsonl", "summary.json")]


def test_an_array_of_shards_makes_what_one_process_makes(slurm: Slurm, tmp_path: Path) -> None:
    """The second submission has nothing but the gathering left."""
    client = Path(shutil.which("squeue", path=slurm.env["PATH"]) or "").read_text()
    inside = ["nsenter", "-t", re.findall(r"nsenter -t (\d+)", client)[0], "-n", sys.executable, "-m"]  # the network
    piped = subprocess.PIPE
    serve = [*inside, "tests.slurm.test_synthesis_arrays"]
    server = subprocess.Popen(serve, cwd=ROOT, stdin=piped, stdout=piped, text=True)
    assert server.stdout is not None
    try:
        url = server.stdout.readline().strip()
        given = {}
        for name in ("alone", "arrayed"):
            (tmp_path / name).mkdir()
            given[name] = ["recipes.synthesize", *words(tmp_path / name, url, "shards=2", "job.cpus=1")]
        subprocess.run([*inside, *given["alone"]], check=True, cwd=ROOT, timeout=LIMIT_S)
        for expected in (["make", "gather"], ["gather"]):
            said = slurm.run(sys.executable, "-m", *given["arrayed"], "submit=true")
            jobs = dict(re.findall(r"^(\w+): job (\d+)", said, re.MULTILINE))
            slurm.logs = [*(tmp_path / "arrayed/made/logs").glob("*.out")]
            assert [*jobs] == expected and slurm.end(jobs["gather"]) == "COMPLETED"
    finally:
        server.communicate(timeout=LIMIT_S)
    assert made(tmp_path / "alone") == made(tmp_path / "arrayed")


if __name__ == "__main__":
    with serving(Teacher(), cluster.LOGIN_IP) as address:
        print(address, flush=True)
        sys.stdin.read()
