"""What synthesis begins with: records of JSON or Parquet, or files of a folder as they are, one item each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from llama31.dialogs import store


@dataclass(frozen=True)
class SynthesisItem:
    """One of the input: `record` is what the file holds, `text` the field that the task reads ("" where it has none).

    `index`: its place in the whole input, by which output is ordered and shards are dealt. `place`: file and line.
    `beside`: what is known of the rest of the input, which may grow: a result that is there stays.
    """

    id: str
    index: int
    record: Mapping[str, Any]
    text: str
    place: str
    beside: Mapping[str, Any] = field(default_factory=dict)


def read(given: str, text_key: str, limit: int | None = None) -> Iterator[SynthesisItem]:
    """Items of the files that `given` names, at most `limit`. What stands there twice is one item.

    A record's own `id` names it where it has one; otherwise a hash of what it says. Raises ValueError (key `input`)
    with file and line for what is no record, or whose `text_key` is no text, and where nothing is there.
    """
    seen: dict[str, str] = {}
    index = 0
    for place, record in _records(given):
        record = writable(record)
        text = record.get(text_key, "")
        if not isinstance(text, str):
            raise ValueError(f"input: {place}: {text_key} is no text; give text_key=NAME of the field that is")
        content = digest(record)
        name = str(record.get("id") or "") or content
        if seen.setdefault(name, content) != content:
            raise ValueError(f"input: {place}: id {name} stands for another record already; give each its own")
        if len(seen) == index:
            continue
        yield SynthesisItem(name, index, record, text, place)
        index += 1
        if limit is not None and index == limit:
            return
    if not seen:
        raise ValueError(f"input={given}: there is no record in it; give JSON lines, Parquet, or a folder of files")


def distinct(found: Iterator[SynthesisItem]) -> Iterator[SynthesisItem]:
    """Items as they are. Raises ValueError (key `input`) for a second one of the same name, of another folder."""
    places: dict[str, str] = {}
    for item in found:
        if (place := places.setdefault(item.id, item.place)) != item.place:
            raise ValueError(f"input: {item.place}: {place} is named {item.id} as well; rename one of them")
        yield item


def writable[T](value: T) -> T:
    """A value of JSON as a file can hold it: halves of surrogate pairs, which are no UTF-8, become U+FFFD."""
    said = json.dumps(value, ensure_ascii=False)
    try:
        said.encode()
    except UnicodeEncodeError:
        return cast(T, json.loads(said.encode("utf-8", "surrogatepass").decode("utf-8", "replace")))
    return value


def digest(record: Mapping[str, Any]) -> str:
    """What tells one record from another."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]


def _records(given: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for part in (text.strip() for text in given.split(",") if text.strip()):
        if paths := store.files(part):
            yield from ((place, record) for place, _, record in store.records(paths, "input", lambda record: record))
        else:
            yield from _files(Path(part))


def _files(root: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Files of a folder that holds no records, each whole; what is no UTF-8 is read with U+FFFD in its place."""
    for path in _below(root):
        text = path.read_bytes().decode("utf-8", "replace")
        name = path.relative_to(root).as_posix() if path != root else path.name
        yield str(path), {"id": name, "text": text, "path": name}


def _below(root: Path) -> Sequence[Path]:
    if root.is_file():
        return [root]
    return sorted(path for path in root.rglob("*") if path.is_file() and not _hidden(path, root))


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)
