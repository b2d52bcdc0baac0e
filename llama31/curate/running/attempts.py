"""A task's attempts: each works in a folder of its own, and what it made appears when all of it is there.

Two processes may be at one task: a command is given twice, or Slurm requeues what ran on a node that it cannot reach,
whose processes go on. So the later attempt takes the earlier one's folder away, and one that does not find its own any
more gives up, at its end at the latest: half of what a task makes is never taken for all of it. A task is not done
between its first file in place and the last, and all that may lie there by then stands in its record.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from pathlib import Path

from llama31 import config
from llama31.curate.running import ledger
from llama31.curate.running.ledger import Left

OWN = ".attempt"  # in the folder of an attempt; a block that makes its folder anew does not make this
WHOLE, GONE = ".whole", ".gone"


def begin(folder: Path, stage: str, rank: int) -> Path:
    """A folder to work in; those of earlier attempts go, whether killed or at work, and the task is not done."""
    partial, token = folder / stage / "partial", secrets.token_hex(4)
    for old in sorted(partial.glob(f"{rank:05d}-*")):
        taken = partial / f"{rank:05d}-{token}{GONE}"
        with contextlib.suppress(FileNotFoundError):  # it ended by itself
            old.rename(taken)
        shutil.rmtree(taken, ignore_errors=True)
    ledger.reopen(folder, stage, rank)
    staged = partial / f"{rank:05d}-{token}"
    staged.mkdir(parents=True)
    (staged / OWN).touch()
    return staged


def publish(staged: Path, folder: Path, stage: str, rank: int) -> list[Left]:
    """Move what was made into its place, and take away what an earlier run of the task left beyond it.

    Raises RunError where another process has begun the task.
    """
    paths = (path.relative_to(staged) for path in staged.rglob("*") if path.is_file())
    made = sorted(path for path in paths if not path.parts[0].startswith("."))
    left = [ledger.recorded(staged, staged / path) for path in made]
    for path in made:
        _onto_the_disk(staged / path)
    whole = staged.with_name(staged.name + WHOLE)
    try:
        staged.rename(whole)
        if not (whole / OWN).is_file():
            raise FileNotFoundError(whole / OWN)
        before = ledger.reopen(folder, stage, rank, left)
        for path in made:
            (folder / stage / path).parent.mkdir(parents=True, exist_ok=True)
            (whole / path).replace(folder / stage / path)
    except FileNotFoundError as error:
        reason = f"{stage}, task {rank}: another process has begun it too, and this one gives up"
        raise config.RunError(f"{reason}; let one of them run it") from error
    _remove(folder / stage, {one.path for one in before} - {one.path for one in left})
    return left


def end(staged: Path) -> None:
    """Take away what an attempt did not publish."""
    for path in (staged, staged.with_name(staged.name + WHOLE)):
        shutil.rmtree(path, ignore_errors=True)


def forget(folder: Path, stage: str, rank: int) -> None:
    """Take away all that a task left, its record last."""
    _remove(folder / stage, {one.path for one in ledger.reopen(folder, stage, rank)})
    path = ledger.manifest(folder, stage, rank)
    for old in (folder / stage / "samples" / path.name, path):
        old.unlink(missing_ok=True)


def _remove(folder: Path, paths: set[str]) -> None:
    """Take away files, and folders that are empty without them: an empty one may be taken for a packed source."""
    for name in sorted(paths):
        path = folder / name
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # there is more in it
            path.parent.rmdir()


def _onto_the_disk(path: Path) -> None:
    """So that a file does not become one of zeros where the machine stops: its time of change is trusted later."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
