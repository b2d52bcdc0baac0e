"""Seconds and bytes by cause: where they follow from the layout alone, exactly, and which way each knob moves them."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from llama31 import config
from llama31.command import entry
from llama31.planner import products, speed
from llama31.planner.validation import footprint
from llama31.planner.workloads import StepJob, split


@functools.cache
def asked() -> config.Plan:
    return entry.compose(config.Plan, "plan", [])


@pytest.fixture
def hardware() -> config.Hardware:
    return asked().hardware


def model(name: str) -> config.Model:
    return asked().models[f"llama3_{name}"]


def job(name: str = "70b", **changes: Any) -> StepJob:
    layout = {"gpus": 64, "micro_batch": 1, "micro_batches": 64, "tp": 4, "pp": 4, "cp": 2, "vpp": 5, "dp": 2}
    given = {"fp8": False, "sequence_length": 8192, **layout, **changes}
    return StepJob(model(name), "H100", "megatron", **given)


def seconds(hardware: config.Hardware, given: StepJob) -> dict[str, float]:
    return speed.step(given, hardware.devices[given.device], hardware.stacks[given.stack])


def test_tiles_fill_a_device_in_waves() -> None:
    assert products.filled(128 * 12, 256 * 11, 132) == 1.0
    assert 133 / 264 < products.filled(128 * 133, 256, 132) < 0.7  # a smaller tile leaves less of the second wave
    rate = products.Rate(flops=1e12, lead=100, multiprocessors=132)
    assert products.seconds(128 * 12, 256 * 11, 900, rate) == pytest.approx(2 * 128 * 12 * 256 * 11 * 1000 / 1e12)


def test_layers_of_stages() -> None:
    assert split(model("70b"), 4, 5) == (20, 20)
    assert split(model("405b"), 16, 8) == (8, 7)  # embedding and loss count as a layer each
    assert split(model("8b"), 1, 1) == (32, 32)


def test_bubble_is_stages_less_one_of_micro_batches_times_chunks(hardware: config.Hardware) -> None:
    one, more = (seconds(hardware, job(vpp=vpp)) for vpp in (1, 5))
    assert one["bubble"] == pytest.approx(5 * more["bubble"])
    layers = sum(one[cause] for cause in ("products", "attention", "elementwise", "accumulate"))
    assert one["bubble"] == pytest.approx(3 / 64 * layers, rel=0.1)


def test_causes_that_a_layout_does_not_have(hardware: config.Hardware) -> None:
    alone = seconds(hardware, job("8b", gpus=1, tp=1, pp=1, cp=1, vpp=1, dp=1))
    assert not alone.keys() & {"tp", "cp", "p2p", "bubble", "dp", "quantise", "recompute", "jitter"}
    assert alone["products"] > alone["attention"] > 0 and alone["head"] > 0


@pytest.mark.parametrize(
    ("slower", "cause"),
    [
        ({"recompute": frozenset({"full"})}, "recompute"),
        ({"micro_batches": 128}, "products"),
        ({"eager": True}, "elementwise"),
        ({"gpus": 2048, "dp": 64}, "jitter"),
        ({"gpus": 128, "tp": 8}, "tp"),
    ],
)
def test_what_makes_a_step_longer_is_named(hardware: config.Hardware, slower: dict[str, Any], cause: str) -> None:
    assert seconds(hardware, job(**slower)).get(cause, 0) > 1.1 * seconds(hardware, job()).get(cause, 0)


def test_fp8_is_faster_and_pays_for_quantising(hardware: config.Hardware) -> None:
    wide, narrow = seconds(hardware, job()), seconds(hardware, job(fp8=True))
    assert narrow["products"] < 0.7 * wide["products"] and narrow["quantise"] > 0
    assert narrow["attention"] == wide["attention"] and narrow["head"] == wide["head"]
    assert speed.total(narrow) < speed.total(wide)


def test_small_layers_wait_for_the_host(hardware: config.Hardware) -> None:
    assert seconds(hardware, job("8b", gpus=8, tp=8, pp=1, cp=1, vpp=1, dp=1, sequence_length=1024))["host"] > 0
    assert "host" not in seconds(hardware, job())


def test_states_are_shared_out_and_activations_fly() -> None:
    few, many = (footprint.causes(job(gpus=32 * dp, dp=dp)) for dp in (2, 8))
    assert few["states"] == pytest.approx(4 * many["states"])
    assert few["activations"] == many["activations"] > footprint.causes(job(vpp=20))["activations"]
    kept = footprint.causes(job(recompute=frozenset({"full"})))["activations"]
    assert kept == pytest.approx(2 * 8192 / 4 * 4096 * 80 * (1 + 3 / 20))
