"""One Slurm cluster of four nodes for all tests of this folder, and what they do with it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from tests.conftest import ROOT
from tests.processes import LIMIT_S, search_path
from tests.slurm import cluster

T = TypeVar("T")
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "DEADLINE"}
SEARCHED = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


FILES = {
    "my/data/words.yaml": "folder: packed\nsources:\n  words: {input: words.jsonl}\n",
    "my/tokenizer/words.yaml": "kind: bpe\npath: packed/tokenizer\nvocab_size: 560\n",
    "my/small.yaml": """
defaults:
  [base, model: tiny, schedule: demo, override data: words, override tokenizer: words, override precision: fp32, _self_]
name: small
model: {name: small, layers: 2, hidden_size: 32, ffn_hidden_size: 64, heads: 4, kv_heads: 2, vocab_size: 560}
schedule: {total_tokens: 1024, batch_tokens: 256, sequence_length: 64, warmup_tokens: 256}
validation: {tokens: 128}
cluster: {processes_per_node: 1}
log: {progress: false}
""",
}
SMALL = ["--config-dir", "my", "--config-name", "small"]


class Slurm:
    """Clients of the cluster, and waiting for what it does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.logs: list[Path] = []  # shown where waiting fails
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "SRUN"))}
        self.env = {**clean, **cluster.environment(folder), "PYTHON": sys.executable, "PYTHONPATH": search_path()}

    def run(self, *words: str | Path, cwd: Path = ROOT, check: bool = True, **env: str) -> str:
        """Output of a command, errors too, that has to succeed."""
        done = subprocess.run(
            [str(word) for word in words],
            check=False,
            cwd=cwd,
            env={**self.env, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT_S,
        )
        assert not check or done.returncode == 0, f"{words} exited with {done.returncode}\n{done.stdout}"
        return done.stdout.strip()

    def ctl(self, *words: str) -> str:
        return self.run(sys.executable, cluster.__file__, "ctl", self.folder, *words)

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` knows of a job."""
        shown = self.run("scontrol", "show", "job", "-o", number, check=False)
        return dict(re.findall(r"(\S+?)=(.*?)(?= \S+?=|$)", shown))

    def jobs(self) -> list[str]:
        return re.findall(r"JobId=(\d+)", self.run("scontrol", "show", "job", "-o"))

    def until(self, test: Callable[[], T], what: str) -> T:
        """The first true answer of `test`; the queue and the nodes are shown where there is none."""
        end = time.monotonic() + LIMIT_S
        while not (answer := test()):
            if time.monotonic() > end:
                shown = [self.run(name, check=False) for name in ("squeue", "sinfo")]
                shown += [path.read_text()[-3000:] for path in self.logs if path.exists()]
                pytest.fail(f"not within {LIMIT_S} s: {what}\n" + "\n".join(shown))
            time.sleep(0.1)
        return answer

    def end(self, number: str) -> str:
        """How a job ended."""

        def state() -> str | None:
            now = self.job(number).get("JobState", "")
            return now if now in ENDED else None

        return self.until(state, f"end of job {number}") or ""


def _install() -> None:
    """Debian's packages, where root may install them; the reason for skipping where not."""
    if os.geteuid():
        pytest.skip("a Slurm cluster needs root")
    if all(shutil.which(name, path=SEARCHED) for name in cluster.PROGRAMS):
        return
    if shutil.which("apt-get") is None:
        pytest.skip(f"no apt-get to install {' '.join(cluster.PACKAGES)}")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *cluster.PACKAGES]):
        done = subprocess.run(
            ["apt-get", *words],
            check=False,
            env=env,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode:
            pytest.skip(f"apt-get {words[0]}: {(done.stderr.strip() or 'failed').splitlines()[-1]}")


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[Slurm]:
    _install()
    if not cluster.can_unshare():
        pytest.skip("no namespaces here (a container without CAP_SYS_ADMIN)")
    folder = Path(tempfile.mkdtemp(prefix="sl.", dir="/tmp"))  # short, for unix sockets
    command = [sys.executable, cluster.__file__]
    subprocess.run([*command, "start", str(folder), "--owner", str(os.getpid())], check=True, timeout=LIMIT_S)
    try:
        yield Slurm(folder)
    finally:
        subprocess.run([*command, "stop", str(folder)], check=True, timeout=LIMIT_S)


@pytest.fixture
def slurm(slurm_cluster: Slurm) -> Iterator[Slurm]:
    """The cluster, idle again after each test."""
    yield slurm_cluster
    slurm_cluster.run("scancel", "--user=root", check=False)
    for node in cluster.addresses(4):
        slurm_cluster.ctl("up", node)
        slurm_cluster.ctl("join", node)
    slurm_cluster.run("scontrol", "update", "nodename=ALL", "state=resume", check=False)

    def idle() -> bool:
        states = slurm_cluster.run("sinfo", "-h", "-p", "main", "-N", "-o", "%t").split()
        return set(states) == {"idle"} and not slurm_cluster.run("squeue", "-h")

    slurm_cluster.until(idle, "idle cluster")


def submit(slurm: Slurm, folder: Path, *words: str, **env: str) -> list[str]:
    """Numbers of the jobs that `recipes.submit` submitted."""
    code = [sys.executable, "-m", "recipes.submit", *words]
    printed = slurm.run(*code, cwd=folder, **env)
    numbers = [line.split(": job ")[1] for line in printed.splitlines() if ": job " in line]
    names = ("small", *(word.removeprefix("name=") for word in words if word.startswith("name=")))
    slurm.logs = [folder / "runs" / name / f"logs/{number}.out" for number in numbers for name in names]
    return numbers


def lay_out(folder: Path) -> Path:
    """Own YAML and text, as a user has them."""
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    texts = [" ".join(f"word{i * j % 61}" for j in range(40)) for i in range(200)]
    (folder / "words.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder as a user has it."""
    return lay_out(tmp_path)
