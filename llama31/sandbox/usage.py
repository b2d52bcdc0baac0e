"""What the processes of a sandbox take together, read from /proc (proc(5)) by whoever started it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

TICKS = os.sysconf("SC_CLK_TCK")
OWN_MEMORY = re.compile(rb"^Rss(?:Anon|Shmem):\s*(\d+) kB$", re.MULTILINE)
SHARES = re.compile(rb"^Pss_(?:Anon|Shmem):\s*(\d+) kB$", re.MULTILINE)


class Usage(NamedTuple):
    """Bytes of memory that is no file's, seconds of the processor, processes with their threads."""

    memory_bytes: int
    cpu_seconds: float
    processes: int


def tree(root: int) -> list[int]:
    """A process and all that descend from it. Inside a sandbox the first one inherits orphans: none is missed."""
    result = [root]
    for process in result:  # grows on the way
        result += _children(process)
    return result


def of(root: int) -> Usage:
    """What the processes under `root` take, without itself: bubblewrap's own waits there.

    A page that two of them share counts twice; `shared_once` is exact, and slow.
    """
    memory, ticks, threads = 0, 0, 0
    for process in tree(root):
        stat, status = _read(process, "stat"), _read(process, "status")
        fields = stat.rpartition(b")")[2].split()  # from the third field on: a name may hold anything
        if len(fields) < 18:
            continue
        # Of those that have ended and were waited for as well.
        ticks += sum(int(field) for field in fields[11:15])
        if process != root:
            threads += int(fields[17])
            memory += sum(int(kib) for kib in OWN_MEMORY.findall(status)) * 1024
    return Usage(memory, ticks / TICKS, threads)


def shared_once(root: int) -> int | None:
    """Bytes of memory with each shared page counted once; None where the kernel does not tell us."""
    texts = [_read(process, "smaps_rollup") for process in tree(root)[1:]]
    return sum(int(kib) for text in texts for kib in SHARES.findall(text)) * 1024 if any(texts) else None


def listed() -> bool:
    """Whether this kernel lists a process's children (CONFIG_PROC_CHILDREN)."""
    return Path(f"/proc/self/task/{os.getpid()}/children").exists()


def _children(process: int) -> Iterator[int]:
    try:
        threads = os.listdir(f"/proc/{process}/task")
    except OSError:  # has ended
        return
    for thread in threads:
        yield from map(int, _read(process, f"task/{thread}/children").split())


def _read(process: int, name: str) -> bytes:
    """A file of a process; empty once it has ended."""
    try:
        with open(f"/proc/{process}/{name}", "rb", buffering=0) as file:
            return file.read()
    except OSError:
        return b""
