"""Constants of a machine: planted ones are found again, the planner takes the file, wrong requests are refused.

Nothing here is timed but in the trial, whose numbers say nothing.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.machine import calibration, cases, constants, hardware_file
from benchmarks.machine.constants import Machine
from benchmarks.machine.readings import MARK, Readings
from llama31 import config
from llama31.command import entry
from llama31.config import Device, Stack
from llama31.planner import products, speed
from recipes import benchmark, plan
from tests.parallel.launch import forked

FLOPS, LEAD, RATE, COPY = 60e9, 7.0, 25e9, 12e9
START_S, LINK, BACK, PAIR = 300e-6, 1.5e9, 2.0, 3e9
HOST_US, EACH_US, FIXED_S, REDUCE_US, GATHER_US = 20.0, 700.0, 2e-3, 5000.0, 8000.0
SMALLEST = "tiny DP 2, ZeRO 1: 64 x 5, 4"
MORE = {"tp_kernels": 0.7, "cp_kernels": 0.4, "reduce_times": 1.6, "gather_times": 1.3}
SHORT, AHEAD, BEHIND = 40.0, 50e9, 30e9


def parts(processes: int) -> Readings:
    """Of a machine with those constants, as if they had been measured."""
    rate = products.Rate(FLOPS, LEAD, 0)
    known = Readings(processes, "fp32", "planted", False, 32 * 2**30, "none")
    shapes = [(t, 3 * h, h) for t in (64, 512) for h in (128, 256)] + [(512, 1, 2), (256, 256, 8)]
    known.products = [[*shape, products.seconds(*shape, rate)] for shape in shapes]
    known.attention = [
        [n, n, 256, 2 * n * n * 256 * (1 + SHORT / n) / AHEAD, 5 * n * n * 256 / BEHIND] for n in (64, 256, 1024)
    ]
    known.elementwise = [[t, 256, 768, 1e-4 + 4 * t * (37 * 256 + 10 * 768) / RATE] for t in (128, 512)]
    known.accumulated = [[10.0**n, 10.0**n * 12 / RATE] for n in (4, 5, 6)]
    known.copies = [[2.0**24, 2.0**25 / COPY]]
    known.optimizer = [[2.0**20, 2.0**20 * 32 / COPY]]
    linear = (2048, 256)
    alone = products.forward(512, linear, rate) + products.backward(512, linear, rate)
    known.losses = [[512, 2048, 256, alone + 40 * 512 * 2048 / RATE]]
    if processes > 1:
        sizes = (2.0**10, 2.0**18, 2.0**22)
        known.messages = [("all_gather", processes, size, START_S + size / LINK) for size in sizes]
        known.messages += [("reduce_scatter", processes, size, START_S + BACK * size / LINK) for size in sizes]
        known.messages += [("send", 2, size, size / PAIR) for size in sizes]
    return known


def planted(processes: int) -> Readings:
    """The same, with steps of tiny models."""
    known = parts(processes)
    whole = constants.fitted(known, [])
    stack = dataclasses.replace(
        whole.stack,
        fixed_s=FIXED_S,
        micro_batch_us=EACH_US,
        host_us=HOST_US,
        reduce_us=REDUCE_US,
        gather_us=GATHER_US,
        **MORE,
    )
    tiny = cases.tiny(processes)
    known.steps = [(one.name, speed.total(speed.step(constants.job(one, known), whole.device, stack))) for one in tiny]
    return known


def machine(processes: int) -> Machine:
    return constants.fitted(planted(processes), cases.tiny(processes))


@pytest.mark.parametrize("processes", [1, 2])
def test_planted_constants_are_found_again(processes: int) -> None:
    found = machine(processes)
    device, stack = found.device, found.stack
    assert stack.products_fp32 * device.fp32_tflops == pytest.approx(FLOPS / 1e12)
    assert stack.lead_fp32 == pytest.approx(LEAD)
    assert (stack.attention_forward, stack.attention_half_forward) == pytest.approx((AHEAD / 1e12, SHORT))
    assert (stack.attention_backward, stack.attention_half_backward) == pytest.approx((BEHIND / 1e12, 0), abs=1e-6)
    assert device.copy_tb_s == pytest.approx(COPY / 1e12) and stack.copy == pytest.approx(RATE / COPY)
    assert (stack.accumulate, stack.optimizer_bytes, stack.loss_bytes) == pytest.approx((1.5, 32, 40))
    host = stack.host_us, stack.micro_batch_us, stack.fixed_s
    assert host == pytest.approx((HOST_US, EACH_US, FIXED_S), rel=0.01)
    assert not device.launches_ahead and device.multiprocessors == 0
    if processes > 1:
        links = device.nvlink_gb_s, device.message_us, device.p2p_gb_s, stack.scatter
        assert links == pytest.approx((LINK / 1e9, START_S * 1e6, PAIR / 1e9, BACK))
        assert (stack.reduce_us, stack.gather_us) == pytest.approx((REDUCE_US, GATHER_US), rel=0.01)
        assert {name: getattr(stack, name) for name in MORE} == pytest.approx(MORE, rel=0.01)


def test_steps_of_the_planted_machine_are_predicted() -> None:
    """The constants, and not the steps that they came from, say what other models take on every layout."""
    found, truth = machine(2), planted(2)
    true = dataclasses.replace(found.stack, host_us=HOST_US, gather_us=GATHER_US, micro_batch_us=EACH_US, **MORE)
    for case in cases.predicted(2):
        work = constants.job(case, truth)
        wanted = speed.total(speed.step(work, found.device, true))
        assert speed.total(speed.step(work, found.device, found.stack)) == pytest.approx(wanted, rel=0.02)
    said = dataclasses.replace(truth, steps=[*truth.steps, *((case.name, 1.0) for case in cases.predicted(2))])
    text = calibration.compared([dataclasses.replace(found, readings=said)])
    assert all(f"| {layout} | {count}" in text for layout in cases.LAYOUTS for count in (128, 256, 384))
    assert text.count("1000.0 |") == len(cases.predicted(2))


def test_a_gpu_launches_ahead_and_has_its_data_sheet() -> None:
    gpu = dataclasses.replace(parts(1), gpu=True, device="NVIDIA H100 80GB HBM3", params="bf16")
    found = constants.fitted(gpu, [])
    assert found.device.bf16_tflops == 989 and found.device.launches_ahead and found.device.multiprocessors == 132
    assert found.device.memory_gib == 32 and 0 < found.stack.products_bf16 < 0.2


def test_factors_are_never_below_zero() -> None:
    assert constants.least([(1, 1), (1, 2), (1, 3)], [3, 2, 1]) == pytest.approx([66 / 49, 0])
    assert constants.least([(1, 0), (0, 1)], [2, 3]) == pytest.approx([2, 3])
    assert constants.sized([(1, 1), (2, 1)], [3, 2]) == pytest.approx((1.2, 0)), "larger work was quicker: noise"
    with pytest.raises(ValueError, match="nothing was measured of attention, copies; calibrate again"):
        constants.fitted(dataclasses.replace(parts(1), attention=[], copies=[]), [])


def test_of_several_rounds_the_median_is_kept() -> None:
    first = parts(1)
    slow, fast = (
        dataclasses.replace(
            first,
            copies=[[*row[:-1], factor * row[-1]] for row in first.copies],
            attention=[[*row[:-2], factor * row[-2], row[-1]] for row in first.attention],
        )
        for factor in (9.0, 0.5)
    )
    assert Readings.median([slow, first, fast]) == first
    assert Readings.median([slow, slow, fast]).copies == slow.copies


def test_the_planner_takes_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "hardware/mine.yaml"
    named = hardware_file.names("mine", [machine(2), machine(1)])
    assert list(named) == ["mine", "mine-1"] and "| mine-1 | 1 |" in hardware_file.table(named)
    path.parent.mkdir()
    path.write_text(hardware_file.to_yaml(named))
    assert f"--config-dir {tmp_path} hardware=mine device=mine stack=mine" in hardware_file.commands(path, "mine")
    words = ["hardware=mine", "device=mine", "stack=mine", "model=tiny", "precision=fp32", "gpus=2"]
    words += ["sequence_length=256", "batch_tokens=2048", "memory_gb=8"]
    run = entry.compose(config.Plan, "plan", words, tmp_path)
    for name, one in named.items():
        for kept, made in ((run.hardware.devices[name], one.device), (run.hardware.stacks[name], one.stack)):
            for key, value in dataclasses.asdict(made).items():
                wanted = None if value is None else pytest.approx(value, rel=1e-5)
                assert getattr(kept, key) == wanted, key
    plan.main(run)
    assert "2 mine, rows of 256 tokens" in capsys.readouterr().out
    assert yaml.safe_load(path.read_text()).keys() == {"devices", "stacks"}
    assert set(yaml.safe_load(path.read_text())["devices"]["mine"]) == {f.name for f in dataclasses.fields(Device)}
    assert set(yaml.safe_load(path.read_text())["stacks"]["mine"]) == {f.name for f in dataclasses.fields(Stack)}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"write": "mine.yaml"}, "write=mine.yaml: recipes.plan finds no such file; give conf/hardware/NAME.yaml"),
        ({"write": "hardware/1 2.yaml"}, "write=hardware/1 2.yaml: recipes.plan finds no such file"),
        ({"write": "conf/hardware/published.yaml"}, "it holds the constants of published runs; give another name"),
        ({"write": "nowhere/hardware/m.yaml"}, "its folder is not there; make it, or give conf/hardware/NAME.yaml"),
        ({"write": "conf/hardware/m.yaml", "parts": ["pack"]}, "no part measures it; give parts=[calibrate]"),
        ({"parts": ["predict"], "processes": 3}, "processes=3: predict measures with two and with one; leave it out"),
    ],
)
def test_wrong_requests_are_refused(keys: dict[str, Any], said: str) -> None:
    problems = benchmark.check(config.Benchmark(**{"parts": ["calibrate"], **keys}))
    assert len(problems) == 1 and said in problems[0]


def test_a_part_is_a_word() -> None:
    assert benchmark.expanded(["calibrate", "processes=1"]) == ["parts=[calibrate]", "processes=1"]
    assert benchmark.expanded(["predict"]) == ["parts=[predict]"]


@pytest.mark.torch
@pytest.mark.parallel
def test_two_processes_measure_all_parts_and_steps() -> None:
    given = [one for one in cases.tiny(2) if one.name == SMALLEST]
    asked = {"params": "fp32", "rounds": 2, "sizes": "trial", "cases": [dataclasses.asdict(one) for one in given]}
    said = forked(2, "benchmarks.machine.worker", json.dumps(asked))
    (line,) = [line for line in said.splitlines() if line.startswith(MARK)]
    readings = Readings(**json.loads(line.removeprefix(MARK)))
    kinds = {(kind, ranks) for kind, ranks, *_ in readings.messages}
    assert kinds == {("all_gather", 2), ("reduce_scatter", 2), ("all_reduce", 2), ("send", 2)}
    assert [name for name, _ in readings.steps] == [SMALLEST] and readings.processes == 2
    found = constants.fitted(readings, given)
    assert all(value >= 0 for value in dataclasses.asdict(found.stack).values())
