"""Comparisons that end: arithmetic here, sympy in processes whose time and memory are limited."""

from __future__ import annotations

import json
import os
import queue
import select
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from llama31.synth.equality import verdict

ROOT = Path(__file__).resolve().parents[3]
WALL_FACTOR, STARTING_S = 20.0, 60.0  # a busy machine gives a process little of its time
KEPT = 10_000  # verdicts that are remembered


@dataclass
class Comparer:
    """Compares answers; several threads may at once. `close` it, or leave it to the end of the process.

    processes: how many run sympy, each begun when it is needed; as many as there are cores, by default.
    cpu_seconds: of one comparison; what takes longer is "undecided". Time of the processor, not of the clock.
    memory_bytes: address space of each process.
    """

    processes: int | None = None
    cpu_seconds: float = 5.0
    memory_bytes: int = 2**31
    _free: queue.SimpleQueue[subprocess.Popen[str] | None] = field(default_factory=queue.SimpleQueue)
    _known: dict[tuple[str, str], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for _ in range(self.processes or len(os.sched_getaffinity(0))):
            self._free.put(None)  # not started yet

    def verdict(self, one: str, other: str) -> str:
        """ "equal", "unequal" or "undecided". Never raises for what a model wrote."""
        one, other = sorted((one, other))  # so that it is symmetric whatever sympy does
        if (simple := verdict.by_arithmetic(one, other)) is not None:
            return simple
        if (one, other) not in self._known:
            if len(self._known) >= KEPT:
                self._known.clear()
            self._known[one, other] = self._asked(one, other)
        return self._known[one, other]

    def equal(self, one: str, other: str) -> bool:
        """Whether the verdict is "equal"."""
        return self.verdict(one, other) == verdict.EQUAL

    def _asked(self, one: str, other: str) -> str:
        process = self._free.get()
        try:
            if process is None or process.poll() is not None:
                process = self._start()
            line = _line(process, json.dumps([one, other]) + "\n", STARTING_S + WALL_FACTOR * self.cpu_seconds)
            if line is None:
                process.kill()
                process.wait()
                process = None
            return verdict.UNDECIDED if line is None else str(json.loads(line))
        finally:
            self._free.put(process)

    def _start(self) -> subprocess.Popen[str]:
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        command = [sys.executable, "-m", "llama31.synth.equality.worker", str(self.cpu_seconds), str(self.memory_bytes)]
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, "PYTHONPATH": path},
        )

    def close(self) -> None:
        """End the processes."""
        for _ in range(self._free.qsize()):
            process = self._free.get()
            if process is not None:
                process.kill()
                process.communicate()
            self._free.put(None)

    def __enter__(self) -> Comparer:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _line(process: subprocess.Popen[str], sent: str, seconds: float) -> str | None:
    """What the process answers to a line; None where it has ended, or says nothing for so long."""
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(sent)
        process.stdin.flush()
    except OSError:
        return None
    ready, _, _ = select.select([process.stdout], [], [], seconds)
    return (process.stdout.readline() or None) if ready else None
