"""How the tests run commands: what hangs is ended, and with it all that it started."""

from __future__ import annotations

import os
import sys

import pytest

from tests import processes
from tests.conftest import Command

LEAVES = """
import subprocess, sys
sleep = [sys.executable, "-c", "import time; time.sleep(9999)"]
print(subprocess.Popen(sleep, start_new_session=True).pid)
"""


def test_nothing_outlives_its_command(command: Command) -> None:
    """As torchrun's workers, which are in sessions of their own, do when torchrun is killed."""
    assert processes.alive(os.getpid())
    left = int(command("-c", LEAVES, check=True).stdout)
    assert not processes.alive(left)


def test_a_command_that_hangs_is_ended_and_shows_what_it_said() -> None:
    code = "import time; print('begun', flush=True); time.sleep(9999)"
    with pytest.raises(AssertionError, match="did not end within 0.5 s"):
        processes.run([sys.executable, "-c", code], limit_s=0.5)


def test_output_and_errors_are_told_apart_unless_asked_for_together() -> None:
    code = "import sys; print('out', flush=True); print('err', file=sys.stderr); sys.exit(3)"
    apart = processes.run([sys.executable, "-c", code])
    assert (apart.returncode, apart.stdout, apart.stderr) == (3, "out\n", "err\n")
    assert processes.run([sys.executable, "-c", code], merged=True).stdout == "out\nerr\n"
