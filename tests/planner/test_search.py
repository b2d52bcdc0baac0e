"""Layouts that are proposed: the fastest of all, accepted by the rules of a run, and told with their bill."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from llama31 import config
from llama31.command import entry
from llama31.failures import causes, results, simulation
from llama31.plan import layout, memory
from llama31.plan.memory import Capacity
from llama31.planner import costs, proposals, search
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
        (
            ["gpus=7", "batch_tokens=8192"],
            "batch_tokens=8192: its 1 rows do not split over the replicas of any layout of gpus=7; give 57344",
        ),
        (
            ["model=70b", "gpus=96"],
            "batch_tokens=4194304: its 512 rows do not split over the replicas of any layout of gpus=96; give 4202496",
        ),
        (["sequence_length=262144", "batch_tokens=262144"], "sequence_length=262144: longer than model.max_positions"),
        (["device=A100", "precision=fp8_delayed"], "precision.fp8=delayed: A100 has no FP8; give precision=bf16"),
        (
            ["precision=fp8_delayed", "precision.fp8_first_layers_bf16=2"],
            "precision.fp8=delayed: FP8 in a part of the layers is not predicted; plan with",
        ),
        (["device=GB300", "precision=fp32"], "precision.params=fp32: the rate of FP32 products of GB300 is not known"),
        (["device=H1000"], "device=H1000: there is no such entry; give one of H100,"),
        (
            ["failures.checkpoint_every_s=10"],
            "failures.checkpoint_every_s=10.0: the next checkpoint would begin while one is being written; give at",
        ),
        (["batch_tokens=10000"], "batch_tokens=10000: no multiple of sequence_length=8192; give 8192"),
        (
            ["gpus=64", "limits.tp=[3]", "limits.pp=[1,2]"],
            "limits.tp=[3]: no layout of 8b on 64 GPUs keeps it, is accepted and fits; give limits.tp=[",
        ),
        (
            ["gpus=64", "limits.tp=[3]", "limits.pp=[3]"],
            "limits=tp, pp: no layout of 8b on 64 GPUs keeps all limits, is accepted and fits; leave out two or more",
        ),
        (
            ["limits.dollars=10", "hardware.devices.H100.dollars_per_hour=0"],
            "limits.dollars=10.0: H100 has no price; give hardware.devices.H100.dollars_per_hour=..., or limits.gpu_",
        ),
    ],
)
def test_impossible_requests_say_what_would_make_them_possible(overrides: list[str], said: str) -> None:
    with pytest.raises(config.ConfigError) as caught:
        proposals.proposals(asked(*overrides)[1], 1)
    assert str(caught.value).startswith(said)


def test_fp32_keeps_below_the_rate_of_fp32() -> None:
    run, request = asked("model=1b", "precision=fp32", "gpus=8", "batch_tokens=1048576")
    (best,) = search.fastest(request, 1)
    rate = proposals.shapes.flops_per_token(request.model, 8192) * request.batch_tokens / 8 / best.step_s / 1e12
    assert 0.4 * 67 < rate < 0.8 * 67 and request.peak_tflops == 67
    assert "MFU of the FP32 peak" in proposals.tables(run, request, [best])
    halved = dataclasses.replace(request.device, fp32_tflops=33.5)
    assert sum(search.speed.step(best.job, halved, request.stack).values()) > 1.9 * best.step_s


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["write=nowhere/x.yaml"], "write=nowhere/x.yaml: its folder is not there; mkdir -p nowhere"),
        (["write=conf/model/8b.yaml"], "write=conf/model/8b.yaml: another file is there; give another name"),
        (["output=x.json"], "output=x.json: it is what validate writes; give validate=FILE.csv too"),
        (["validate=x.csv", "picture=x.png"], "picture=x.png: validate is given, which makes none of it"),
    ],
)
def test_keys_that_would_go_unheeded_are_refused(words: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    with pytest.raises(config.ConfigError) as caught:
        plan.main(asked(*words)[0])
    assert str(caught.value).startswith(said)


def test_a_whole_run_takes_no_limits_and_no_file() -> None:
    run = entry.compose(config.Plan, "plan_405b", ["write=x.yaml", "limits.days=1", "device=H200"])
    with pytest.raises(config.ConfigError, match="write=x.yaml: phases is given.*\n?limits=days: phases is given"):
        plan.main(run)


def test_little_room_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    run, request = asked("model=70b", "gpus=512", "best=1")
    found = search.fastest(request, 1)
    assert found[0].memory.total > 0.96 * 80e9
    assert "memory_gb=77 plans with room" in proposals.tables(run, request, found)
    wide = dataclasses.replace(request, memory_gb=100)
    assert "with room" not in proposals.tables(run, wide, found)


def test_limits_choose_among_the_layouts() -> None:
    """What they leave is what is left of all layouts, in its order."""
    request = asked("gpus=16", "batch_tokens=524288")[1]
    every = search.fastest(request, 10**6)
    for name, values in {"tp": [2, 4], "pp": [2], "vpp": [1], "dp": [4, 8], "zero": [3], "micro_batch": [1]}.items():
        limits = config.Limits(**{name: values})
        kept = search.fastest(dataclasses.replace(request, limits=limits), 10**6)
        wanted = [one for one in every if getattr(one.parallel, name) in values]
        assert 0 < len(kept) < len(every) and [one.parallel for one in kept] == [one.parallel for one in wanted], name
    less = dataclasses.replace(request, memory_gb=16)
    assert {search.named(one.parallel.recompute) for one in search.fastest(less, 30)} > {"full"}
    only = search.fastest(dataclasses.replace(less, limits=config.Limits(recompute=["none", "full"])), 30)
    assert {search.named(one.parallel.recompute) for one in only} <= {"none", "full"} and only


def test_limits_of_the_run_say_how_many_gpus_keep_them() -> None:
    words = ["gpus=64", "total_tokens=1000000000000"]
    run, request = asked(*words)
    found = proposals.proposals(request, 10)
    first = costs.of_run(run.total_tokens, run.failures, request, found[0].step_s)
    days = first.whole_days * found[3].step_s / found[0].step_s
    assert proposals.within(run, request, found) == found
    run, request = asked(*words, f"limits.days={days * 1.0001}")
    assert [one.parallel for one in proposals.within(run, request, found)] == [one.parallel for one in found[:4]]
    for key, limit in (("days", first.whole_days / 3), ("gpu_hours", first.whole_gpu_hours * 0.998)):
        run, request = asked(*words, f"limits.{key}={limit}")
        with pytest.raises(
            config.ConfigError, match=rf"limits.{key}=.*: the fastest layout takes .*; give gpus=\d+"
        ) as said:
            proposals.within(run, request, found)
        gpus = re.search(r"give (gpus=\d+)", str(said.value))
        assert gpus and gpus[1] != "gpus=64"
        run, request = asked(*words, f"limits.{key}={limit}", gpus[1])
        assert proposals.within(run, request, proposals.proposals(request, 1)), "the remedy works"
    run, request = asked(*words, "limits.dollars=1000")
    with pytest.raises(config.ConfigError, match="fewer GPUs do not do it .*: give fewer total_tokens, or a higher"):
        proposals.within(run, request, found)


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


def days_of(capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    plan.main(asked("gpus=64", "best=1", "total_tokens=1000000000000", *overrides)[0])
    return next(line for line in capsys.readouterr().out.splitlines() if "tokens in" in line)


def test_days_with_failures_are_simulated(capsys: pytest.CaptureFixture[str]) -> None:
    """Against the closed form, which counts no waits; rates and times are those of the device and of `failures`."""

    def share(line: str) -> float:
        return float(re.findall(r"([\d.]+)% ± [\d.]+% effective", line)[0])

    plain = days_of(capsys)
    days, longer = (float(text) for text in re.findall(r"([\d.]+)(?: days and| and [\d,]+ with them)", plain))
    assert days / longer == pytest.approx(share(plain) / 100, abs=0.002) and "one stop per 792 h" in plain
    assert share(plain) == pytest.approx(100 * causes.first_order(config.Simulate(gpus=64, days=days)), abs=0.2)
    assert "one stop per 396 h" in days_of(capsys, "failures.failure_factor=2")
    device = "hardware.devices.H100.stops_per_1000_node_days"
    assert f"one stop per {1000 / 8 / 30 * 24:.0f} h" in days_of(capsys, f"{device}=30")
    assert share(days_of(capsys, "failures.planned_s=7200")) < share(plain) - 5
    none = days_of(capsys, "failures.spare_nodes=0", "failures.repair_hours=2400", f"{device}=300")
    assert share(none) < 20
    assert "never done with them" in days_of(capsys, "failures.restart_s=1e9", f"{device}=1e7")


def test_a_long_run_is_judged_by_a_part_of_it() -> None:
    long = config.Simulate(gpus=131072, replications=5)
    assert results.share_of(long, 1e4) == results.share_of(long, 1e5)
    whole = results.effective(simulation.simulate(dataclasses.replace(long, gpus=16384, days=200)))
    part = results.share_of(dataclasses.replace(long, gpus=16384, replications=20), 200 * whole.value)
    assert part.value == pytest.approx(whole.value, abs=whole.half + part.half)


def test_a_stage_of_the_embedding_alone_has_memory() -> None:
    shape = asked("model=8b")[1].model
    parallel = config.Parallel(pp=34, embedding_as_layer=True, loss_as_layer=True)
    work = memory.Workload(sequence_length=8192, micro_batches=34, replicas=1)
    first = memory.of_stage(shape, parallel, config.Precision(), work, 0)
    assert first.activations == 0 and first.weights == 2 * shape.vocab_size * shape.hidden_size
