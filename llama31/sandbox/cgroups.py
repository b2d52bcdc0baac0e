"""A control group for each sandbox (cgroups(7), the kernel's cgroup-v1 and cgroup-v2 documents), where one can be made.

In it the kernel bounds memory and processes of all that the program starts, between two looks as well, and counts its
time. Groups are made below our own, so that whatever bounds us, as a job of Slurm, bounds them. Where none can be made
everything is looked at from outside alone (`usage`). Also here: how much memory the groups above us leave.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from llama31.sandbox.limits import SandboxLimits
from llama31.sandbox.usage import Usage

PROC = Path("/proc")
MACHINE = "this machine's memory"
BESIDE = 2  # processes of bubblewrap itself in a group: one waits outside, one is the first inside
MEMORY, PIDS, TIME = "memory", "pids", "cpuacct"  # controllers of v1; v2 counts time without one
# Where memory runs out in spite of all, of the machine or of a job of Slurm, the kernel ends these first.
ENTER = """while [ "$1" != -- ]; do echo 0 > "$1" || exit 1; shift; done
shift; echo 1000 > /proc/self/oom_score_adj; exec "$@" """
NUMBERS = itertools.count()


class Names(NamedTuple):
    """Files of a group. enter: 0 written there moves the writer in; in v1 a thread, for which nobody has to wait."""

    limit: str
    swap: str
    taken: str
    events: str
    seconds: str
    enter: str


V1 = Names("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.usage_in_bytes", "memory.oom_control",
           "cpuacct.usage", "tasks")  # fmt: skip
V2 = Names("memory.max", "memory.swap.max", "memory.current", "memory.events", "cpu.stat", "cgroup.procs")


@dataclass(frozen=True)
class Hierarchy:
    """One mounted tree of groups: our own folder in it, and the highest that is seen from here."""

    version: int
    own: Path
    top: Path

    def levels(self) -> list[Path]:
        """Our own folder and those above it."""
        return [folder for folder in (self.own, *self.own.parents) if folder.is_relative_to(self.top)]


@dataclass(frozen=True)
class GroupPlace:
    """Where groups are made: a folder for each controller, in v2 the same one."""

    version: int
    folders: Mapping[str, Path]

    @property
    def names(self) -> Names:
        """Files of the groups there."""
        return V1 if self.version == 1 else V2

    @staticmethod
    @functools.cache
    def prefix() -> str:
        """How names of groups begin that processes see who see each other: by their namespace."""
        return f"llama31-sandbox-{os.stat('/proc/self/ns/pid').st_ino}-"

    def tidy(self) -> None:
        """Remove what is left of processes that were killed. A group with a process in it cannot be removed."""
        for folder in set(self.folders.values()):
            for left in folder.glob(f"{self.prefix()}*"):
                if not Path("/proc", left.name.split("-")[3]).exists():
                    with contextlib.suppress(OSError):
                        left.rmdir()


class Group:
    """One sandbox's. Raises OSError where it cannot be made."""

    def __init__(self, place: GroupPlace, limits: SandboxLimits) -> None:
        name = f"{place.prefix()}{os.getpid()}-{next(NUMBERS)}"
        # Plain strings: a start is made thousands of times, and a Path costs more than what the kernel does.
        self.folders = {controller: f"{folder}/{name}" for controller, folder in place.folders.items()}
        self.own, self.names = sorted(set(self.folders.values())), place.names
        try:
            for folder in self.own:
                os.mkdir(folder)
            self._bound(limits.most_bytes, limits.processes + BESIDE)
        except OSError:
            self.remove()
            raise

    def _bound(self, memory_bytes: int, processes: int) -> None:
        memory, names = self.folders[MEMORY], self.names
        _write(f"{memory}/{names.limit}", str(memory_bytes))
        if os.path.exists(f"{memory}/{names.swap}"):  # in v1 memory and swap together
            _write(f"{memory}/{names.swap}", str(memory_bytes) if names is V1 else "0")
        if names is V2:
            _write(f"{memory}/memory.oom.group", "1")
        _write(f"{self.folders[PIDS]}/pids.max", str(processes))

    def entrance(self) -> list[str]:
        """Files into which the first process writes 0."""
        return [f"{folder}/{self.names.enter}" for folder in self.own]

    def usage(self) -> Usage:
        """What all in it take. Memory has files that were read in it, too; processes are left to the kernel."""
        memory = int(_read(f"{self.folders[MEMORY]}/{self.names.taken}"))
        said = _read(f"{self.folders[TIME]}/{self.names.seconds}")
        return Usage(memory, int(said) / 1e9 if self.names is V1 else _field(said, "usage_usec") / 1e6, 0)

    def reason(self) -> str | None:
        """The limit at which the kernel has ended or refused something in it, of this group or of those above it."""
        if _field(_read(f"{self.folders[MEMORY]}/{self.names.events}"), "oom_kill"):
            return "memory"
        return "processes" if _field(_read(f"{self.folders[PIDS]}/pids.events"), "max") else None

    def remove(self) -> None:
        """End what is in it and remove it; what cannot be removed within seconds is left to `GroupPlace.tidy`."""
        for folder in self.own:
            if self.names is V2:  # in v1 the end of bubblewrap is the end of all
                with contextlib.suppress(OSError):
                    _write(f"{folder}/cgroup.kill", "1")
            for attempt in range(16):
                try:
                    os.rmdir(folder)
                except FileNotFoundError:
                    break
                except OSError:  # the last one in it is not gone quite yet
                    time.sleep(0.0001 * 2**attempt)
                else:
                    break


