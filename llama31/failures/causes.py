"""Why a run stops and how often: the report's counts, what is assumed beside them, and the loss in closed form.

Failures come at random (Poisson) in wall time, so that they hit restarts too; planned interruptions come evenly. A
node may also turn slow, a failure may take several nodes with it, or come again soon after.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from llama31.config import Issue, Simulate
from llama31.plan.interval import young_daly_s

DAY_S = 86400.0
MOST_STOPS = 500_000  # of all replications: a minute
# The run that the counts were taken from (report, section 3.3.4).
REPORT_DAYS = 54
REPORT_GPUS = 16384
REPORT_NODE_GPUS = 8


class FailureCause(NamedTuple):
    """A row of the report's Table 5, and what we take to follow from it: how it shows, and how many nodes leave."""

    name: str
    stops: int
    shows: str  # error: a process dies or says so; hang: ranks wait for each other; silent: numbers are wrong
    nodes: int


# Counts, since the printed percentages sum to 94.9. How a cause shows and what it takes is ours, not the report's.
CAUSES = (
    FailureCause("faulty GPU", 148, "error", 1),
    FailureCause("GPU HBM3 memory", 72, "error", 1),
    FailureCause("software bug", 54, "error", 0),
    FailureCause("network switch or cable", 35, "hang", 1),
    FailureCause("host maintenance, unplanned", 32, "error", 1),
    FailureCause("GPU SRAM memory", 19, "error", 1),
    FailureCause("GPU system processor", 17, "hang", 1),
    FailureCause("NIC", 7, "hang", 1),
    FailureCause("NCCL watchdog time-out, unknown", 7, "hang", 0),
    FailureCause("silent data corruption", 6, "silent", 1),
    FailureCause("GPU thermal interface and sensor", 6, "error", 1),
    FailureCause("SSD", 3, "error", 1),
    FailureCause("power supply", 3, "error", 1),
    FailureCause("server chassis", 2, "error", 1),
    FailureCause("IO expansion board", 2, "error", 1),
    FailureCause("dependency", 2, "error", 0),
    FailureCause("CPU", 2, "error", 1),
    FailureCause("system memory", 2, "error", 1),
)
UNEXPECTED = sum(cause.stops for cause in CAUSES)
PLANNED = FailureCause("planned", 47, "planned", 0)
# Of slow nodes the report gives no count. A node turns slow, and is taken out after a checkpoint once that is noticed.
SLOWED = FailureCause("a node turns slow", 0, "slow", 0)
SLOW = FailureCause("slow node", 0, "planned", 1)


def failures_per_s(run: Simulate) -> float:
    """Unexpected stops per second of the whole run, those that come again among them."""
    return UNEXPECTED / (REPORT_DAYS * DAY_S) * run.gpus / REPORT_GPUS * run.failure_factor


def planned_per_s(run: Simulate) -> float:
    """Planned interruptions per second: they belong to the run, so more GPUs do not bring more of them."""
    return PLANNED.stops / (REPORT_DAYS * DAY_S) * run.planned_factor


def slow_per_s(run: Simulate) -> float:
    """Nodes that turn slow per second of the whole run."""
    return run.slow_per_1000_node_days / 1000 / DAY_S * run.gpus / run.node_gpus


def failure_factor(stops_per_1000_node_days: float, node_gpus: int) -> float:
    """Failures per GPU and day relative to the report's, from stops of nodes of so many GPUs."""
    report = 1000 * UNEXPECTED / REPORT_DAYS / REPORT_GPUS  # per 1,000 days of a GPU
    return stops_per_1000_node_days / node_gpus / report


def interval_s(run: Simulate) -> float:
    """Training between checkpoints: as given, or Young/Daly's, which one write at a time bounds from below."""
    if run.checkpoint_every_s is None:
        return max(young_daly_s(run.checkpoint_stall_s, 1 / failures_per_s(run)), run.checkpoint_write_s)
    return run.checkpoint_every_s


def detection_s(run: Simulate, cause: FailureCause) -> float:
    """Seconds from a failure until all ranks have stopped."""
    return {"error": run.detect_s, "hang": run.hang_detect_s, "silent": run.silent_detect_s}[cause.shows]


