"""What is told of layouts: the fastest beside each other, the winner by cause and stage, its bill, and its YAML.

Step times are those of training alone; days and money with failures come from their simulation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from llama31.config import ConfigError, Device, Failures, Hardware, Issue, Parallel, Plan, Precision, Simulate
from llama31.failures import causes, results
from llama31.plan import memory, shapes
from llama31.planner import search
from llama31.planner.search import Demand, Proposal

OUTSIDE_GB = 4.9  # of a device's memory that lives outside of torch's allocator (conf/cluster/h100.yaml)
MORE = 7  # doublings of GPUs that are tried where nothing fits
REPLICATIONS = 20  # of a simulation: a tenth of a percent of the run either way, in a tenth of a second
HOUR_S, DAY_S = 3600, 86_400


def request(run: Plan) -> Demand:
    """What `run` asks for. ConfigError where the device or the stack is unknown, or the batch is no whole rows."""
    issues = unknown(run.hardware, run.device, run.stack, run.precision)
    if run.batch_tokens % run.sequence_length:
        near = max(1, round(run.batch_tokens / run.sequence_length)) * run.sequence_length
        reason = f"no multiple of sequence_length={run.sequence_length}"
        issues.append(Issue("batch_tokens", run.batch_tokens, reason, f"give {near}"))
    if not issues:
        failing = causes.issues(simulated(run.failures, run.hardware.devices[run.device], run.gpus))
        issues = [issue._replace(key=f"failures.{issue.key}") for issue in failing]
    if issues:
        raise ConfigError(issues)
    device, stack = run.hardware.devices[run.device], run.hardware.stacks[run.stack]
    room = run.memory_gb or room_gb(device)
    return Demand(run.model, run.precision, device, stack, run.gpus, run.sequence_length, run.batch_tokens, room)


def unknown(hardware: Hardware, device: str, stack: str, numbers: Precision, section: str = "") -> list[Issue]:
    """What `hardware` has no entry for, or no rate of, by the keys of a section."""
    issues = [
        Issue(f"{section}{key}", value, "there is no such entry", f"give one of {', '.join(known)}")
        for key, value, known in (("device", device, hardware.devices), ("stack", stack, hardware.stacks))
        if value not in known
    ]
    if not issues and numbers.params == "fp32" and not hardware.devices[device].fp32_tflops:
        reason = f"the rate of FP32 products of {device} is not known"
        remedy = f"give precision=bf16, or hardware.devices.{device}.fp32_tflops=..."
        issues.append(Issue("precision.params", "fp32", reason, remedy))
    return issues


def room_gb(device: Device) -> float:
    """10^9 bytes of a device that tensors may take."""
    return device.memory_gib * 2**30 / 1e9 - OUTSIDE_GB


def proposals(asked: Demand, count: int) -> list[Proposal]:
    """The fastest layouts. ConfigError says what would make one possible where there is none."""
    result = search.fastest(asked, count)
    if result:
        return result
    for doubling in range(1, MORE + 1):
        more = dataclasses.replace(asked, gpus=asked.gpus << doubling)
        if search.fastest(more, 1):
            raise _none(asked, f"give gpus={more.gpus}")
    fewest = next(
        (gpus for gpus in _fewer(asked.gpus) if search.fastest(dataclasses.replace(asked, gpus=gpus), 1)), None
    )
    remedy = f"give gpus={fewest}" if fewest else "give a larger batch, shorter rows or a device with more memory"
    raise _none(asked, remedy)


def tables(run: Plan, asked: Demand, found: Sequence[Proposal]) -> str:
    """Markdown: the layouts, the winner by cause and by stage, and its bill."""
    lines = [
        f"{asked.model.name} on {asked.gpus:,} {run.device}, rows of {asked.sequence_length:,} tokens, "
        f"{asked.batch_tokens:,} a step, {asked.memory_gb:.1f} GB for tensors:",
        "",
        "| | tp | cp | pp | vpp | dp | zero | micro_batch | recompute | step s | tokens/s/GPU | TFLOP/s | MFU | GB |",
        "|" + "---|" * 14,
    ]
    lines += [_line(number, asked, one) for number, one in enumerate(found, start=1)]
    best = found[0]
    lines += [
        "",
        f"the first: {' '.join(overrides(best.parallel))}",
        "",
        *_causes(best.seconds),
        "",
        *_stages(asked, best),
    ]
    return "\n".join([*lines, "", *_bill(run, asked, best)])


def overrides(parallel: Parallel) -> list[str]:
    """Keys of a layout as the command line takes them, without those that are as the schema says."""
    return [f"parallel.{name}={_word(value)}" for name, value in _changed(parallel).items()]


def to_yaml(asked: Demand, one: Proposal, name: str) -> str:
    """The layout as a file of conf/parallel."""
    head = (
        f"# torchrun ... -m recipes.pretrain model={asked.model.name} parallel={name} ...\n"
        f"# Proposed by recipes.plan for {asked.gpus:,} GPUs, rows of {asked.sequence_length} tokens, "
        f"{asked.batch_tokens} a step: {one.step_s:.3g} s and {one.memory.total / 1e9:.1f} GB are expected.\n"
    )
    return head + "".join(f"{name}: {_word(value)}\n" for name, value in _changed(one.parallel).items())


def _none(asked: Demand, remedy: str) -> ConfigError:
    reason = f"no layout of {asked.model.name} is accepted and fits {asked.memory_gb:.1f} GB"
    return ConfigError([Issue("gpus", asked.gpus, reason, remedy)])


def _fewer(gpus: int) -> list[int]:
    """Where a batch has too few rows for so many replicas."""
    return [gpus >> n for n in range(1, gpus.bit_length()) if gpus % (1 << n) == 0]


def _changed(parallel: Parallel) -> dict[str, object]:
    plain, given = Parallel(), dataclasses.asdict(parallel)
    return {name: value for name, value in given.items() if value != getattr(plain, name)}


def _word(value: object) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(str, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _line(number: int, asked: Demand, one: Proposal) -> str:
    layout = one.parallel
    per_gpu = asked.batch_tokens / asked.gpus / one.step_s
    tflops = shapes.flops_per_token(asked.model, asked.sequence_length) * per_gpu / 1e12
    sizes = (layout.tp, layout.cp, layout.pp, layout.vpp, layout.dp, layout.zero, layout.micro_batch)
    again = "+".join(layout.recompute) or "none"
    reached = f"{tflops:.0f} | {tflops / asked.device.bf16_tflops:.1%}"
    numbers = f"{one.step_s:.3f} | {per_gpu:,.0f} | {reached} | {one.memory.total / 1e9:.1f}"
    return f"| {number} | {' | '.join(map(str, sizes))} | {again} | {numbers} |"


def _causes(seconds: Mapping[str, float]) -> list[str]:
    whole = sum(seconds.values())
    ordered = sorted(seconds.items(), key=lambda cause: -cause[1])
    return ["| step by cause | s | |", "|---|---|---|", *(f"| {n} | {s:.3f} | {s / whole:.1%} |" for n, s in ordered)]


def _stages(asked: Demand, one: Proposal) -> list[str]:
    work = memory.workload(one.parallel, asked.stage, one.parallel.dp or 1)
    stages = memory.predict(asked.model, one.parallel, asked.numbers, work)
    causes = list(stages[0].causes())
    lines = [f"| GB of stage | {' | '.join(causes)} | total |", "|" + "---|" * (len(causes) + 2)]
    for stage in stages:
        numbers = (stage.stage, *(f"{count / 1e9:.1f}" for count in (*stage.causes().values(), stage.total)))
        lines.append(f"| {' | '.join(map(str, numbers))} |")
    return lines


def simulated(given: Failures, device: Device, gpus: int) -> Simulate:
    """The simulation of a run on so many GPUs of a kind."""
    stops, keys = device.stops_per_1000_node_days, dataclasses.asdict(given)
    if stops is not None:
        keys["failure_factor"] *= causes.failure_factor(stops, device.per_node)
    return Simulate(**keys, gpus=gpus, node_gpus=device.per_node, replications=REPLICATIONS)


def _bill(run: Plan, asked: Demand, one: Proposal) -> list[str]:
    steps = -(-run.total_tokens // asked.batch_tokens)
    hours = steps * one.step_s / HOUR_S
    gpu_hours, device = hours * asked.gpus, asked.device
    causal = shapes.flops_per_token(asked.model, asked.sequence_length)
    full = causal + 6 * asked.model.layers * asked.model.heads * asked.model.head_dim * asked.sequence_length
    per_gpu = asked.batch_tokens / asked.gpus / one.step_s / 1e12
    peak = device.bf16_tflops
    failing = simulated(run.failures, device, asked.gpus)
    share = results.share_of(failing, hours / 24)
    paid = gpu_hours / share.value if share.value > 0 else gpu_hours
    lines = [
        f"TFLOP/s per GPU and MFU of the BF16 peak: causal attention {causal * per_gpu:.0f}, "
        f"{causal * per_gpu / peak:.1%}; all of the square {full * per_gpu:.0f}, {full * per_gpu / peak:.1%}",
        f"{run.total_tokens:,} tokens in {steps:,} steps: {hours / 24:.1f} days and {gpu_hours:,.0f} GPU-hours without "
        f"a failure, {_with_failures(failing, share, hours / 24, paid)}",
    ]
    if device.watts:
        lines.append(
            f"energy: {gpu_hours * device.watts / 1e6:,.0f} MWh at {device.watts:g} W a GPU, its server's share in it, "
            "of training alone"
        )
    if device.dollars_per_hour:
        lines.append(
            f"money: {paid * device.dollars_per_hour:,.0f} dollars at {device.dollars_per_hour:g} a GPU-hour, failures "
            "and all"
        )
    return lines


def _with_failures(failing: Simulate, share: results.Mean, days: float, gpu_hours: float) -> str:
    every = f"one stop per {1 / causes.failures_per_s(failing) / HOUR_S:,.3g} h"
    if share.value <= 0:
        return f"never done with them ({every}: nothing is trained between two)"
    return f"{days / share.value:.1f} and {gpu_hours:,.0f} with them ({every}, {share.percent()} effective)"
