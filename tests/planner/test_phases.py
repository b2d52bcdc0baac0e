"""A whole run by its phases: steps of each, their sum by hand, the table that the page shows, and what is refused."""

from __future__ import annotations

import dataclasses

import pytest

from llama31 import config
from llama31.command import entry
from llama31.failures import causes
from llama31.planner import phases, proposals
from recipes import plan
from tests import pages


@pytest.fixture(scope="module")
def whole() -> config.Plan:
    return entry.compose(config.Plan, "plan_405b")


def parts(run: config.Plan) -> list[phases.PartOfRun]:
    return phases.parts(run.phases, proposals.request(run), run.failures)


def test_steps_are_those_of_the_report(whole: config.Plan) -> None:
    """60 steps of 4M, 342,101 of 8M and 758,767 of 16M make 15.6T tokens; 800B and 40B follow."""
    run = parts(whole)
    assert [one.steps for one in run[:3]] == [60, 342_101, 758_767]
    assert [one.asked.gpus for one in run] == [8192] * 2 + [16_384] * 8
    assert sum(one.tokens for one in run[:3]) == pytest.approx(15.6e12, rel=1e-6)
    assert sum(one.tokens for one in run[3:9]) == pytest.approx(800e9, rel=1e-3)
    assert run[9].tokens == pytest.approx(40e9, rel=1e-3)


def test_a_part_by_hand(whole: config.Plan) -> None:
    one = parts(whole)[2]
    assert one.days == pytest.approx(758_767 * one.step_s / 86_400)
    assert one.gpu_hours == pytest.approx(one.days * 24 * 16_384)
    assert one.effective == pytest.approx(causes.first_order(config.Simulate(gpus=16_384, days=58)), abs=0.01)
    assert one.tflops() == pytest.approx(2.524e12 * 2**24 / 16_384 / one.step_s / 1e12, rel=1e-3)
    assert one.tflops(square=True) / one.tflops() == pytest.approx(2625 / 2524, rel=1e-3)


def test_the_page_shows_what_the_command_prints(whole: config.Plan, capsys: pytest.CaptureFixture[str]) -> None:
    plan.main(whole)
    shown = capsys.readouterr().out.strip()
    assert "-m recipes.plan --config-name plan_405b" in pages.text("docs/planner.md")
    assert shown in pages.text("docs/planner.md"), f"docs/planner.md shall have\n{shown}"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["phases.anneal.parallel.dp=null"], "phases.anneal.parallel.dp=null: says how many GPUs there are"),
        (["phases.pretrain_8k_gpus.until_tokens=1", "phases.pretrain_8k_gpus.parallel.from_tokens=5000000"], "no step"),
        (["phases.anneal.parallel.recompute=[]"], "memory_gb=80.0"),
        (["phases.long_16k.parallel.tp=3"], "phases.long_16k.parallel.tp=3: "),
    ],
)
def test_phases_that_cannot_be(overrides: list[str], said: str) -> None:
    with pytest.raises(config.ConfigError, match="phases|memory_gb") as caught:
        parts(entry.compose(config.Plan, "plan_405b", overrides))
    assert any(said in str(issue) for issue in caught.value.issues)


def test_what_ran_on_another_device_is_not_compared(whole: config.Plan) -> None:
    parts = phases.parts(whole.phases, proposals.request(whole), whole.failures)
    assert "| +18.4% |" in phases.table(parts, "H100", whole.published)
    shown = phases.table(parts, "B200", whole.published)
    assert shown.endswith("\nwhat was published ran on H100, and is not compared") and "error" not in shown


def test_a_device_without_prices(whole: config.Plan) -> None:
    """Energy and money are left empty; nothing was published of a run of one's own."""
    request = proposals.request(whole)
    bare = dataclasses.replace(request, device=dataclasses.replace(request.device, watts=0, dollars_per_hour=0))
    shown = phases.table(phases.parts(whole.phases, bare, whole.failures), "mine", config.TotalPublished(device="mine"))
    assert shown.count("M |  |  |") == 11 and "| GPU-hours without | " in shown and shown.count(" |  |  |\n") >= 3
