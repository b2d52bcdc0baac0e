"""What the planner expects of a run that is to become a job: hours stage by stage, and how failures prolong them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

from llama31 import config
from llama31.command import hardware
from llama31.failures import causes, results
from llama31.plan import layout, schedule, shapes
from llama31.plan.schedule import Stage
from llama31.planner import costs, proposals, search, speed


@dataclasses.dataclass(frozen=True)
class PredictedRun:
    """The rest of a schedule on so many GPUs."""

    gpus: int
    tokens: int
    flops: float
    seconds: float  # of training alone
    effective: float  # share of the time that is training, once failures come; 0: it never ends

    @property
    def tokens_per_s(self) -> float:
        """Of a GPU."""
        return self.tokens / self.seconds / self.gpus

    @property
    def tflops(self) -> float:
        """Of a GPU."""
        return self.flops / self.seconds / self.gpus / 1e12


@functools.cache
def constants(name: str, device: str, stack: str) -> tuple[config.Device, config.Stack] | None:
    """The planner's, of a file `name`; None where they are not there."""
    try:
        return hardware.chosen(config.Cluster(hardware=name, device=device, stack=stack))
    except config.ConfigError:
        return None


def stages(run: config.Training) -> Iterator[tuple[int, Stage]]:
    """Steps from `parallel.from_tokens` to the end, or to `stop_after_steps`, with the stage that they belong to."""
    first, end = schedule.step_at(run.schedule, run.parallel.from_tokens), schedule.total_steps(run.schedule)
    if run.stop_after_steps is not None:
        end = min(end, first + run.stop_after_steps)
    for stage in schedule.stages(run.schedule):
        begin = max(first, stage.first_step)
        steps = max(0, min(end, stage.first_step + (stage.steps or 0)) - begin)
        if steps:
            yield steps, stage


def unknown(run: config.Training) -> str | None:
    """Why the planner does not know what a step of `run` takes; None where it does."""
    given = run.cluster
    if given.device is None:
        return "cluster.device is not given"
    there = constants(given.hardware, given.device, given.stack)
    if there is None:
        return f"no constants of cluster.device={given.device}"
    if isinstance(run, config.Reward | config.Dpo):
        return "preferences are not predicted"
    if run.precision.params == "fp32" and not there[0].fp32_tflops:
        return f"precision.params=fp32 is not predicted on cluster.device={given.device}"
    if run.precision.fp8 != "none" and not (there[0].fp8_tflops and proposals.is_whole_fp8(run.precision)):
        return "FP8 in a part of the layers, or on a device without, is not predicted"
    return None


def of(run: config.Training, gpus: int) -> PredictedRun:
    """What the planner expects of `run`, of which it knows enough (`unknown`)."""
    given = run.cluster
    there = constants(given.hardware, given.device, given.stack) if given.device is not None else None
    assert there is not None
    device, stack = there
    parallel = dataclasses.replace(run.parallel, dp=layout.dp(run.parallel, gpus))
    tokens, flops, seconds = 0, 0.0, 0.0
    for steps, stage in stages(run):
        asked = search.Demand(
            run.model, run.precision, device, stack, gpus, stage.sequence_length, stage.batch_tokens, 0.0
        )
        tokens += steps * stage.batch_tokens
        flops += steps * stage.batch_tokens * shapes.flops_per_token(run.model, stage.sequence_length)
        seconds += steps * speed.total(speed.step(search.step_job(asked, parallel), device, stack))
    failing = costs.simulated(config.Failures(), device, gpus)
    every_s = checkpoint_s(run.checkpoint, seconds / max(tokens, 1), seconds)
    if every_s is not None:
        failing = dataclasses.replace(failing, checkpoint_every_s=max(every_s, failing.checkpoint_write_s))
    share = results.share_of(failing, seconds / causes.DAY_S).value if seconds else 1.0
    return PredictedRun(gpus, tokens, flops, seconds, share)


def checkpoint_s(given: config.Checkpoint, token_s: float, whole_s: float) -> float | None:
    """Seconds between checkpoints where a token takes `token_s`; None: as failures ask for (Young/Daly)."""
    if given.every_tokens is not None:
        return given.every_tokens * token_s
    if given.mtbf_hours is not None:
        return None
    return whole_s if given.every_minutes is None else given.every_minutes * 60
