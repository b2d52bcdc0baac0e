"""What all tests share: the order, the skips, and how a command is run."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests import forkserver, processes

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "parallel", "slurm", "slow", "gpu")

# Before any test imports torch: tests run beside each other's processes, one thread each.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# What the tests say must not depend on a network, or wait for one.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "disabled")
# Layouts are tested on CPUs everywhere, for one GPU cannot be eight processes; tests/gpu hands it to what it starts.
GPU = (os.environ.get("CUDA_VISIBLE_DEVICES") or "0").split(",")[0]
os.environ["CUDA_VISIBLE_DEVICES"] = ""

Command = Callable[..., subprocess.CompletedProcess[str]]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave files that are all torch unread where torch is deselected: its import would outlast the tests."""
    if "not torch" not in config.option.markexpr or collection_path.suffix != ".py":
        return None
    marks = re.search(r"^pytestmark = .*", collection_path.read_text(encoding="utf-8"), re.MULTILINE)
    return True if marks and any(f"mark.{name}" in marks[0] for name in HEAVY) else None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """One worker for each file, whose tests share what is dear to make, and one for the only cluster of Slurm.

    By groups (`--dist loadgroup`) it would not do: xdist 3.8.0 cannot hand them on under pytest 9.2, and says nothing.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Files(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "tests/slurm" if file.startswith("tests/slurm/") else file

    return Files(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Quick tests first, so that a mistake shows in seconds; GPU tests only where there is one.

    Beside another worker, one begins with the cluster of Slurm at once: its tests are few, long, and mostly wait.
    """
    begins = "slurm" if hasattr(config, "workerinput") else ""  # of xdist, in a worker

    def weight(item: pytest.Item) -> int:
        marks = {mark.name for mark in item.iter_markers()}
        return -1 if begins in marks else max((HEAVY.index(name) + 1 for name in marks & {*HEAVY}), default=0)

    items.sort(key=weight)
    for item in items:
        if item.get_closest_marker("gpu") and not has_gpu() and os.environ.get("DEVICE") != "cpu":
            item.add_marker(pytest.mark.skip(reason="no GPU here (DEVICE=cpu tries it on the CPU)"))


@functools.cache
def has_gpu() -> bool:
    """Whether this machine has a GPU, hidden from the tests or not."""
    if shutil.which("nvidia-smi") is None:
        return False
    asked = ["nvidia-smi", "-L"]
    return subprocess.run(asked, check=False, capture_output=True, timeout=processes.LIMIT_S).returncode == 0


@pytest.fixture
def quick() -> Command:
    """`command("-m", ...)` as a fork of a process that has imported what reads configs, and no torch."""

    def run(
        *arguments: str, env: Mapping[str, str] | None = None, cwd: Path = ROOT, check: bool = False
    ) -> subprocess.CompletedProcess[str]:
        program = str(forkserver.programs(forkserver.QUICK) / "python")
        result = processes.run(
            [program, *arguments], cwd=cwd, env={**forkserver.environment(forkserver.QUICK), **(env or {})}
        )
        assert not check or result.returncode == 0, f"{arguments}: {result.returncode}\n{result.stdout}{result.stderr}"
        return result

    return run


@pytest.fixture
def command() -> Command:
    """Run a command from the repository's root and return its result; nothing that it started outlives it.

    `command("-m", "recipes.pack", "--help")` runs Python, `command("torchrun", ..., python=False)` a program beside it.
    """

    def run(
        *arguments: str | Path,
        python: bool = True,
        env: Mapping[str, str] | None = None,
        cwd: Path = ROOT,
        check: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        words = [str(word) for word in arguments]
        words = [sys.executable, *words] if python else [str(Path(sys.executable).with_name(words[0])), *words[1:]]
        result = processes.run(words, cwd=cwd, env={**os.environ, "PYTHONPATH": processes.search_path(), **(env or {})})
        if check:
            assert result.returncode == 0, (
                f"{' '.join(words)} exited with {result.returncode}\n{result.stdout}\n{result.stderr}"
            )
        return result

    return run
