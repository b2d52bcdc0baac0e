"""Slow nodes, failures that come again and failures of several nodes: each second is booked, and each agrees with
arithmetic when it stands alone.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from dataclasses import replace

import pytest

from llama31.config import Simulate
from llama31.failures import causes, results, simulation, tables
from llama31.failures.causes import DAY_S, PLANNED, SLOW, SLOWED
from tests.failures.test_simulation import BUG, CABLE, GPU, ROUND, lost

SLUGGISH = replace(ROUND, slow_factor=1.25, slow_detect_s=500)
# All that fails is noticed at once; what is under test is all that happens.
PLAIN = Simulate(
    replications=60, planned_factor=0, detect_s=0, hang_detect_s=0, silent_detect_s=0, checkpoint_stall_s=1,
    checkpoint_write_s=10, gpus=1024,
)  # fmt: skip


def failures(run: Simulate, numbers: int = 200) -> list[list[simulation.Stop]]:
    return [simulation.draw_stops(run, number) for number in range(numbers)]


# --- slow nodes ---


def test_a_slow_node_costs_pace_until_it_is_found_and_then_a_restart() -> None:
    history = simulation.replay(SLUGGISH, [(2000, SLOWED)])
    assert lost(SLUGGISH, (2000, SLOWED)) == pytest.approx({"slow nodes": (500 - 10) / 5, "restart": 300})  # one stall
    assert history.stops == {SLOW.name: 1}
    assert history.cost_s == pytest.approx({SLOW.name: 98 + 300})


def test_two_slow_nodes_are_no_slower_than_one() -> None:
    result = lost(SLUGGISH, (2100, SLOWED), (2200, SLOWED))
    assert result == pytest.approx({"slow nodes": 500 / 5, "restart": 600})  # due while down, it goes with the start


def test_pace_of_work_that_is_lost_is_lost_work() -> None:
    """The node turns slow after the last safe checkpoint of a failure, and stays so after its restart."""
    result = lost(SLUGGISH, (1111, SLOWED), (1211, GPU))
    assert result == pytest.approx(
        {"lost work": 201, "detection": 30, "restart": 300 + 300, "slow nodes": (1611 - 1541) / 5}
    )
    assert lost(SLUGGISH, (1111, SLOWED), (1611 - 100, BUG))["restart"] == 600  # found while down: it waits


def test_a_node_that_is_slow_at_the_end_is_booked() -> None:
    assert lost(SLUGGISH, (86400 - 100, SLOWED)) == pytest.approx({"slow nodes": 20})


def test_a_slow_node_is_replaced_by_a_spare() -> None:
    run = replace(SLUGGISH, spare_nodes=0, repair_hours=1)
    assert lost(run, (2100, SLOWED))["waiting for a node"] == 3600


def test_loss_to_slow_nodes_is_that_of_arithmetic() -> None:
    run = replace(PLAIN, failure_factor=1e-9, slow_per_1000_node_days=20, checkpoint_every_s=3600, slow_detect_s=2000)
    rate = 20 / 1000 * 128 / DAY_S
    assert causes.slow_per_s(run) == pytest.approx(rate)
    assert causes.slow_per_s(replace(run, node_gpus=4)) == pytest.approx(2 * rate)
    histories = simulation.simulate(run)
    shares = results.lost_shares(histories, run)
    for reason, seconds in {"slow nodes": 2000 / 3, "restart": 300}.items():
        busy = -math.expm1(-rate * 2000) / (rate * 2000) if reason == "slow nodes" else 1.0  # several at a time
        assert shares[reason].half < 0.1 * shares[reason].value
        assert shares[reason].value == pytest.approx(rate * seconds * busy, abs=1.5 * shares[reason].half)
    total = results.effective(histories)
    assert total.value == pytest.approx(causes.first_order(run), abs=1.5 * total.half + (rate * 2000) ** 2)
    assert f"| {SLOW.name} |" in tables.cause_table(histories) and "to take a slow node out" in tables.summary(
        run, histories
    )
    gains = results.sensitivities(run, histories)
    assert gains["slow_per_1000_node_days"].value == pytest.approx(rate * (1000 / 3 + 150), rel=0.15)
    assert gains["slow_detect_s"].value == pytest.approx(rate * 1000 / 3, rel=0.15)


# --- failures that come again ---


def test_repeats_keep_the_number_of_failures_and_bunch_them() -> None:
    run = Simulate(planned_factor=0, repeat_share=0.4, repeat_s=600)
    counts = [len(stops) for stops in failures(run)]
    chain = (1 + 0.4) / (1 - 0.4)  # variance over mean of a compound Poisson number with geometric chains
    assert statistics.fmean(counts) == pytest.approx(419, abs=4 * math.sqrt(419 * chain / 200))
    assert statistics.variance(counts) == pytest.approx(419 * chain, rel=0.4)
    gaps = [(late - soon, a is b) for stops in failures(run, 20) for (soon, a), (late, b) in itertools.pairwise(stops)]
    soon = [same for gap, same in gaps if gap < 300]
    alike = sum((cause.stops / 419) ** 2 for cause in causes.CAUSES)
    assert statistics.fmean(soon) > 3 * alike  # the same cause
    far = [same for gap, same in gaps if gap > 6000]
    assert statistics.fmean(far) == pytest.approx(alike, abs=0.05)


def test_other_kinds_do_not_change_which_failures_come() -> None:
    run, quiet = Simulate(shared_share=0.3, slow_per_1000_node_days=2), Simulate()
    stops = [(at_s, cause.name) for at_s, cause in simulation.draw_stops(run, 3) if cause is not SLOWED]
    assert stops == [(at_s, cause.name) for at_s, cause in simulation.draw_stops(quiet, 3)]


def test_a_failure_that_comes_again_costs_all_since_the_one_before() -> None:
    """Before a checkpoint is safe, what is lost is the delay itself, whether it fell into the restart or after it."""
    run = replace(PLAIN, checkpoint_every_s=7200, repeat_share=0.5, repeat_s=400)
    assert causes.again_s(run) == pytest.approx(400, rel=0.01)
    seldom = replace(run, repeat_s=1e6)  # as if it stood alone: half a cycle, writing, the restart
    assert causes.again_s(seldom) == pytest.approx(3600 + 10 + 300, rel=0.01)
    noticed = replace(run, detect_s=100, hang_detect_s=100, silent_detect_s=100)
    assert causes.again_s(noticed) == pytest.approx(math.exp(-100 / 400) * (400 + 100), rel=0.01)


@pytest.mark.parametrize("repeat_s", [60.0, 900.0, 20_000.0])
def test_loss_to_repeats_is_that_of_arithmetic(repeat_s: float) -> None:
    run = replace(PLAIN, failure_factor=2, repeat_share=0.5, repeat_s=repeat_s, detect_s=50, hang_detect_s=50)
    result = results.effective(simulation.simulate(run))
    assert result.half < 0.0005
    assert abs(result.value - causes.first_order(run)) < 1.5 * result.half + (1 - result.value) ** 2
    assert result.value > causes.first_order(replace(run, repeat_share=0)) - result.half  # bunched, they cost less


# --- several nodes at once ---


def test_a_shared_failure_takes_its_nodes_at_once() -> None:
    rack = CABLE._replace(nodes=4)
    waiting = [
        lost(replace(ROUND, spare_nodes=spare, repair_hours=2), (3000, rack)).get("waiting for a node", 0)
        for spare in (0, 3, 4, None)
    ]
    assert waiting == [7200 - 600, 7200 - 600, 0, 0]  # the last of the four is missing until one is repaired


def test_share_of_failures_that_take_several_nodes() -> None:
    run = Simulate(planned_factor=0, shared_share=0.25, shared_nodes=16)
    nodes = Counter(cause.nodes for stops in failures(run) for _, cause in stops)
    bugs = sum(cause.stops for cause in causes.CAUSES if not cause.nodes) / 419
    total = nodes.total()
    assert nodes[0] / total == pytest.approx(bugs, abs=0.01)
    assert nodes[16] / total == pytest.approx(0.25 * (1 - bugs), abs=0.01) and set(nodes) == {0, 1, 16}


def test_wait_for_shared_nodes_is_that_of_arithmetic() -> None:
    """Spares for one node but not for two: each failure of a rack waits for a repair, when one seldom meets another."""
    run = replace(
        PLAIN, gpus=256, spare_nodes=1, repair_hours=2, shared_share=0.5, days=400, checkpoint_every_s=3600,
    )  # fmt: skip
    takes = sum(cause.stops for cause in causes.CAUSES if cause.nodes) / 419
    rate = causes.failures_per_s(run) * takes
    waits = results.lost_shares(simulation.simulate(run), run)["waiting for a node"]
    single = rate * 7200 / 2  # the chance to meet a repair still going on, which then takes half of it on average
    expected = rate * (0.5 * 7200 + 0.5 * single)
    assert waits.value == pytest.approx(expected, abs=1.5 * waits.half + expected * 2 * rate * 7200)


def test_more_nodes_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="shared_nodes=64: more nodes than 256 GPUs fill; give at most 32"):
        causes.check(Simulate(gpus=256, shared_share=0.1, shared_nodes=64))
    causes.check(Simulate(gpus=256, shared_nodes=64))


def test_more_stops_than_minutes_simulate_are_refused_with_how_many_would_do() -> None:
    causes.check(Simulate())
    with pytest.raises(
        ValueError, match=r"days=54: [\d,]+ stops in each of replications=100 .*; give replications="
    ) as said:
        causes.check(Simulate(failure_factor=50))
    causes.check(Simulate(failure_factor=50, replications=int(str(said.value).rpartition("=")[2])))
    with pytest.raises(ValueError, match=r"minutes; give days=") as said:
        causes.check(Simulate(failure_factor=5000))
    causes.check(Simulate(failure_factor=5000, days=float(str(said.value).rpartition("=")[2])))


def test_planned_stops_and_slow_nodes_that_are_due_while_down_come_one_after_the_other() -> None:
    result = lost(SLUGGISH, (1111, GPU), (1120, PLANNED), (650, SLOWED))
    assert result["restart"] == 600 and result["planned"] == 1000
