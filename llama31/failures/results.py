"""What many simulated runs say: means with their intervals, and what each key would buy."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from llama31.config import Simulate
from llama31.failures import causes, simulation
from llama31.failures.causes import DAY_S
from llama31.failures.simulation import History

# What `sensitivities` halves. All but repeat_share, at which the number of failures stays, are better when smaller.
KNOBS = (
    "failure_factor",
    "planned_factor",
    "planned_s",
    "restart_s",
    "detect_s",
    "hang_detect_s",
    "silent_detect_s",
    "checkpoint_every_s",
    "checkpoint_stall_s",
    "checkpoint_write_s",
    "spare_nodes",
    "repair_hours",
    "slow_per_1000_node_days",
    "slow_detect_s",
    "repeat_share",
    "shared_share",
)
# Without which a knob has no effect.
NEEDS = {"repair_hours": "spare_nodes", "shared_share": "spare_nodes", "slow_detect_s": "slow_per_1000_node_days"}

ENOUGH = 400  # stops of a run after which its share has settled


class Mean(NamedTuple):
    """A mean over replications and half the width of its 95% confidence interval."""

    value: float
    half: float

    def percent(self) -> str:
        """As a percentage, with the half width."""
        return f"{self.value:.2%} ± {self.half:.2%}"


def mean(samples: Sequence[float]) -> Mean:
    """Mean of at least five independent samples with its 95% confidence interval, by Student's t."""
    spread = statistics.stdev(samples) / math.sqrt(len(samples))
    return Mean(statistics.fmean(samples), student_t(len(samples) - 1) * spread)


def student_t(freedom: int) -> float:
    """Quantile 0.975 of Student's t, within 0.3% from 4 degrees of freedom on (Abramowitz and Stegun 26.7.5)."""
    z = statistics.NormalDist().inv_cdf(0.975)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))


def effective(histories: Sequence[History]) -> Mean:
    """Effective training time over all replications."""
    return mean([history.effective for history in histories])


def share_of(run: Simulate, useful_days: float) -> Mean:
    """Effective share of a run that trains for `useful_days` in all, which failures make longer.

    The share settles, so of a long run a part is simulated: `ENOUGH` stops, or ten times as many where ten checkpoints
    take longer, or ten repairs where nodes are waited for. The value is 0 where nothing is trained between stops.
    """
    stops_per_s = causes.failures_per_s(run) + causes.planned_per_s(run) + causes.slow_per_s(run)
    slowest = max(causes.interval_s(run), run.repair_hours * 3600 if run.spare_nodes is not None else 0.0)
    enough_s = ENOUGH / stops_per_s
    settled = max(enough_s, min(10 * slowest, 10 * enough_s)) / DAY_S
    share, days = Mean(1.0, 0.0), 0.0
    for _ in range(2):  # the first says how much longer the run is
        before, days = days, min(useful_days / share.value, settled)
        if days != before:
            share = effective(simulation.simulate(replace(run, days=days)))
        if share.value <= 0:
            break
    return share


def lost_shares(histories: Sequence[History], run: Simulate) -> dict[str, Mean]:
    """Share of the run that each reason cost."""
    end_s = run.days * DAY_S
    reasons = [one for one in simulation.REASONS if run.slow_per_1000_node_days or one != simulation.SLOW_NODES]
    return {reason: mean([history.lost_s[reason] / end_s for history in histories]) for reason in reasons}


def sensitivities(run: Simulate, histories: Sequence[History]) -> dict[str, Mean]:
    """Effective time gained by halving each knob, most first; `histories` are those of `run`.

    Replications are compared one by one: they share their failures, so the difference is surer than either side. Nodes
    that stand by are doubled instead; knobs that are not in use are left out.
    """
    gains = {}
    for knob in KNOBS:
        other = _halved(run, knob)
        if other is not None:
            pairs = zip(simulation.simulate(other), histories, strict=True)
            gains[knob] = mean([new.effective - old.effective for new, old in pairs])
    return dict(ranked(gains))


def ranked(means: Mapping[str, Mean]) -> list[tuple[str, Mean]]:
    """The largest first."""
    return sorted(means.items(), key=lambda item: -item[1].value)


def _halved(run: Simulate, knob: str) -> Simulate | None:
    value: Any = getattr(run, knob)
    if not value or (knob in NEEDS and getattr(run, NEEDS[knob]) in (None, 0.0)):
        return None
    if knob == "checkpoint_every_s" and value / 2 < run.checkpoint_write_s:
        return None
    return replace(run, **{knob: 2 * value if knob == "spare_nodes" else value / 2})
