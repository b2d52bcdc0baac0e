"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from llama31.runs import files
from tests.processes import LIMIT_S


def test_failed_draft_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "told.json"
    files.write_whole(path, "first")
    with pytest.raises(RuntimeError, match="half way"), files.whole(path) as draft:
        draft.write_text("sec")
        raise RuntimeError("half way")
    assert path.read_text() == "first"
    assert [result.name for result in tmp_path.iterdir()] == ["told.json"]


def test_second_text_replaces_the_first(tmp_path: Path) -> None:
    path = tmp_path / "told.json"
    for text in ("longer than the next", "šhort"):
        files.write_whole(path, text)
    assert path.read_text(encoding="utf-8") == "šhort"
    assert [result.name for result in tmp_path.iterdir()] == ["told.json"]


def test_pipe_is_written_to_and_stays_one(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(path.read_text()), daemon=True)
    reader.start()
    files.write_whole(path, "told")
    reader.join(timeout=LIMIT_S)
    assert read == ["told"] and path.is_fifo()
