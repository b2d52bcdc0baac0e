"""What jobs cost: GPUs, hours and GPU-hours, from what the planner expects of a step, or where it does not know (or the
user knows better) from FLOPs and a share of the peak; of conversions from bytes and a disk.
"""

from __future__ import annotations

import dataclasses
import math
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from llama31 import config
from llama31.evaluate import probe
from llama31.plan import shapes, utilisation
from llama31.slurm import jobs, predicted, sbatch
from llama31.slurm.jobs import Step

H100_TFLOPS = dict(utilisation.PEAK_TFLOPS)["H100"]  # a bill needs a price where the cluster states none
MFU = 0.4  # share of the peak where the planner does not know
DISK_MB_PER_S = 200  # for reading and writing
LENGTH = 8192  # tokens of a row that is evaluated, where the config leaves it to the checkpoint


@dataclass(frozen=True)
class Bill:
    """The hours that a job takes on so many GPUs, and the rest in words; for each of `jobs` of an array."""

    gpus: int
    hours: float
    words: str
    jobs: int = 1
    effective: float = 1.0  # share of the time that is training once failures come, where that is known

    def __str__(self) -> str:
        arms = f"{self.jobs} arms, each " if self.jobs != 1 else ""
        return f"{arms}{self.gpus:,} GPUs, {self.words}"

    @property
    def gpu_hours(self) -> float:
        """GPU-hours of all of them."""
        return self.jobs * self.gpus * self.hours


def training(run: config.Training, processes: int, mfu: float | None = None) -> Bill:
    """What the rest of a schedule costs on `processes` GPUs, from where the layout of `run` takes over.

    By the planner; a given `mfu` wins, and stands in where the planner does not know the run.
    """
    if mfu is None and predicted.unknown(run) is None:
        bill = of_planner(predicted.of(run, processes), run.cluster.device or "")
    else:
        tokens, flops = work(run)
        bill = computing(
            processes,
            tokens,
            flops,
            mfu or MFU,
            run.cluster.peak_tflops or utilisation.peak_tflops(run.cluster.device) or H100_TFLOPS,
        )
        if mfu is None and run.cluster.device is not None:
            bill = dataclasses.replace(bill, words=f"{bill.words} ({predicted.unknown(run)})")
    return dataclasses.replace(bill, jobs=len(probe.remaining(run))) if isinstance(run, config.Probe) else bill


def of_planner(run: predicted.PredictedRun, device: str) -> Bill:
    """What the planner expects, with failures."""
    hours = run.seconds / 3600
    words = f"{_short(run.tokens)} tokens, {digits(hours)} h, {digits(hours * run.gpus)} GPU-h"
    rate = f"{run.tokens_per_s:,.0f} tokens/s and {run.tflops:.0f} TFLOPS" if run.tokens else "no steps"
    longer = f"{digits(hours / run.effective)} h with failures" if run.effective > 0 else "never done with failures"
    return Bill(run.gpus, hours, f"{words} at {rate} per {device} (planner); {longer}", effective=run.effective)


def work(run: config.Training) -> tuple[int, float]:
    """Tokens and FLOPs of the steps from `parallel.from_tokens` to the end, or to `stop_after_steps`."""
    tokens, flops = 0, 0.0
    for steps, stage in predicted.stages(run):
        tokens += steps * stage.batch_tokens
        flops += steps * stage.batch_tokens * shapes.flops_per_token(run.model, stage.sequence_length)
    return tokens, flops


def computing(gpus: int, tokens: int, flops: float, mfu: float, peak_tflops: float = H100_TFLOPS) -> Bill:
    """`flops` at a share `mfu` of the peak."""
    hours = flops / (peak_tflops * 1e12 * mfu) / 3600 / gpus
    words = f"{_short(tokens)} tokens, {digits(hours)} h, {digits(hours * gpus)} GPU-h"
    return Bill(gpus, hours, f"{words} at {mfu:.0%} of {peak_tflops:g} TFLOPS")


def conversion(model: config.Model, mb_per_s: float, inputs: int = 1, fp8: bool = False) -> Bill:
    """A conversion or an average, which read BF16 weights of `inputs` models and write one, in BF16 or `fp8`."""
    size = shapes.weight_bytes(model)
    written = shapes.fp8_bytes(model) if fp8 else size
    moved = "read and written" if inputs == 1 else f"read {inputs} times and written"
    moved = f"read and {written / 1e9:,.0f} GB written" if fp8 else moved
    hours = (inputs * size + written) / (mb_per_s * 1e6) / 3600
    return Bill(0, hours, f"{size / 1e9:,.0f} GB {moved}, {digits(hours)} h")


