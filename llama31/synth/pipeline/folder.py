"""What a folder was begun with and what was gathered of, so that nothing goes into it that does not belong there.

<folder>/synthesis.json   what decides the records: another kind does not go into the same folder
<folder>/gathered.json    what the files of all shards were made of: as long as that is the same, they are done
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama31.runs import files
from llama31.synth.pipeline.journal import RESULTS
from llama31.synth.pipeline.prompt_files import PromptFiles

SETTINGS, GATHERED = "synthesis.json", "gathered.json"
# Keys of the command that change no file, or whose change `opened` refuses.
ELSEWHERE: tuple[str, ...] = ("submit", "dry_run", "part", "shard", "job", "folder", "checks", "items_at_once")
ELSEWHERE += ("server", "judge", "reward", "services")


@dataclass(frozen=True)
class BegunSynthesis:
    """A folder, its prompts, and the settings that stand in every record's provenance."""

    path: Path
    prompts: PromptFiles
    provenance: Mapping[str, Any]


def opened(
    path: Path, settings: Mapping[str, Any], provenance: Mapping[str, Any], own_prompts: str | None, sent: Sequence[str]
) -> BegunSynthesis:
    """State in the folder what its records are made with, or see that it is the same.

    Args:
        settings: all keys that decide what is made, by name.
        provenance: those of them that a record says.
        own_prompts: folder of prompts that come before ours.
        sent: names of the prompts that the task sends.

    Raises ValueError, naming the keys, where the folder was begun with others.
    """
    prompts = PromptFiles(own_prompts)
    prompts.check(sent)
    wanted = json.loads(json.dumps({**settings, "prompts": prompts.fingerprints(sent)}))
    before = files.read_object(path / SETTINGS)
    if before is not None and before != wanted:
        raise ValueError(f"folder={path}: {_differences(before, wanted)}; give another folder or name, or those values")
    path.mkdir(parents=True, exist_ok=True)
    if before is None:
        files.write_whole(path / SETTINGS, json.dumps(wanted, indent=1, ensure_ascii=False) + "\n")
    return BegunSynthesis(path, prompts, provenance)


def _differences(before: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The keys that differ, with both values."""
    old, new = dict(_leaves("", before)), dict(_leaves("", wanted))
    keys = [key for key in [*old, *(key for key in new if key not in old)] if old.get(key) != new.get(key)]
    said = ", ".join(f"{key}={old.get(key, 'nothing')} (now {new.get(key, 'nothing')})" for key in keys[:5])
    return f"it was begun with {said}{' and others' if len(keys) > 5 else ''}"


def _leaves(prefix: str, value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        return [(prefix, value)]
    return [leaf for key, inner in value.items() for leaf in _leaves(f"{prefix}.{key}" if prefix else key, inner)]


@contextmanager
def gathering(path: Path, keys: Mapping[str, Any], read: Sequence[str]) -> Iterator[None]:
    """Note in the folder what the block gathers of, once it has.

    Args:
        keys: all of the command; those that change no file are passed over.
        read: files, folders and globs that it reads beside the shards' results.
    """
    of = _state(path, keys, read)
    yield
    left = sorted(one.name for one in path.iterdir() if one.is_file() and one.name != GATHERED)
    files.write_whole(path / GATHERED, json.dumps({"of": of, "left": left}) + "\n")


def is_gathered(path: Path, keys: Mapping[str, Any], read: Sequence[str]) -> bool:
    """Whether what was gathered is there, of these keys, these files and all results as they are now."""
    noted = files.read_object(path / GATHERED) or {}
    return noted.get("of") == _state(path, keys, read) and all((path / name).exists() for name in noted["left"])


def _state(path: Path, keys: Mapping[str, Any], read: Sequence[str]) -> str:
    """A hash of the keys, and of the names, sizes and times of all files: none is opened."""
    deciding = {name: value for name, value in keys.items() if name not in ELSEWHERE}
    texts = [text.strip() for part in read for text in part.split(",") if text.strip()]
    named = [Path(name) for text in texts for name in glob.glob(str(Path(text).expanduser()))]
    below = [inner for one in named for inner in ([one] if one.is_file() else one.rglob("*")) if inner.is_file()]
    found = sorted({one.resolve() for one in [*below, *path.rglob(f"shards/*/{RESULTS}")]})
    seen = [(str(one), (said := one.stat()).st_size, said.st_mtime_ns) for one in found]
    return hashlib.sha256(json.dumps([deciding, seen], sort_keys=True).encode()).hexdigest()[:16]
