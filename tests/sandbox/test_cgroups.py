"""Groups of a sandbox's own: the kernel ends what grows between two looks, and nothing is left of them.

Version 1 is tested where it is mounted and ours; version 2 by folders that look like it.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llama31.sandbox import cgroups, running
from llama31.sandbox.cgroups import GroupPlace, Hierarchy
from llama31.sandbox.isolation import Sandbox
from llama31.sandbox.limits import MIB, SandboxLimits, SandboxUnavailable
from tests import processes
from tests.sandbox import bwrap

TIGHT = SandboxLimits(
    memory_bytes=64 * MIB, disk_bytes=MIB, processes=12, cpu_seconds=300, wall_seconds=processes.LIMIT_S
)
HOG = "import mmap\nkept = mmap.mmap(-1, 2**30)\nfor at in range(0, 2**30, 4096): kept[at] = 1"  # no process's limit
STUBBORN = """
import os, time
for _ in range(99):
    try:
        os.fork() or time.sleep(10**6)
    except OSError:
        pass
"""


def place() -> GroupPlace:
    found, why = cgroups.find()
    if found is None:
        pytest.skip(f"no cgroup can be made here: {why}")
    return found


def left(where: GroupPlace, process: int) -> list[Path]:
    return [one for folder in where.folders.values() for one in folder.glob(f"{where.prefix()}{process}-*")]


@pytest.fixture
def unwatched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """A sandbox at which nobody looks between its start and its end."""
    where, sandbox = place(), Sandbox(TIGHT, program=bwrap.program())
    monkeypatch.setattr(running, "LOOK_SECONDS", processes.LIMIT_S)
    yield sandbox
    assert left(where, os.getpid()) == []


def test_the_kernel_ends_what_grows_between_two_looks(unwatched: Sandbox) -> None:
    outcome = unwatched.run([*bwrap.PYTHON, "-c", HOG])
    assert (outcome.reason, outcome.returncode, outcome.passed) == ("memory", 137, False)
    files = "for i in range(4):\n    open(f'/dev/shm/{i}', 'wb').write(bytes(2**18))\nprint('all')"
    assert unwatched.run([*bwrap.PYTHON, "-c", files]).stdout == "all\n"


def test_the_kernel_refuses_one_process_more(unwatched: Sandbox) -> None:
    outcome = unwatched.run([*bwrap.PYTHON, "-c", STUBBORN])
    assert (outcome.reason, outcome.returncode) == ("processes", 137)  # though it went on, and returned 0
    as_many = "import os\nfor _ in range(11): os.fork() or os._exit(0)"
    assert unwatched.run([*bwrap.PYTHON, "-c", as_many]).passed


def test_time_of_all_that_ran_in_a_group_is_counted() -> None:
    group = cgroups.Group(place(), TIGHT)
    try:
        work = ["/bin/sh", "-c", "i=0; while [ $i -lt 200000 ]; do i=$((i + 1)); done"]
        before = os.times()
        subprocess.run([*cgroups.entering(group.entrance()), *work], check=True, timeout=processes.LIMIT_S)
        after, taken = os.times(), group.usage()
        spent = after.children_user + after.children_system - before.children_user - before.children_system
        assert 0.5 * spent < taken.cpu_seconds < 2 * spent + 0.1
        assert group.reason() is None and taken.memory_bytes < TIGHT.most_bytes
    finally:
        group.remove()
    assert left(place(), os.getpid()) == []


def test_what_a_killed_process_has_left_is_removed_and_nothing_else() -> None:
    where = place()
    child = subprocess.Popen(["/bin/true"])
    child.wait(processes.LIMIT_S)
    names = [f"{where.prefix()}{process}-tidy" for process in (child.pid, os.getpid())]
    folders = [folder / name for folder in set(where.folders.values()) for name in names]
    for folder in folders:
        folder.mkdir()
    try:
        where.tidy()
        assert [folder for folder in folders if folder.exists()] == folders[1::2]
    finally:
        for folder in folders:
            if folder.exists():
                folder.rmdir()


SHARED = """
import sys
from llama31.sandbox import cgroups, running
from llama31.sandbox.isolation import Sandbox
from llama31.sandbox.limits import MIB, SandboxLimits, SandboxUnavailable
running.LOOK_SECONDS = 1800
if sys.argv[2] == "none":
    cgroups.find = lambda: (None, "told so")
