"""Who asks training to stop: signals, a file in the run folder, a newer attempt of the same job.

Asking changes nothing by itself. The loop looks at every step, and all ranks stop after the same one (`guard.agree`).
Slurm's and torchrun's signals come to some ranks and not to others, and more than once, so a handler only notes them.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
STOP = "stop"


class StopRequests:
    """Used in a `with`: there, SIGTERM and SIGUSR1 are requests to stop; the handlers before come back at its end."""

    def __init__(self, run_folder: Path, newer: Callable[[], int | None], main: bool) -> None:
        self._file, self._newer, self._main = run_folder / STOP, newer, main
        self._signalled: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():  # Python lets no other one set handlers
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signalled = signal.Signals(number).name

    def forget_file(self) -> None:
        """Remove a stop file of before, at the start of a run. In a job, `slurm/launch.sh` has done so."""
        if self._main and "SLURM_JOB_ID" not in os.environ:
            self._file.unlink(missing_ok=True)

    def cause(self) -> str | None:
        """Why this rank wants to save and stop; None to go on. Files are looked at by the first rank alone."""
        if self._signalled or not self._main:
            return self._signalled
        return f"{self._file} was created" if self._file.exists() else None

    def superseded(self) -> str | None:
        """Why this attempt has to make way, where the first rank knows of a newer one."""
        newer = self._newer() if self._main else None
        return None if newer is None else f"attempt {newer} of this run has begun elsewhere"