def group(limits: SandboxLimits) -> Group | None:
    """One for a sandbox; None where none can be made. Raises OSError where that has changed since it was tried."""
    place = find()[0]
    return None if place is None else Group(place, limits)


def entering(files: Sequence[str]) -> list[str]:
    """The words before a command that enters a group by these files (Group.entrance) before it does anything."""
    return ["/bin/sh", "-c", ENTER, "sh", *files, "--"]


def told() -> str:
    """In a line for people: who holds memory and processes."""
    place, why = find()
    if place is None:
        return f"sandbox: no cgroup of its own ({why}); memory, processes and time are looked at from outside"
    return f"sandbox: each in a cgroup of its own (v{place.version}, in {place.folders[MEMORY]})"


@functools.cache
def find() -> tuple[GroupPlace | None, str]:
    """Where groups can be made, tried once in a process by making one and entering it; or None, and why not."""
    seen, why = hierarchies(), list[str]()
    for look in (_first_version, _below, _beside):
        try:
            place = look(seen)
            place.tidy()
            _try(place)
        except subprocess.SubprocessError as error:
            why.append(f"{error}: {getattr(error, 'stderr', b'') or ''!r}")
        except OSError as error:
            why.append(str(error))
        else:
            return place, ""
    return None, "; ".join(dict.fromkeys(why))


def _try(place: GroupPlace) -> None:
    made = Group(place, SandboxLimits())
    try:
        subprocess.run([*entering(made.entrance()), "/bin/true"], check=True, capture_output=True, timeout=60)
        made.usage()
        made.reason()
    finally:
        made.remove()


def _first_version(seen: Mapping[str, Hierarchy]) -> GroupPlace:
    missing = [name for name in (MEMORY, PIDS, TIME) if name not in seen]
    if missing:
        raise OSError(f"v1: no {', '.join(missing)}")
    return GroupPlace(1, {name: seen[name].own for name in (MEMORY, PIDS, TIME)})


def _below(seen: Mapping[str, Hierarchy]) -> GroupPlace:
    """Our own group of v2. Where the kernel wants no processes in it, we go into one below it, alone."""
    own = _second_version(seen).own
    try:
        _enable(own)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        leaf = own / f"{GroupPlace.prefix()}{os.getpid()}-own"
        leaf.mkdir(exist_ok=True)
        try:
            (leaf / V2.enter).write_text("0")
            _enable(own)
        except OSError:
            with contextlib.suppress(OSError):
                (own / V2.enter).write_text("0")
            leaf.rmdir()
            raise
    return _everything_in(own)


def _beside(seen: Mapping[str, Hierarchy]) -> GroupPlace:
    """The group above ours, where ours bounds nothing that a group beside it would escape."""
    hierarchy = _second_version(seen)
    if len(hierarchy.levels()) < 2:
        raise OSError("v2: no group above ours is seen")
    for name in (V2.limit, "pids.max"):
        if (hierarchy.own / name).exists() and (hierarchy.own / name).read_text().strip() != "max":
            raise OSError(f"v2: {hierarchy.own / name} bounds us, and others beside us would escape it")
    _enable(hierarchy.own.parent)
    return _everything_in(hierarchy.own.parent)


