"""checkpoint.json: what a checkpoint consists of, and whether all of it is still there.

It is written last, so a folder with a good manifest was complete once. `problem` compares sizes, which costs nothing;
`damage` reads and hashes every byte, shared out over the ranks. The manifest carries a checksum of itself.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama31.checkpoint import checksum
from llama31.checkpoint.checksum import ALGORITHM, Entry
from llama31.parallel.collectives import Ranks, gathered, on_first_rank, rank_of, size_of
from llama31.runs.files import write_whole

NAME = "checkpoint.json"
FORMAT_VERSION = 2
READABLE = (1, FORMAT_VERSION)  # 1 has sizes alone


@dataclass(frozen=True)
class Manifest:
    """What checkpoint.json says: about the model (see checkpoint.Meta), and about every file by relative name."""

    meta: dict[str, Any]
    files: dict[str, Entry]


def write(folder: Path, manifest: Manifest) -> None:
    """Write checkpoint.json into `folder`."""
    files = {name: {"bytes": entry.size, ALGORITHM: entry.checksum} for name, entry in sorted(manifest.files.items())}
    content = {"format_version": FORMAT_VERSION, "meta": manifest.meta, "files": files}
    content = json.loads(json.dumps(content))  # as it will be read: keys that are numbers sort otherwise as text
    write_whole(folder / NAME, json.dumps({**content, ALGORITHM: _checksum(content)}, indent=1))


def read(folder: Path) -> Manifest:
    """Raises ValueError that says why checkpoint.json is none."""
    try:
        content = json.loads((folder / NAME).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{NAME} is missing or unreadable ({error})") from error
    if not isinstance(content, dict) or not {"meta", "files"} <= content.keys():
        raise ValueError(f"{NAME} is no manifest")
    if (version := content.get("format_version")) not in READABLE:
        raise ValueError(f"format version {version}, this code reads {' and '.join(map(str, READABLE))}")
    if version == 1:
        return Manifest(content["meta"], {name: Entry(size) for name, size in content["files"].items()})
    stated = content.pop(ALGORITHM, None)
    if (actual := _checksum(content)) != stated:
        raise ValueError(f"{NAME} has checksum {actual}, it says {stated}")
    files = {name: Entry(entry["bytes"], entry[ALGORITHM]) for name, entry in content["files"].items()}
    return Manifest(content["meta"], files)


def problem(folder: Path) -> str | None:
    """Why `folder` is no complete checkpoint, as far as names and sizes tell; None if it is one."""
    try:
        files = read(folder).files
    except ValueError as error:
        return str(error)
    return next(filter(None, (_wrong_size(folder, name, entry) for name, entry in files.items())), None)


def damage(folder: Path, group: Ranks = None) -> list[str]:
    """Everything that is wrong with the files of a checkpoint, down to one flipped bit; the same list on all ranks.

    Collective over `group`, whose ranks share out the reading by size.
    """
    manifest = on_first_rank(lambda: _read_or_say(folder), group)
    if isinstance(manifest, str):
        return [manifest]
    mine = _shared_out(manifest.files, size_of(group))[rank_of(group)]
    checked = gathered(group, lambda: [_wrong(folder, name, manifest.files[name]) for name in mine])
    return on_first_rank(lambda: sorted(wrong for part in checked for wrong in part if wrong is not None), group)


def _read_or_say(folder: Path) -> Manifest | str:
    try:
        return read(folder)
    except ValueError as error:
        return str(error)


def _shared_out(files: dict[str, Entry], ranks: int) -> list[list[str]]:
    """Names per rank, the largest files first, each to the rank with the least so far."""
    loads, shares = [0] * ranks, [[] for _ in range(ranks)]  # type: tuple[list[int], list[list[str]]]
    for name in sorted(files, key=lambda name: (-files[name].size, name)):
        rank = loads.index(min(loads))
        loads[rank] += files[name].size
        shares[rank].append(name)
    return shares


def _wrong_size(folder: Path, name: str, entry: Entry) -> str | None:
    path = folder / name
    if not path.exists():
        return f"{name} is missing"
    size = path.stat().st_size
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
