"""Which checkpoints a run has, which one a path means, and what a run that went back leaves behind."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path

from llama31.checkpoint import manifest
from llama31.checkpoint.publish import (
    MANIFEST,
    STEP,
    Fence,
    numbers_of,
    refuse_if_superseded,
    refuse_incomplete,
    some,
    verify,
)  # fmt: skip
from llama31.parallel.collectives import Ranks, on_first_rank, rank_of
from llama31.runs import attempts

log = logging.getLogger(__name__)

Check = Callable[[Path], str | None]  # why a folder is no complete checkpoint; None if it is one


def newest(folder: Path | str, starts: Mapping[int, int] | None = None, check: Check = manifest.problem) -> Path | None:
    """The newest complete checkpoint below `folder` (the run's `checkpoints`); warns about those it passes over.

    `starts` (attempt -> step that it went on from) are read from the run by default. Sizes alone are compared, of all
    files of those looked at, or of less by another `check` of manifest's.
    """
    for path in candidates(folder, starts):
        problem = check(path)
        if problem is None:
            return path
        log.warning("ignoring checkpoint %s: %s", path, problem)
    return None


def newest_intact(
    folder: Path | str,
    group: Ranks = None,
    starts: Mapping[int, int] | None = None,
    fence: Fence | None = None,
    before: int | None = None,
    checksums: bool = True,
) -> Path | None:
    """The newest checkpoint of which every file has its checksum; rank 0 warns with all that is wrong with others.

    Of at most `before` steps, where that is given; without `checksums` the sizes of all files are compared.
    Collective, shared out over the ranks; the same on all. Raises Superseded on all of them if there is a newer
    attempt.
    """

    def listed() -> list[Path]:
        refuse_if_superseded(fence, str(folder))
        return [path for path in candidates(folder, starts) if before is None or _numbers(path)[0] <= before]

    for path in on_first_rank(listed, group):
        problems = verify(path, group, checksums)
        if not problems:
            return path
        if rank_of(group) == 0:
            log.warning("ignoring checkpoint %s: %s", path, some(problems))
    return None


def resolve(path: Path | str, check: Check = manifest.problem) -> Path:
    """A complete checkpoint: `path` itself, or the newest of the run folder `path`. ValueError says what was found.

    Complete as far as `check` looks (manifest.problem, lacking, glance).

    A step's name without attempt (.../step-00000100) means the newest attempt's checkpoint of that step.
    """
    path = Path(path)
    if (path / MANIFEST).exists():
        refuse_incomplete(path, check)
        return path
    if (asked := numbers_of(path.name)) and asked[1] == 0 and not path.exists():
        of_step = [checkpoint for checkpoint in candidates(path.parent) if _numbers(checkpoint)[0] == asked[0]]
        if checkpoint := next((checkpoint for checkpoint in of_step if check(checkpoint) is None), None):
            return checkpoint
    for folder in (path / "checkpoints", path):
        if folder.is_dir() and (checkpoint := newest(folder, check=check)):
            return checkpoint
    if not path.is_dir():
        what = "is no folder" if path.exists() else "does not exist"
        raise ValueError(f"{path} {what}: give a checkpoint folder (.../step-00000100) or a run folder")
    there = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
    raise ValueError(f"{path} holds no complete checkpoint, but {there}: give a checkpoint or a run folder")


def candidates(folder: Path | str, starts: Mapping[int, int] | None = None) -> list[Path]:
    """Checkpoint folders of this run's history, newest first, complete or not.

    Left out is what an attempt saved beyond the step that a newer attempt went on from (`starts`, see `newest`).
    """
    folder = Path(folder)
    if starts is None:
        starts = attempts.starts(folder.parent if folder.name == "checkpoints" else folder)
    checkpoints = []
    for path in _all(folder):
        step, attempt = _numbers(path)
        left = [number for number, start in starts.items() if number > attempt and start < step]
        if left:
            log.info("ignoring checkpoint %s: attempt %d went on from step %d", path, left[0], starts[left[0]])
        else:
            checkpoints.append(path)
    return checkpoints


def set_aside_after(folder: Path | str, step: int, fence: Fence | None = None) -> list[Path]:
    """Rename checkpoints later than `step`: a run went back behind them, and `newest` must not return to them.

    On one rank. Returns their new names, `replaced-step-...`, which nothing reads or deletes.
    """
    refuse_if_superseded(fence, str(folder))
    aside = []
    for path in _all(Path(folder)):
        if _numbers(path)[0] > step:
            aside.append(path.rename(path.with_name(f"replaced-{path.name.lstrip('.')}-{secrets.token_hex(4)}")))
            log.warning("%s is set aside as %s: the run goes on from step %d", path, aside[-1].name, step)
    return aside


def run_folder(checkpoint: Path) -> Path:
    """The run that a checkpoint belongs to."""
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent


def _numbers(path: Path) -> tuple[int, int]:
    numbers = numbers_of(path.name.removeprefix(".old-"))
    assert numbers is not None, path
    return numbers


def _all(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first: also one that a kill caught while its successor took the name."""
    if not folder.is_dir():
        return []
    folders = {path.name: path for path in folder.iterdir() if STEP.fullmatch(path.name)}
    for path in folder.glob(".old-step-*"):
        if STEP.fullmatch(path.name.removeprefix(".old-")):
            folders.setdefault(path.name.removeprefix(".old-"), path)
    return sorted(folders.values(), key=_numbers, reverse=True)
