"""checkpoint.json: what a checkpoint consists of, and whether all of it is still there.

    checkpoint.json     what the checkpoint says about itself; sizes and checksums of the few files that every one has,
                        how many files each of its folders holds, and a checksum of itself
    files.json          size and checksum of every file, two for each rank that saved

checkpoint.json is written last, so a folder with a good one was complete once. `read_meta` and `glance` look at it and
at the few files, whatever the number of ranks; `lacking` counts what folders hold, `problem` compares all sizes, and
`damage` does so over all ranks, or reads and hashes every byte.
"""

from __future__ import annotations

import heapq
import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama31.checkpoint import checksum
from llama31.checkpoint.checksum import ALGORITHM, Entry
from llama31.parallel.collectives import Ranks, gathered, on_first_rank, rank_of, size_of
from llama31.runs import files as drafts

NAME, FILES = "checkpoint.json", "files.json"
FORMAT_VERSION = 3
READABLE = (1, 2, FORMAT_VERSION)  # 1 has sizes alone; 1 and 2 list all files in checkpoint.json
FEW = 8  # files that a glance looks at


@dataclass(frozen=True)
class Manifest:
    """What the two files say: about the model (see publish.Meta), and about every file by relative name."""

    meta: dict[str, Any]
    files: dict[str, Entry]


def write(folder: Path, manifest: Manifest) -> None:
    """Write files.json and then checkpoint.json into `folder`, both on the disk when this returns."""
    listed = {name: [entry.size, entry.checksum] for name, entry in sorted(manifest.files.items())}
    _write(folder / FILES, json.dumps(listed))
    few = {name: entry for name, entry in manifest.files.items() if not name.endswith(".distcp")}
    few = dict(sorted(few.items())[: FEW - 1]) | {FILES: checksum.of_file(folder / FILES)}
    _write_record(folder, manifest.meta, few, Counter(str(Path(name).parent) for name in [*manifest.files, FILES]))


def _write_record(folder: Path, meta: dict[str, Any], few: dict[str, Entry], counts: dict[str, int]) -> None:
    files = {name: {"bytes": entry.size, ALGORITHM: entry.checksum} for name, entry in few.items()}
    content = {"format_version": FORMAT_VERSION, "meta": meta, "files": files, "folders": counts}
    content = json.loads(json.dumps(content))  # as it will be read: keys that are numbers sort otherwise as text
    _write(folder / NAME, json.dumps({**content, ALGORITHM: _checksum(content)}, indent=1))


def _write(path: Path, text: str) -> None:
    with drafts.whole(path) as draft, draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def change(folder: Path, changed: dict[str, Any]) -> None:
    """Write other values for some keys of what a checkpoint says about itself. ValueError where it is none."""
    content = _record(folder)
    if content["format_version"] < FORMAT_VERSION:
        write(folder, Manifest({**content["meta"], **changed}, read(folder).files))
        return
    _write_record(folder, {**content["meta"], **changed}, _entries(content), content["folders"])


def read_meta(folder: Path) -> dict[str, Any]:
    """What a checkpoint says about itself, from checkpoint.json alone. ValueError that says why that is none."""
    meta: dict[str, Any] = _record(folder)["meta"]
    return meta


def read(folder: Path) -> Manifest:
    """Both files. ValueError that says why they are none."""
    content = _record(folder)
    entries = _entries(content)
    if content["format_version"] < FORMAT_VERSION:
        return Manifest(content["meta"], entries)
    try:
        text = (folder / FILES).read_bytes()
    except OSError as error:
        raise ValueError(f"{FILES} is missing or unreadable ({error})") from error
    if (actual := checksum.of_bytes(text)) != entries[FILES]:
        raise ValueError(f"{FILES} has checksum {actual.checksum}, it was written with {entries[FILES].checksum}")
    listed = {name: Entry(size, hashed) for name, (size, hashed) in json.loads(text).items()}
    return Manifest(content["meta"], listed | {FILES: entries[FILES]})


