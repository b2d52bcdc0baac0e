"""Two ranks of a script that takes a folder and the number of its rank, without torchrun."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT
from tests.processes import LIMIT_S


def two_ranks(script: str, folder: Path) -> str:
    """What both printed; fails with it where one of them fails."""
    words = [sys.executable, "-c", script, str(folder)]
    ranks = [subprocess.Popen([*words, str(rank)], cwd=ROOT, stdout=subprocess.PIPE, text=True) for rank in (0, 1)]
    try:
        printed = "".join(rank.communicate(timeout=LIMIT_S)[0] for rank in ranks)
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], printed
    return printed
