"""Records of every kind of file are the same records, and what cannot be read is named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from llama31.dialogs import store

DIALOGS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": f"Hi {i}"}, {"role": "assistant", "content": "wörter"}], "n": i}
    for i in range(3)
]
DIALOGS[1]["extra"] = {"a": [1], "b": {"c": "d"}}


def read(path: Path) -> list[dict[str, Any]]:
    return [record for _, _, record in store.records([path], "data.sources.s", lambda record: record)]


def written(folder: Path, name: str) -> Path:
    import pyarrow
    import pyarrow.parquet

    lines, path = "".join(json.dumps(dialog) + "\n" for dialog in DIALOGS), folder / name
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([*DIALOGS[1:], DIALOGS[0]]), path)
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(json.dumps(DIALOGS, indent=1) if name == "array.json" else lines)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "lines.json", "array.json", "a.jsonl.gz", "a.parquet"])
def test_records_are_read_from_every_kind_of_file(tmp_path: Path, name: str) -> None:
    result = sorted(read(written(tmp_path, name)), key=lambda record: record["n"])
    assert result == DIALOGS, "nulls that a table needs are no fields of a record"
    assert store.files(str(tmp_path)) == [tmp_path / name]


def test_what_is_not_read_or_not_readable_is_named(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.parquet"):
        written(tmp_path, name)
    (tmp_path / "table.csv").touch()
    (tmp_path / "inner").mkdir()
    assert [path.name for path in store.unread(str(tmp_path), store.files(str(tmp_path)))] == ["inner", "table.csv"]
    assert store.unread(f"{tmp_path}/a.jsonl", [tmp_path / "a.jsonl"]) == []
    for name, problem in {"c.parquet": "no readable Parquet file", "c.json": "neither JSON lines nor JSON"}.items():
        (tmp_path / name).write_text("{nothing")
        with pytest.raises(ValueError, match=rf"data\.sources\.s: .*{name} is {problem}"):
            read(tmp_path / name)
    (tmp_path / "d.json").write_text('[{"a": 1}, 2]')
    with pytest.raises(ValueError, match=r"d\.json, record 2: no JSON object"):
        read(tmp_path / "d.json")
