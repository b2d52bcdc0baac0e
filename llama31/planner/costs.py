"""What the run of a layout takes: days, GPU-hours, energy and money, failures and all. No torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from llama31.config import Device, Failures, Simulate
from llama31.failures import causes, results
from llama31.plan import shapes
from llama31.planner.search import Demand

REPLICATIONS = 20  # of a simulation: a tenth of a percent of the run either way, in a tenth of a second
HOUR_S = 3600


def simulated(given: Failures, device: Device, gpus: int) -> Simulate:
    """The simulation of a run on so many GPUs of a kind."""
    stops, keys = device.stops_per_1000_node_days, dataclasses.asdict(given)
    if stops is not None:
        keys["failure_factor"] *= causes.failure_factor(stops, device.per_node)
    return Simulate(**keys, gpus=gpus, node_gpus=device.per_node, replications=REPLICATIONS)


@dataclass(frozen=True)
class RunCost:
    """Of a run of `tokens` from its first step to its last."""

    asked: Demand
    tokens: int
    steps: int
    hours: float  # that train
    failing: Simulate
    share: results.Mean  # of the time that trains

    @property
    def is_ever_done(self) -> bool:
        """Whether anything is trained between two stops."""
        return self.share.value > 0

    @property
    def gpu_hours(self) -> float:
        """That train."""
        return self.hours * self.asked.gpus

    @property
    def whole_days(self) -> float:
        """With failures; of a run that is never done, endless."""
        return self.hours / 24 / self.share.value if self.is_ever_done else float("inf")

    @property
    def whole_gpu_hours(self) -> float:
        """The same in GPU-hours."""
        return 24 * self.whole_days * self.asked.gpus

    @property
    def dollars(self) -> float:
        """With failures; 0 where the device has no price."""
        return self.whole_gpu_hours * self.asked.device.dollars_per_hour if self.asked.device.dollars_per_hour else 0.0


def of_run(tokens: int, failures: Failures, asked: Demand, step_s: float) -> RunCost:
    """Of so many tokens in steps of `step_s` seconds, failures simulated."""
    steps = -(-tokens // asked.batch_tokens)
    hours = steps * step_s / HOUR_S
    failing = simulated(failures, asked.device, asked.gpus)
    return RunCost(asked, tokens, steps, hours, failing, results.share_of(failing, hours / 24))


def lines(whole: RunCost, step_s: float) -> list[str]:
    """MFU in both conventions and the bill, as they are printed."""
    asked, device = whole.asked, whole.asked.device
    causal = shapes.flops_per_token(asked.model, asked.sequence_length)
    full = causal + 6 * asked.model.layers * asked.model.heads * asked.model.head_dim * asked.sequence_length
    per_gpu = asked.batch_tokens / asked.gpus / step_s / 1e12
    peak = asked.peak_tflops
    said = [
        f"TFLOP/s per GPU and MFU of the {asked.numbers.params.upper()} peak: causal attention {causal * per_gpu:.0f}, "
        f"{causal * per_gpu / peak:.1%}; all of the square {full * per_gpu:.0f}, {full * per_gpu / peak:.1%}",
        f"{whole.tokens:,} tokens in {whole.steps:,} steps: {whole.hours / 24:.1f} days and "
        f"{whole.gpu_hours:,.0f} GPU-hours without a failure, {_with_failures(whole)}",
    ]
    if device.watts:
        said.append(
            f"energy: {whole.gpu_hours * device.watts / 1e6:,.0f} MWh at {device.watts:g} W a GPU, its server's share "
            "in it, of training alone"
        )
    if device.dollars_per_hour and whole.is_ever_done:
        said.append(f"money: {whole.dollars:,.0f} dollars at {device.dollars_per_hour:g} a GPU-hour, failures and all")
    return said


def _with_failures(whole: RunCost) -> str:
    every = f"one stop per {1 / causes.failures_per_s(whole.failing) / HOUR_S:,.3g} h"
    if not whole.is_ever_done:
        return f"never done with them ({every}: nothing is trained between two)"
    days = f"{whole.whole_days:.1f} and {whole.whole_gpu_hours:,.0f} with them"
    return f"{days} ({every}, {whole.share.percent()} effective)"
