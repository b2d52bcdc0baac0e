"""What a service was asked and has answered, on disk before it is used; and how much of the budget is left.

    <folder>/services/brave-all.jsonl, brave-00003.jsonl, ...   of a run of all shards; of one that makes a shard alone
        {"asked": HASH, "query": TEXT}                           before each request: it counts, whatever comes of it
        {"asked": HASH, "text": TEXT, "failed": false}           the answer

An answer counts for all shards that begin later. The budget is the folder's: runs of single shards, which know nothing
of each other, have equal shares of what runs of all shards have left of it.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from llama31 import config
from llama31.sampling.drawing import Ledger, each_line
from llama31.synth.pipeline.items import writable
from llama31.synth.tools.interface import ToolResult

FOLDER = "services"


class AnsweredQueries:
    """See the module. Files are read at the first question; several threads may ask."""

    def __init__(self, folder: Path, service: str, most: int, shard: int | None = None, shards: int = 1) -> None:
        self.service, self.most = service, most
        self._folder, self._shard, self._shards = folder / FOLDER, shard, shards
        self._known: dict[str, ToolResult] | None = None
        self._left = 0
        self._lock = threading.Lock()

    @property
    def path(self) -> Path:
        """The file that this run adds to."""
        return self._path(self._shard)

    def _path(self, shard: int | None) -> Path:
        return self._folder / f"{self.service}-{'all' if shard is None else f'{shard:05d}'}.jsonl"

    def get(self, asked: str) -> ToolResult | None:
        """The answer to what was asked before; None where there is none."""
        with self._lock:
            return self._read().get(asked)

    def sending(self, asked: str, query: str) -> None:
        """Count a request, before it is sent. Raises RunError where none is left, with the remedy."""
        with self._lock:
            self._read()
            if self._left <= 0:
                share = "" if self._shard is None else f" (of {self._shards} shards, this one has its share)"
                raise config.RunError(
                    f"services.{self.service}.max_requests={self.most}: all of them were sent{share}; what was "
                    f"answered stays in {self._folder}: give a larger number, and the same command goes on"
                )
            self._left -= 1
            self._add({"asked": asked, "query": query})

    def keep(self, asked: str, result: ToolResult) -> ToolResult:
        """Put down an answer; returns it as it will be read again."""
        text = writable(result.text)
        with self._lock:
            self._add({"asked": asked, "text": text, "failed": result.failed})
            return self._read().setdefault(asked, ToolResult(text, result.failed))

    def _add(self, line: dict[str, Any]) -> None:
        with Ledger(self.path) as ledger:  # not held: a run that follows in this process adds to the same file
            ledger.append([line])

    def _read(self) -> dict[str, ToolResult]:
        if self._known is not None:
            return self._known
        self._known, sent = {}, dict[Path, int]()
        others = [path for path in sorted(self._folder.glob(f"{self.service}-*.jsonl")) if path != self.path]
        for path in [*others, self.path]:  # of two answers to the same its own counts
            sent[path] = 0
            for line in each_line(path):
                if "text" in line:
                    self._known[line["asked"]] = ToolResult(line["text"], line["failed"])
                else:
                    sent[path] += 1
        self._left = self.most - sum(sent.values())
        if self._shard is not None:
            common = max(0, self.most - sent.get(self._path(None), 0))
            share = common // self._shards + (self._shard < common % self._shards)
            self._left = min(self._left, share - sent[self.path])
        return self._known
