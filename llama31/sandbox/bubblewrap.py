"""The command line that puts a program into a room of its own, by bubblewrap (https://github.com/containers/bubblewrap).

Inside there is this machine's /usr, what of /etc a tool chain reads, and folders named by the caller, all read-only;
an empty work folder and /tmp; /proc of its own processes alone; no network, not even this machine's own; nobody's home.
The program is no root, can become nothing else (no new privileges, no further namespaces), and ends with whoever
started it.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
from collections.abc import Iterable, Mapping, Sequence
from math import ceil
from pathlib import Path, PurePosixPath

from llama31.sandbox import cgroups
from llama31.sandbox.limits import SandboxLimits

WORK = "/tmp/work"
HOST = "sandbox"
USER = "1000"  # who the program believes to be
NOBODY = 65534  # who runs it where root asks: root's own files stay closed to it
PATH = "/usr/local/bin:/usr/bin:/bin"
ENVIRONMENT = {"PATH": PATH, "HOME": WORK, "TMPDIR": "/tmp", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}
# Which program stands behind a name, where libraries lie, and what Java and PHP do not start without.
SETTINGS = ("alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "php")
SYSTEM = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
OPEN_FILES = 256
FIRST_BUILD_FAILED = 125  # what the shell returns then, with its last line
MARK = "sandbox: a command before it failed: "

INSTALL = "apt-get install bubblewrap (dnf install bubblewrap), or say where it is with program=/path/to/bwrap"
NAMESPACES = (
    "let users make namespaces: sysctl user.max_user_namespaces=15000, where they exist also "
    "kernel.unprivileged_userns_clone=1 and kernel.apparmor_restrict_unprivileged_userns=0; in a container allow "
    "unshare and mount (docker: --security-opt seccomp=unconfined --security-opt systempaths=unconfined)"
)
# What bubblewrap says, what that means, and the remedy.
CAUSES = (
    (
        r"/(tasks|cgroup\.procs)\b|echo: ",
        "its cgroup cannot be entered",
        "the same command, once more, looks anew for one",
    ),
    (r"not found", "bubblewrap is not here", INSTALL),
    (r"Unknown option", "this bubblewrap is too old", "0.8 or newer is needed: " + INSTALL),
    (r"namespace|uid map|RTM_NEWADDR|Operation not permitted|mount proc", "no namespace for it", NAMESPACES),
    (r"setpriv", "root cannot become another user here", "start the command as another user than root"),
    (r"prlimit", "no prlimit in /usr/bin", "apt-get install util-linux"),
)


def find(given: str | None = None) -> str | None:
    """Where bubblewrap is: what was given, or what PATH has."""
    return shutil.which(given or "bwrap")


def becomes_nobody() -> bool:
    """Whether we are root of the whole machine, whose files the program could read and whose processes none counts.

    Root of a container without privileges is an ordinary user, and no one else is there to become.
    """
    return os.geteuid() == 0 and Path("/proc/self/uid_map").read_text().split()[2] == str(2**32 - 1)


def command(
    program: str,
    held: int,
    limits: SandboxLimits,
    readable: Iterable[Path],
    files: Mapping[str, int],
    filter_: int,
    status: int,
    entrance: Sequence[str] = (),
) -> list[str]:
    """Everything before the words of the program itself.

    held: an open descriptor of bubblewrap's own file, by which nobody finds it where its folder is root's alone.
    files: relative names -> descriptors to read them from. filter_: descriptor of the system calls' filter.
    status: descriptor to which bubblewrap writes the first process inside and how it ended. entrance: files of a
    control group into which 0 is written, before anything else is done.
    """
    words, inside = cgroups.entering(entrance), [program]
    if becomes_nobody():
        drop = (f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all")
        inside = [_needed("setpriv"), *drop, "--", f"/proc/self/fd/{held}"]
    words += inside
    words += [f"--unshare-{name}" for name in ("user", "pid", "net", "ipc", "uts", "cgroup")]
    words += ["--disable-userns", "--die-with-parent", "--new-session", "--uid", USER, "--gid", USER]
    # bubblewrap closes this descriptor for the program.
    words += ["--hostname", HOST, "--sync-fd", str(held), "--seccomp", str(filter_), "--json-status-fd", str(status)]
    size = str(limits.disk_bytes)
    words += [*_system(), "--proc", "/proc", "--dev", "/dev", "--size", size, "--tmpfs", "/dev/shm"]
    words += ["--remount-ro", "/dev", "--size", size, "--tmpfs", "/tmp", "--dir", WORK, "--chdir", WORK]
    for folder in readable:
        words += ["--ro-bind", str(folder), str(folder)]
    for name, descriptor in files.items():
        words += ["--file", str(descriptor), f"{WORK}/{name}"]
    return [*words, "--remount-ro", "/", "--", *_bounded(limits)]


def _system() -> list[str]:
    words = ["--ro-bind", "/usr", "/usr"]
    for name in SYSTEM:
        path = Path("/", name)
        if path.is_symlink():
            words += ["--symlink", os.readlink(path), str(path)]
        elif path.is_dir():
            words += ["--ro-bind", str(path), str(path)]
    settings = [*(Path("/etc", name) for name in SETTINGS), *Path("/etc").glob("java*")]
    for path in settings:
        words += ["--ro-bind-try", str(path), str(path)]
    return words


def _bounded(limits: SandboxLimits) -> list[str]:
    """SandboxLimits that the kernel holds for each process (setrlimit(2)), those of processes for all."""
    data = limits.memory_bytes * 5 // 4  # a little beyond what `usage` ends, so that there is something to see
    return [
        _needed("prlimit"),
        f"--data={data}",
        f"--nproc={limits.processes + 8}",
        f"--cpu={ceil(limits.cpu_seconds)}:{ceil(limits.cpu_seconds) + 1}",
        f"--fsize={limits.disk_bytes}",
        f"--nofile={OPEN_FILES}",
        "--core=0",
        "--msgqueue=0",
        "--memlock=65536",
        "--",
    ]


def _needed(name: str) -> str:
    """A program of util-linux, which every distribution has."""
    return shutil.which(name, path=PATH) or f"/usr/bin/{name}"


def after(build: Sequence[Sequence[str]], program: Sequence[str]) -> list[str]:
    """The words of the program; where commands have to come before it, of a shell that runs those and becomes it."""
    if not build:
        return list(program)
    lines = [f'{shlex.join(one)} || {{ echo "{MARK}$?" >&2; exit {FIRST_BUILD_FAILED}; }}' for one in build]
    return ["/bin/sh", "-c", "\n".join([*lines, f"exec {shlex.join(program)}"])]


def checked_name(name: str) -> str:
    """A file's name inside the work folder; raises ValueError for one that leads out of it."""
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in name:
        raise ValueError(f"files: {name!r} is no name inside the work folder; give a relative one without '..'")
    return str(path)


def readable_by_nobody(path: Path) -> bool:
    """Whether everybody may read a file, or list a folder, and pass through all folders above it."""
    wanted = stat.S_IROTH | (stat.S_IXOTH if path.is_dir() else 0)
    try:
        above = all(one.stat().st_mode & stat.S_IXOTH for one in path.resolve().parents)
        return above and path.stat().st_mode & wanted == wanted
    except OSError:
        return False


def explain(said: str) -> str:
    """What is wrong and what to do about it, out of what was printed."""
    told = re.sub(r"\s+", " ", said).strip()[-300:]
    for pattern, problem, remedy in CAUSES:
        if re.search(pattern, said):
            return f"no program is run here, for there is no sandbox: {problem} ({told}); {remedy}"
    return f"no program is run here, for there is no sandbox ({told}); `bwrap --version` and its manual page may help"
