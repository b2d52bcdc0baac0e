"""What is told of layouts: the fastest beside each other, the winner by cause and stage, its bill, and its YAML.

Step times are those of training alone; days and money with failures come from their simulation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from fractions import Fraction

from llama31.config import ConfigError, Device, Hardware, Issue, Limits, Parallel, Plan, Precision
from llama31.failures import causes
from llama31.plan import memory, shapes
from llama31.planner import costs, search
from llama31.planner.costs import RunCost
from llama31.planner.search import Demand, Proposal

MARGIN = 0.04  # docs/planner.md
OUTSIDE_GB = 4.9  # of a device's memory that lives outside of torch's allocator (conf/cluster/h100.yaml)
FACTORS = [Fraction(*ratio) for ratio in ((9, 8), (5, 4), (3, 2), (2, 1), (3, 1), (4, 1), (8, 1))]  # more GPUs for days
MORE = 7  # doublings of GPUs that are tried where nothing fits, or is fast enough
LAYOUT = ("tp", "cp", "pp", "vpp", "dp", "zero", "micro_batch", "recompute")  # limits of it


def request(run: Plan) -> Demand:
    """What `run` asks for. ConfigError where the device or the stack is unknown, or the batch is no whole rows."""
    issues = unknown(run.hardware, run.device, run.stack, run.precision)
    if run.sequence_length > run.model.max_positions:
        remedy = f"give at most that, or model.max_positions={run.sequence_length}"
        reason = f"longer than model.max_positions={run.model.max_positions}"
        issues.append(Issue("sequence_length", run.sequence_length, reason, remedy))
    if run.batch_tokens % run.sequence_length:
        near = max(1, round(run.batch_tokens / run.sequence_length)) * run.sequence_length
        reason = f"no multiple of sequence_length={run.sequence_length}"
        issues.append(Issue("batch_tokens", run.batch_tokens, reason, f"give {near}"))
    if not issues:
        failing = causes.issues(costs.simulated(run.failures, run.hardware.devices[run.device], run.gpus))
        issues = [issue._replace(key=f"failures.{issue.key}") for issue in failing]
        if run.limits.dollars and not run.hardware.devices[run.device].dollars_per_hour:
            remedy = f"give hardware.devices.{run.device}.dollars_per_hour=..., or limits.gpu_hours"
            issues.append(Issue("limits.dollars", run.limits.dollars, f"{run.device} has no price", remedy))
    if issues:
        raise ConfigError(issues)
    device, stack = run.hardware.devices[run.device], run.hardware.stacks[run.stack]
    room = run.memory_gb or room_gb(device)
    sizes = (run.gpus, run.sequence_length, run.batch_tokens, room)
    return Demand(run.model, run.precision, device, stack, *sizes, limits=run.limits)


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
    if not issues and numbers.fp8 != "none":
        if not hardware.devices[device].fp8_tflops:
            issues.append(Issue("precision.fp8", numbers.fp8, f"{device} has no FP8", "give precision=bf16"))
        elif not is_whole_fp8(numbers):
            reason, remedy = "FP8 in a part of the layers is not predicted", "plan with precision=bf16 or FP8 in all"
            issues.append(Issue("precision.fp8", numbers.fp8, reason, remedy))
    return issues


def is_whole_fp8(numbers: Precision) -> bool:
    """Whether all linear layers of all layers compute in FP8."""
    return numbers.fp8_linears == "all" and not (numbers.fp8_first_layers_bf16 or numbers.fp8_last_layers_bf16)


def room_gb(device: Device) -> float:
    """10^9 bytes of a device that tensors may take."""
    return device.memory_gib * 2**30 / 1e9 - OUTSIDE_GB


def proposals(asked: Demand, count: int) -> list[Proposal]:
    """The fastest layouts. ConfigError says what would make one possible where there is none."""
    result = search.fastest(asked, count)
    if result:
        return result
    unsplit = _unsplit(asked)
    if unsplit:
        raise unsplit
    free = _freed(asked)
    if free:
        raise free
    for doubling in range(1, MORE + 1):
        more = dataclasses.replace(asked, gpus=asked.gpus << doubling)
        if search.fastest(more, 1):
            raise _none(asked, f"give gpus={more.gpus}")
    fewest = next(
        (gpus for gpus in _fewer(asked.gpus) if search.fastest(dataclasses.replace(asked, gpus=gpus), 1)), None
    )
    remedy = f"give gpus={fewest}" if fewest else "give a larger batch, shorter rows or a device with more memory"
    raise _none(asked, remedy)


def within(run: Plan, asked: Demand, found: Sequence[Proposal]) -> list[Proposal]:
    """Those whose run keeps the limits of days, GPU-hours and money; ConfigError where the fastest does not."""
    best = _cost(run, asked, found[0])
    issues = [
        Issue(f"limits.{key}", limit, f"the fastest layout takes {taken:,.4g}", _remedy(run, asked, key))
        for key, limit, taken in _taken(run, best)
        if taken > limit
    ]
    if issues:
        raise ConfigError(issues)
    longest = min((limit / taken for _, limit, taken in _taken(run, best) if taken), default=float("inf"))
    return [one for one in found if one is found[0] or one.step_s <= longest * found[0].step_s]


def _cost(run: Plan, asked: Demand, one: Proposal) -> RunCost:
    return costs.of_run(run.total_tokens, run.failures, asked, one.step_s)


def _taken(run: Plan, whole: RunCost) -> list[tuple[str, float, float]]:
    """Limits of the run that are set, with what it takes."""
    given = run.limits
    every = (
        ("days", given.days, whole.whole_days),
        ("gpu_hours", given.gpu_hours, whole.whole_gpu_hours),
        ("dollars", given.dollars, whole.dollars),
    )
    return [(key, limit, taken) for key, limit, taken in every if limit is not None]


def _remedy(run: Plan, asked: Demand, key: str) -> str:
    """More GPUs where days are short, fewer where GPU-hours are, as far as that does it."""
    more = [int(asked.gpus * factor) for factor in FACTORS if (asked.gpus * factor).denominator == 1]
    tried = more if key == "days" else _fewer(asked.gpus)[:MORE]
    least, where = float("inf"), asked.gpus
    for gpus in tried:
        other = dataclasses.replace(asked, gpus=gpus)
        best = search.fastest(other, 1)
        if best:
            taken = next(row for row in _taken(run, _cost(run, other, best[0])) if row[0] == key)
            if taken[2] <= taken[1]:
                return f"give gpus={gpus}, which take {taken[2]:,.4g}"
            if taken[2] < least:
                least, where = taken[2], gpus
    told = f"the least is {least:,.4g}, with {where:,}" if least < float("inf") else ""
    way = "more" if key == "days" else "fewer"
    return f"{way} GPUs do not do it{f' ({told})' if told else ''}: give fewer total_tokens, or a higher limit"


def _unsplit(asked: Demand) -> ConfigError | None:
    """Where rows do not split over so many GPUs, whatever the memory: the nearest batch that does, and fits."""
    free = dataclasses.replace(asked, memory_gb=float("inf"), limits=Limits())
    if any(search.candidates(free)):
        return None
    factors = {asked.gpus // size for size in range(1, asked.gpus + 1) if asked.gpus % size == 0}
    near = {max(1, round(asked.rows / dp)) * dp for dp in factors}
    for rows in sorted(near, key=lambda rows: abs(rows - asked.rows))[:MORE]:
        other = dataclasses.replace(asked, batch_tokens=rows * asked.sequence_length)
        if search.fastest(other, 1):
            reason = f"its {asked.rows:,} rows do not split over the replicas of any layout of gpus={asked.gpus}"
            return ConfigError([Issue("batch_tokens", asked.batch_tokens, reason, f"give {other.batch_tokens}")])
    return None


def _freed(asked: Demand) -> ConfigError | None:
    """Which limit of the layout keeps all from being possible; None where none does."""
    given = [name for name in LAYOUT if getattr(asked.limits, name)]
    for name in given:
        other = Limits(**{**dataclasses.asdict(asked.limits), name: []})
        best = search.fastest(dataclasses.replace(asked, limits=other), 1)
        if best:
            value = _value(best[0], name)
            reason = f"no layout of {asked.model.name} on {asked.gpus:,} GPUs keeps it, is accepted and fits"
            return ConfigError(
                [Issue(f"limits.{name}", _word(getattr(asked.limits, name)), reason, f"give limits.{name}=[{value}]")]
            )
    if given and search.fastest(dataclasses.replace(asked, limits=Limits()), 1):
        reason = f"no layout of {asked.model.name} on {asked.gpus:,} GPUs keeps all limits, is accepted and fits"
        return ConfigError([Issue("limits", ", ".join(given), reason, "leave out two or more of them")])
    return None


def _value(one: Proposal, name: str) -> object:
    return search.named(one.parallel.recompute) if name == "recompute" else getattr(one.parallel, name)


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
    if best.memory.total / 1e9 > (1 - MARGIN) * asked.memory_gb:
        lines += [
            "",
            f"the first leaves {asked.memory_gb - best.memory.total / 1e9:.1f} GB, and memory is {MARGIN:.0%} off on "
            f"average: memory_gb={(1 - MARGIN) * asked.memory_gb:.0f} plans with room",
        ]
    return "\n".join([*lines, "", *costs.lines(_cost(run, asked, best), best.step_s)])


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
    again = search.named(layout.recompute)
    reached = f"{tflops:.0f} | {tflops / asked.peak_tflops:.1%}"
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
