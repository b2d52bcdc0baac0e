"""What a shard has done, so that a killed one goes on: every answer and every check, then each item's result.

    shards/00000/steps.jsonl     item, step, what was `asked` (a hash), value: an answer of a model, a result of a check
    shards/00000/results.jsonl   item, index, a hash of what it `said`, its records, or why it was dropped, and counts

Both only grow. An item without a result is begun again, and what its program asks for is taken from its steps as long
as it asks for the same; so a run that was killed ends with the records of one that was not, and draws nothing twice.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import defaultdict
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from llama31.sampling.drawing import Ledger, each_line

STEPS, RESULTS = "steps.jsonl", "results.jsonl"
SYNC_S = 0.5

Steps = dict[int, tuple[str, Any]]


def digest(*what: Any) -> str:
    """What tells one request or check from another."""
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass
class Appended:
    """A ledger that several threads add to. No kill takes a line away; a machine that fails takes those since the last
    that was synced to disk: the first after `SYNC_S`, and when it is closed.
    """

    path: Path
    _ledger: Ledger = field(init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _synced_s: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._ledger = Ledger(self.path)

    def add(self, line: Mapping[str, Any]) -> None:
        """Add a line; the system has it when this returns."""
        with self._lock:
            late = time.monotonic() - self._synced_s >= SYNC_S
            self._ledger.append([line], synced=late)
            if late:
                self._synced_s = time.monotonic()

    def __enter__(self) -> Appended:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._lock:
            self._ledger.append([])
        self._ledger.__exit__(kind, error, trace)


def done(folder: Path) -> dict[str, str | None]:
    """Items of a shard that have a result, and hashes of what they said (None: of before there were any)."""
    return {line["item"]: line.get("said") for line in each_line(folder / RESULTS)}


def unfinished(folder: Path, finished: Container[str]) -> dict[str, Steps]:
    """Steps of the items without a result, by item and number; of a step that stands there twice the last."""
    steps: defaultdict[str, Steps] = defaultdict(dict)
    for line in each_line(folder / STEPS):
        if line["item"] not in finished:
            steps[line["item"]][line["step"]] = line["asked"], line["value"]
    return steps
