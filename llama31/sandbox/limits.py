"""What a program may take, and what has become of it."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass

from llama31 import config

MIB = 2**20
OVERHEAD_BYTES = 16 * MIB  # of a sandbox: page tables, stacks, open files and sockets, bubblewrap itself
REASONS = ("finished", "build", "timeout", "cpu", "memory", "processes", "output", "disk", "killed")


class SandboxUnavailable(config.RunError):
    """Nothing may be run on this machine: the message says what is missing, and the remedy."""


@dataclass(frozen=True)
class SandboxLimits:
    """Bounds of one run, of all its processes together unless said otherwise. The values are ours.

    memory_bytes: what they have in memory beside files; looked at every 50 ms. Between two looks the kernel holds
        `most_bytes` where a cgroup can be made (`cgroups`); elsewhere what is touched within them comes on top. A
        process that asks for a quarter more than `memory_bytes` at once is refused by the kernel.
    processes: how many there may be, threads counted.
    cpu_seconds, wall_seconds: of the processor, and of the clock.
    output_bytes: standard output and error together.
    disk_bytes: the files in the work folder and /tmp, and as many again in /dev/shm. Both are memory.
    """

    memory_bytes: int = 1024 * MIB
    processes: int = 64
    cpu_seconds: float = 10.0
    wall_seconds: float = 30.0
    output_bytes: int = MIB
    disk_bytes: int = 64 * MIB

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
                raise ValueError(f"{field.name}={value!r}: not a positive number; give one, as {field.default}")

    @property
    def most_bytes(self) -> int:
        """Memory with files, which are memory as well, and what the kernel and bubblewrap need beside."""
        return self.memory_bytes + 2 * self.disk_bytes + OVERHEAD_BYTES


@dataclass(frozen=True)
class Execution:
    """How a program ended.

    reason: finished (by itself, whatever its return code), build (one of the commands before it failed), or the limit
        that ended it: timeout, cpu, memory, processes, output, disk. killed: by a signal that nobody here sent, as
        that of a machine out of memory. Of a program that failed because it was refused something and says so in its
        last words, the limit is the reason too; it is never one of a program that returned 0.
    returncode: of the program, 128 + n where signal n ended it.
    stdout, stderr: what it wrote, up to `output_bytes`; bytes that are no UTF-8 are replaced.
    seconds: from the call to the end of its last process.
    """

    returncode: int
    stdout: str
    stderr: str
    reason: str
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether it ended by itself and returned 0."""
        return self.reason == "finished" and self.returncode == 0


# Last words of programs that ran into a limit by being refused something.
SAID = (
    ("memory", r"MemoryError|std::bad_alloc|OutOfMemoryError|heap out of memory|memory allocation of \d+ bytes failed"),
    ("memory", r"Allowed memory size of|Cannot allocate memory|virtual memory exhausted|out of memory"),
    ("processes", r"Resource temporarily unavailable|can't start new thread|unable to create native thread"),
    ("disk", r"No space left on device|File too large"),
)
LAST_WORDS = 4096  # characters of standard error that are looked at
SIGNALS = {128 + 24: "cpu", 128 + 25: "disk", 128 + 9: "killed"}  # SIGXCPU, SIGXFSZ, SIGKILL


def reason_of(returncode: int, stderr: str) -> str:
    """Why a program that nobody here ended has ended."""
    if returncode == 0:
        return "finished"
    if returncode in SIGNALS:
        return SIGNALS[returncode]
    words = stderr[-LAST_WORDS:]
    return next((reason for reason, pattern in SAID if re.search(pattern, words)), "finished")
