"""Harmless programs that try what a sandbox is there to stop: each is stopped, and the reason told."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from llama31.sandbox import bubblewrap, cgroups, probe, running, seccomp, usage
from llama31.sandbox.isolation import Sandbox
from llama31.sandbox.limits import MIB, Execution, SandboxLimits, SandboxUnavailable, reason_of
from tests import processes
from tests.sandbox import bwrap

# SandboxLimits that a program which does not try to pass them never meets, however busy the machine.
WIDE = SandboxLimits(memory_bytes=512 * MIB, cpu_seconds=300, wall_seconds=processes.LIMIT_S)


def python(source: str, stdin: str = "", readable: tuple[Path, ...] = (), **limits: float) -> Execution:
    if not shutil.which(bwrap.PYTHON[0]):
        pytest.skip("no python3 in /usr/bin")
    sandbox = Sandbox(dataclasses.replace(WIDE, **limits), readable, bwrap.program())  # type: ignore[arg-type]
    return sandbox.run([*bwrap.PYTHON, "a.py"], {"a.py": source}, stdin)


def test_a_program_runs_with_its_files_and_input() -> None:
    outcome = python("import sys; print(input() + 'é'); print('to the other', file=sys.stderr); sys.exit(3)", "so\n")
    assert (outcome.stdout, outcome.stderr, outcome.returncode) == ("soé\n", "to the other\n", 3)
    assert outcome.reason == "finished" and not outcome.passed and outcome.seconds > 0
    assert python("print(1)").passed


def test_an_endless_loop_is_ended_by_the_clock_or_by_its_time_on_the_processor() -> None:
    assert python("while True: pass", wall_seconds=0.3).reason == "timeout"
    assert python("print('begun', flush=True)\nimport time; time.sleep(10**6)", wall_seconds=0.6).stdout == "begun\n"
    outcome = python("import os\nfor _ in range(3): os.fork()\nwhile True: pass", cpu_seconds=0.5)
    assert outcome.reason == "cpu"  # of eight together: none of them has had a second


@pytest.mark.parametrize(
    "one", ["os.fork() or time.sleep(10**6)", "threading.Thread(target=time.sleep, args=(10**6,)).start()"]
)
def test_many_processes(one: str) -> None:
    source = f"import os, threading, time\nfor _ in range(200): {one}\nprint('all')\ntime.sleep(10**6)"
    outcome = python(source, processes=12)
    assert outcome.reason == "processes" and outcome.stdout == ""
    assert python("import os\nfor _ in range(11): os.fork() or os._exit(0)", processes=12).passed


GROW = "import os, time\nkept = []\nfor _ in range({}): kept.append(os.urandom(2**20)); time.sleep(0.001)\n"


def test_much_memory() -> None:
    assert python(GROW.format(10**6), memory_bytes=64 * MIB).reason == "memory"
    refused = python("bytearray(10**12)", memory_bytes=64 * MIB)
    assert refused.reason == "memory" and "MemoryError" in refused.stderr
    four = "import os, time\nfor _ in range(2): os.fork()\n" + GROW.format(30) + "time.sleep(10**6)"
    assert python(four, memory_bytes=64 * MIB).reason == "memory"  # 30 MiB in each of four
    mapped = "import mmap, time\nkept = mmap.mmap(-1, 2**27)\nkept.write(bytes(2**27))\ntime.sleep(10**6)"
    assert python(mapped, memory_bytes=64 * MIB).reason == "memory"  # shared memory, which no process's limit counts


def test_a_page_that_processes_share_counts_once() -> None:
    source = GROW.format(40) + "children = [os.fork() or (time.sleep(0.3), os._exit(0)) for _ in range(3)]\n"
    assert python(source + "for child in children: os.waitpid(child, 0)", memory_bytes=96 * MIB).passed


def test_endless_output() -> None:
    outcome = python("import sys\nwhile True: print('y' * 99); print('n' * 99, file=sys.stderr)", output_bytes=100_000)
    assert outcome.reason == "output"
    assert len(outcome.stdout) + len(outcome.stderr) == 100_000
    assert python("print('y' * 999)", output_bytes=1000).passed


@pytest.mark.parametrize("folder", ["/tmp", "/tmp/work", "/dev/shm"])
def test_what_it_may_write_is_bounded(folder: str) -> None:
    source = f"for i in range(100): open('{folder}/%d' % i, 'wb').write(bytes(2**20))"
    outcome = python(source, disk_bytes=4 * MIB)
    assert outcome.reason == "disk" and "No space left" in outcome.stderr
    assert python(f"open('{folder}/a', 'wb').write(bytes(2**23))", disk_bytes=4 * MIB).reason == "disk"


def test_it_writes_nowhere_else(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    places = ["/", "/usr/", "/usr/bin/", "/etc/", "/dev/", "/var/tmp/", "/home/", "/root/", "/proc/", f"{tmp_path}/"]
    source = f"""
