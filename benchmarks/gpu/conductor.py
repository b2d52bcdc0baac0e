"""Starts a process for each case, one at a time on the device, and keeps to a budget.

The imports of the next case run while the present one computes; it touches the device when it is told to. A lock on a
file keeps two conductors of one machine apart.
"""

from __future__ import annotations

import dataclasses
import datetime
import fcntl
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.plan import GpuCase, GpuWork
from benchmarks.gpu.worker import MARK

ROOT = Path(__file__).resolve().parents[2]
START_S = 90.0  # imports take half a minute from a cold disk
GUESS_S = 20.0  # that a case takes, before any of its kind was measured
Said = dict[str, Any]


@dataclass
class Record:
    """What came out: each run with its case, what was left out and why, and what this machine is."""

    runs: list[Said] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)
    machine: Said = field(default_factory=dict)
    date: str = ""
    commit: str = ""


class Worker:
    """A case in a process of its own, which waits for `go`."""

    def __init__(self, case: GpuCase, work: GpuWork) -> None:
        self.case = case
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - lives as long as the process
        environment = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", **os.environ}
        environment.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):  # it is alone, whoever started us
            environment.pop(name, None)
        asked = json.dumps({"case": dataclasses.asdict(case), "work": dataclasses.asdict(work)})
        self._child = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu.worker", asked],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, cwd=ROOT, env=environment,
        )  # fmt: skip
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            if line.startswith(MARK):
                self._lines.put(line.removeprefix(MARK))
        self._lines.put(None)

    def hear(self, seconds: float) -> Said:
        """What it says next: `ready`, `result` or `failed`."""
        try:
            line = self._lines.get(timeout=max(seconds, 0.01))
        except queue.Empty:
            return {"failed": f"not done within {seconds:.0f} s"}
        if line is None:
            self._errors.seek(0)
            last = self._errors.read().strip().splitlines()
            return {"failed": f"its process ended: {last[-1][:300] if last else 'without a word'}"}
        said: Said = json.loads(line)
        return said

    def go(self) -> None:
        """It may use the device from now on."""
        assert self._child.stdin is not None
        try:
            self._child.stdin.write("go\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            return  # it has ended, which `hear` tells

    def end(self) -> str:
        """End it, wait until the device is free of it, and return the end of what it said to its user."""
        self._child.kill()
        self._child.wait()
        self._errors.seek(0)
        return "\n".join(self._errors.read().splitlines()[-12:])


def conduct(cases: Sequence[GpuCase], work: GpuWork, budget_s: float, case_s: float) -> Record:
    """Measure the cases in turn; those that no longer fit `budget_s`, or take longer than `case_s`, are named."""
    record = Record(date=datetime.datetime.now().astimezone().isoformat(timespec="seconds"), commit=commit())
    deadline, took = time.monotonic() + budget_s, dict[str, float]()
    worker = Worker(cases[0], work) if cases else None
    for index, case in enumerate(cases):
        assert worker is not None and worker.case == case
        if (left_s := deadline - time.monotonic()) < took.get(case.trainer, min(GUESS_S, budget_s / 2)):
            worker.end()
            _drop(record, cases[index:], f"{max(0.0, left_s):.0f} s were left of {budget_s:.0f}")
            break
        said = worker.hear(min(START_S, left_s))
        begin = time.monotonic()
        present, worker = worker, None
        if "ready" in said:
            record.machine = record.machine or said["ready"]
            present.go()
        if index + 1 < len(cases):
            worker = Worker(cases[index + 1], work)
        if "ready" in said:
            said = present.hear(min(case_s, deadline - time.monotonic()))
        errors = present.end()
        took[case.trainer] = max(took.get(case.trainer, 0.0), time.monotonic() - begin)
        _keep(record, case, said, errors, took[case.trainer])
    return record


def _keep(record: Record, case: GpuCase, said: Said, errors: str, took_s: float) -> None:
    if "result" not in said:
        print(errors, file=sys.stderr)
        _drop(record, [case], said["failed"])
        return
    record.runs.append({"case": case.name, **dataclasses.asdict(case), **said["result"]})
    steps = said["result"].get("steps_ms")
    figure = f"{sum(steps) / len(steps):,.1f} ms a step" if steps else "measured"
    print(f"{case.name}: {figure}; {took_s:.0f} s in all", file=sys.stderr, flush=True)


def _drop(record: Record, cases: Sequence[GpuCase], why: str) -> None:
    for case in cases:
        record.left_out.append({"case": case.name, "why": why})
        print(f"{case.name}: left out: {why}", file=sys.stderr, flush=True)


class Lock:
    """Held by one conductor of this machine and device at a time."""

    def __enter__(self) -> Lock:
        device = os.environ.get("CUDA_VISIBLE_DEVICES", "all").replace(",", "-") or "none"
        self._file = Path(tempfile.gettempdir(), f"llama31-benchmark-{device}.lock").open("w")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another benchmark on this device", file=sys.stderr, flush=True)
            fcntl.flock(self._file, fcntl.LOCK_EX)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def commit() -> str:
    """Of this checkout, with a + where files differ from it; unknown where git does not say."""
    try:
        words = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=7", "--dirty=+", "--exclude=*"]
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()
