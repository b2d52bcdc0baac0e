"""What each task left, with size and xxh64 of every file, and whether it is still so.

datatrove marks a task as complete by an empty file and looks at nothing else. Here a task is done when its manifest
was made from the same keys and the same inputs as now, and all that it names is there as it was written.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from llama31 import config
from llama31.curate.running.stages import CurationStage
from llama31.runs import files

VERSION = 1  # of what stages leave; raised where the same keys give other files
PIECE = 1 << 22


@dataclass(frozen=True)
class Left:
    """A file that a task left: its path below the stage's folder."""

    path: str
    bytes: int
    xxh64: str


def manifest(folder: Path, stage: str, rank: int) -> Path:
    """Where the record of a task lies."""
    return folder / stage / "manifests" / f"{rank:05d}.json"


def read(folder: Path, stage: str, rank: int) -> dict[str, Any] | None:
    """The record of a task; None where it is not done."""
    return files.read_object(manifest(folder, stage, rank))


def left(record: dict[str, Any]) -> list[Left]:
    """The files of a record."""
    return [Left(**one) for one in record["left"]]


def key(run: config.Curate, stage: CurationStage, rank: int, before: Iterable[dict[str, Any]]) -> str:
    """What decides the files of a task: the keys of its stage, its number, and what the tasks `before` left."""
    sections = {name: _plain(getattr(run, name)) for name in stage.keys}
    inputs = [[one["stage"], one["rank"], one["left"]] for one in before]
    decisive = [VERSION, stage.name, rank, stage.tasks, sections, inputs]
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _plain(section: Any) -> Any:
    if isinstance(section, dict):
        return {name: _plain(inner) for name, inner in section.items()}
    if dataclasses.is_dataclass(section) and not isinstance(section, type):
        plain = dataclasses.asdict(section)
        return plain | {"content": content(Path(plain["model"]))} if plain.get("model") else plain
    return section


def content(model: Path) -> list[list[Any]]:
    """Files of a model with their bytes and, up to a gigabyte, hashes: another one may stand at the same path later."""
    paths = sorted(path for path in model.rglob("*") if path.is_file()) if model.is_dir() else [model]
    return [[path.name, path.stat().st_size, _known_digest(path, path.stat().st_mtime_ns)] for path in paths]


@functools.lru_cache(maxsize=64)
def _known_digest(path: Path, changed_ns: int) -> str:
    return digest(path) if path.stat().st_size <= 1 << 30 else ""


def digest(path: Path) -> str:
    """xxh64 of a file."""
    hashed = xxhash.xxh64()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            hashed.update(piece)
    return hashed.hexdigest()


def recorded(folder: Path, path: Path) -> Left:
    """A file as it is now."""
    return Left(path.relative_to(folder).as_posix(), path.stat().st_size, digest(path))


def damage(folder: Path, record: dict[str, Any]) -> str | None:
    """What is wrong with the files of a record; None where they are as they were written."""
    for one in left(record):
        path = folder / record["stage"] / one.path
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != one.bytes:
            return f"{path} has {path.stat().st_size} bytes, and {one.bytes} were written"
        if digest(path) != one.xxh64:
            return f"{path} has other content than was written"
    return None
