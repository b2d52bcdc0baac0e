"""What each task left, with size and xxh64 of every file, and whether it is still so.

datatrove marks a task as complete by an empty file and looks at nothing else. Here a task is done when its manifest
was made from the same keys and the same inputs as now, and all that it names is there as it was written.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from llama31 import config
from llama31.curate.fast_text import whole
from llama31.curate.running.stages import CurationStage
from llama31.runs import files

VERSION = 4  # of what stages leave; raised where the same keys give other files
PIECE = 1 << 22
# What decides beside our own code what a stage leaves; of `filter` datatrove's stop words and C4's patterns, and
# tldextract's domains in which an address may end.
LIBRARIES = {
    "extract": ("datatrove", "resiliparse", "fastwarc", "faust-cchardet"),
    "filter": ("datatrove", "tldextract"),
    **dict.fromkeys(("vocabulary", "tokenize", "tokens"), ("tiktoken", "tokenizers")),
}
FAST_TEXT, ENCODERS = ("fasttext-numpy2-wheel",), ("torch", "transformers", "tokenizers")


@dataclass(frozen=True)
class Left:
    """A file that a task left: its path below the stage's folder, and when it was written."""

    path: str
    bytes: int
    xxh64: str
    changed_ns: int = 0


def manifest(folder: Path, stage: str, rank: int) -> Path:
    """Where the record of a task lies."""
    return folder / stage / "manifests" / f"{rank:05d}.json"


def read(folder: Path, stage: str, rank: int) -> dict[str, Any] | None:
    """The record of a task; None where it is not done, or is not as it was written."""
    record = _as_written(manifest(folder, stage, rank))
    return None if record is None or record.get("unfinished") else record


def write(folder: Path, record: dict[str, Any]) -> None:
    """Record that a task is done."""
    _write(manifest(folder, record["stage"], record["rank"]), record)


def _write(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_whole(path, json.dumps(record | {"xxh64": _own_digest(record)}) + "\n")


def _as_written(path: Path) -> dict[str, Any] | None:
    record = files.read_object(path)
    given = None if record is None else record.pop("xxh64", None)  # those of earlier versions have none
    return record if record is None or given in (None, _own_digest(record)) else None


def _own_digest(record: dict[str, Any]) -> str:
    return xxhash.xxh64_hexdigest(json.dumps(record).encode())


def reopen(folder: Path, stage: str, rank: int, more: Iterable[Left] = ()) -> list[Left]:
    """Record that a task is not done, and which files lie there all the same, or will, as `more`; returns the former.

    Nothing is recorded of a task that has left nothing.
    """
    path = manifest(folder, stage, rank)
    record = _as_written(path) or {"left": []}
    found = left(record)
    together = {one.path: one for one in (*found, *more)}
    if together:
        content = {"unfinished": True, "left": [dataclasses.asdict(one) for one in together.values()]}
        _write(path, content)
    return found


def left(record: dict[str, Any]) -> list[Left]:
    """The files of a record."""
    return [Left(**one) for one in record["left"]]


def sections(run: config.Curate, stage: CurationStage) -> dict[str, Any]:
    """The keys that decide what a stage leaves, hashes of the files that they name, and releases of libraries."""
    releases = {name: release(name) for name in libraries(run, stage)}
    return {name: _plain(operator.attrgetter(name)(run), name) for name in stage.keys} | {"versions": releases}


def libraries(run: config.Curate, stage: CurationStage) -> tuple[str, ...]:
    """Those whose releases decide what a stage leaves; fastText and what runs encoders where it asks such a model."""
    asked = [run.language.model] if "language" in stage.keys else []
    asked += [run.cited.model] if {"cited", "cited.model"} & {*stage.keys} else []
    asked += [run.knowledge.model, *(one.model for one in run.encoders.values())] if "encoders" in stage.keys else []
    folders = {Path(one).is_dir() for one in asked if one}
    models = [*(FAST_TEXT if False in folders else ()), *(ENCODERS if True in folders else ())]
    return tuple(dict.fromkeys([*LIBRARIES.get(stage.name, ()), *models]))


@functools.cache
def release(library: str) -> str:
    """The release of a library that is installed."""
    return importlib.metadata.version(library)


def key(decisive: dict[str, Any], stage: CurationStage, rank: int, before: Iterable[dict[str, Any]]) -> str:
    """What decides the files of a task: the `sections` of its stage, its number, and what the tasks `before` left."""
    inputs = [[one["stage"], one["rank"], _content(one["left"])] for one in before]
    content = [VERSION, stage.name, rank, stage.tasks, decisive, inputs]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _content(left: Any) -> Any:
    """Files without when they were written: those that are made again are the same."""
    return [[one["path"], one["bytes"], one["xxh64"]] for one in left] if isinstance(left, list) else left


def _plain(section: Any, name: str) -> Any:
    if isinstance(section, dict):
        return {key: _plain(inner, key) for key, inner in section.items()}
    if section and name.endswith(".model"):
        return [section, content(Path(section))]
    if dataclasses.is_dataclass(section) and not isinstance(section, type):
        plain = dataclasses.asdict(section)
        named = [plain.get("model"), *(plain["lists"].values() if "lists" in plain else [])]
        if isinstance(section, config.Tokenizer) and section.kind != "bpe":  # a BPE is made here, and its stage says it
            named.append(section.path)
        return plain | {"content": [content(Path(path)) for path in named if path]}
    return section


def content(model: Path) -> list[list[Any]]:
    """Files of a model or a list with bytes and, up to a gigabyte, hashes: others may stand at the same path later.

    With a fastText model goes its record, which says how texts are prepared for it.
    """
    named = model.rglob("*") if model.is_dir() else [model, whole.record_path(model)]
    paths = sorted(path for path in named if path.is_file())
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
    about = path.stat()
    return Left(path.relative_to(folder).as_posix(), about.st_size, digest(path), about.st_mtime_ns)


def _vouched(folder: Path, record: dict[str, Any]) -> Iterator[tuple[Path, Left]]:
    """All files of a record: what the task left, its samples, and what it made or found beside the stage's folder."""
    for one in [*left(record), *(Left(**one) for one in record.get("samples", []))]:
        yield folder / record["stage"] / one.path, one
    for one in record.get("beside", []):
        yield Path(one["path"]), Left(**one)


def doubtful(folder: Path, record: dict[str, Any]) -> bool:
    """Whether a file of a record is not there, or was written to since; none is read."""
    for path, one in _vouched(folder, record):
        if not path.is_file():
            return True
        about = path.stat()
        if (about.st_size, about.st_mtime_ns) != (one.bytes, one.changed_ns):
            return True
    return False


def confirm(folder: Path, record: dict[str, Any]) -> None:
    """Record when files were written that `damage` found to be whole, as those of a copied folder are."""
    changed = {one.path: path.stat().st_mtime_ns for path, one in _vouched(folder, record)}
    now = {
        name: [one | {"changed_ns": changed[one["path"]]} for one in record[name]]
        for name in ("left", "samples", "beside")
        if name in record
    }
    write(folder, record | now)


def damage(folder: Path, record: dict[str, Any]) -> str | None:
    """What is wrong with the files of a record; None where they are as they were written. All are read."""
    for path, one in _vouched(folder, record):
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != one.bytes:
            return f"{path} has {path.stat().st_size} bytes, and {one.bytes} were written"
        if digest(path) != one.xxh64:
            return f"{path} has other content than was written"
    return None
