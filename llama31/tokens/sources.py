"""Documents of a source, in an order that depends on nothing but the source.

A source is cut into work items of a few megabytes (`items`): a range of bytes of a JSONL file, row groups of a Parquet
file, a handful of text files, rows of a dataset. Each item can be read (`documents`) by any process, so a single huge
file is packed in parallel.

Files of .jsonl, .ndjson or .json hold records, a line each; one of .json may also be an array of them, or a single one,
and is then read whole. Two placeholders may stand in `data.sources.NAME.input`: `{stdlib}`, the folder of Python's
standard library, and `{site-packages}`, that of the installed packages; every machine has these texts.
"""

from __future__ import annotations

import functools
import glob
import json
import os
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama31 import config
from llama31.tokens.compressed import BROKEN, COMPRESSED, opened
from llama31.tokens.records import JSON, array, holds_lines, parquet

_ITEM_BYTES = 4_000_000
_ITEM_FILES = 500
_ITEM_ROWS = 5_000
_TEXTS = (".txt", ".md", ".rst")
_SUFFIXES = {
    "jsonl": JSON,
    "parquet": (".parquet",),
    "text": (*_TEXTS, *(suffix + packed for suffix in _TEXTS for packed in COMPRESSED)),
}
_FORMATS = ("auto", "text", "jsonl", "parquet", "tree", "dataset")
# Packages installed inside the standard library's folder are not the standard library.
_SKIPPED_FOLDERS = {"__pycache__", "node_modules", "site-packages", "dist-packages"}


@dataclass(frozen=True)
class Item:
    """A piece of a source that one process reads: whole `paths`, or [start, stop) of one path.

    `start` and `stop` count bytes (jsonl), row groups (parquet) or rows (dataset); `size` measures the work.
    """

    format: str
    paths: tuple[str, ...]
    start: int
    stop: int | None
    size: int


def items(source: config.Source, name: str) -> list[Item]:
    """Cut a source into work items, in reading order.

    Raises ValueError (keys `data.sources.NAME.*`) for an unknown format and for inputs that do not exist or hold
    nothing of the format.
    """
    where = f"data.sources.{name}"
    if source.format not in _FORMATS:
        raise ValueError(f"{where}.format={source.format}: choose one of {', '.join(_FORMATS)}")
    if not source.input:
        raise ValueError(f"{where}.input is empty: give a file, folder, glob or dataset")
    if source.format == "dataset" or (source.format == "auto" and _is_saved_dataset(Path(source.input))):
        cut = _cut_dataset(source, where)
    else:
        cut = [item for format, paths in _runs(_files(source, where)) for item in _cut(format, paths, where)]
    if not cut:
        raise ValueError(f"{where}.input={source.input}: holds no text; give files that do")
    return cut


def unread(source: config.Source) -> list[str]:
    """Files below the folders of a source that are not read: of another format, hidden, or reached a second time.

    Nothing where `suffixes` say which are wanted, and of a tree only what a link leads to again.
    """
    if source.format == "dataset" or not source.input or _is_saved_dataset(Path(source.input)):
        return []
    chosen, left = source.format == "tree" or bool(source.suffixes.strip()), []
    for root in (root for _, roots in _parts(source, "data.sources") for root in roots if os.path.isdir(root)):
        again: list[str] = []
        files = list(_walk(root, source.format == "tree", again))
        left += [f"{folder} (read already)" for folder in again]
        left += [path for path in files if not chosen and _format_of(path, source.format, (), inside=True) is None]
    return left


@dataclass
class LeftOut:
    """What of an item is no document: files of a tree that are no text, and how many texts are blank."""

    files: list[str] = field(default_factory=list)
    blank: int = 0


