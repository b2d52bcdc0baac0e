"""torch's profiler and its snapshot of GPU memory for chosen steps."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from llama31 import config
from llama31.parallel.mesh import Grid


@contextlib.contextmanager
def profiled(
    profile: config.Profile, folder: Path, grid: Grid, settle: Callable[[], None]
) -> Iterator[Callable[[], None]]:
    """A function to call after each step; it profiles the chosen ones into the folder `profile` of the run.

    Before the profiler stops it calls `settle`, which waits for messages under way: gloo's threads would write the end
    of theirs into memory that the profiler has freed.
    """
    if profile.first_step is None:
        yield lambda: None
        return
    target = folder / "profile"
    if profile.memory and grid.device.type == "cuda":
        torch.cuda.memory._record_memory_history()

    def write(trace: Any) -> None:
        target.mkdir(parents=True, exist_ok=True)
        trace.export_chrome_trace(str(target / f"rank-{grid.rank}.json"))
        if profile.memory and grid.device.type == "cuda":
            torch.cuda.memory._dump_snapshot(str(target / f"memory-rank-{grid.rank}.pickle"))

    def step() -> None:
        if running.step_num + 1 == last:
            settle()
        running.step()

    last = profile.first_step + profile.steps
    plan = torch.profiler.schedule(skip_first=profile.first_step, wait=0, warmup=0, active=profile.steps, repeat=1)
    with torch.profiler.profile(schedule=plan, on_trace_ready=write, profile_memory=profile.memory) as running:
        try:
            yield step
        except BaseException:
            with contextlib.suppress(RuntimeError):  # the error that ends the run is the one to show
                settle()
            raise
        settle()
