"""What a run takes against what was predicted, with planted seconds and bytes: the term is named, and once."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest

from llama31 import config
from llama31.command import entry, hardware, inputs
from llama31.planner import speed
from llama31.resilience import expectation
from llama31.resilience.expectation import Departure, Expectation, Planned, Taken

pytestmark = pytest.mark.torch  # of the package, whose other modules need it

BATCH, LENGTH = 2**20, 8192
H100 = config.Cluster(device="H100")


@functools.cache
def known() -> tuple[config.Device, config.Stack, config.Model]:
    chosen = hardware.chosen(H100)
    assert chosen is not None
    return *chosen, entry.compose(config.Plan, "plan", []).model


def planned(**layout: Any) -> Planned:
    *chosen, model = known()
    parallel = config.Parallel(**{"tp": 2, "dp": 4, **layout})
    return Planned(model, parallel, config.Precision(), *chosen, gpus=8, stage=0, average=False)


def states_of(given: Expectation) -> float:
    need = given.of(BATCH, LENGTH).need
    return need.weights + need.gradients + need.states


def as_predicted(given: Expectation, **changes: float) -> Taken:
    one = given.of(BATCH, LENGTH)
    parts, live = one.parts(), one.need.allocated
    seconds = {"step_s": speed.total(one.seconds), "data_s": 0.0, "passes_s": parts[expectation.PASSES]}
    return Taken(**{**seconds, "allocated": live, "reserved": live + 1e9, **changes})


def told(given: Expectation, taken: Taken, windows: int = 3) -> list[Departure]:
    steps = expectation.WARM_UP_STEPS + windows * expectation.WINDOW_STEPS
    return [one for _ in range(steps) for one in given.compare(taken, BATCH, LENGTH)]


def test_a_run_as_predicted_is_not_remarked_on() -> None:
    given = Expectation(planned())
    given.states_bytes = states_of(given)
    assert told(given, as_predicted(given)) == []
    near = as_predicted(given, step_s=1.14 * speed.total(given.of(BATCH, LENGTH).seconds))
    assert told(given, near) == []


@pytest.mark.parametrize(
    ("part", "name", "look"),
    [
        ("data_s", expectation.DATA, "data.prefetch"),
        ("passes_s", expectation.PASSES, "most of it products and attention; look at a profile"),
        ("", expectation.REST, "look at the network between replicas"),
    ],
)
def test_what_makes_a_step_slow_is_named_once(part: str, name: str, look: str) -> None:
    given = Expectation(planned())
    plain = as_predicted(given)
    more = 0.3 * plain.step_s
    slow = {"step_s": plain.step_s + more} | ({part: getattr(plain, part) + more} if part else {})
    (one,) = told(given, dataclasses.replace(plain, **slow))
    assert one.event == "step_time" and "(+30%)" in one.reason and name in one.reason and look in one.reason


def test_a_run_that_is_faster_is_told_too_and_steps_of_the_warm_up_are_not() -> None:
    given = Expectation(planned())
    plain = as_predicted(given)
    slow = dataclasses.replace(plain, step_s=9 * plain.step_s)
    assert not [one for _ in range(expectation.WARM_UP_STEPS) for one in given.compare(slow, BATCH, LENGTH)]
    fast = dataclasses.replace(plain, step_s=0.7 * plain.step_s, passes_s=plain.passes_s - 0.3 * plain.step_s)
    (one,) = told(given, fast)
    assert "(-30%)" in one.reason and expectation.PASSES in one.reason


def test_another_batch_is_predicted_anew() -> None:
    given = Expectation(planned())
    one, two = (speed.total(given.of(batch, LENGTH).seconds) for batch in (BATCH, 2 * BATCH))
    assert 1.8 < two / one < 2
    plain = as_predicted(given)
    steps = expectation.WARM_UP_STEPS + expectation.WINDOW_STEPS
    seen = [list(given.compare(plain, BATCH * (1 + n // (steps - 1)), LENGTH)) for n in range(steps + 5)]
    assert not any(seen), "the steps of two batches make no window"


@pytest.mark.parametrize(
    ("states", "live", "reserved", "name"),
    [
        (12e9, 12e9, 0.0, expectation.STATES),
        (0.0, 20e9, 0.0, expectation.ALIVE),
        (0.0, 0.0, 20e9, expectation.ALLOCATOR),
    ],
)
def test_what_takes_memory_is_named(states: float, live: float, reserved: float, name: str) -> None:
    given = Expectation(planned())
    given.states_bytes = states_of(given) + states
    plain = as_predicted(given)
    assert plain.allocated is not None and plain.reserved is not None
    more = dataclasses.replace(plain, allocated=plain.allocated + live, reserved=plain.reserved + live + reserved)
    (one,) = told(given, more)
    assert one.event == "memory" and f"reserved: {name} take" in one.reason


def test_zero_3_gathers_inside_of_the_passes() -> None:
    one, three = (planned(zero=zero, tp=1, dp=8).predict(BATCH, LENGTH) for zero in (1, 3))
    assert "dp" in one.between and "dp" not in three.between
    assert sum(three.parts().values()) == pytest.approx(speed.total(three.seconds))


def test_the_start_says_what_is_expected() -> None:
    line = Expectation(planned()).line(BATCH, LENGTH)
    assert line.startswith("expected: ") and "s a step" in line and "products" in line and "GB of tensors" in line


def test_constants_that_are_not_there_are_refused(tmp_path: Path) -> None:
    own = tmp_path / "hardware" / "mine.yaml"
    lines = ["devices:", "  h: {bf16_tflops: 1, copy_tb_s: 1, memory_gib: 1, nvlink_gb_s: 1, network_gb_s: 1}"]
    own.parent.mkdir()
    for given, said in (
        (config.Cluster(device="H100", hardware="publishd"), "cluster.hardware=publishd: "),
        (
            config.Cluster(device="H1"),
            "cluster.device=H1: published has no such entry; give one of H1",
        ),
        (
            config.Cluster(device="H100", hardware=str(own)),
            f"cluster.hardware={own}: there is no such file; give .../hardware/NAME.yaml",
        ),
        (
            config.Cluster(device="H100", hardware="mine.yaml"),
            "cluster.hardware=mine.yaml: it does not lie in a folder `hardware`",
        ),
    ):
        with pytest.raises(config.ConfigError) as caught:
            hardware.chosen(given)
        assert str(caught.value).startswith(said)
        assert caught.value.issues[0] in inputs._constants(given)
    own.write_text("\n".join(lines) + "\n")
    with pytest.raises(config.ConfigError, match=r"cluster.stack=megatron: .*mine.yaml has no such entry"):
        hardware.chosen(config.Cluster(hardware=str(own), device="h"))
    assert hardware.chosen(config.Cluster()) is None


def test_what_the_constants_do_not_know_is_said() -> None:
    device = known()[0]
    assert expectation.unknown(device, config.Precision(fp8="delayed")) == ""
    assert expectation.unknown(device, config.Precision(params="fp32")) == ""
    assert "FP32" in expectation.unknown(dataclasses.replace(device, fp32_tflops=0), config.Precision(params="fp32"))
    assert "FP8" in expectation.unknown(dataclasses.replace(device, fp8_tflops=0), config.Precision(fp8="delayed"))
    assert "emulated" in expectation.unknown(device, config.Precision(fp8="delayed", fp8_emulate=True))
