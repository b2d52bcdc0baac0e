"""The `data/` YAML of what was packed, which pre-training reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from llama31.curate.running import ledger
from llama31.curate.running.stages import CurationStage
from llama31.runs import files


def packed_sources(folder: Path, stage: CurationStage) -> dict[str, dict[str, Any]]:
    """What `packed.json` says of every packed source, by name."""
    found: dict[str, dict[str, Any]] = {}
    for rank in range(stage.tasks):
        record = ledger.read(folder, stage.name, rank)
        for one in ledger.left(record) if record else []:
            path = folder / stage.name / one.path
            content = files.read_object(path) if path.name == "packed.json" else None
            if content is not None:
                found[path.parent.name] = content
    return dict(sorted(found.items()))


def write_data(folder: Path, name: str, known: list[CurationStage]) -> Path | None:
    """Write `conf/data/NAME.yaml`, each source weighted by its tokens; None, and nothing, where nothing was packed."""
    sources = next((packed_sources(folder, stage) for stage in known if stage.name == "tokens"), {})
    if not sources:
        return None
    content = {
        "folder": str((folder / "tokens").resolve()),
        "sources": {source: {"weight": one["train"]["tokens"]} for source, one in sources.items()},
    }
    path = folder / "conf" / "data" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    head = f"# python -m recipes.pretrain --config-dir {path.parents[1]} data={name} ...\n"
    files.write_whole(path, head + yaml.safe_dump(content, sort_keys=False))
    return path
