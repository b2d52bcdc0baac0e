"""Bills of runs: by the planner where it knows device and layout, else by a share of the peak with the reason."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from llama31 import config
from llama31.command import entry
from llama31.config import Job
from llama31.plan import layout, schedule
from llama31.planner import search, speed
from llama31.slurm import bills, jobs, predicted

GIVEN = ["name=x", "tokenizer=demo", "data=demo"]
LARGE = ["model=405b", "schedule=405b", "cluster=h100"]
SMALL = ["model=8b", "parallel=8b_1node", "schedule=8b", "cluster=h100"]
RECORDS = ["init_from=x", "model=8b", "parallel=8b_1node", "cluster=h100", "schedule.total_tokens=1e9"]


def of(root: str, *overrides: str) -> Any:
    given = GIVEN if root == "pretrain" else GIVEN[:2]
    return entry.compose(jobs.SCHEMAS[root], root, [*given, *overrides])


def pretrain(*overrides: str) -> config.Pretrain:
    run: config.Pretrain = of("pretrain", *overrides)
    return run


def test_hours_are_those_of_each_stage_by_the_planner() -> None:
    """The first layout of the 405B runs through a ramp of lengths and batches; every step has its stage's time."""
    run = pretrain(*LARGE, "parallel=405b_8k", "stop_after_steps=342161")
    hardware = entry.compose(config.Plan, "plan", []).hardware
    seconds, tokens = 0.0, 0
    for stage in schedule.stages(run.schedule):
        steps = min(342161, stage.first_step + (stage.steps or 0)) - stage.first_step
        if steps <= 0:
            continue
        count = layout.micro_batches(run.parallel, stage.batch_tokens, stage.sequence_length, 8192)
        job = search.step_job(
            search.Demand(
                run.model, run.precision, hardware.devices["H100"], hardware.stacks["megatron"], 8192,
                stage.sequence_length, stage.batch_tokens, 80,
            ),
            dataclasses.replace(run.parallel, dp=64),
        )  # fmt: skip
        assert job.micro_batches == count
        seconds += steps * speed.total(speed.step(job, hardware.devices["H100"], hardware.stacks["megatron"]))
        tokens += steps * stage.batch_tokens
    bill, seen = bills.training(run, 8192), predicted.of(run, 8192)
    assert bill.hours == pytest.approx(seconds / 3600) and seen.tokens == tokens and bill.gpus == 8192
    assert len({stage.sequence_length for _, stage in predicted.stages(run)}) == 2
    wanted = r"8,192 GPUs, 2\.87T tokens, \d+ h, [\d,]+ GPU-h at (\d+) tokens/s and (\d+) TFLOPS per H100 \(planner\); "
    said = re.match(wanted + r"(\d+) h with failures", str(bill))
    assert said is not None and int(said[1]) == round(tokens / seconds / 8192)
    assert int(said[3]) == pytest.approx(bill.hours / bill.effective, abs=1) and 0.85 < bill.effective < 0.97
    assert int(said[2]) == pytest.approx(430, rel=0.15)  # the report's (Table 4)


def test_a_given_share_of_the_peak_wins() -> None:
    run = pretrain(*SMALL)
    assert str(bills.training(run, 512, 0.38)).endswith("GPU-h at 38% of 989 TFLOPS")
    assert bills.of(
        jobs.single("pretrain", [*GIVEN, *SMALL], Job(nodes=64)), Job(nodes=64, mfu=0.38)
    ) == bills.training(run, 512, 0.38)
    assert "(planner)" in str(bills.of(jobs.single("pretrain", [*GIVEN, *SMALL], Job(nodes=64)), Job(nodes=64)))


@pytest.mark.parametrize(
    ("root", "overrides", "reason"),
    [
        ("pretrain", [*SMALL, "cluster.device=H1000"], "no constants of cluster.device=H1000"),
        (
            "pretrain",
            [*SMALL, "precision=fp32", "cluster.device=GB300"],
            "precision.params=fp32 is not predicted on cluster.device=GB300",
        ),
        (
            "pretrain",
            [*SMALL, "precision=fp8_tensorwise", "precision.fp8_first_layers_bf16=1"],
            "FP8 in a part of the layers, or on a device without, is not predicted",
        ),
        (
            "pretrain",
            [*SMALL, "precision=fp8_tensorwise", "cluster.device=A100"],
            "FP8 in a part of the layers, or on a device without, is not predicted",
        ),
        ("dpo", RECORDS, "preferences are not predicted"),
        ("reward", RECORDS, "preferences are not predicted"),
    ],
)
def test_what_the_planner_does_not_know_is_billed_with_the_reason(root: str, overrides: list[str], reason: str) -> None:
    peak = {"GB300": 2500, "A100": 312}.get(overrides[-1].rpartition("=")[2], 989)
    assert str(bills.training(of(root, *overrides), 8)).endswith(f"at 40% of {peak} TFLOPS ({reason})")


def test_a_cluster_without_a_device_is_billed_as_ever() -> None:
    run = pretrain(*SMALL, "cluster=local")
    assert str(bills.training(run, 8)) == str(bills.training(run, 8, 0.4))
    assert predicted.unknown(of("sft", *RECORDS)) is None  # rows of dialogs are rows


def test_failures_cost_what_the_interval_of_checkpoints_makes_them() -> None:
    run = pretrain(*LARGE, "parallel=405b_16k")

    def effective(**keys: Any) -> float:
        return predicted.of(dataclasses.replace(run, checkpoint=config.Checkpoint(**keys)), 16384).effective

    often, seldom = effective(mtbf_hours=3.0), effective(every_minutes=60.0)
    assert effective(every_minutes=15.0) < often and seldom < effective(every_minutes=15.0) - 0.08
    assert predicted.checkpoint_s(config.Checkpoint(every_tokens=1000), 0.5, 9.0) == 500
    assert predicted.checkpoint_s(config.Checkpoint(every_minutes=None), 0.5, 9.0) == 9
    assert effective(every_minutes=None) < 0.2  # planned stops save, and nothing else


def test_totals_are_those_with_failures_too() -> None:
    bill = bills.of_planner(predicted.PredictedRun(8, 10**12, 1e21, 3600.0 * 80, 0.8), "H100")
    assert (
        bill.words
        == "1T tokens, 80 h, 640 GPU-h at 434,028 tokens/s and 434 TFLOPS per H100 (planner); 100 h with failures"
    )
    never = dataclasses.replace(predicted.PredictedRun(8, 10**12, 1e21, 3600.0 * 80, 0.8), effective=0.0)
    assert bills.of_planner(never, "H100").words.endswith("; never done with failures")
    steps = [jobs.single("pretrain", [*GIVEN, *SMALL], Job(nodes=64))]
    hours = bills.training(steps[0].run, 512)
    total = bills.table(steps, Job(nodes=64)).splitlines()[-1]
    assert f"h one after the other, {bills.digits(hours.hours / hours.effective)} h with failures" in total
    assert bills.table(steps, Job(nodes=64, mfu=0.4)).endswith("h one after the other")
