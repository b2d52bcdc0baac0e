"""Attempts of a run: each start of the trainer takes the next number, and nobody takes one twice.

    <run>/attempts/0000/ 0001/ ...     one folder each, made exclusively: that is the claim
        attempt.json                   written by its owner; `from_step` says where it went on
        process.json                   host and process that made the claim

Two attempts of one job can live at once when a node is cut off. The number decides: the older one finds that a newer
folder exists (`newer`) and stops writing, and what it published beyond the start of the newer one is never read
(`starts`). Needs no torch.
"""

from __future__ import annotations

import json
import os
import platform
import re
from pathlib import Path

FOLDER = "attempts"
RECORD, PROCESS, END = "attempt.json", "process.json", "end.json"
NUMBER = re.compile(r"\d{4,}")


def claim(run_folder: Path | str) -> int:
    """Take the next number by making its folder, which only one process can do. OSError where nothing can be made."""
    folder = Path(run_folder) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    number = max(_numbers(run_folder), default=-1) + 1
    while True:
        try:
            path_of(run_folder, number).mkdir()
        except FileExistsError:  # somebody was faster
            number += 1
        else:
            owner = {"host": host_name(), "pid": os.getpid(), "began": _began(os.getpid()), "job": _job()}
            (path_of(run_folder, number) / PROCESS).write_text(json.dumps(owner), encoding="utf-8")
            return number


def living(run_folder: Path | str) -> tuple[int, int] | None:
    """(number, process) of the newest attempt, if its process is another one that lives on this machine; else None.

    Of other machines nothing is known: there the number alone decides who goes on.
    """
    number = max(_numbers(run_folder), default=-1)
    try:
        owner = json.loads((path_of(run_folder, number) / PROCESS).read_text(encoding="utf-8"))
        host, pid, began = owner["host"], int(owner["pid"]), owner["began"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if (path_of(run_folder, number) / END).exists() or host != host_name() or pid == os.getpid():
        return None
    if _job() is not None and owner.get("job") == _job():
        return None  # a job of Slurm that starts again follows itself, whatever is left of its last try
    return (number, pid) if began is not None and _began(pid) == began else None


def _job() -> str | None:
    return os.environ.get("SLURM_JOB_ID")


def host_name() -> str:
    """This node as Slurm calls it, or as it calls itself."""
    return os.environ.get("SLURMD_NODENAME") or platform.node()


def _began(pid: int) -> str | None:
    """When a process of this machine began, in clock ticks since the machine did; None where there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[19] if fields[0] not in "ZX" else None


def path_of(run_folder: Path | str, number: int) -> Path:
    """The folder of one attempt."""
    return Path(run_folder) / FOLDER / f"{number:04d}"


def newer(run_folder: Path | str, number: int) -> int | None:
    """The newest attempt if it is newer than `number`, else None."""
    last = max(_numbers(run_folder), default=number)
    return last if last > number else None


def starts(run_folder: Path | str) -> dict[int, int]:
    """Number -> step that the attempt went on from. One that died before it wrote that down has published nothing."""
    steps = {}
    for number in sorted(_numbers(run_folder)):
        try:
            record = json.loads((path_of(run_folder, number) / RECORD).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(record, dict) and isinstance(record.get("from_step"), int):
            steps[number] = record["from_step"]
    return steps


def _numbers(run_folder: Path | str) -> list[int]:
    folder = Path(run_folder) / FOLDER
    return [int(path.name) for path in folder.iterdir() if NUMBER.fullmatch(path.name)] if folder.is_dir() else []
