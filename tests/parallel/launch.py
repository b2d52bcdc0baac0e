"""Starts a module in several processes, with a time limit that takes all of them.

`torchrun` does it as a user would. `forked` reads the module and what it imports once, then splits: eight processes
that each import torch, Megatron-Core and DeepSpeed spend half a minute of two cores before they compute anything.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def torchrun(processes: int, module: str, *arguments: str, timeout_s: float = 120, check: bool = True) -> str:
    """Run `module` in that many processes and return what they printed; fails with it where they fail."""
    words = ["torch.distributed.run", f"--nproc-per-node={processes}", "--standalone", "-m", module, *arguments]
    return _output(words, f"{module} in {processes} processes", timeout_s, check)


def forked(processes: int | Iterable[int], module: str, *arguments: str, timeout_s: float = 120) -> str:
    """The same by `main(*arguments)` of `module` in forks of one process; of several numbers, one after the other."""
    counts = ",".join(map(str, [processes] if isinstance(processes, int) else processes))
    words = ["tests.parallel.launch", counts, module, *arguments]
    return _output(words, f"{module} in {counts} forks", timeout_s, check=True)


def _output(words: list[str], what: str, timeout_s: float, check: bool) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(
        [sys.executable, "-m", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=environment,
        start_new_session=True,
    )
    try:
        output, _ = child.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        output, _ = child.communicate()
        raise AssertionError(f"{what} took over {timeout_s} s\n{output[-4000:]}") from None
    first = max(0, output.find("Traceback"))  # what torchrun says itself comes after the workers' own errors
    assert child.returncode == 0 or not check, f"{what} failed with {child.returncode}\n{output[first:][:4000]}"
    return output


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
