"""Runs the commands of the tests, and ends all that they started.

A limit here is for what hangs, never for what is slow: how busy a machine is decides about no test.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 1800  # what takes longer hangs, on any machine
MARK = "TESTS_COMMAND"  # names the commands that a process descends from


def search_path() -> str:
    """PYTHONPATH of what a test starts: this repository, then the caller's, who may keep packages there."""
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def run(
    words: Sequence[str],
    *,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
    merged: bool = False,
    limit_s: float = LIMIT_S,
) -> subprocess.CompletedProcess[str]:
    """What a command printed and how it ended; `merged`: its errors among its output.

    Raises AssertionError at the limit. Whatever it started and left behind is ended in any case.
    """
    mark = uuid.uuid4().hex
    environment = {**(os.environ if env is None else env), MARK: f"{os.environ.get(MARK, '')} {mark}"}
    # Files, not pipes: a grandchild that outlives its parent cannot keep us waiting for the end of the output.
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        stderr = subprocess.STDOUT if merged else err
        try:
            child = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=out, stderr=stderr, cwd=cwd, env=environment,
                start_new_session=True,
            )  # fmt: skip
            code = child.wait(limit_s)
        except subprocess.TimeoutExpired:
            end(mark)
            child.wait()
            record = f"{_read(out)}\n{_read(err)}"
            raise AssertionError(f"{' '.join(words)} did not end within {limit_s} s\n{record[-6000:]}") from None
        finally:
            end(mark)
        return subprocess.CompletedProcess(list(words), code, _read(out), _read(err))


def end(mark: str) -> None:
    """Kill every process that descends from the command of this mark, those in sessions of their own too."""
    while result := [process for process in _processes() if mark in _environment(process)]:
        for process in result:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.01)  # until they are gone, and what they were about to start shows


def alive(process: int) -> bool:
    """Whether a process runs; one that has ended and that nobody asked after does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]


def _environment(process: int) -> str:
    """Empty for one that has ended, or that is not ours to read."""
    try:
        return Path(f"/proc/{process}/environ").read_text(errors="replace")
    except OSError:
        return ""


def _read(file: tempfile._TemporaryFileWrapper[str]) -> str:
    file.seek(0)
    return file.read()
