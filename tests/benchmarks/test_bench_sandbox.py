"""The sandbox's benchmark runs what it says. Nothing here is timed."""

from __future__ import annotations

import re

import pytest

from benchmarks import sandbox
from tests.sandbox import bwrap


def test_both_run_the_same_check_and_one_that_fails_is_told() -> None:
    figures = sandbox.measure(turns=1, seconds=0, program=bwrap.program())
    assert len(figures) == 3 and all(re.search(r"\d.* plain", figure) for figure in figures.values())
    assert sandbox.plain(sandbox.CHECK) and not sandbox.plain(["/bin/false"])
    with pytest.raises(RuntimeError, match="plain: /bin/false fails"):
        sandbox.starts({"plain": sandbox.plain}, ["/bin/false"], 1)