def documents(item: Item, source: config.Source, name: str, left: LeftOut | None = None) -> Iterator[str]:
    """Documents of one item, in order; `left` is told of what is left out.

    Raises ValueError (keys `data.sources.NAME.*`) for a record without its text, naming file and line or row.
    """
    where, left = f"data.sources.{name}", left or LeftOut()
    readers: dict[str, Callable[[], Iterator[str]]] = {
        "text": lambda: _read_texts(item, where),
        "tree": lambda: _read_tree(item, left),
        "jsonl": lambda: _read_jsonl(item, source.text_key, where),
        "parquet": lambda: _read_parquet(item, source.text_key, where),
        "dataset": lambda: _read_dataset(item, source, where),
    }
    for text in readers[item.format]():
        if text and not text.isspace():
            yield text
        else:
            left.blank += 1


# --- finding files ----------------------------------------------------------------------------------------------------


def _expanded(text: str) -> str:
    paths = sysconfig.get_paths()
    return text.replace("{stdlib}", paths["stdlib"]).replace("{site-packages}", paths["purelib"])


def _files(source: config.Source, where: str) -> list[tuple[str, str]]:
    """(format, path) of each file of a source: inputs in the given order, files of each sorted, none twice."""
    wanted = tuple(suffix.strip() for suffix in source.suffixes.split(",") if suffix.strip())
    formats: dict[str, str] = {}
    for part, roots in _parts(source, where):
        matches = {path: format for root in roots for path, format in _matches(root, source.format, wanted)}
        if not matches:
            what = f"files ending in {', '.join(wanted)}" if wanted else f"files of format {source.format}"
            raise ValueError(f"{where}.input={part}: no {what}; set format (tree takes all text files) or suffixes")
        formats = formats | {path: format for path, format in matches.items() if path not in formats}
    return [(format, path) for path, format in formats.items()]


def _parts(source: config.Source, where: str) -> Iterator[tuple[str, list[str]]]:
    """Inputs in the given order, each with the files and folders that it stands for."""
    whole = _expanded(source.input.strip())  # a comma may belong to the name of a file
    for part in [whole] if os.path.exists(whole) else [part.strip() for part in whole.split(",") if part.strip()]:
        roots = [part] if os.path.exists(part) else sorted(glob.glob(part, recursive=True))
        if not roots:
            hint = "; for a dataset of the Hub set format=dataset" if source.format == "auto" else ""
            raise ValueError(f"{where}.input={part}: no such file, folder or glob{hint}")
        yield part, roots