def _record(folder: Path) -> dict[str, Any]:
    """What checkpoint.json holds."""
    try:
        content = json.loads((folder / NAME).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{NAME} is missing or unreadable ({error})") from error
    if not isinstance(content, dict) or not {"meta", "files"} <= content.keys():
        raise ValueError(f"{NAME} is no manifest")
    if (version := content.get("format_version")) not in READABLE:
        raise ValueError(f"format version {version}, this code reads {' and '.join(map(str, READABLE))}")
    stated = content.pop(ALGORITHM, None)
    if version > 1 and (actual := _checksum(content)) != stated:
        raise ValueError(f"{NAME} has checksum {actual}, it says {stated}")
    return content


def _entries(content: dict[str, Any]) -> dict[str, Entry]:
    if content["format_version"] == 1:
        return {name: Entry(size) for name, size in content["files"].items()}
    return {name: Entry(entry["bytes"], entry[ALGORITHM]) for name, entry in content["files"].items()}


def glance(folder: Path) -> str | None:
    """Why `folder` is no complete checkpoint, as far as checkpoint.json and the sizes of a few files tell."""
    try:
        entries = _entries(_record(folder))
    except ValueError as error:
        return str(error)
    few = [name for name in entries if not name.endswith(".distcp")][:FEW]
    return next(filter(None, (_wrong_size(folder, name, entries[name]) for name in few)), None)


def lacking(folder: Path) -> str | None:
    """`glance`, and whether each folder holds as many files as were written: lists folders, asks no file its size."""
    if found := glance(folder):
        return found
    content = _record(folder)
    if content["format_version"] < FORMAT_VERSION:
        return problem(folder)
    for name, count in content["folders"].items():
        held = sum(entry.is_file() for entry in os.scandir(folder / name)) if (folder / name).is_dir() else 0
        if held < count:
            return f"{name} holds {held} of {count} files"
    return None


def problem(folder: Path) -> str | None:
    """Why `folder` is no complete checkpoint, as far as names and all sizes tell; None if it is one."""
    try:
        files = read(folder).files
    except ValueError as error:
        return str(error)
    return next(filter(None, (_wrong_size(folder, name, entry) for name, entry in files.items())), None)


def damage(folder: Path, ranks: Ranks = None, checksums: bool = True) -> list[str]:
    """Everything that is wrong with the files of a checkpoint, down to one flipped bit; the same list on all ranks.

    Collective over `ranks`, which share out the reading by size, or without `checksums` the asking for sizes.
    """
    found = on_first_rank(lambda: _read_or_say(folder), ranks)
    if isinstance(found, str):
        return [found]
    files = found.files
    mine = shared_out({name: entry.size for name, entry in files.items()}, size_of(ranks))[rank_of(ranks)]
    check = _wrong if checksums else _wrong_size
    checked = gathered(ranks, lambda: [said for name in mine if (said := check(folder, name, files[name]))])
    return on_first_rank(lambda: sorted(said for part in checked for said in part), ranks)


def _read_or_say(folder: Path) -> Manifest | str:
    try:
        return read(folder)
    except ValueError as error:
        return str(error)


def shared_out[Key: (str, int)](sizes: Mapping[Key, int], ranks: int) -> list[list[Key]]:
    """What each rank reads, the largest first, each to the rank with the least so far."""
    shares: list[list[Key]] = [[] for _ in range(ranks)]
    loads = [(0, rank) for rank in range(ranks)]
    for key in sorted(sizes, key=lambda key: (-sizes[key], key)):
        load, rank = loads[0]
        shares[rank].append(key)
        heapq.heapreplace(loads, (load + sizes[key], rank))
    return shares


def _wrong_size(folder: Path, name: str, entry: Entry) -> str | None:
    try:
        size = (folder / name).stat().st_size
    except FileNotFoundError:
        return f"{name} is missing"
    return f"{name} has {size} of {entry.size} bytes" if size != entry.size else None


def _wrong(folder: Path, name: str, entry: Entry) -> str | None:
    try:
        if (wrong := _wrong_size(folder, name, entry)) or entry.checksum is None:
            return wrong
        actual = checksum.of_file(folder / name).checksum
    except OSError as error:
        return f"{name} cannot be read ({error})"
    return None if actual == entry.checksum else f"{name} has checksum {actual}, it was written with {entry.checksum}"


def _checksum(content: dict[str, Any]) -> str | None:
    return checksum.of_bytes(json.dumps(content, sort_keys=True).encode()).checksum
