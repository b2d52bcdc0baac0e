"""Files that appear whole or not at all, however their writer ends, and what is read of those that others write."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A draft to be made in the block, which at its end takes the place of `path`; gone where the block raises."""
    draft = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")  # hosts may share a pid
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Replace a file by `text` at once, so that nobody reads half of it; a device or a pipe is written to."""
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
        return
    with whole(path) as draft:
        draft.write_text(text, encoding="utf-8")


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object of a file; None where there is none, or only half of one yet."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