def first_order(run: Simulate) -> float:
    """Effective training time in closed form, where losses are few: neither overlaps nor waits for nodes are counted.

    1 - stall / interval - failures (interval / 2 + write + detection + restart) - planned (planned + restart)
    - slow (slow detection (1 - 1 / slow factor) + restart). Of failures those that come again cost what `again_s` says.
    """
    interval = interval_s(run)
    detection = sum(cause.stops * detection_s(run, cause) for cause in CAUSES) / UNEXPECTED
    failure = interval / 2 + run.checkpoint_write_s + detection + run.restart_s
    failure = (1 - run.repeat_share) * failure + run.repeat_share * again_s(run)
    lost = run.checkpoint_stall_s / interval + failures_per_s(run) * failure
    lost += planned_per_s(run) * (run.planned_s + run.restart_s)
    return 1 - lost - slow_per_s(run) * (run.slow_detect_s * (1 - 1 / run.slow_factor) + run.restart_s)


def again_s(run: Simulate) -> float:
    """Seconds that a failure costs which comes after an earlier one, at a random time of mean `repeat_s`.

    While that one is being noticed it costs nothing more; while the run restarts it does so anew; later, all since the
    restart is lost but what checkpoints hold by then.
    """
    total, mean, cycle = 0.0, run.repeat_s, interval_s(run) + run.checkpoint_stall_s
    survives = math.exp(-cycle / mean)
    saved = interval_s(run) * math.exp(-run.checkpoint_write_s / mean) * survives / (1 - survives)
    stalled = run.checkpoint_stall_s * survives / (1 - survives)
    trained = mean - stalled - saved  # since the last checkpoint that holds, to first order in the stall
    for cause in CAUSES:
        detection, up = detection_s(run, cause), math.exp(-run.restart_s / mean)
        restarting = mean - (run.restart_s + mean) * up + detection * (1 - up)
        later = up * (trained + detection + run.restart_s)
        total += cause.stops * math.exp(-detection / mean) * (restarting + later)
    return total / UNEXPECTED


def issues(run: Simulate) -> list[Issue]:
    """What is wrong with the times and rates of `run` together."""
    result = []
    if run.checkpoint_every_s is not None and run.checkpoint_every_s < run.checkpoint_write_s:
        reason = "the next checkpoint would begin while one is being written"
        remedy = f"give at least checkpoint_write_s={run.checkpoint_write_s}"
        result.append(Issue("checkpoint_every_s", run.checkpoint_every_s, reason, remedy))
    if run.shared_share and run.shared_nodes * run.node_gpus > run.gpus:
        most = run.gpus // run.node_gpus
        remedy = f"give at most {most}" if most > 1 else "give shared_share=0"
        result.append(Issue("shared_nodes", run.shared_nodes, f"more nodes than {run.gpus} GPUs fill", remedy))
    return result


def check(run: Simulate) -> None:
    """Raise ValueError with all that is wrong with the keys of `run` beyond the bounds of each."""
    problems = [str(issue) for issue in issues(run)]
    stops = failures_per_s(run) * run.days * DAY_S
    if stops * run.replications > MOST_STOPS:
        few, days = int(MOST_STOPS / stops), 0.99 * run.days * MOST_STOPS / stops / run.replications
        remedy = f"replications={few}" if few >= 5 else f"days={days:.3g}"
        problems.append(
            f"days={run.days:g}: {stops:,.0f} stops in each of replications={run.replications} runs would take more "
            f"than minutes; give {remedy}"
        )
    for name in ("table_stalls_s", "table_detects_s", "table_restarts_s"):
        values = getattr(run, name)
        least = "numbers above 0" if name == "table_stalls_s" else "numbers from 0 on"
        if not values or min(values) < 0 or (name == "table_stalls_s" and 0 in values):
            problems.append(f"{name}={values}: cannot be simulated; give {least}")
    if run.output and Path(run.output).suffix != ".png":
        problems.append(f"output={run.output}: is drawn as PNG; give a name that ends in .png")
    if run.output and not Path(run.output).absolute().parent.is_dir():
        problems.append(f"output={run.output}: its folder is not there; make it, or give another")
    if problems:
        raise ValueError("\n".join(problems))
