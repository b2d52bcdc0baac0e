"""The failure simulator: every second is booked by hand-made stops, and the whole agrees with renewal theory."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llama31.config import Simulate
from llama31.failures import causes, results, simulation, tables
from llama31.failures.causes import CAUSES, DAY_S, PLANNED
from llama31.plan.interval import young_daly_s
from llama31.runs import plots
from tests.conftest import Command

CAUSE = {cause.name: cause for cause in CAUSES}
GPU, BUG, CABLE = CAUSE["faulty GPU"], CAUSE["software bug"], CAUSE["network switch or cable"]
SILENT = CAUSE["silent data corruption"]
# A day with round numbers: checkpoints begin after 1000, 2010, 3020 ... seconds and are safe 110 seconds later.
ROUND = Simulate(
    days=1, checkpoint_every_s=1000, checkpoint_stall_s=10, checkpoint_write_s=100, detect_s=30, hang_detect_s=600,
    silent_detect_s=3600, restart_s=300, planned_s=700,
)  # fmt: skip


def lost(run: Simulate, *stops: simulation.Stop) -> dict[str, float]:
    """What `stops` cost, the stall of checkpoints aside, after seeing that every second is booked once."""
    history = simulation.replay(run, stops)
    assert history.useful_s + sum(history.lost_s.values()) == pytest.approx(run.days * DAY_S)
    assert sum(history.cost_s.values()) == pytest.approx(
        sum(history.lost_s.values()) - history.lost_s["checkpoint stall"]
    )
    return {name: value for name, value in history.lost_s.items() if value and name != "checkpoint stall"}


def renewal(run: Simulate) -> float:
    """Effective time of an endless run without planned stops, exactly: what is kept between failures, over the cycle.

    A restart of r seconds succeeds with p = exp(-rate r); one that fails costs what it took, a detection, another try.
    """
    rate, every = causes.failures_per_s(run), causes.interval_s(run)
    survives = math.exp(-rate * (every + run.checkpoint_stall_s))
    kept = every * math.exp(-rate * run.checkpoint_write_s) * survives / (1 - survives)
    p = math.exp(-rate * run.restart_s)
    detection = sum(cause.stops * causes.detection_s(run, cause) for cause in CAUSES) / 419
    return kept / (1 / rate + detection / p + (1 - p) / (rate * p))


# --- the report ---


def test_counts_are_those_of_table_5() -> None:
    assert [cause.stops for cause in CAUSES] == [148, 72, 54, 35, 32, 19, 17, 7, 7, 6, 6, 3, 3, 2, 2, 2, 2, 2]
    run = Simulate()
    assert run.days * DAY_S * causes.failures_per_s(run) == pytest.approx(419)
    assert run.days * DAY_S * (causes.failures_per_s(run) + causes.planned_per_s(run)) == pytest.approx(466)
    assert 1 / causes.failures_per_s(run) / 3600 == pytest.approx(3.09, abs=0.005)
    half = replace(run, gpus=8192)
    assert causes.failures_per_s(half) == causes.failures_per_s(run) / 2
    assert causes.planned_per_s(half) == causes.planned_per_s(run)


def test_drawn_stops_have_the_reports_rate_and_shares() -> None:
    runs = [simulation.draw_stops(Simulate(), number) for number in range(300)]
    assert all(stops == sorted(stops) and stops[0][0] >= 0 and stops[-1][0] < 54 * DAY_S for stops in runs)
    assert {sum(cause is PLANNED for _, cause in stops) for stops in runs} <= {46, 47, 48}
    counts = [sum(cause is not PLANNED for _, cause in stops) for stops in runs]
    assert statistics.fmean(counts) == pytest.approx(419, abs=4 * math.sqrt(419 / 300))
    assert statistics.variance(counts) == pytest.approx(419, rel=0.35)  # Poisson: 4 deviations of a variance
    drawn, total = Counter(cause.name for stops in runs for _, cause in stops), sum(counts)
    for cause in CAUSES:
        share = cause.stops / 419
        assert drawn[cause.name] / total == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / total))
    gpu = sum(n for name, n in drawn.items() if "GPU" in name) + drawn["silent data corruption"]
    assert gpu / total == pytest.approx(268 / 419, abs=0.006)


def test_the_reports_effective_time_is_reachable_and_not_free() -> None:
    result = results.effective(simulation.simulate(Simulate(replications=20)))
    assert result.value - result.half > 0.9
    hourly = Simulate(checkpoint_every_s=3600, restart_s=1200, replications=20)
    assert results.effective(simulation.simulate(hourly)).value < 0.75


# --- every second is booked ---


def test_no_stop_costs_checkpoints_alone() -> None:
    history = simulation.replay(ROUND, [])
    assert history.lost_s["checkpoint stall"] == 10 * (86400 // 1010) and lost(ROUND) == {}


@pytest.mark.parametrize(
    ("at_s", "work"),
    [
        (400, 400),  # nothing saved yet
        (1005, 1000),  # in the stall of the first checkpoint
        (1109, 1000 + 99),  # that one is still being written
        (1111, 101),  # and now it is safe
        (1010 + 1111, 101),
    ],
)
def test_work_since_the_last_safe_checkpoint_is_lost(at_s: float, work: float) -> None:
    expected = {"lost work": work, "detection": 30, "restart": 300}
    assert lost(ROUND, (at_s, GPU)) == pytest.approx(expected)


def test_detection_depends_on_how_the_cause_shows() -> None:
    for cause, seconds in ((GPU, 30), (BUG, 30), (CABLE, 600), (SILENT, 3600)):
        assert lost(ROUND, (5000, cause))["detection"] == seconds


def test_failure_during_restart_begins_it_anew() -> None:
    result = lost(ROUND, (1111, GPU), (1111 + 30 + 200, CABLE))
    assert result == pytest.approx({"lost work": 101, "detection": 30 + 600, "restart": 200 + 300})


def test_failure_before_detection_costs_nothing_more() -> None:
    assert lost(ROUND, (1111, CABLE), (1500, GPU)) == lost(ROUND, (1111, CABLE))


def test_planned_stop_loses_no_work_and_waits_while_the_job_is_down() -> None:
    assert lost(ROUND, (1500, PLANNED)) == {"planned": 700 + 300}
    result = lost(ROUND, (1111, GPU), (1200, PLANNED))
    assert result == pytest.approx({"lost work": 101, "detection": 30, "restart": 300, "planned": 1000})
    result = lost(ROUND, (1500, PLANNED), (1500 + 700 + 50, GPU))
    assert result == {"planned": 750, "detection": 30, "restart": 300}


def test_stop_beyond_the_end_and_an_end_while_down() -> None:
    assert lost(ROUND, (86401, GPU)) == {}
    assert lost(ROUND, (86400 - 290, GPU), (86400 - 200, PLANNED))["restart"] == 260
    assert lost(ROUND, (86400 - 20, CABLE))["detection"] == 20


def test_nodes_are_waited_for_when_no_spare_stands_by() -> None:
    stops = [(3000.0, GPU), (10000.0, GPU), (30000.0, BUG)]
    waiting = [
        lost(replace(ROUND, spare_nodes=spare, repair_hours=2), *stops).get("waiting for a node", 0)
        for spare in (0, 1, 2, None)
    ]
    # none: the second fails while the first is repaired, so that one repair follows on the other's beginning
    # one spare: it leaves at 3000 and the node that it stood in for is back at 10200, 170 s after the detection
    assert waiting == [10000 + 7200 - 3030, 170, 0, 0]
    two = lost(replace(ROUND, spare_nodes=0, repair_hours=2), (3000, GPU), (4000, GPU))
    assert two["waiting for a node"] == 8200 - 30 and two["restart"] == 300


def test_cost_and_count_belong_to_their_cause() -> None:
    history = simulation.replay(ROUND, [(1111, GPU), (1341, CABLE), (9000, PLANNED)])
    assert history.stops == {GPU.name: 1, CABLE.name: 1, "planned": 1}
    assert history.cost_s == pytest.approx({GPU.name: 101 + 30 + 200, CABLE.name: 600 + 300, "planned": 1000})


# --- theory ---

QUIET: dict[str, Any] = {"planned_factor": 0.0, "replications": 100}
SETTINGS = [
    Simulate(**QUIET),
    Simulate(**QUIET, checkpoint_every_s=3600, checkpoint_stall_s=60, checkpoint_write_s=600),
    Simulate(**QUIET, restart_s=3600),
    Simulate(**QUIET, detect_s=900, gpus=32768, days=27),
    Simulate(**QUIET, failure_factor=10, checkpoint_stall_s=30, days=6),
]


@pytest.mark.parametrize("run", SETTINGS)
def test_simulation_agrees_with_renewal_theory(run: Simulate) -> None:
    result = results.effective(simulation.simulate(run))
    assert result.half < 0.005
    assert result.value == pytest.approx(
        renewal(run), abs=2 * result.half
    )  # of each setting in 10,000 seeds, one fails


@pytest.mark.parametrize(("gpus", "days"), [(1024, 54), (2048, 20), (512, 200)])
def test_first_order_holds_within_the_interval_where_losses_are_few(gpus: int, days: float) -> None:
    run = Simulate(gpus=gpus, days=days, checkpoint_stall_s=1, planned_factor=0.1, checkpoint_write_s=10)
    result = results.effective(simulation.simulate(run))
    assert result.half < 0.0005
    assert abs(result.value - causes.first_order(run)) < result.half


def test_first_order_is_a_floor_at_the_reports_scale() -> None:
    result = results.effective(simulation.simulate(Simulate(replications=30)))
    assert 0 < result.value - causes.first_order(Simulate()) < 0.007  # overlaps, of the order of the loss squared


def test_young_daly_costs_least() -> None:
    assert young_daly_s(2, 10_000) == 200
    run = Simulate(checkpoint_stall_s=20)
    every = causes.interval_s(run)
    assert every == pytest.approx(math.sqrt(2 * 20 * 54 * DAY_S / 419))
    at = {factor: renewal(replace(run, checkpoint_every_s=every * factor)) for factor in (0.5, 0.9, 1.0, 1.1, 2.0)}
    best = max(renewal(replace(run, checkpoint_every_s=every * factor / 100)) for factor in range(50, 201))
    assert best - at[1.0] < 1e-4
    assert at[0.5] < at[0.9] < at[1.0] + 1e-4 and at[2.0] < at[1.1] < at[1.0] + 1e-4
    assert causes.interval_s(replace(run, checkpoint_write_s=5000)) == 5000


def test_students_t() -> None:
    for freedom, quantile in ((4, 2.776), (9, 2.262), (29, 2.045), (99, 1.984), (10**6, 1.960)):
        assert results.student_t(freedom) == pytest.approx(quantile, rel=0.003)
    assert results.mean([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx((3.0, 2.776 * math.sqrt(2.5 / 5)), rel=0.003)


def test_interval_covers_the_truth_in_95_of_100() -> None:
    run = Simulate(**QUIET | {"replications": 10}, days=20)
    truth = renewal(run)
    result = [results.effective(simulation.simulate(replace(run, seed=seed))) for seed in range(100)]
    assert 88 <= sum(abs(mean.value - truth) <= mean.half for mean in result) <= 100
    assert 40 <= sum(abs(mean.value - truth) <= mean.half * 0.677 / 2.262 * 1.04 for mean in result) <= 62


# --- knobs and tables ---


def test_sensitivities_rank_what_each_half_buys() -> None:
    run = Simulate(replications=10)
    gains = results.sensitivities(run, simulation.simulate(run))
    assert list(gains)[:2] == ["failure_factor", "restart_s"] and list(gains)[-1] == "detect_s"
    assert not {"repair_hours", "spare_nodes", "checkpoint_every_s"} & set(gains)
    saved = (causes.failures_per_s(run) + causes.planned_per_s(run)) * run.restart_s / 2
    assert gains["restart_s"].value == pytest.approx(saved, rel=0.1)
    assert all(earlier.value >= later.value > later.half for earlier, later in itertools.pairwise(gains.values()))


def test_sensitivities_of_a_fixed_interval_and_of_few_nodes() -> None:
    run = Simulate(replications=5, days=10, checkpoint_every_s=3600, spare_nodes=12)
    gains = results.sensitivities(run, simulation.simulate(run))
    assert gains["checkpoint_every_s"].value > 0.05 and gains["spare_nodes"].value > 0
    tight = replace(run, checkpoint_every_s=100)
    assert "checkpoint_every_s" not in results.sensitivities(tight, simulation.simulate(tight))


def test_goal_table_marks_what_reaches_the_goal() -> None:
    run = Simulate(
        replications=5, table_stalls_s=[1.0], table_detects_s=[10.0], table_restarts_s=[30.0, 900.0], planned_s=60.0,
        hang_detect_s=60.0, silent_detect_s=60.0, checkpoint_write_s=10.0,
    )  # fmt: skip
    cells = tables.goal_table(run).splitlines()[-1].split(" | ")
    assert cells[2].startswith("**98.") and cells[3].startswith("8")
    assert "**" not in tables.goal_table(replace(run, goal=0.99))


def test_picture(tmp_path: Path) -> None:
    panels = {"one": {"long name of a bar": 2.0, "b": 0.5}, "two": {"c": 1.0}}
    path = plots.draw_bars(tmp_path / "lost.png", "title", panels, "% of the run")
    assert path.read_bytes().startswith(b"\x89PNG") and list(tmp_path.iterdir()) == [path]


def test_recipe(quick: Command, tmp_path: Path) -> None:
    words = ("-m", "recipes.simulate", "days=2", "replications=5", "table=true", "table_restarts_s=[60]")
    result = quick(*words, f"output={tmp_path}/lost.png", check=True)
    assert "effective training time" in result.stdout and (tmp_path / "lost.png").stat().st_size > 10_000
    assert result.stdout.count("\n| 30 s |") == 3 and "| faulty GPU |" in result.stdout


def test_recipe_refuses_what_cannot_be(quick: Command) -> None:
    result = quick("-m", "recipes.simulate", "checkpoint_every_s=10", "table_stalls_s=[0]", "output=x.pdf")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    for said in ("checkpoint_every_s=10.0: the next", "table_stalls_s=[0.0]: cannot", "output=x.pdf: is drawn as PNG"):
        assert said in result.stderr
