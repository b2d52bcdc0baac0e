"""A room for programs that nobody has read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from llama31.sandbox import bubblewrap, homes, probe, running
from llama31.sandbox.limits import Execution, SandboxLimits


class ProgramRunner(Protocol):
    """Who runs programs that nobody has read: a `Sandbox`, and in tests what stands in for one. Many threads ask."""

    def run(
        self,
        command: Sequence[str],
        files: Mapping[str, str | bytes] | None = None,
        stdin: str | bytes = b"",
        build: Sequence[Sequence[str]] = (),
    ) -> Execution:
        """See `Sandbox.run`."""
        ...


@dataclass(frozen=True)
class Sandbox:
    """Raises SandboxUnavailable where this machine has no place for such programs.

    readable: folders or files beside /usr that programs may read, at the same path inside; never one that holds
        anything of yours: a home, or what holds one, is refused. program: bubblewrap, where it is not in PATH.
    """

    limits: SandboxLimits = field(default_factory=SandboxLimits)
    readable: tuple[Path, ...] = ()
    program: str | None = None

    def __post_init__(self) -> None:
        for path in self.readable:
            if not path.is_absolute() or not path.exists():
                raise ValueError(f"readable={path}: not there, or a relative path; give an absolute one that exists")
            if (home := homes.shown_by(path)) is not None:
                raise ValueError(
                    f"readable={path}: it is or holds a home ({home}), which no program may read; name the folder of "
                    "the tools alone, or copy them to one outside, as /opt/tools"
                )
            if bubblewrap.becomes_nobody() and not bubblewrap.readable_by_nobody(path):
                raise ValueError(
                    f"readable={path}: programs run as user {bubblewrap.NOBODY}, who may not read it; open it and the "
                    "folders above it to all (chmod o+rx), or start this command as another user than root"
                )
        probe.require(self.program)

    def run(
        self,
        command: Sequence[str],
        files: Mapping[str, str | bytes] | None = None,
        stdin: str | bytes = b"",
        build: Sequence[Sequence[str]] = (),
    ) -> Execution:
        """Run a program with these files in its work folder, and wait for its end; several threads may at once.

        build: commands that come before it under the same limits, as a compiler; where one fails, `reason` is build.
        Raises ValueError for names that lead out of the work folder or words with NUL, and SandboxUnavailable where
        bubblewrap itself fails; nothing has run then.
        """
        words = bubblewrap.after(build, command)
        if not command or any("\0" in word for word in words):
            raise ValueError(f"command={list(command)!r}: empty, or with a NUL; give the words of a command")
        contents = {bubblewrap.checked_name(name): _bytes(text) for name, text in (files or {}).items()}
        if (size := sum(map(len, contents.values()))) > self.limits.disk_bytes:
            record = f"sandbox: files of {size:,} bytes do not fit into disk_bytes={self.limits.disk_bytes:,}"
            return Execution(1, "", record, "disk", 0.0)
        bwrap = probe.require(self.program)
        return running.run(bwrap, self.limits, self.readable, words, contents, _bytes(stdin))


def _bytes(text: str | bytes) -> bytes:
    """Half a surrogate pair becomes bytes that are no UTF-8, which the program may find out by itself."""
    return text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
