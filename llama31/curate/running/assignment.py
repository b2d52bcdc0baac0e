"""What a task is given: its config, its number, where to write, and the files of the stages before."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama31 import config
from llama31.curate.passage.shards import SUFFIX
from llama31.curate.running import ledger
from llama31.curate.running.stages import CurationStage


@dataclass(frozen=True)
class Assignment:
    """One task. `out` is a folder that becomes part of the stage's; what is written there appears when it is done."""

    run: config.Curate
    stage: CurationStage
    rank: int
    out: Path
    inputs: list[dict[str, Any]]

    @property
    def folder(self) -> Path:
        """The folder of the whole curation."""
        return Path(self.run.folder)

    @property
    def documents(self) -> Path:
        """Where this task's shard is written."""
        return self.out / "documents" / f"{self.rank:05d}{SUFFIX}"

    def shards(self, stage: str) -> list[Path]:
        """The documents of a stage among the inputs: this task's shard, or all of them."""
        return [path for path in self.files(stage) if path.name.endswith(SUFFIX) and path.parent.name == "documents"]

    def files(self, stage: str) -> list[Path]:
        """All files of a stage among the inputs, in the order of its tasks."""
        records = [one for one in self.inputs if one["stage"] == stage]
        return [self.folder / stage / one.path for record in records for one in ledger.left(record)]
