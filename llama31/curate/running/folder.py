"""What a folder of curation was begun with: its keys, versions and files; a run with others is refused, key by key.

curation.json             keys, versions, commits of the code, stages in their order, number of shards
inputs/00003.json         which files task 3 reads, by source
STAGE/documents, files    what a stage leaves
STAGE/manifests           what each of its tasks left, with size and xxh64
"""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datatrove.io import DataFolder, get_datafolder

from llama31 import config
from llama31.curate.reading.files import DatasetReader, FolderReader, LinesReader, ParquetReader
from llama31.curate.reading.warc import ArchiveReader
from llama31.curate.running import attempts, ledger, stages
from llama31.runs import commit, files

NAME = "curation.json"
# What says where, how fast or how it is shown, and not what comes out.
FREE = frozenset({"name", "folder", "workers", "stage", "task", "stride", "overwrite", "dry_run", "report", "tasks"})
FREE |= {"submit", "job", "mixture", "minhash.memory_gb"}
PACKED = (".gz", ".zst", ".bz2", ".xz")
VERSION = "versions."  # what names of libraries have before them among the keys
CHANGES = ("mtime", "ETag", "etag", "LastModified")  # what file systems call it
Listed = dict[str, list[Any]]  # files with their bytes and when they were changed
READERS: dict[str, Any] = {
    "warc": ArchiveReader,
    "html": FolderReader,
    "jsonl": LinesReader,
    "parquet": ParquetReader,
    "dataset": DatasetReader,
}


def decisive(run: config.Curate) -> dict[str, Any]:
    """The keys that decide what comes out, by their dotted names."""
    plain = dataclasses.asdict(run)
    leaves = _leaves({name: value for name, value in plain.items() if name not in FREE}, "")
    return {name: value for name, value in leaves if name not in FREE}


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}.{name}" if key else name)
    else:
        yield key, value


def versions(run: config.Curate) -> dict[str, str]:
    """Releases of the libraries that decide what comes out, and `stages`, the version of what our own code leaves."""
    names = dict.fromkeys(name for stage in stages.stages(run, 1) for name in ledger.libraries(run, stage))
    return {f"{VERSION}stages": str(ledger.VERSION)} | {f"{VERSION}{name}": ledger.release(name) for name in names}


@dataclass(frozen=True)
class Begun:
    """A folder that was begun: its number of shards, and of every source files, bytes and a hash.

    `packed` of a source: the bytes of its compressed files among them.
    """

    tasks: int
    inputs: dict[str, Any]


def opened(run: config.Curate) -> Begun:
    """Begin the folder, or go on with it; a dry run writes nothing.

    Raises ValueError, naming the key, where it was made with other keys, versions or input files and `overwrite` does
    not allow it, and where a source has no files.
    """
    path = Path(run.folder) / NAME
    known, now = files.read_object(path), decisive(run) | versions(run)
    tasks = int(run.tasks or (known or {}).get("tasks") or 4 * len(os.sched_getaffinity(0)))
    if known is None and path.is_file() and not run.overwrite:
        raise ValueError(
            f"folder={run.folder}: {NAME} cannot be read; give it back, or tasks=NUMBER overwrite=true to go by the "
            "keys that are given, or another folder"
        )
    if known is not None and not run.overwrite:
        refuse_others(run, known, now, tasks)
    listed = {name: _files(name, source) for name, source in run.sources.items()}
    inputs = _described(listed)
    if known is not None and not run.overwrite:
        _refuse_other_files(run, known["inputs"], inputs)
    order = stages.stages(run, tasks)
    content = {"tasks": tasks, "keys": now, "stages": [stage.name for stage in order], "inputs": inputs}
    content["commits"] = _commits(run.folder, known or {}, now)
    if not run.dry_run:
        _share(Path(run.folder) / "inputs", listed, tasks)
    if not run.dry_run and content != known:
        # Where the code alone is another one, tasks of an array may be at work.
        for stage in order if content != (known or {}) | {"commits": content["commits"]} else ():
            _forget_others(Path(run.folder), stage)
        files.write_whole(path, json.dumps(content, indent=1) + "\n")
    return Begun(tasks, inputs)


