"""Repositories as they lie on disk: each folder below the input is one, an item with its text files by path."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from llama31.dialogs import store
from llama31.synth.long_context import imports
from llama31.synth.pipeline import items
from llama31.synth.pipeline.items import SynthesisItem

BESIDE = (".md", ".rst", ".txt", ".toml", ".cfg", ".ini", ".json", ".yaml", ".yml")  # what stands beside the code
MOST_BYTES = 200_000  # of a file; longer ones are generated as a rule


def read(given: str, text_key: str, limit: int | None = None) -> Iterable[SynthesisItem]:
    """Items of JSON or Parquet as they are, whose records have `files`; of a folder, one for each folder in it.

    Raises ValueError (key `input`) where there is none, and for two folders of one name.
    """
    return items.read(given, text_key, limit) if store.files(given) else items.distinct(_repositories(given, limit))


def _repositories(given: str, limit: int | None) -> Iterator[SynthesisItem]:
    roots = [Path(part.strip()) for part in given.split(",") if part.strip()]
    folders = sorted({one for root in roots if root.is_dir() for one in root.iterdir() if _visible(one)})
    if not folders:
        raise ValueError(f"input={given}: no repository in it; give JSON lines, or a folder with a folder for each")
    for index, folder in enumerate(folders[:limit]):
        yield SynthesisItem(folder.name, index, {"id": folder.name, "files": files(folder)}, "", str(folder))


def files(folder: Path) -> dict[str, str]:
    """The text files of a repository by path: code, and what is told beside it; neither hidden nor very long."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if any(part.startswith(".") for part in name.parts) or path.is_symlink() or not path.is_file():
            continue
        known = imports.language(path.name) is not None or path.suffix in BESIDE
        if known and path.stat().st_size <= MOST_BYTES and b"\0" not in (content := path.read_bytes()):
            found[name.as_posix()] = content.decode("utf-8", "replace")
    return found


def _visible(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")
