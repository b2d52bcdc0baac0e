"""Runs a program behind bubblewrap, watches it, and says how it ended."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import selectors
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from llama31.sandbox import bubblewrap, cgroups, seccomp, usage
from llama31.sandbox.limits import Execution, SandboxLimits, SandboxUnavailable, reason_of

LOOK_SECONDS = 0.05  # between two looks at what it takes
KILLED = 128 + 9
SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK


def run(
    program: str,
    limits: SandboxLimits,
    readable: Sequence[Path],
    words: Sequence[str],
    files: Mapping[str, bytes],
    stdin: bytes,
) -> Execution:
    """Start `program`, bubblewrap, with these words inside it and these files in the work folder; wait for the end.

    Raises SandboxUnavailable where bubblewrap fails; the words have not run then.
    """
    begin = time.monotonic()
    with contextlib.ExitStack() as open_files:
        group = _group(limits)
        if group is not None:
            open_files.callback(group.remove)
        held = os.open(program, os.O_RDONLY | os.O_CLOEXEC)
        open_files.callback(os.close, held)
        descriptors = {name: _in_memory(open_files, text) for name, text in files.items()}
        filter_ = _in_memory(open_files, seccomp.program())
        given = _in_memory(open_files, stdin)
        status, written = os.pipe()
        open_files.callback(os.close, status)
        try:
            entrance = group.entrance() if group is not None else ()
            before = bubblewrap.command(program, held, limits, readable, descriptors, filter_, written, entrance)
            process = subprocess.Popen(
                [*before, *words],
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(held, filter_, written, *descriptors.values()),
                env=bubblewrap.ENVIRONMENT,
                process_group=0,  # what the terminal sends us is not for it
            )
        finally:
            os.close(written)
        with process:
            return _Watch(process, status, limits, begin, group).outcome()


def _group(limits: SandboxLimits) -> cgroups.Group | None:
    try:
        return cgroups.group(limits)
    except OSError as error:
        raise SandboxUnavailable(
            f"no program is run, for its cgroup cannot be made, as it could be before ({error}); "
            "the same command, once more, looks anew for a place"
        ) from error


class _Watch:
    """One run: reads what it writes, ends it at a limit, and tells how it ended."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        status: int,
        limits: SandboxLimits,
        begin: float,
        group: cgroups.Group | None,
    ) -> None:
        assert process.stdout is not None and process.stderr is not None
        self.process, self.limits, self.begin, self.group = process, limits, begin, group
        self.oom_kills = 0 if group is not None else cgroups.oom_kills()
        self.streams = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
        self.status, self.record = status, bytearray()
        self.first: int | None = None  # the first process inside, as seen from here
        self.reason: str | None = None
        self.looked = begin

    def outcome(self) -> Execution:
        """Until nothing is left of it."""
        try:
            for events in self._events():
                self._look(events)
        finally:
            self._kill()  # where we are interrupted ourselves; nothing is left to kill otherwise
            self.process.wait()
        stdout, stderr = (bytes(text).decode("utf-8", "replace") for text in self.streams.values())
        return self._told(stdout, stderr, time.monotonic() - self.begin)

    def _events(self) -> Iterator[list[int]]:
        """Descriptors that have something, at least as often as we want to look; until all are at their end."""
        with selectors.DefaultSelector() as selector:
            for descriptor in (*self.streams, self.status):
                selector.register(descriptor, selectors.EVENT_READ)
            while selector.get_map():
                ready = [key.fd for key, _ in selector.select(LOOK_SECONDS)]
                for descriptor in ready:
                    if not self._read(descriptor):
                        selector.unregister(descriptor)
                yield ready

    def _read(self, descriptor: int) -> bool:
        data = os.read(descriptor, 65536)
        if descriptor == self.status:
            self.record += data
            if self.first is None and (named := re.search(rb'"child-pid": (\d+)', self.record)):
                self.first = int(named[1])
            return bool(data)
        room = self.limits.output_bytes - sum(map(len, self.streams.values()))
        self.streams[descriptor] += data[:room]
        if len(data) > room:
            self._stop("output")
        return bool(data)

    def _look(self, ready: list[int]) -> None:
        """At the clock, and at what the processes take where they have been silent for a while."""
        now = time.monotonic()
        if now - self.begin > self.limits.wall_seconds:
            self._stop("timeout")
        if self.reason is not None:
            self._kill()
        elif self.first is not None and now - self.looked > LOOK_SECONDS:
            self.looked = now
            self._measure(self.first)

    def _measure(self, first: int) -> None:
        if self.group is not None and (reason := self.group.reason()) is not None:
            self._stop(reason)
            return
        taken, limits = self.group.usage() if self.group is not None else usage.of(first), self.limits
        if taken.processes > limits.processes:
            self._stop("processes")
        elif taken.cpu_seconds > limits.cpu_seconds:
            self._stop("cpu")
        elif taken.memory_bytes > limits.memory_bytes:
            exactly = usage.shared_once(first)
            if exactly is None:  # a group's has files that can go, and a bound of its own
                exactly = 0 if self.group is not None else taken.memory_bytes
            if exactly > limits.memory_bytes:
                self._stop("memory")

    def _stop(self, reason: str) -> None:
        self.reason = self.reason or reason
        self._kill()

    def _kill(self) -> None:
        """End bubblewrap, and with it by the kernel the first process inside, and with that all others."""
        if self.process.poll() is None:
            self.process.kill()

    def _told(self, stdout: str, stderr: str, seconds: float) -> Execution:
        if self.reason is None and self.group is not None:
            self.reason = self.group.reason()
        if self.reason is not None:
            return Execution(KILLED, stdout, stderr, self.reason, seconds)
        ended = re.search(rb'"exit-code": (\d+)', self.record)
        if ended is None:
            if self.process.returncode == -9:  # bubblewrap itself was killed, by nobody here
                return Execution(KILLED, stdout, stderr, self._killed(), seconds)
            raise SandboxUnavailable(bubblewrap.explain(stderr))
        code = int(ended[1])
        if code == bubblewrap.FIRST_BUILD_FAILED and (failed := _failed_build(stderr)):
            reason = reason_of(int(failed[1]), failed[0])
            return Execution(int(failed[1]), stdout, failed[0], "build" if reason == "finished" else reason, seconds)
        reason = reason_of(code, stderr)
        return Execution(code, stdout, stderr, self._killed() if reason == "killed" else reason, seconds)

    def _killed(self) -> str:
        """By the kernel for want of memory in the group of a job, or by whom nobody knows."""
        return "memory" if self.group is None and cgroups.oom_kills() > self.oom_kills else "killed"


def _failed_build(stderr: str) -> tuple[str, str] | None:
    """What came before the shell's last line, and the code in it."""
    before, mark, code = stderr.rpartition(bubblewrap.MARK)
    return (before, code.strip()) if mark and code.strip().isdecimal() else None


def _in_memory(open_files: contextlib.ExitStack, data: bytes) -> int:
    """A descriptor from which `data` is read, in no folder; nobody can write to it any more."""
    with os.fdopen(os.memfd_create("sandbox", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "wb", buffering=0) as file:
        file.write(data)
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, SEALS)
        descriptor = os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY | os.O_CLOEXEC)
    open_files.callback(os.close, descriptor)
    return descriptor
