"""What works on this machine: whether a sandbox can be made, and whether it holds what it promises."""

from __future__ import annotations

import functools
import platform
import re
import subprocess
from dataclasses import dataclass

from llama31.sandbox import bubblewrap, running, seccomp, usage
from llama31.sandbox.limits import SandboxLimits, SandboxUnavailable

OLDEST_LINUX = (5, 14)  # before it, processes were counted by user and not by sandbox
OLDEST_BUBBLEWRAP = (0, 8)  # --disable-userns


@dataclass(frozen=True)
class Support:
    """What this machine has. `missing` is empty where programs can be run."""

    program: str | None
    version: str
    kernel: str
    missing: tuple[str, ...]

    @property
    def works(self) -> bool:
        """Whether programs can be run."""
        return not self.missing


@functools.cache
def probe(program: str | None = None) -> Support:
    """Look, once in a process. Nothing but /bin/sh is started inside."""
    found = bubblewrap.find(program)
    missing = []
    if platform.machine() not in seccomp.MACHINES:
        missing.append(f"processor {platform.machine()}: only {', '.join(seccomp.MACHINES)} are supported")
    if _numbers(platform.release()) < OLDEST_LINUX:
        missing.append(f"Linux {platform.release()}: 5.14 or newer is needed, to count processes by sandbox")
    if not usage.listed():
        missing.append("/proc/PID/task/TID/children is not there: a kernel with CONFIG_PROC_CHILDREN is needed")
    if found is None:
        missing.append(bubblewrap.explain(f"{program or 'bwrap'} not found"))
    version = _version(found) if found else ""
    if found and _numbers(version) < OLDEST_BUBBLEWRAP:
        missing.append(bubblewrap.explain(f"Unknown option --disable-userns in {version or found}"))
    if not missing:
        missing += _held(found or "")
    return Support(found, version, platform.release(), tuple(missing))


def require(program: str | None = None) -> str:
    """Where bubblewrap is; raises SandboxUnavailable, with all that is missing, where no program can be run."""
    found = probe(program)
    if not found.works:
        raise SandboxUnavailable("\n".join(found.missing))
    assert found.program is not None
    return found.program


# Each line names what does not hold. Numbers are the first of each set inside.
QUESTIONS = """
[ "$$" -le 9 ] || echo "it sees other processes than its own"
[ "$(tail -n +3 /proc/net/dev | grep -vc '^ *lo:')" = 0 ] || echo "it has a network"
(echo > /usr/sandbox-probe) 2>/dev/null && echo "it writes into /usr"
(echo > /sandbox-probe) 2>/dev/null && echo "it writes into /"
for folder in /home /root /srv /mnt /var /run; do [ -e $folder ] && echo "it sees $folder"; done
[ "$(grep -c '^CapEff:.0*$' /proc/self/status)" = 1 ] || echo "it has capabilities"
[ "$(grep -c '^Seccomp:.2$' /proc/self/status)" = 1 ] || echo "its system calls are not filtered"
[ "$(grep -c '^NoNewPrivs:.1$' /proc/self/status)" = 1 ] || echo "it can get new privileges"
true
"""


def _held(program: str) -> list[str]:
    """What does not hold inside, or why there is no inside."""
    try:
        outcome = running.run(program, SandboxLimits(), (), ["/bin/sh", "-c", QUESTIONS], {}, b"")
    except SandboxUnavailable as error:
        return [str(error)]
    if not outcome.passed:
        return [bubblewrap.explain(f"{outcome.reason}, {outcome.returncode}: {outcome.stderr}")]
    return [bubblewrap.explain(line) for line in outcome.stdout.splitlines()]


def _version(program: str) -> str:
    try:
        asked = subprocess.run([program, "--version"], check=False, capture_output=True, text=True, timeout=60)
        return asked.stdout.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)


def _numbers(text: str) -> tuple[int, ...]:
    found = re.search(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)
