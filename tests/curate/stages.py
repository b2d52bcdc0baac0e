"""Stages of datatrove run in this process, on documents that are dealt to tasks as a reader deals files."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep


def document(text: str, id_: str, **metadata: Any) -> Document:
    return Document(text=text, id=id_, metadata=metadata)


def dealt(documents: list[Document], tasks: int) -> list[list[Document]]:
    return [documents[rank::tasks] for rank in range(tasks)]


def over(make: Callable[[], PipelineStep], shards: Iterable[list[Document]]) -> tuple[list[Document], dict[str, int]]:
    """What a step that takes documents lets through, of all tasks, and its statistics added up."""
    shards = list(shards)
    kept: list[Document] = []
    counts: dict[str, int] = {}
    for rank, shard in enumerate(shards):
        step = make()
        kept += list(step.run((copy.deepcopy(one) for one in shard), rank, len(shards)))
        add(counts, step)
    return kept, counts


def alone(make: Callable[[], PipelineStep], tasks: int) -> dict[str, int]:
    """Run a step that reads files only; the last task first, for none may need another one."""
    counts: dict[str, int] = {}
    for rank in reversed(range(tasks)):
        step = make()
        step.run(None, rank, tasks)
        add(counts, step)
    return counts


def add(counts: dict[str, int], step: PipelineStep) -> None:
    for name, stat in step.stats.stats.items():
        counts[name] = counts.get(name, 0) + int(stat.total)


def bytes_of(folder: Path) -> dict[str, bytes]:
    """All that lies in a folder, by name, but what was given up."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if "partial" not in path.parts}
