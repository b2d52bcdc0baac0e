"""How far a stage is while its tasks run: finished ones, and what those at work have passed, which they tell in a file.

A task tells it in the folder of its attempt, so that what ran on another node can be seen as well, and what was killed
tells nothing any more.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llama31.runs import files

SAID_S = 15.0  # between two lines of progress where nobody looks at a terminal
SHOWN_S = 1.0  # and on one
TOLD_S = 5.0  # between two times that a task tells how far it is
NAME = ".progress"

Passed = Callable[[], tuple[int, int]]  # documents and bytes so far
Fraction = Callable[[], float | None]  # of what a task reads, what it has read; None where that is unknown


@contextmanager
def told(staged: Path, passed: Passed, fraction: Fraction) -> Iterator[None]:
    """In the block now and then a file in `staged` says how far a task is."""
    ended = threading.Event()

    def tell() -> None:
        while not ended.wait(TOLD_S):
            documents, size = passed()
            content = {"documents": documents, "bytes": size, "fraction": fraction(), "told": time.time()}
            try:
                files.write_whole(staged / NAME, json.dumps(content) + "\n")
            except FileNotFoundError:  # another attempt has taken the folder away, and this one will find out
                return

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        ended.set()
        teller.join()


def at_work(stage_folder: Path, since: float, attempts: str = "*") -> list[dict[str, Any]]:
    """What tasks told since a time, of those that have not ended; `attempts`: which folders count."""
    found = (files.read_object(path) for path in sorted(stage_folder.glob(f"partial/{attempts}/{NAME}")))
    return [one for one in found if one is not None and one["told"] >= since]


class StageProgress:
    """A line that says how far a stage is, and how long it will take; printed while the block runs, and at its end.

    `attempts` says of which tasks' folders, where not of all.
    """

    def __init__(self, title: str, total: int, stage_folder: Path, attempts: str = "*") -> None:
        self.title, self.total, self.folder, self.attempts = title, total, stage_folder, attempts
        self.done = self.before = self.documents = self.bytes = 0
        self.begun, self.since = time.monotonic(), time.time()
        self.terminal, self.closed = sys.stderr.isatty(), threading.Event()
        self.thread = threading.Thread(target=self._go_on, daemon=True)

    def __enter__(self) -> StageProgress:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closed.set()
        self.thread.join()
        self._print(self.text(time.monotonic(), []), "\n")

    def ended(self, was_done: bool, documents: int, size: int) -> None:
        """Count a task."""
        self.done += 1
        self.before += was_done
        self.documents += 0 if was_done else documents
        self.bytes += 0 if was_done else size

    def text(self, now: float, working: list[dict[str, Any]]) -> str:
        """The line, with what tasks at work have told."""
        seconds = max(now - self.begun, 1e-9)
        parts = [f"{self.title}: {self.done:,}/{self.total:,} tasks"]
        parts += [f"{self.before:,} done before"] if self.before else []
        known = [one["fraction"] for one in working if one["fraction"] is not None]
        parts += [f"{len(working)} at work, {sum(known) / len(known):.0%} through"] if known else []
        documents, size = (getattr(self, name) + sum(one[name] for one in working) for name in ("documents", "bytes"))
        if documents:
            parts += [f"{documents:,} documents", f"{size / 1e6:,.0f} MB", f"{documents / seconds:,.0f}/s"]
        made = self.done - self.before + sum(known)
        if made and self.done < self.total:
            parts.append(f"{clock(seconds / made * max(0.0, self.total - self.before - made))} left")
        elif self.done == self.total:
            parts.append(clock(seconds))
        return ", ".join(parts)

    def _go_on(self) -> None:
        while not self.closed.wait(SHOWN_S if self.terminal else SAID_S):
            self._print(self.text(time.monotonic(), self._working()), "" if self.terminal else "\n")

    def _working(self) -> list[dict[str, Any]]:
        return at_work(self.folder, self.since, self.attempts)

    def _print(self, text: str, end: str) -> None:
        print(f"\r{text}\033[K" if self.terminal else text, end=end, file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """Seconds as hours, minutes and seconds."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"
