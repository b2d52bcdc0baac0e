"""What a packed source is on disk: `{train,heldout}.{bin,idx}` and `packed.json`, which says what they are."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llama31 import config
from llama31.runs import files
from llama31.tokens.indexed import IndexedReader

VERSION = 1
SPLITS = ("train", "heldout")


@dataclass(frozen=True)
class Split:
    """One of the two splits; without documents it has no files."""

    tokens: int
    documents: int
    sha256: str  # of the token bytes, then the lengths


@dataclass(frozen=True)
class Packed:
    """`packed.json`. Equal fingerprints mean equal tokens from an equal vocabulary under equal settings."""

    version: int
    fingerprint: str
    tokenizer_kind: str
    tokenizer_fingerprint: str
    vocab_size: int
    settings: dict[str, Any]  # what decides the tokens beside the text
    input: dict[str, Any]  # where the text came from
    train: Split
    heldout: Split

    def split(self, name: str) -> Split:
        """Split by name."""
        return {"train": self.train, "heldout": self.heldout}[name]

    def write(self, folder: Path) -> Path:
        """Write `packed.json` into `folder`; returns its path."""
        path = folder / "packed.json"
        files.write_whole(path, json.dumps(asdict(self), indent=2) + "\n")
        return path


def wrong_end(data: config.Data, name: str, source: Packed, documents: IndexedReader, eos_id: int) -> str | None:
    """A sentence where the documents of a source end with another token than `eos_id`; None where all is well.

    Its tokenizer may be the same then: folders of Instruct releases name the end of a turn as their end of text, and
    data were packed with it once. The first document tells.
    """
    last = int(documents.document(0)[-1])
    if not source.settings.get("eos") or last == eos_id:
        return None
    return (
        f"data.sources.{name}: the documents in {folder_of(data, name)} end with token {last}, and the tokenizer's end "
        f"of text is {eos_id}"
    )


def folder_of(data: config.Data, name: str) -> Path:
    """Folder of the packed source `name`."""
    return Path(data.sources[name].packed or Path(data.folder) / name)


def exists(data: config.Data, name: str) -> bool:
    """Whether source `name` is packed."""
    return (folder_of(data, name) / "packed.json").is_file()


def read(data: config.Data, name: str) -> Packed:
    """`packed.json` of source `name`. Raises ValueError (key `data.sources.NAME`) where it is missing or unreadable."""
    path = folder_of(data, name) / "packed.json"
    where = f"data.sources.{name}: {path}"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] != VERSION:
            raise ValueError(f"{where} has version {content['version']}, not {VERSION}: pack it again, overwrite=true")
        return Packed(**content | {split: Split(**content[split]) for split in SPLITS})
    except FileNotFoundError as error:
        raise ValueError(f"{where} does not exist; pack it first: python -m recipes.pack ...") from error
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{where} cannot be read ({error!r}); pack it again with overwrite=true") from error
