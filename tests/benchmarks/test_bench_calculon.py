"""Calculon's formulas: one operation by hand, what overlap and flash attention leave, and the table of the page."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from benchmarks import calculon_formulas as calculon
from llama31 import config
from llama31.command import entry
from llama31.planner.validation import fitting, published
from tests import pages

RUNS = Path(calculon.__file__).parent / "published_runs.csv"


@pytest.fixture(scope="module")
def planned() -> config.Plan:
    return entry.compose(config.Plan, "plan", [])


def test_an_operation_by_hand() -> None:
    one = calculon.linear(8192, 4096, 4096)
    computing = 2 * 8192 * 4096**2 / (1000e12 * 0.95)  # 275 GFLOPs
    moving = 2 * (2 * 8192 * 4096 + 4096**2) / (3072e9 * 0.9)  # 168 MB
    assert one.seconds(fp8=False, forward=True) == pytest.approx(computing + moving)
    assert one.seconds(fp8=False, forward=False) == pytest.approx(2 * (computing + moving))
    assert one.seconds(fp8=True, forward=True) == pytest.approx(computing / 2 + moving)
    assert calculon.reached(calculon.MEMORY_REACH, 99.9) == 0.75


def test_terms_of_a_layout(planned: config.Plan) -> None:
    row = next(row for row in published.read(RUNS, planned.models, planned.hardware) if fitting.fitted(row, "megatron"))
    assert row.job is not None
    base = dataclasses.replace(row.job, cp=1, tp=1, pp=1, vpp=1, dp=1, gpus=1)
    seconds = calculon.step_s(base, flash=False, overlap=False)
    assert calculon.step_s(base, flash=False, overlap=True) == seconds, "nothing is sent"
    assert calculon.step_s(base, flash=True, overlap=True) < 0.8 * seconds
    again = dataclasses.replace(base, recompute=frozenset({"full"}))
    assert 1.25 * seconds < calculon.step_s(again, flash=False, overlap=False) < 1.45 * seconds
    split = dataclasses.replace(base, tp=2, dp=1, gpus=2)
    hidden, shown = (calculon.step_s(split, flash=False, overlap=overlap) for overlap in (True, False))
    assert seconds / 2 < hidden < shown < seconds


def test_the_page_has_the_table(planned: config.Plan) -> None:
    said = calculon.table(published.read(RUNS, planned.models, planned.hardware), planned.hardware)
    assert said in pages.text("docs/planner.md"), f"docs/planner.md shall have\n{said}"