def _matches(root: str, format: str, wanted: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for path in _walk(root, format == "tree", []) if os.path.isdir(root) else [root]:
        kind = _format_of(path, format, wanted, inside=path != root)
        if kind:
            yield path, kind


def _walk(root: str, tree: bool, again: list[str]) -> Iterator[str]:
    """Files below `root`, sorted by path; not in hidden folders, and for a tree not in caches and installed packages.

    Links to folders are followed, into each folder once: `again` gets those that are not entered a second time.
    """
    seen = {os.path.realpath(root)}
    for folder, folders, files in os.walk(root, followlinks=True):
        kept = sorted(f for f in folders if not f.startswith(".") and not (tree and f in _SKIPPED_FOLDERS))
        folders[:] = []
        for path in (os.path.join(folder, name) for name in kept):
            real = os.path.realpath(path)
            if real not in seen:
                seen.add(real)
                folders.append(os.path.basename(path))
            else:
                again.append(path)
        yield from (os.path.join(folder, file) for file in sorted(files))


def _format_of(path: str, format: str, wanted: tuple[str, ...], inside: bool) -> str | None:
    """Format of a file, or None where a folder's file is not wanted: another suffix, a hidden one.

    A file that was named itself is always wanted.
    """
    if inside and (os.path.basename(path).startswith(".") or (wanted and not path.endswith(wanted))):
        return None
    if format == "auto":
        known = [kind for kind, suffixes in _SUFFIXES.items() if path.endswith(suffixes)]
        return known[0] if known else "text" if wanted or not inside else None
    suffixes = _SUFFIXES.get(format)
    if inside and suffixes and not wanted and not path.endswith(suffixes):
        return None
    return format


def _runs(files: list[tuple[str, str]]) -> Iterator[tuple[str, list[str]]]:
    """Neighbouring files of one format together."""
    for i, (format, path) in enumerate(files):
        if i == 0 or files[i - 1][0] != format:
            run: list[str] = []
        run.append(path)
        if i + 1 == len(files) or files[i + 1][0] != format:
            yield format, run


def _cut(format: str, paths: list[str], where: str) -> Iterator[Item]:
    if format in ("text", "tree"):
        yield from _grouped(format, paths)
        return
    for path in paths:
        size = os.path.getsize(path)
        if format == "parquet":
            yield from _cut_parquet(path, where)
        elif path.endswith(COMPRESSED) or (size and not holds_lines(path, f"{where}.input")):
            yield Item(format, (path,), 0, None, size)
        else:
            for start in range(0, size, _ITEM_BYTES):
                stop = min(start + _ITEM_BYTES, size)
                yield Item(format, (path,), start, stop, stop - start)


def _grouped(format: str, paths: list[str]) -> Iterator[Item]:
    """Whole files, many small ones to an item."""
    group: list[str] = []
    size = 0
    for path in paths:
        group.append(path)
        size += os.path.getsize(path) if os.path.exists(path) else 0  # a broken link counts nothing
        if size >= _ITEM_BYTES or len(group) == _ITEM_FILES:
            yield Item(format, tuple(group), 0, None, size)
            group, size = [], 0
    if group:
        yield Item(format, tuple(group), 0, None, size)


# --- reading ----------------------------------------------------------------------------------------------------------


def _read_texts(item: Item, where: str) -> Iterator[str]:
    for path in item.paths:
        try:
            with opened(path) as file:
                yield file.read().decode()
        except BROKEN as error:
            raise ValueError(f"{where}.input: {path} is damaged ({error}); fetch it again") from error
        except UnicodeDecodeError as error:
            remedy = "convert it, or set format=tree, which leaves such files out"
            raise ValueError(f"{where}.input: {path} is not UTF-8 (byte {error.start}); {remedy}") from error
        except OSError as error:
            raise ValueError(f"{where}.input: {path} cannot be read ({error.strerror}); mend or remove it") from error


def _read_tree(item: Item, left: LeftOut) -> Iterator[str]:
    """Files of a source tree; binary and undecodable ones, broken links and pipes are no documents."""
    for path in item.paths:
        content = Path(path).read_bytes() if os.path.isfile(path) else b"\0"
        try:
            text = content.decode()
        except UnicodeDecodeError:
            text = "\0"
        if "\0" in text:
            left.files.append(path)
        else:
            yield text


def _read_jsonl(item: Item, key: str, where: str) -> Iterator[str]:
    """Lines that begin in [start, stop); the last may end behind it. A file that is one array is read whole."""
    path = item.paths[0]
    if item.stop is None and not holds_lines(path, f"{where}.input"):
        for number, record in enumerate(array(path, f"{where}.input"), start=1):
            place = f"{path}, record {number}"
            if not isinstance(record, dict):
                raise ValueError(f"{where}.input: {place} is no JSON object; each record has to be one")
            yield _checked(record.get(key), list(record), key, where, place)
        return
    for number, line in enumerate(_lines(item, where)):
        if not line.isspace():
            yield _text_of_line(line, key, where, lambda: f"{path}:{_line_number(path, item, number)}")  # noqa: B023


def _lines(item: Item, where: str) -> Iterator[bytes]:
    path = item.paths[0]
    with opened(path) as file:
        if item.start:
            file.seek(item.start - 1)
            file.readline()
        position = file.tell() if item.stop is not None else 0
        while item.stop is None or position < item.stop:
            try:
                line = file.readline()
            except BROKEN as error:
                raise ValueError(f"{where}.input: {path} is damaged ({error}); fetch it again") from error
            if not line:
                return
            position += len(line)
            yield line


def _text_of_line(line: bytes, key: str, where: str, place: Callable[[], str]) -> str:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}.input: {place()} is no JSON ({error}); mend or remove the line") from error
    if not isinstance(record, dict):
        raise ValueError(f"{where}.input: {place()} is no JSON object; each line has to be one")
    return _checked(record.get(key), list(record), key, where, place())


