"""The bubblewrap of the tests: this machine's, or Debian's, which works where it is unpacked."""

from __future__ import annotations

import shutil

import pytest

from llama31.sandbox import probe
from tests.curate import debian

PYTHON = ("/usr/bin/python3", "-I", "-S")


def program() -> str:
    """Where it is; skips, with the reason, where there is none or this machine lets it do nothing."""
    found = shutil.which("bwrap") or str(debian.folder("bubblewrap") / "usr/bin/bwrap")
    result = probe.probe(found)
    if not result.works:
        pytest.skip("; ".join(result.missing))
    return found