print(*cgroups.memory_bound())
print(Sandbox(SandboxLimits(2048 * MIB, wall_seconds=1800), program=sys.argv[1]).run(sys.argv[3:]).reason)
"""


@pytest.mark.parametrize("own", ["own", "none"])
def test_where_a_job_has_no_memory_left_that_is_the_reason(own: str) -> None:
    where = place()
    if where.version != 1:
        pytest.skip("the group of a job is made as in v1 here")
    job = where.folders[cgroups.MEMORY] / f"{where.prefix()}{os.getpid()}-job-{own}"
    job.mkdir()
    try:
        (job / cgroups.V1.limit).write_text(str(256 * MIB))
        words = [sys.executable, "-c", SHARED, bwrap.program(), own, *bwrap.PYTHON, "-c", HOG]
        environment = {**os.environ, "PYTHONPATH": processes.search_path()}
        said = processes.run([*cgroups.entering([str(job / "tasks")]), *words], env=environment).stdout
        assert said.splitlines() == [f"{256 * MIB} {job / cgroups.V1.limit}", "memory"]
    finally:
        job.rmdir()  # nothing of the sandbox is left below it


def tree(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def process(folder: Path, mounts: str, membership: str) -> Path:
    lines = "".join(f"30 29 0:26 {line}\n" for line in mounts.splitlines())
    return tree(folder / "process", {"mountinfo": lines, "cgroup": membership})


JOB = "system.slice/slurmstepd.scope/job_7"


def test_bounds_of_all_levels_of_a_job_of_slurm(tmp_path: Path) -> None:
    machine = tree(tmp_path, {"meminfo": "MemTotal:       64 kB\nMemFree: 1 kB\n"}) / "meminfo"
    step = f"{JOB}/step_0/user/task_0"
    second = tree(
        tmp_path / "second",
        {f"{JOB}/memory.max": "40960", f"{JOB}/step_0/memory.max": "50000", f"{step}/memory.max": "max",
         f"{JOB}/step_0/user/memory.events": "low 0\noom 4\noom_kill 3\noom_group_kill 0\n"},
    )  # fmt: skip
    own = process(tmp_path, f"/ {second} rw - cgroup2 cgroup2 rw", f"0::/{step}\n")
    seen = cgroups.hierarchies(own)
    assert seen == {"": Hierarchy(2, second / step, second)}
    assert cgroups.memory_bound(seen, machine) == (40960, f"{second / JOB / 'memory.max'}")
    assert cgroups.oom_kills(seen) == 3
    (second / JOB / "memory.max").write_text("max")
    assert cgroups.memory_bound(seen, machine) == (50000, f"{second / JOB / 'step_0/memory.max'}")
    assert cgroups.memory_bound({}, machine) == (65536, cgroups.MACHINE) and cgroups.oom_kills({}) == 0

    first = tree(
        tmp_path / "first",
        {"slurm/uid_1/job_7/memory.limit_in_bytes": "9223372036854771712",
         "slurm/uid_1/memory.limit_in_bytes": "61440",
         "slurm/uid_1/job_7/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
         "slurm/uid_1/job_7/memory.stat": "cache 1\nhierarchical_memory_limit 62000\ntotal_cache 1\n"},
    )  # fmt: skip
    mounts = f"/ {second} rw - cgroup2 cgroup2 rw\n/ {first} rw shared:9 - cgroup cgroup rw,memory"
    seen = cgroups.hierarchies(process(tmp_path / "hybrid", mounts, "4:memory:/slurm/uid_1/job_7\n0::/\n"))
    assert cgroups.memory_bound(seen, machine) == (61440, f"{first / 'slurm/uid_1/memory.limit_in_bytes'}")
    assert cgroups.oom_kills(seen) == 2
    (first / "slurm/uid_1/job_7/memory.stat").write_text("hierarchical_memory_limit 4096\n")  # of a level unseen
    assert cgroups.memory_bound(seen, machine)[0] == 4096


def test_a_container_sees_a_part_of_the_tree(tmp_path: Path) -> None:
    top = tree(tmp_path / "top", {"inner/memory.max": "8192"})
    mounts = f"/docker/abc {top} rw - cgroup cgroup rw,cpu,cpuacct\n/elsewhere {top} rw - cgroup cgroup rw,memory"
    seen = cgroups.hierarchies(process(tmp_path, mounts, "3:cpu,cpuacct:/docker/abc/inner\n4:memory:/docker/abc\n"))
    assert seen["cpuacct"] == seen["cpu"] == Hierarchy(1, top / "inner", top) and "memory" not in seen
    assert seen["cpu"].levels() == [top / "inner", top]


def test_where_groups_of_the_second_version_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = tree(
        tmp_path,
        {"unit/cgroup.controllers": "cpu memory pids\n", "unit/cgroup.subtree_control": "",
         "unit/main/cgroup.controllers": "", "unit/main/memory.max": "max\n", "unit/main/pids.max": "max\n"},
    )  # fmt: skip
    inner = {"": Hierarchy(2, top / "unit/main", top)}
    with pytest.raises(OSError, match=f"v2: {top}/unit/main has no controller memory, pids"):
        cgroups._below(inner)
    assert list(top.glob("unit/main/*-own")) == []
    assert set(cgroups._beside(inner).folders.values()) == {top / "unit"}
    assert (top / "unit/cgroup.subtree_control").read_text() == "+memory +pids"
    (top / "unit/main/memory.max").write_text("1000000\n")
    with pytest.raises(OSError, match=r"unit/main/memory.max bounds us, and others beside us would escape it"):
        cgroups._beside(inner)

    def enable(folder: Path) -> None:
        """As the kernel does where we are in the folder ourselves."""
        if not [leaf for leaf in folder.glob("*-own/cgroup.procs") if leaf.read_text() == "0"]:
            raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(cgroups, "_enable", enable)
    assert cgroups._below({"": Hierarchy(2, top / "unit", top)}).folders[cgroups.PIDS] == top / "unit"
    for missing in ({}, {"memory": Hierarchy(1, top, top)}):
        with pytest.raises(OSError, match="v1: no .*pids, cpuacct"):
            cgroups._first_version(missing)
        with pytest.raises(OSError, match="v2: not mounted"):
            cgroups._below(missing)


def test_files_of_a_group_of_the_second_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really = os.mkdir

    def mkdir(folder: str) -> None:
        really(folder)
        for name in ("memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cgroup.kill"):
            Path(folder, name).touch()

    with monkeypatch.context() as patched:
        patched.setattr(os, "mkdir", mkdir)
        everything = dict.fromkeys((cgroups.MEMORY, cgroups.PIDS, cgroups.TIME), tmp_path)
        group = cgroups.Group(GroupPlace(2, everything), TIGHT)
    (folder,) = tmp_path.iterdir()
    assert {file.name: file.read_text() for file in folder.iterdir()} == {
        "memory.max": str((64 + 2 + 16) * MIB), "memory.swap.max": "0", "memory.oom.group": "1", "pids.max": "14",
        "cgroup.kill": "",
    }  # fmt: skip
    tree(folder, {
        "memory.current": "4096\n", "cpu.stat": "usage_usec 2500000\nuser_usec 1\n",
        "memory.events": "max 9\noom 0\noom_kill 0\n", "pids.events": "max 0\n",
    })  # fmt: skip
    assert group.entrance() == [f"{folder}/cgroup.procs"]
    assert group.usage() == (4096, 2.5, 0) and group.reason() is None
    (folder / "pids.events").write_text("max 1\n")
    assert group.reason() == "processes"
    (folder / "memory.events").write_text("oom_kill 1\n")
    assert group.reason() == "memory"
    with monkeypatch.context() as patched:
        patched.setattr(os, "rmdir", lambda folder: Path(folder).rename(f"{folder}.removed"))
        group.remove()
    assert not folder.exists() and (tmp_path / f"{folder.name}.removed/cgroup.kill").read_text() == "1"


def test_a_group_that_can_no_longer_be_made_or_entered_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox, names = Sandbox(TIGHT, program=bwrap.program()), (cgroups.MEMORY, cgroups.PIDS, cgroups.TIME)
    monkeypatch.setattr(cgroups, "find", lambda: (GroupPlace(1, dict.fromkeys(names, tmp_path / "gone")), ""))
    with pytest.raises(SandboxUnavailable, match="its cgroup cannot be made, .*; the same command, once more"):
        sandbox.run(["true"])

    monkeypatch.undo()

    class Gone(cgroups.Group):
        def entrance(self) -> list[str]:
            return [f"{tmp_path}/gone/tasks"]

    where = place()
    monkeypatch.setattr(cgroups, "group", lambda limits: Gone(where, limits))
    with pytest.raises(SandboxUnavailable, match="its cgroup cannot be entered .*; the same command, once more"):
        sandbox.run(["true"])
    assert left(where, os.getpid()) == []
