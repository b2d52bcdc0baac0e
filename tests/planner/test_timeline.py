"""A step played out: the order of passes by known facts, its length against the formula, and the picture of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from llama31 import config
from llama31.command import entry
from llama31.planner import proposals, search, timeline
from llama31.planner.timeline import Pass, PassSeconds
from llama31.runs import planned
from recipes import plan


def played(pp: int, vpp: int, micro_batches: int, group: int | None = None) -> timeline.Timeline:
    """Of equal chunks whose forward pass takes a second and whose backward pass takes two."""
    parallel = config.Parallel(pp=pp, vpp=vpp, microbatch_group=group)
    lengths = PassSeconds([[1.0] * vpp] * pp, [[2.0] * vpp] * pp)
    return timeline.Timeline(parallel, micro_batches, timeline.play(parallel, micro_batches, lengths), {})


def asked(*overrides: str) -> tuple[config.Plan, search.Demand]:
    run = entry.compose(config.Plan, "plan", overrides)
    return run, proposals.request(run)


def test_orders_that_megatron_documents() -> None:
    """PP 2, N 3, M 5, V 2 stand in a comment of its schedules.py; 1F1B's second of three stages warms up with one."""
    parallel = config.Parallel(pp=2, vpp=2, microbatch_group=3)
    forward = [one for one in timeline.order(parallel, 5, 1) if not one.backward]
    assert [one.micro_batch for one in forward] == [0, 1, 2, 0, 1, 2, 3, 4, 3, 4]
    assert [one.chunk for one in forward] == [0, 0, 0, 1, 1, 1, 0, 0, 1, 1]
    plain = timeline.order(config.Parallel(pp=3), 4, 1)
    assert ["FB"[one.backward] + str(one.micro_batch) for one in plain] == [
        "F0",
        "F1",
        "B0",
        "F2",
        "B1",
        "F3",
        "B2",
        "B3",
    ]


@pytest.mark.parametrize(
    ("pp", "vpp", "count", "group"), [(4, 1, 8, None), (4, 2, 8, None), (8, 3, 16, None), (4, 2, 10, 5)]
)
def test_every_pass_waits_for_what_it_needs(pp: int, vpp: int, count: int, group: int | None) -> None:
    step = played(pp, vpp, count, group)
    ends = {(one.stage, one.done): one.end_s for one in step.passes}
    assert len(ends) == 2 * pp * vpp * count
    for stage, done, begin, _ in step.passes:
        position = done.chunk * pp + stage
        if done.backward:
            assert begin >= ends[stage, done._replace(backward=False)]
        near = position + (1 if done.backward else -1)
        if 0 <= near < pp * vpp:
            assert begin >= ends[near % pp, Pass(done.backward, done.micro_batch, near // pp)]
    for one, other in zip(step.passes, step.passes[1:]):
        assert one.stage != other.stage or one.end_s <= other.begin_s


@pytest.mark.parametrize(("pp", "vpp", "count"), [(2, 1, 4), (4, 1, 8), (4, 1, 4), (4, 2, 8), (8, 4, 16), (1, 1, 3)])
def test_bubble_is_that_of_the_formula(pp: int, vpp: int, count: int) -> None:
    step = played(pp, vpp, count)
    assert step.computed_s == pytest.approx(3 * vpp * count * (1 + (pp - 1) / (vpp * count)))


def test_phases_follow_each_other() -> None:
    """The first of four stages warms up until the first micro-batch is back, seven passes on."""
    spans = played(4, 1, 8).phases(0)
    assert spans == {"warm-up": (0, 10), "steady": (10, 22), "cool-down": (22, 33)}
    assert played(4, 1, 4).phases(0).keys() == {"warm-up", "cool-down"}


def test_what_fits_in_memory_is_what_is_in_flight() -> None:
    step = played(4, 2, 8)
    for stage in range(4):
        flying = most = 0
        for _, done, *_ in (one for one in step.passes if one.stage == stage):
            flying += -1 if done.backward else 1
            most = max(most, flying)
        assert most == timeline.passes.in_flight(step.parallel, 8, stage)


@pytest.mark.parametrize(
    "overrides",
    [
        ["gpus=8"],
        ["model=70b", "gpus=256"],
        ["model=405b", "gpus=16384", "batch_tokens=16777216"],
        ["model=405b", "gpus=512"],
    ],
)
def test_a_step_lasts_as_long_as_predicted(overrides: list[str]) -> None:
    """To 2 %: the formula has the bubble of equal chunks, here some hold fewer layers and one the head."""
    _, request = asked(*overrides)
    for best in search.fastest(request, 3):
        step = timeline.of_step(request.model, best.parallel, best.job, request.device, request.stack)
        assert step.end_s == pytest.approx(best.step_s, rel=0.02)
        assert sum(step.after.values()) == pytest.approx(sum(best.seconds.get(name, 0) for name in timeline.AFTER))


def test_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stages, micro-batches, memory and GPUs are in it; GPUs that nothing fits on are told."""
    path = tmp_path / "plan.svg"
    run, request = asked("model=70b", "gpus=64", f"picture={path}", "best=1")
    plan.main(run)
    shown = capsys.readouterr().out
    assert f"drawn to {path}" in shown and "fits on 8, 16 GPUs" in shown and path.stat().st_size > 50_000
    (best,) = search.fastest(dataclasses.replace(request, gpus=512), 1)
    step = timeline.of_step(request.model, best.parallel, best.job, request.device, request.stack)
    chart = planned.chart(step, best.step_s)
    kinds = [box.kind for box in chart.boxes]
    assert (
        kinds.count("forward") == kinds.count("backward") == best.parallel.pp * best.parallel.vpp * step.micro_batches
    )
    assert max(box.end for box in chart.boxes) == pytest.approx(step.end_s)
    for wrong in (tmp_path, tmp_path / "no" / "plan.png", tmp_path / "plan.pdf"):
        with pytest.raises(ValueError, match="picture=.*: give a file in a folder that is there"):
            plan.main(dataclasses.replace(run, picture=str(wrong), gpus=7))
