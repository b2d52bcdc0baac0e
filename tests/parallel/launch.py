"""Starts a module under torchrun, as a user would, with a time limit that takes all its processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def torchrun(processes: int, module: str, *arguments: str, timeout_s: float = 120, check: bool = True) -> str:
    """Run `module` in that many processes and return what they printed; fails with it where they fail."""
    words = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(
        [*words, "-m", module, *arguments],
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
        raise AssertionError(f"{module} in {processes} processes took over {timeout_s} s\n{output[-4000:]}") from None
    first = max(0, output.find("Traceback"))  # what torchrun says itself comes after the workers' own errors
    assert child.returncode == 0 or not check, f"{module} failed with {child.returncode}\n{output[first:][:4000]}"
    return output
