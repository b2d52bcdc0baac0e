"""torch's profiler around steps whose weights are still under way when it stops."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch

from llama31 import config
from llama31.train import profiler


class _Grid:
    rank = 0
    device = torch.device("cpu")


class _Messages:
    """What `settle` saw: whether the trace was written already."""

    def __init__(self, folder: Path) -> None:
        self.trace = folder / "profile" / "rank-0.json"
        self.written: list[bool] = []

    def settle(self) -> None:
        self.written.append(self.trace.exists())


@pytest.mark.parametrize("steps", [5, 2])  # the profiler stops after step 3, or with the run
def test_messages_have_arrived_before_the_profiler_stops(steps: int, tmp_path: Path) -> None:
    messages = _Messages(tmp_path)
    profile = config.Profile(first_step=1, steps=2)
    with profiler.profiled(profile, tmp_path, cast(Any, _Grid), messages.settle) as step:
        for number in range(steps):
            assert (number > 2) == messages.trace.exists()
            step()
    assert messages.trace.exists() and messages.written[0] is False


def test_the_error_that_ends_a_run_is_shown(tmp_path: Path) -> None:
    def settle() -> None:
        raise RuntimeError("connection reset by peer")

    with (
        pytest.raises(ValueError, match="the disk is gone"),
        profiler.profiled(config.Profile(first_step=0), tmp_path, cast(Any, _Grid), settle),
    ):
        raise ValueError("the disk is gone")
