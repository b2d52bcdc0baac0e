"""The schedule against the report's own numbers, against a walk step by step, and against hand-made cases."""

from __future__ import annotations

import itertools
import math

import pytest

from llama31 import config
from llama31.command import entry
from llama31.config import Ramp, Schedule
from llama31.plan import schedule

M4, M8, M16 = 4_194_304, 8_388_608, 16_777_216


@pytest.fixture(scope="module")
def report() -> Schedule:
    overrides = ["name=x", "model=405b", "schedule=405b", "data=demo", "tokenizer=demo"]
    return entry.compose(config.Pretrain, "pretrain", overrides).schedule


def small(**given: object) -> Schedule:
    return Schedule(**{"total_tokens": 1000, "batch_tokens": 10, "sequence_length": 5, "peak_lr": 1.0, **given})  # type: ignore[arg-type]


def test_stages_of_the_report(report: Schedule) -> None:
    stages = schedule.stages(report)
    assert [(s.first_step, s.steps, s.batch_tokens, s.sequence_length) for s in stages] == [
        (0, 60, M4, 4096),
        (60, 342_101, M8, 8192),
        (342_161, 758_767, M16, 8192),
    ]
    assert [stage.rows for stage in stages] == [1024, 1024, 2048]
    assert schedule.total_steps(report) == 60 + 342_101 + 758_767


def test_learning_rate_of_the_report(report: Schedule) -> None:
    assert schedule.step_tokens(report, 8_000) == pytest.approx(66.9e9, rel=1e-3)
    assert schedule.learning_rate(report, 0) == 0
    assert schedule.learning_rate(report, schedule.step_tokens(report, 4_000)) == pytest.approx(4e-5)
    assert schedule.learning_rate(report, schedule.step_tokens(report, 8_000)) == pytest.approx(8e-5)
    assert schedule.learning_rate(report, 15_600_000_000_000) == pytest.approx(2.14e-6, rel=2e-3)
    assert schedule.step_tokens(report, 1_200_000) == pytest.approx(17.26e12, rel=1e-3)
    assert schedule.learning_rate(report, schedule.step_tokens(report, 1_200_000)) == 8e-7
    middle = schedule.learning_rate(report, schedule.step_tokens(report, 8_000 + 596_000))
    assert middle == pytest.approx((8e-5 + 8e-7) / 2)


def test_clock_of_tokens(report: Schedule) -> None:
    """Counted in tokens the rate falls later, since the large batches come late."""
    tokens = 15_600_000_000_000
    warm, end = report.warmup_tokens, report.decay_tokens or 0
    in_tokens = Schedule(**{**vars(report), "clock": "tokens"})
    cosine = (1 + math.cos(math.pi * (tokens - warm) / (end - warm))) / 2
    assert schedule.learning_rate(in_tokens, tokens) == pytest.approx(8e-7 + (8e-5 - 8e-7) * cosine)
    assert schedule.learning_rate(in_tokens, tokens) == pytest.approx(2.61e-6, rel=2e-3)


RAMPS = [
    [],
    [(35, 20, 10), (200, 40, 10)],
    [(1, 7, 7)],
    [(95, 30, 5), (96, 50, 5), (97, 20, 10)],  # stages without a step
    [(5000, 20, 5)],  # never reached
]


@pytest.mark.parametrize("ramps", RAMPS)
@pytest.mark.parametrize("total", [1, 10, 99, 100, 101, 1000])
def test_against_a_walk(ramps: list[tuple[int, int, int]], total: int) -> None:
    given = small(total_tokens=total, ramp=[Ramp(*ramp) for ramp in ramps])
    walked = []
    tokens = step = 0
    while tokens < total:
        batch, length = 10, 5
        for start, *sizes in ramps:
            if tokens >= start:
                batch, length = sizes
        stage = schedule.batch_at(given, tokens)
        assert (stage.batch_tokens, stage.sequence_length) == (batch, length)
        assert schedule.step_tokens(given, step) == tokens
        assert schedule.step_at(given, tokens) == step
        assert tokens == 0 or schedule.step_at(given, tokens - 1) == step
        walked.append((batch, length))
        tokens, step = tokens + batch, step + 1
    assert schedule.total_steps(given) == step
    assert schedule.step_tokens(given, step) == tokens
    planned = [(s.batch_tokens, s.sequence_length) for s in schedule.stages(given) for _ in range(s.steps or 0)]
    assert planned == walked


def test_linear_ends_at_exactly_zero() -> None:
    given = small(decay="linear", warmup_tokens=100)
    assert schedule.learning_rate(given, 50) == 0.5
    assert schedule.learning_rate(given, 100) == 1.0
    assert schedule.learning_rate(given, 550) == pytest.approx(0.5)
    assert schedule.learning_rate(given, 1000) == 0.0
    assert schedule.learning_rate(given, 2000) == 0.0


@pytest.mark.parametrize("decay", ["cosine", "linear"])
def test_decay_is_monotonic_and_ends_at_final(decay: str) -> None:
    given = small(decay=decay, final_lr=0.1, decay_tokens=500)
    rates = [schedule.learning_rate(given, tokens) for tokens in range(0, 1000, 10)]
    assert rates[0] == 1.0 and rates[50:] == [0.1] * 50
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[:51]))


def test_cosine_at_the_quarters() -> None:
    given = small()
    shares = [schedule.learning_rate(given, tokens) for tokens in (0, 250, 500, 750, 1000)]
    assert shares == pytest.approx([1, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4, 0], abs=1e-15)


def test_constant_after_warm_up() -> None:
    given = small(decay="constant", warmup_tokens=20)
    assert [schedule.learning_rate(given, tokens) for tokens in (0, 10, 20, 990, 5000)] == [0, 0.5, 1, 1, 1]


def test_clocks_agree_without_a_ramp() -> None:
    for tokens in range(0, 1200, 10):
        in_steps = schedule.learning_rate(small(clock="steps", warmup_tokens=70), tokens)
        assert in_steps == pytest.approx(schedule.learning_rate(small(warmup_tokens=70), tokens), abs=1e-15)