def _second_version(seen: Mapping[str, Hierarchy]) -> Hierarchy:
    if "" not in seen:
        raise OSError("v2: not mounted")
    return seen[""]


def _everything_in(folder: Path) -> GroupPlace:
    return GroupPlace(2, dict.fromkeys((MEMORY, PIDS, TIME), folder))


def _enable(folder: Path) -> None:
    """Let groups in a folder of v2 bound memory and processes. Raises OSError: not ours, or with processes in it."""
    wanted = {MEMORY, PIDS}
    if absent := wanted - set((folder / "cgroup.controllers").read_text().split()):
        raise OSError(f"v2: {folder} has no controller {', '.join(sorted(absent))}")
    if not wanted <= set((folder / "cgroup.subtree_control").read_text().split()):
        (folder / "cgroup.subtree_control").write_text(f"+{MEMORY} +{PIDS}")


@functools.cache
def hierarchies(process: Path = PROC / "self") -> dict[str, Hierarchy]:
    """The trees that a process sees itself in, by controller; v2's by ""."""
    member = {}
    for line in (process / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        member.update(dict.fromkeys(controllers.split(","), path))
    result: dict[str, Hierarchy] = {}
    for line in (process / "mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind not in ("cgroup", "cgroup2"):
            continue
        root, top = before.split()[3:5]
        for controller in {""} if kind == "cgroup2" else {*options.split(",")} & member.keys():
            # Of a container the mount shows a part of the tree.
            inside = os.path.relpath(member.get(controller, "/"), root)
            if controller not in result and not inside.startswith(".."):
                result[controller] = Hierarchy(2 if kind == "cgroup2" else 1, Path(top, inside), Path(top))
    return result


def memory_bound(seen: Mapping[str, Hierarchy] | None = None, machine: Path = PROC / "meminfo") -> tuple[int, str]:
    """Bytes that we and all that we start may take, and what says so: the lowest of our groups, or the machine."""
    seen = hierarchies() if seen is None else seen
    total = re.search(r"^MemTotal:\s*(\d+) kB", machine.read_text(), re.MULTILINE)
    bounds = [(int(total[1]) * 1024, MACHINE)] if total else []
    for folder, names in _memory_groups(seen):
        with contextlib.suppress(OSError, ValueError):  # v2's root has none, and "max" is no bound
            bounds.append((int((folder / names.limit).read_text()), str(folder / names.limit)))
    if MEMORY in seen:  # counts levels that a container does not see
        with contextlib.suppress(OSError):
            stat = seen[MEMORY].own / "memory.stat"
            bounds.append((_field(stat.read_text(), "hierarchical_memory_limit") or bounds[0][0], str(stat)))
    return min(bounds, key=lambda bound: bound[0])


def oom_kills(seen: Mapping[str, Hierarchy] | None = None) -> int:
    """How many processes of our own group the kernel has ended for want of memory; 0 where it does not say."""
    seen = hierarchies() if seen is None else seen
    for folder, names in _memory_groups(seen):
        with contextlib.suppress(OSError):  # v2 has the file where memory is bounded, and counts what is below
            return _field((folder / names.events).read_text(), "oom_kill")
    return 0


def _memory_groups(seen: Mapping[str, Hierarchy]) -> Iterator[tuple[Path, Names]]:
    """Our own group and those above it, of v1's memory and then of v2, each with what its files are called."""
    for controller, names in ((MEMORY, V1), ("", V2)):
        if controller in seen:
            yield from ((folder, names) for folder in seen[controller].levels())


def _read(path: str) -> str:
    with open(path, "rb", buffering=0) as file:
        return file.read().decode()


def _write(path: str, text: str) -> None:
    """Into a file of a group, which is there."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _field(text: str, name: str) -> int:
    """The number after a name at the beginning of a line; 0 where there is none."""
    found = re.search(rf"^{name} (\d+)$", text, re.MULTILINE)
    return int(found[1]) if found else 0
