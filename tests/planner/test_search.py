"""Layouts that are proposed: the fastest of all, accepted by the rules of a run, and told with their bill."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from llama31 import config
from llama31.command import entry
from llama31.plan import layout, memory
from llama31.plan.memory import Capacity
from llama31.planner import proposals, search
from recipes import plan


def asked(*overrides: str) -> tuple[config.Plan, search.Demand]:
    run = entry.compose(config.Plan, "plan", overrides)
    return run, proposals.request(run)


@pytest.fixture(scope="module")
def report() -> search.Demand:
    """The report's run: 405B on 16,384 GPUs, 16M tokens a step."""
    return asked("model=405b", "gpus=16384", "batch_tokens=16777216")[1]


def test_proposals_are_accepted_and_fit(report: search.Demand) -> None:
    found = search.fastest(report, 10)
    assert [one.step_s for one in found] == sorted(one.step_s for one in found)
    for one in found:
        capacity = Capacity(report.memory_gb)
        assert not layout.problems(report.model, one.parallel, [report.stage], report.gpus, report.numbers, capacity)


def test_nothing_faster_was_passed_over(report: search.Demand) -> None:
    """Every candidate that is accepted and fits, with as little computed again as it needs, against the fastest."""
    small = dataclasses.replace(report, model=asked()[1].model, gpus=16, batch_tokens=8192 * 64)
    times = []
    for parallel in search.candidates(small):
        for parts in search.RECOMPUTE:
            one = dataclasses.replace(parallel, recompute=list(parts))
            if layout.problems(small.model, one, [small.stage], small.gpus, small.numbers):
                break
            if layout.worst(small.model, one, [small.stage], one.dp or 1, small.numbers)[0].total <= 80e9:
                job = search.step_job(small, one)
                times.append(sum(search.speed.step(job, small.device, small.stack).values()))
                break
    best = search.fastest(dataclasses.replace(small, memory_gb=80), 5)
    assert [one.step_s for one in best] == pytest.approx(sorted(times)[:5]) and len(times) > 50


def test_less_memory_computes_more_again(report: search.Demand) -> None:
    tight = search.fastest(dataclasses.replace(report, memory_gb=40), 1)
    (free,) = search.fastest(dataclasses.replace(report, memory_gb=1000), 1)
    assert not free.parallel.recompute and tight[0].parallel.recompute and tight[0].step_s > free.step_s


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model=405b", "gpus=64"], "gpus=64: no layout of 405b is accepted and fits 80.0 GB; give gpus=128"),
        (["gpus=7", "batch_tokens=8192"], "gpus=7: no layout of 8b is accepted"),
        (["device=H1000"], "device=H1000: there is no such entry; give one of H100,"),
        (["batch_tokens=10000"], "batch_tokens=10000: no multiple of sequence_length=8192; give 8192"),
    ],
)
def test_impossible_requests_say_what_would_make_them_possible(overrides: list[str], said: str) -> None:
    with pytest.raises(config.ConfigError) as caught:
        proposals.proposals(asked(*overrides)[1], 1)
    assert str(caught.value).startswith(said)


def test_recipe_prints_the_bill_and_writes_the_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    run, request = asked("gpus=64", f"write={path}", "best=3", "total_tokens=1000000000000")
    plan.main(run)
    shown = capsys.readouterr().out
    (best,) = search.fastest(request, 1)
    assert "8b on 64 H100" in shown and "MFU of the BF16 peak" in shown and "GPU-hours" in shown and "dollars" in shown
    assert " ".join(proposals.overrides(best.parallel)) in shown
    written = yaml.safe_load(path.read_text())
    assert config.Parallel(**written) == best.parallel
    hours = 238_419 * best.step_s / 3600 * 64
    assert f"{hours:,.0f} GPU-hours" in shown


def test_a_stage_of_the_embedding_alone_has_memory() -> None:
    shape = asked("model=8b")[1].model
    parallel = config.Parallel(pp=34, embedding_as_layer=True, loss_as_layer=True)
    work = memory.Workload(sequence_length=8192, micro_batches=34, replicas=1)
    first = memory.of_stage(shape, parallel, config.Precision(), work, 0)
    assert first.activations == 0 and first.weights == 2 * shape.vocab_size * shape.hidden_size
