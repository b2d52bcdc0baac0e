"""What a synthesis was begun with, in synthesis.json: another kind of records does not go into the same folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama31.runs import files
from llama31.synth.pipeline.prompt_files import PromptFiles

SETTINGS = "synthesis.json"


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