def _checked(text: Any, keys: list[str], key: str, where: str, place: str) -> str:
    """The text of a record; a null text is blank. Raises ValueError where there is none."""
    if text is None and key in keys:
        return ""
    if not isinstance(text, str):
        problem = f"holds {type(text).__name__} there, which is no text" if key in keys else "has no such text"
        raise ValueError(f"{where}.text_key={key}: {place} {problem}; its fields are {', '.join(keys)}")
    return text


def _line_number(path: str, item: Item, number: int) -> int:
    """Line in the file of the `number`-th line of an item; counted only when an error has to name it."""
    with opened(path) as file:
        begun = file.read(item.start - 1).count(b"\n") + 1 if item.start else 0
    return begun + number + 1


def _cut_parquet(path: str, where: str) -> Iterator[Item]:
    with parquet(path, f"{where}.input") as file:
        sizes = [file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups)]
    start = 0
    for stop in range(1, len(sizes) + 1):
        if sum(sizes[start:stop]) >= _ITEM_BYTES or stop == len(sizes):
            yield Item("parquet", (path,), start, stop, sum(sizes[start:stop]))
            start = stop


def _read_parquet(item: Item, key: str, where: str) -> Iterator[str]:
    path = item.paths[0]
    with parquet(path, f"{where}.input") as file:
        names = file.schema_arrow.names
        if key not in names:
            raise ValueError(f"{where}.text_key={key}: {path} has no such column; it has {', '.join(names)}")
        for batch in file.iter_batches(1000, row_groups=list(range(item.start, item.stop or 0)), columns=[key]):
            for text in batch.column(0).to_pylist():
                yield _checked(text, names, key, where, path)


def _is_saved_dataset(path: Path) -> bool:
    return any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))


@functools.lru_cache(maxsize=2)
def _dataset(input: str, split: str, where: str) -> Any:
    """A dataset saved on disk, or by name from the Hub (`name` or `name:configuration`)."""
    import datasets

    try:
        if not _is_saved_dataset(Path(input)):
            name, _, configuration = input.partition(":")
            return datasets.load_dataset(name, configuration or None, split=split)
        loaded = datasets.load_from_disk(input)
        return loaded[split] if isinstance(loaded, datasets.DatasetDict) else loaded
    except (  # datasets raises all of them
        datasets.exceptions.DatasetsError, OSError, ValueError, KeyError, RuntimeError, ImportError,
    ) as error:  # fmt: skip
        raise ValueError(f"{where}.input={input}, split={split}: datasets cannot load it: {error}") from error


def _cut_dataset(source: config.Source, where: str) -> list[Item]:
    rows = len(_dataset(source.input, source.split, where))
    starts = range(0, rows, _ITEM_ROWS)
    return [Item("dataset", (source.input,), i, min(i + _ITEM_ROWS, rows), min(_ITEM_ROWS, rows - i)) for i in starts]


def _read_dataset(item: Item, source: config.Source, where: str) -> Iterator[str]:
    rows = _dataset(item.paths[0], source.split, where)
    key = source.text_key
    if key not in rows.column_names:
        raise ValueError(f"{where}.text_key={key}: {source.input} has no such column; it has {rows.column_names}")
    for start in range(item.start, item.stop or 0, 1000):
        for text in rows[start : min(start + 1000, item.stop or 0)][key]:
            yield _checked(text, rows.column_names, key, where, source.input)
