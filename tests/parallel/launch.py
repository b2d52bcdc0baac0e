"""Starts a module in several processes, none of which outlives the call.

`torchrun` does it as a user would. `forked` reads the module and what it imports once, then splits: eight processes
that each import torch, Megatron-Core and DeepSpeed spend half a minute of two cores before they compute anything. Both
begin as forks of the one process of `tests/forkserver.py`.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import socket
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path

from tests import forkserver
from tests import processes as commands


def torchrun(processes: int, module: str, *arguments: str, check: bool = True) -> str:
    """Run `module` in that many processes and return what they printed; fails with it where they fail."""
    words = ["torchrun", f"--nproc-per-node={processes}", "--standalone", "-m", module, *arguments]
    return _output(words, f"{module} in {processes} processes", check)


def forked(processes: int | Iterable[int], module: str, *arguments: str) -> str:
    """The same by `main(*arguments)` of `module` in forks of one process; of several numbers, one after the other."""
    counts = ",".join(map(str, [processes] if isinstance(processes, int) else processes))
    words = ["python", "-m", "tests.parallel.launch", counts, module, *arguments]
    return _output(words, f"{module} in {counts} forks", check=True)


def _output(words: list[str], what: str, check: bool) -> str:
    program, *arguments = words
    environment = {**forkserver.environment(), "OMP_NUM_THREADS": "1"}
    done = commands.run([str(forkserver.programs() / program), *arguments], env=environment, merged=True)
    first = max(0, done.stdout.find("Traceback"))  # what torchrun says itself comes after the workers' own errors
    assert done.returncode == 0 or not check, f"{what} failed with {done.returncode}\n{done.stdout[first:][:4000]}"
    return done.stdout


def _be_rank(rank: int, module: str, arguments: tuple[str, ...]) -> int:
    """In a fork: what else torchrun would have put in the environment, then the module."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    try:
        sys.modules[module].main(*arguments)
    except BaseException:  # noqa: BLE001 - there is nobody above
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def _all_ranks(count: str, module: str, arguments: tuple[str, ...]) -> int:
    """Fork, host the store, and wait; the first that fails takes the others with it."""
    from torch.distributed import TCPStore

    threads = len(list(Path("/proc/self/task").iterdir()))
    assert threads == 1, f"a fork would lose threads, and here are {threads}; is OMP_NUM_THREADS 1?"
    listening = socket.create_server(("127.0.0.1", 0))
    os.environ |= {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(listening.getsockname()[1])}
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"  # as under torchrun: rank 0 hosts none
    children = set()
    for rank in range(int(count)):
        child = os.fork()
        if child == 0:
            listening.close()
            os._exit(_be_rank(rank, module, arguments))
        children.add(child)
    _store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach())
    while children:
        child, status = os.wait()
        children.remove(child)
        if status != 0:
            print(f"a fork ended with {os.waitstatus_to_exitcode(status)}", flush=True)
            for other in children:
                os.kill(other, signal.SIGKILL)
            return 1
    return 0


def main(counts: str, module: str, *arguments: str) -> int:
    """Import once, then run each number of processes."""
    importlib.import_module(module)
    gc.collect()
    gc.freeze()  # each collection of a fork would go through all that was imported
    return 1 if any(_all_ranks(count, module, arguments) for count in counts.split(",")) else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