def _commits(name: str, known: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Of the code that worked on the folder, in their order; says where it is another one than before."""
    code, before = commit.commit(), list[str](known.get("commits", []))
    if code is None or code in before[-1:]:
        return before
    if before:
        said = ": what is done stays" if known["keys"] == now else ""
        print(f"{name} was made by the code of {before[-1]} and goes on with {code}{said}", flush=True)
    return [*before, code]


def _forget_others(folder: Path, stage: stages.CurationStage) -> None:
    """Take away what tasks left that a stage does not have any more; what reads all of it would take it for its own.

    And what as many tasks as before left of files that are dealt out otherwise now: each task takes away what it left
    before, which another one may have made anew by then.
    """
    for path in sorted((folder / stage.name / "manifests").glob("*.json")):
        dealt_otherwise = stage.dealt and (files.read_object(path) or {}).get("tasks") != stage.tasks
        if int(path.stem) >= stage.tasks or dealt_otherwise:
            attempts.forget(folder, stage.name, int(path.stem))


def _refuse_other_files(run: config.Curate, before: dict[str, Any], now: dict[str, Any]) -> None:
    for name, source in run.sources.items():
        if before.get(name) != now[name]:
            raise ValueError(
                f"sources.{name}.input={source.input}: its files are not those that {run.folder} was begun with; give "
                "them back, overwrite=true to read them anew, or another folder"
            )


def joined(run: config.Curate) -> int:
    """The number of shards of a folder that is begun, for one task of many: no files of the sources are listed.

    Raises ValueError where it is not, or was begun with other keys.
    """
    known = files.read_object(Path(run.folder) / NAME)
    if known is None:
        raise ValueError(
            f"folder={run.folder}: {NAME} is not there or cannot be read; begin with submit=true, or without task="
        )
    if not run.overwrite:
        refuse_others(run, known, decisive(run) | versions(run), run.tasks or known["tasks"])
    return int(known["tasks"])


def refuse_others(run: config.Curate, known: dict[str, Any], now: dict[str, Any], tasks: int) -> None:
    """Raise ValueError where a folder was made with other keys than `now`."""
    before = known["keys"]
    remedy = "overwrite=true to make again what it changes, or another folder"
    for key in dict.fromkeys([f"{VERSION}stages", *before, *now]):  # other code may have other keys
        if before.get(key) == now.get(key):
            continue
        given = f"{key}={_shown(now[key])}" if key in now else f"{key} is not given"
        if key in before:
            made = f"with {_shown(before[key])}; give that, or"
        else:
            made = "without it; give" if key.startswith(VERSION) else "without it; leave it out, or"
        raise ValueError(f"{given}: {run.folder} was made {made} {remedy}")
    if tasks != known["tasks"]:
        raise ValueError(f"tasks={tasks}: {run.folder} has {known['tasks']} shards; give that, or {remedy}")


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


# --- files of the sources ---


def place(source: config.PageSource) -> tuple[DataFolder, list[str] | None]:
    """The folder of a source and, where its input is one file, that file."""
    folder = get_datafolder(source.input)
    if folder.isfile(""):
        parent, _, name = source.input.rstrip("/").rpartition("/")
        return get_datafolder(parent or "."), [name]
    return folder, None


def _stamp(info: dict[str, Any]) -> list[Any]:
    """Bytes of a file, and when it was changed, as far as its file system tells."""
    found = (info[name] for name in CHANGES if info.get(name))
    return [int(info["size"] or 0), str(next(found, ""))]


def _files(name: str, source: config.PageSource) -> Listed:
    folder, only = place(source)
    pattern = source.files or READERS[source.format].glob
    if only is not None:
        return {only[0]: _stamp(folder.info(only[0]))}
    there = {path: info for path, info in folder.find("", detail=True).items() if info["type"] == "file"}
    taken = {path: _stamp(there[path]) for path in sorted(folder.glob(pattern)) if path in there}
    if not taken:
        raise ValueError(
            f"sources.{name}.files={source.files}: {source.input} holds {len(there)} files and none like {pattern}; "
            f"give a pattern, or another sources.{name}.input or format"
        )
    if left := sorted(there.keys() - taken.keys()):
        shown = ", ".join(left[:3]) + (", ..." if len(left) > 3 else "")
        print(f"sources.{name}: {len(left)} files are not like {pattern}, and not read: {shown}", flush=True)
    return taken


def _described(listed: dict[str, Listed]) -> dict[str, Any]:
    return {
        name: {
            "files": len(found),
            "bytes": sum(size for size, _ in found.values()),
            "packed": sum(size for path, (size, _) in found.items() if path.endswith(PACKED)),
            "sha256": hashlib.sha256(json.dumps(found).encode()).hexdigest(),
        }
        for name, found in listed.items()
    }


def _share(folder: Path, listed: dict[str, Listed], tasks: int) -> None:
    """Write which files each task reads: the largest first, each to the task with the fewest bytes so far.

    What is there already stays; what is missing or damaged is written anew.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shares: list[dict[str, list[str]]] = [{} for _ in range(tasks)]
    loads = [(0, rank) for rank in range(tasks)]
    ordered = sorted(((-found[0], name, path) for name, known in listed.items() for path, found in known.items()))
    for size, name, path in ordered:
        load, rank = heapq.heappop(loads)
        shares[rank].setdefault(name, []).append(path)
        heapq.heappush(loads, (load - size + 4096, rank))  # opening a file takes a while, too
    for rank, share in enumerate(shares):
        mine = {name: {path: listed[name][path] for path in sorted(paths)} for name, paths in sorted(share.items())}
        content = {"bytes": sum(size for found in mine.values() for size, _ in found.values()), "files": mine}
        target, line = folder / f"{rank:05d}.json", json.dumps(content) + "\n"
        if not target.is_file() or target.read_bytes() != line.encode():
            files.write_whole(target, line)


def changed(run: config.Curate, share: dict[str, Any]) -> str | None:
    """What is other with the files that a task reads than when the folder was begun."""
    for name, known in share["files"].items():
        folder, source = place(run.sources[name])[0], f"sources.{name}.input={run.sources[name].input}"
        for path, (size, when) in known.items():
            try:
                info = folder.info(path)
            except FileNotFoundError:
                return f"{source}: {path} is not there any more"
            # Listings of object stores tell more of a file than it tells itself.
            if (now := _stamp(info))[0] != size or ("mtime" in info and now[1] != when):
                return f"{source}: {path} was changed since {run.folder} was begun"
    return None


def share(folder: Path, rank: int) -> dict[str, Any]:
    """Which files a task reads, by source, with the bytes of each and when it was changed, and all their bytes."""
    content = files.read_object(folder / "inputs" / f"{rank:05d}.json")
    if content is None:
        raise ValueError(f"folder={folder}: inputs/{rank:05d}.json is not there; run without stage= first, or submit")
    return content


def safe(name: str) -> str:
    """A name as part of a path."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)[:60] or "unknown"