for place in {places!r}:
    try:
        open(place + "written", "w")
        print(place)
    except OSError:
        pass
for name in ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger"):
    try:
        open(name, "w")
        print(name)
    except OSError:
        pass
open("written", "w").write("here it may")
print(open("written").read())
"""
    outcome = python(source)
    assert (outcome.stdout, outcome.stderr) == ("here it may\n", "")
    assert not list(tmp_path.iterdir()) and not Path("/tmp/work").exists()


def test_it_reads_no_file_that_it_was_not_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("found\n")
    monkeypatch.setenv("SECRET_KEY", "found")
    source = f"""
import os
for path in ({str(secret)!r}, {str(Path.home())!r}, {str(Path.cwd())!r}, "/etc/passwd", "/var", "/sys", "/home"):
    try:
        print(path, os.listdir(path) if os.path.isdir(path) else open(path).read())
    except OSError as error:
        assert isinstance(error, FileNotFoundError), error
print(*sorted(os.environ))
print(*sorted(os.listdir("/proc/self/fd")))
print(*sorted(int(name) for name in os.listdir("/proc") if name.isdecimal()))
"""
    outcome = python(source)
    variables, descriptors, seen = outcome.stdout.splitlines()
    assert outcome.stderr == "" and variables.split() == sorted({*bubblewrap.ENVIRONMENT, "PWD"})
    assert descriptors == "0 1 2 3"  # the last is of the listing
    assert seen == "1 2"  # bubblewrap and itself


def test_a_folder_that_it_was_given_is_read_and_not_written() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o777)  # where root starts it, nobody runs it
        given = Path(folder, "given.txt")
        given.write_text("found\n")
        given.chmod(0o666)
        outcome = python(f"print(open('{given}').read()); open('{given}', 'a')", readable=(Path(folder),))
        assert outcome.stdout == "found\n\n" and "Read-only file system" in outcome.stderr
        if bubblewrap.becomes_nobody():
            os.chmod(folder, 0o700)
            with pytest.raises(ValueError, match=f"readable={folder}: programs run as user 65534, who may not read it"):
                python("", readable=(Path(folder),))


def test_it_has_no_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        source = f"""
import socket
for place in (("127.0.0.1", {server.getsockname()[1]}), ("192.0.2.1", 80), ("198.51.100.7", 53)):
    try:
        socket.create_connection(place, timeout=5)
        print("reached", place)
    except OSError as error:
        print(error.strerror)
print([name for _, name in socket.if_nameindex()])
"""
        said = python(source).stdout.splitlines()
        assert said == ["Connection refused", "Network is unreachable", "Network is unreachable", "['lo']"]
        with pytest.raises(BlockingIOError):
            server.accept()


def test_system_calls_that_are_refused() -> None:
    source = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
for number, *given in ((319, b"a", 0), (29, 1, 4096, 0o1600), (272, 0x10000000), (101, 0, 0, 0, 0), (39,)):
    print(libc.syscall(number, *given) >= 0 or os.strerror(ctypes.get_errno()))
"""
    if os.uname().machine != "x86_64":
        pytest.skip("numbers of x86_64")
    assert python(source).stdout.splitlines() == ["Function not implemented"] * 4 + ["True"]


