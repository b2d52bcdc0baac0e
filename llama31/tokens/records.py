"""Files of records: lines of JSON, one array of it, or Parquet; each record as the line that it is or would be."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llama31.tokens.compressed import BROKEN, COMPRESSED, opened

_PLAIN = (".jsonl", ".ndjson", ".json")
JSON = (*_PLAIN, *(suffix + packed for suffix in _PLAIN for packed in COMPRESSED))
SUFFIXES = (*JSON, ".parquet")


def each(path: Path, key: str) -> Iterator[tuple[str, bytes]]:
    """Of every record of a file its place, and the line of JSON that it is or would be.

    Of Parquet, where every record has all fields, those that are null are left out.
    """
    if path.suffix == ".parquet":
        rows = (row for batch in parquet(path, key).iter_batches(1000) for row in batch.to_pylist())
        for number, row in enumerate(rows, start=1):
            yield f"{path}, row {number}", json.dumps(_without_nulls(row), default=str).encode()
    elif holds_lines(str(path), key):
        with opened(str(path)) as lines:
            try:
                yield from ((f"{path}, line {number}", line) for number, line in enumerate(lines, start=1))
            except BROKEN as error:
                raise ValueError(f"{key}: {path} is damaged ({error}); fetch it again") from error
    else:
        for number, record in enumerate(array(str(path), key), start=1):
            yield f"{path}, record {number}", json.dumps(record).encode()


def not_read(key: str, left: Sequence[Path | str]) -> str:
    """A sentence on what the folders of an input hold beside what is read of them."""
    return f"{key}: {len(left)} not read: {first_few(left)}; name them"


def first_few(names: Sequence[Path | str]) -> str:
    """The first five, and whether there are more."""
    return ", ".join(map(str, names[:5])) + (", ..." if len(names) > 5 else "")


def parquet(path: Path | str, key: str) -> Any:
    """A Parquet file, opened. Raises ValueError, naming `key`."""
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{key}: {path} is no readable Parquet file ({error}); fetch it again") from error


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def holds_lines(path: str, key: str) -> bool:
    """Whether the first line that is not blank stands by itself; else the file is one array, or a single record.

    Only of a .json is that a question. Raises ValueError, naming `key` of the config, where it cannot be read.
    """
    if not path.removesuffix(next(filter(path.endswith, COMPRESSED), "")).endswith(".json"):
        return True
    try:
        with opened(path) as file:
            first = next((line for line in file if not line.isspace()), b"{}")
    except BROKEN as error:
        raise ValueError(f"{key}: {path} is damaged ({error}); fetch it again") from error
    try:
        return isinstance(json.loads(first), dict)
    except ValueError:
        return False


def array(path: str, key: str) -> list[Any]:
    """The records of a file that is one JSON array, or a single one. Raises ValueError, naming `key`."""
    try:
        with opened(path) as file:
            content = json.load(file)
    except ValueError as error:
        remedy = "mend it, or set format=text to read it as one text"
        raise ValueError(f"{key}: {path} is neither JSON lines nor JSON ({error}); {remedy}") from error
    except BROKEN as error:
        raise ValueError(f"{key}: {path} is damaged ({error}); fetch it again") from error
    return content if isinstance(content, list) else [content]