def serving(model: config.Model, gpus: int, fp8: bool = False) -> Bill:
    """A server that has the weights spread over `gpus`, for as long as its job runs."""
    size = (shapes.fp8_bytes(model) if fp8 else shapes.weight_bytes(model)) / 1e9
    return Bill(gpus, 0.0, f"{size:,.0f} GB of weights, {size / gpus:,.0f} GB on each")


def of(step: Step, job: config.Job, others: Sequence[Step] = ()) -> Bill | None:
    """The bill of a job; None where its config does not say how much it will read or make.

    Whose weights are evaluated, averaged or converted follows from `others`, the jobs of its chain: those of the run
    that is trained before, or else of the one that is trained next.
    """
    run, processes = step.run, jobs.world_size(step.run, job)
    if isinstance(run, config.Training):
        return training(run, processes, job.mfu)
    at = next((number for number, one in enumerate(others) if one is step), 0)
    before = [one.run for one in reversed(others[:at]) if isinstance(one.run, config.Training)]
    after = [one.run for one in others[at:] if isinstance(one.run, config.Training)]
    if not (before or after):
        return None
    model = [*before, *after][0].model
    if isinstance(run, config.Convert):
        return conversion(model, DISK_MB_PER_S, fp8=run.fp8)
    if isinstance(run, config.Average):
        kept = checkpoints(before[0]) if before else None
        inputs = len(run.inputs) or (min(kept, run.last or kept) if kept else None)
        return conversion(model, DISK_MB_PER_S, inputs) if inputs else None
    if isinstance(run, config.Evaluate) and run.data.sources:
        tokens = run.tokens * len(run.data.sources)
        flops = tokens * shapes.flops_per_token(model, run.sequence_length or LENGTH) / 3  # forward passes alone
        return computing(processes, tokens, flops, job.mfu or MFU, run.cluster.peak_tflops or H100_TFLOPS)
    return None


def table(steps: Sequence[Step], job: config.Job) -> str:
    """A line for each job of a chain and the total, as comments of a shell."""
    bills = [of(step, job, steps) for step in steps]
    rows = [("job", "recipe", "run folder", "nodes", "GPUs", "limit", "bill")]
    for step, bill in zip(steps, bills, strict=True):
        script = jobs.SCRIPTS / f"{step.recipe}.sh"
        limit = sbatch.limit(script, job.time, shlex.split(job.options), os.environ) or "none"
        count = jobs.nodes(step.run, job)
        gpus = count * job.gpus_per_node if hasattr(step.run, "parallel") else 0
        words = "not known before it runs" if bill is None else str(bill).replace(f"{bill.gpus:,} GPUs, ", "")
        rows.append((step.name, step.recipe, str(step.folder or "-"), f"{count:,}", f"{gpus:,}", limit, words))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(f"# {line}" for line in [*lines, _total(steps, bills, job)])


def _total(steps: Sequence[Step], bills: Sequence[Bill | None], job: config.Job) -> str:
    known = [(step, bill) for step, bill in zip(steps, bills, strict=True) if bill is not None]
    gpu_hours = sum(bill.gpu_hours for _, bill in known)
    node_hours = sum(bill.jobs * bill.hours * jobs.nodes(step.run, job) for step, bill in known)
    which = f"{len(steps)} jobs" if len(known) == len(steps) else f"{len(known)} of {len(steps)} jobs"
    hours = digits(sum(bill.hours for _, bill in known))
    text = f"total of {which}: {digits(gpu_hours)} GPU-h, {digits(node_hours)} node-h, {hours} h one after the other"
    if all(bill.effective == 1 for _, bill in known):
        return text
    if any(bill.effective <= 0 for _, bill in known):
        return f"{text}; with failures one is never done"
    return f"{text}, {digits(sum(bill.hours / bill.effective for _, bill in known))} h with failures"


def checkpoints(run: config.Training) -> int | None:
    """How many checkpoints a run leaves, where its config says it."""
    every, keep = run.checkpoint.every_tokens, run.checkpoint.keep_last
    if every is None:
        return None
    made = math.ceil(run.schedule.total_tokens / every)
    return made if keep is None else min(made, keep)


def _short(number: float) -> str:
    """Three digits and a unit: 15.6T."""
    power = min(4, int(math.log10(max(number, 1)) // 3))
    return f"{number / 1000**power:.3g}{['', 'K', 'M', 'B', 'T'][power]}"


def digits(number: float) -> str:
    """A number as bills say it: whole from a hundred on, two digits below."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.2g}"
