"""Starts the processes that measure a machine, and says what the planner makes of it.

`calibrate` writes constants; `predict` holds them against whole steps, measured in turn with the parts: a machine that
is slow for a while is slow for both.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.machine import cases, constants, hardware_file
from benchmarks.machine.constants import Machine
from benchmarks.machine.readings import MARK, Readings
from llama31 import config
from llama31.planner import speed
from llama31.runs import files

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 3


def calibrate(run: config.Benchmark, params: str) -> str:
    """Measure, and write the constants where `write` says. Markdown."""
    return _told(run, measured(run, params, steps=False))


def predict(run: config.Benchmark, params: str) -> str:
    """The same, and steps of small models beside what the constants say of them. Markdown."""
    machines = measured(run, params, steps=True)
    return f"{_told(run, machines)}\n\n{compared(machines)}"


def measured(run: config.Benchmark, params: str, steps: bool) -> list[Machine]:
    """The machine with most processes at work, then with one. RuntimeError where a process fails."""
    most = run.processes or _processes()
    counts = {2: 2, 1: 1} if steps else dict.fromkeys((most, 1))
    return [_measured(count, params, steps, run.timeout_s) for count in counts]


def compared(machines: Sequence[Machine]) -> str:
    """Predicted and measured seconds of every step, and the errors by layout."""
    lines = [
        "| layout | hidden size x layers | measured ms | predicted ms | error | largest causes, ms |",
        "|" + "---|" * 6,
    ]
    errors: dict[str, list[float]] = {}
    for machine in sorted(machines, key=lambda one: one.readings.processes):
        seconds = dict(machine.readings.steps)
        for case in cases.predicted(machine.readings.processes):
            causes = speed.step(constants.job(case, machine.readings), machine.device, machine.stack)
            layout, shape = case.name.split(": ")
            error = speed.total(causes) / seconds[case.name] - 1
            errors.setdefault(layout, []).append(error)
            ms = f"{1e3 * seconds[case.name]:.1f} | {1e3 * speed.total(causes):.1f}"
            lines.append(f"| {layout} | {shape} | {ms} | {error:+.1%} | {_largest(causes)} |")
    lines += ["", "| layout | mean error | worst |", "|---|---|---|"]
    for layout, each in errors.items():
        sizes = [abs(error) for error in each]
        lines.append(f"| {layout} | {statistics.mean(sizes):.1%} | {max(sizes):.1%} |")
    return "\n".join(lines)


def _largest(causes: Mapping[str, float], count: int = 5) -> str:
    ordered = sorted(causes.items(), key=lambda cause: -cause[1])[:count]
    return ", ".join(f"{name} {1e3 * value:.1f}" for name, value in ordered)


def _told(run: config.Benchmark, machines: Sequence[Machine]) -> str:
    stem = Path(run.write).stem if run.write else "here"
    named = hardware_file.names(stem, machines)
    text = hardware_file.table(named)
    if run.write:
        path = Path(run.write)
        files.write_whole(path, hardware_file.to_yaml(named))
        text += f"\n\nwritten: {path}\n{hardware_file.commands(path, stem)}"
    return text


def _processes() -> int:
    """GPUs of this machine, or its cores; asked in a process of its own, so that torch is not loaded here."""
    asked = "import torch; print(torch.cuda.device_count())"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", asked], capture_output=True, text=True, check=True)
    return int(done.stdout) or len(os.sched_getaffinity(0))


def _measured(count: int, params: str, steps: bool, timeout_s: int) -> Machine:
    small = cases.tiny(count)
    asked = {"params": params, "rounds": ROUNDS}
    given = [*small, *(cases.predicted(count) if steps else [])]
    print(f"measuring with {count} at work", file=sys.stderr, flush=True)
    return constants.fitted(_run(count, {**asked, "cases": list(map(dataclasses.asdict, given))}, timeout_s), small)


def _run(count: int, asked: Mapping[str, object], timeout_s: int) -> Readings:
    """Start that many workers and wait for them. RuntimeError with what they said where one fails or is late."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environment |= {"WORLD_SIZE": str(count), "CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    words = [sys.executable, "-W", "ignore", "-m", "benchmarks.machine.worker", json.dumps(asked)]
    with tempfile.TemporaryFile("w+") as said:
        children = [
            subprocess.Popen(
                words, stdout=said, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
                env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(count)
        ]  # fmt: skip
        try:
            codes = [child.wait(timeout_s) for child in children]
            failed = any(codes)
        except subprocess.TimeoutExpired:
            failed = True
        finally:
            for child in children:
                child.kill()
                child.wait()
        said.seek(0)
        text = said.read()
    line = next((line for line in text.splitlines() if line.startswith(MARK)), None)
    if failed or line is None:
        raise RuntimeError(f"measuring with {count} processes failed within {timeout_s} s:\n{text[-4000:]}")
    return Readings(**json.loads(line.removeprefix(MARK)))