@pytest.mark.parametrize(
    ("machine", "header"),
    [("x86_64", "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), ("aarch64", "/usr/include/asm-generic/unistd.h")],
)
def test_numbers_of_system_calls_are_the_headers(machine: str, header: str) -> None:
    if not Path(header).exists():
        pytest.skip(f"no {header}: apt-get install linux-libc-dev")
    known = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", Path(header).read_text()))
    column = list(seccomp.MACHINES).index(machine)
    assert {name: int(known[name]) for name in seccomp.REFUSED} == {n: x[column] for n, x in seccomp.REFUSED.items()}
    assert len(seccomp.program(machine)) == 8 * (len(seccomp.REFUSED) + 7)


def test_all_of_it_dies_with_who_started_it(tmp_path: Path) -> None:
    source = """
import sys
from llama31.sandbox.isolation import Sandbox
Sandbox(program=sys.argv[1]).run(["/bin/sh", "-c", "sleep 1000 & setsid sleep 1000 & sleep 1000"])
"""
    environment = {**os.environ, "PYTHONPATH": processes.search_path()}
    parent = subprocess.Popen([sys.executable, "-c", source, bwrap.program()], env=environment)
    begin = time.monotonic()
    try:
        while (
            len(inside := usage.tree(parent.pid)[1:]) < 5
            or b"sleep" not in Path(f"/proc/{inside[-1]}/cmdline").read_bytes()
        ):
            assert time.monotonic() - begin < processes.LIMIT_S and parent.poll() is None
            time.sleep(0.01)
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    while any(map(processes.alive, inside)):
        assert time.monotonic() - begin < processes.LIMIT_S
        time.sleep(0.01)
    if (where := cgroups.find()[0]) is not None:  # its group is left, and the next start removes it
        where.tidy()
        assert not [one for folder in where.folders.values() for one in folder.glob(f"{where.prefix()}{parent.pid}-*")]


def test_an_ordinary_user_has_the_same_sandbox() -> None:
    """Where root asks, user 65534 runs programs; here that is left out, for root has become somebody else before."""
    if not bubblewrap.becomes_nobody():
        pytest.skip("this is no root, so all other tests have shown it")
    source = """
import os, sys
from llama31.sandbox.isolation import Sandbox
from llama31.sandbox.limits import SandboxLimits
import llama31.sandbox.workers, selectors, subprocess
os.setgroups([]); os.setgid(12345); os.setuid(12345)
sandbox = Sandbox(SandboxLimits(processes=5, wall_seconds=1800), program=sys.argv[1])
print(sandbox.run(["/bin/sh", "-c", "id -u; cat /proc/self/uid_map; ls -d /home /root"]).stdout.split())
many = "for i in 1 2 3 4 5 6 7 8; do sleep 1000 & done; wait"
print([sandbox.run(["/bin/sh", "-c", many]).reason for _ in range(2)])
"""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        program = shutil.copy(bwrap.program(), folder)
        environment = {**os.environ, "PYTHONPATH": processes.search_path()}
        said = processes.run([sys.executable, "-c", source, program], env=environment, merged=True)
    assert said.stdout.splitlines() == ["['1000', '1000', '0', '1']", "['processes', 'processes']"]


def test_where_memory_runs_out_it_goes_first() -> None:
    outcome = Sandbox(WIDE, program=bwrap.program()).run(["cat", "/proc/self/oom_score_adj", "/proc/1/oom_score_adj"])
    assert outcome.stdout == "1000\n1000\n"
    killed = Sandbox(WIDE, program=bwrap.program()).run(["/bin/sh", "-c", "kill -9 $$"])
    assert (killed.reason, killed.returncode) == ("killed", 137)


def test_what_it_leaves_running_ends_with_it() -> None:
    outcome = Sandbox(WIDE, program=bwrap.program()).run(["/bin/sh", "-c", "sleep 1000 & echo $$"])
    assert outcome.passed and outcome.seconds < 1000


def test_commands_before_it() -> None:
    sandbox = Sandbox(WIDE, program=bwrap.program())
    copy = [["/bin/sh", "-c", "cat a.txt > b.txt"]]
    assert sandbox.run(["cat", "b.txt"], {"a.txt": "copied"}, build=copy).stdout == "copied"
    failing = [*copy, ["/bin/sh", "-c", "echo no such thing >&2; exit 7"], ["echo", "too far"]]
    outcome = sandbox.run(["echo", "too far"], {"a.txt": ""}, build=failing)
    assert (outcome.reason, outcome.returncode, outcome.stdout) == ("build", 7, "")
    assert outcome.stderr == "no such thing\n"
    assert sandbox.run(["/bin/sh", "-c", "exit 125"], build=[["true"]]).reason == "finished"
    assert sandbox.run(["no-such-program"]).returncode == 127


def test_odd_input() -> None:
    sandbox = Sandbox(WIDE, program=bwrap.program())
    files = {"a b/ü.txt": "half \ud800", "-n": b"\xff\0", "empty": ""}
    outcome = sandbox.run(["/bin/sh", "-c", "wc -c -- 'a b/ü.txt' ./-n empty; cat ./-n; cat"], files, "x" * 300_000)
    assert outcome.passed and outcome.stdout.split()[:2] == ["8", "a"] and "\ufffd\0" in outcome.stdout
    assert outcome.stdout.endswith("x" * 300_000)
    assert sandbox.run(["true"], {"a": "x" * 50_000_000}).passed
    assert sandbox.run(["true"], {"a": "x" * 100_000_000}).reason == "disk"
    for name in ("", "/etc/passwd", "../a", "a/../../b", "a\0b", "."):
        with pytest.raises(ValueError, match="files: .* is no name inside the work folder; give a relative one"):
            sandbox.run(["true"], {name: ""})
    for command in ([], ["echo", "a\0b"]):
        with pytest.raises(ValueError, match="give the words of a command"):
            sandbox.run(command)
    with pytest.raises(ValueError, match="readable=nowhere: not there"):
        Sandbox(readable=(Path("nowhere"),))
    with pytest.raises(ValueError, match="wall_seconds=0: not a positive number"):
        SandboxLimits(wall_seconds=0)


def test_last_words_tell_of_a_limit_unless_it_succeeded() -> None:
    assert reason_of(1, "a\nMemoryError\n") == "memory" and reason_of(0, "a\nMemoryError\n") == "finished"
    assert reason_of(1, "OSError: [Errno 28] No space left on device") == "disk"
    assert reason_of(1, "fork: Resource temporarily unavailable") == "processes"
    assert reason_of(1, "MemoryError" + " " * 5000) == reason_of(139, "") == "finished"
    assert [reason_of(code, "") for code in (152, 153, 137)] == ["cpu", "disk", "killed"]


@pytest.mark.parametrize(
    ("says", "remedy"),
    [
        ("bwrap: No permissions to create a new namespace, likely because ...", "user.max_user_namespaces"),
        ("bwrap: setting up uid map: Permission denied", "apparmor_restrict_unprivileged_userns=0"),
        ("bwrap: Can't mount proc on /newroot/proc: Operation not permitted", "systempaths=unconfined"),
        ("bwrap: Unknown option --disable-userns", "0.8 or newer"),
        ("setpriv: setresuid failed: Invalid argument", "another user than root"),
    ],
)
def test_without_a_sandbox_nothing_is_run(tmp_path: Path, says: str, remedy: str) -> None:
    fake, marker = tmp_path / "bwrap", tmp_path / "run"
    fake.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo bubblewrap 0.8.0 && exit\necho "{says}" >&2\nexit 1\n')
    fake.chmod(0o755)
    with pytest.raises(SandboxUnavailable, match=re.escape(remedy)):
        Sandbox(program=str(fake)).run(["touch", str(marker)])
    with pytest.raises(SandboxUnavailable, match="no program is run here"):  # one that failed later on, too
        running.run(str(fake), WIDE, (), ["touch", str(marker)], {}, b"")
    assert not marker.exists()


def test_what_is_missing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = probe.probe(str(tmp_path / "none"))
    assert not found.works and "apt-get install bubblewrap" in found.missing[0]
    old = tmp_path / "bwrap"
    old.write_text("#!/bin/sh\necho bubblewrap 0.4.1\n")
    old.chmod(0o755)
    assert "bubblewrap 0.4.1" in probe.probe(str(old)).missing[0]
    probe.probe.cache_clear()
    monkeypatch.setattr("platform.release", lambda: "4.18.0-553.el8_10.x86_64")
    assert "Linux 4.18.0-553.el8_10.x86_64: 5.14 or newer" in probe.probe("/bin/sh").missing[0]
    probe.probe.cache_clear()


def test_the_probe_sees_a_room_that_does_not_hold(tmp_path: Path) -> None:
    """A bubblewrap that leaves out what it was asked for is refused, though programs run in it."""
    real, fake = bwrap.program(), tmp_path / "bwrap"
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)  # where root starts it, nobody runs it
        shutil.copy(real, f"{folder}/bwrap")
        keep = 'case "$word" in --unshare-net | --unshare-pid | --disable-userns) ;; *) set -- "$@" "$word" ;; esac'
        fake.write_text(f'#!/bin/sh\nfor word do shift; {keep}; done\nexec {folder}/bwrap "$@"\n')
        fake.chmod(0o755)
        missing = probe.probe(str(fake)).missing
    assert any("it has a network" in line for line in missing)
    assert any("it sees other processes" in line for line in missing)
    assert len(missing) == 2, missing
