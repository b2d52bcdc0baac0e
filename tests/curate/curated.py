"""Folders of `recipes.curate`: made in this process, and what lies in them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from llama31 import config
from llama31.command import entry
from llama31.curate.passage.shards import ShardReader
from llama31.curate.running import folder, local, stages
from llama31.curate.running.stages import CurationStage

BESIDE = ("manifests", "samples", "partial")  # folders of a stage that hold what it says, not what it leaves


def composed(words: Sequence[str]) -> config.Curate:
    return entry.compose(config.Curate, "curate", words)


def opened(words: Sequence[str]) -> tuple[config.Curate, list[CurationStage]]:
    made = composed(words)
    return made, stages.stages(made, folder.opened(made).tasks)


def run(words: Sequence[str]) -> tuple[config.Curate, list[CurationStage]]:
    """Everything in this process."""
    made, known = opened([*words, "workers=1"])
    local.execute(made, known, known)
    return made, known


def outputs(target: Path) -> dict[str, str]:
    """What every task of every stage left, by path."""
    left = [path.parent for path in target.glob("*/manifests")]
    paths = [path for one in left for path in one.rglob("*") if path.is_file()]
    kept = [path for path in paths if path.relative_to(target).parts[1] not in BESIDE]
    return {str(path.relative_to(target)): hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}


def texts(target: Path, stage: str) -> list[tuple[str, str]]:
    """Ids and texts of a stage's documents, sorted."""
    documents = ShardReader(sorted(target.glob(f"{stage}/documents/*"))).run(None)
    return sorted((document.id, document.text) for document in documents)
