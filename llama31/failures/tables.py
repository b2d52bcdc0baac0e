"""Tables of a simulation, in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

from llama31.config import Simulate
from llama31.failures import causes
from llama31.failures.causes import CAUSES, PLANNED, SLOW
from llama31.failures.results import Mean, effective, lost_shares, ranked
from llama31.failures.simulation import History, simulate


def summary(run: Simulate, histories: Sequence[History]) -> str:
    """What is simulated, and the effective training time."""
    total, samples = effective(histories), sorted(history.effective for history in histories)
    planned, slow = (statistics.fmean(history.stops[one.name] for history in histories) for one in (PLANNED, SLOW))
    unexpected = statistics.fmean(sum(history.stops.values()) for history in histories) - planned - slow
    every = "as given" if run.checkpoint_every_s else "Young/Daly"
    return "\n".join(
        [
            f"{run.gpus:,} GPUs, {run.days:g} days, {run.replications} replications: {unexpected:.1f} unexpected stops "
            f"(one per {1 / causes.failures_per_s(run) / 3600:.2f} h) and {planned:.1f} planned ones per run"
            + (f", {slow:.1f} to take a slow node out" if run.slow_per_1000_node_days else ""),
            f"checkpoint every {causes.interval_s(run):,.0f} s of training ({every})",
            f"effective training time {total.percent()} (95% confidence); single runs {samples[0]:.2%} to "
            f"{samples[-1]:.2%}; closed form, first order {causes.first_order(run):.2%}",
        ]
    )


def lost_table(run: Simulate, histories: Sequence[History]) -> str:
    """Lost time by reason, most first."""
    shares = ranked(lost_shares(histories, run))
    rows = [f"| {reason} | {share.percent()} | {share.value * run.days * 24:.1f} |" for reason, share in shares]
    return "\n".join(["| lost to | share of the run | hours |", "|---|---|---|", *rows])


def cause_table(histories: Sequence[History]) -> str:
    """Stops by cause, and what followed from each until the next step."""
    lines = ["| cause | stops per run | hours lost per run | minutes per stop |", "|---|---|---|---|"]
    rows = []
    for cause in (*CAUSES, PLANNED, SLOW):
        stops = statistics.fmean(history.stops[cause.name] for history in histories)
        hours = statistics.fmean(history.cost_s[cause.name] for history in histories) / 3600
        if cause is SLOW and not hours:
            continue
        rows.append((hours, f"| {cause.name} | {stops:.1f} | {hours:.1f} | {hours * 60 / stops if stops else 0:.1f} |"))
    return "\n".join([*lines, *(text for _, text in sorted(rows, reverse=True))])


def sensitivity_table(run: Simulate, gains: Mapping[str, Mean]) -> str:
    """What halving each knob buys."""
    rows = [
        f"| {knob} | {getattr(run, knob):g} | {100 * gain.value:+.2f} ± {100 * gain.half:.2f} |"
        for knob, gain in gains.items()
    ]
    return "\n".join(["| halved (spare_nodes: doubled) | from | percentage points gained |", "|---|---|---|", *rows])


def goal_table(run: Simulate) -> str:
    """Effective time for each stall, detection and restart; bold where the whole interval reaches the goal."""
    head = " | ".join(f"restart {restart:g} s" for restart in run.table_restarts_s)
    lines = [f"| stall | detection | {head} |", "|---|---|" + "---|" * len(run.table_restarts_s)]
    for stall in run.table_stalls_s:
        for detect in run.table_detects_s:
            cells = []
            for restart in run.table_restarts_s:
                share = effective(simulate(replace(run, checkpoint_stall_s=stall, detect_s=detect, restart_s=restart)))
                reached = share.value - share.half >= run.goal
                cells.append(f"**{share.value:.2%}**" if reached else f"{share.value:.2%}")
            lines.append(f"| {stall:g} s | {detect:g} s | {' | '.join(cells)} |")
    return "\n".join(lines)
