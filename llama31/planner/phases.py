"""A whole run in one table: its phases, each on the layout that is given, and their sum beside what was published.

Days are those of training alone; effective ones are longer by what failures cost, simulated once per number of GPUs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from llama31.config import ConfigError, Failures, Issue, Phase, TotalPublished
from llama31.failures import causes, results
from llama31.plan import layout, schedule, shapes
from llama31.plan.memory import Capacity
from llama31.planner import costs, search, speed
from llama31.planner.search import Demand


@dataclass(frozen=True)
class PartOfRun:
    """Steps of one batch and length on one layout."""

    name: str
    asked: Demand
    sizes: str  # of the layout
    steps: int
    step_s: float
    gb: float
    published_tflops: float | None
    effective: float = 1.0  # share of the time that trains, once failures come

    @property
    def tokens(self) -> int:
        return self.steps * self.asked.batch_tokens

    @property
    def days(self) -> float:
        return self.steps * self.step_s / causes.DAY_S

    @property
    def gpu_hours(self) -> float:
        return self.days * 24 * self.asked.gpus

    def tflops(self, square: bool = False) -> float:
        """Per GPU, of causal attention or of all of its square."""
        model, length = self.asked.model, self.asked.sequence_length
        flops = shapes.flops_per_token(model, length)
        flops += 6 * model.layers * model.heads * model.head_dim * length if square else 0
        return flops * self.asked.batch_tokens / self.asked.gpus / self.step_s / 1e12


def parts(phases: Mapping[str, Phase], asked: Demand, failures: Failures) -> list[PartOfRun]:
    """Every batch of every phase, with what `failures` take.

    ConfigError where a layout is not possible or does not fit, or a phase is empty.
    """
    result: list[PartOfRun] = []
    issues: list[Issue] = []
    for name, phase in phases.items():
        if phase.parallel.dp is None:
            issues.append(Issue(f"phases.{name}.parallel.dp", None, "says how many GPUs there are", "give it"))
            continue
        gpus, own = layout.world(phase.parallel), list(_stages(phase))
        if not own:
            problem = f"the phase begins at {phase.parallel.from_tokens} and has no step"
            issues.append(Issue(f"phases.{name}.until_tokens", phase.until_tokens, problem, "give more"))
        if own:
            numbers, limit = asked.numbers, Capacity(asked.memory_gb)
            wrong = layout.problems(asked.model, phase.parallel, own, gpus, numbers, limit)
            issues += [one._replace(key=_key(name, one.key)) for one in wrong]
        for stage in own if not issues else []:
            length, batch = stage.sequence_length, stage.batch_tokens
            sized = dataclasses.replace(asked, gpus=gpus, sequence_length=length, batch_tokens=batch)
            result.append(_part(name, phase, stage, sized))
    if issues:
        raise ConfigError(issues)
    return list(_with_failures(result, failures))


def _with_failures(run: Sequence[PartOfRun], failures: Failures) -> Iterator[PartOfRun]:
    """The parts of so many GPUs fail as one run does."""
    shares = {}
    for gpus in {one.asked.gpus for one in run}:
        days = sum(one.days for one in run if one.asked.gpus == gpus)
        failing = costs.simulated(failures, run[0].asked.device, gpus)
        shares[gpus] = results.share_of(failing, days).value
    if min(shares.values()) <= 0:
        gpus = min(shares, key=shares.__getitem__)
        raise ConfigError([Issue("phases", gpus, "with failures nothing is trained", "lower failures.failure_factor")])
    yield from (dataclasses.replace(one, effective=shares[one.asked.gpus]) for one in run)


def table(run: Sequence[PartOfRun], device: str, published: TotalPublished) -> str:
    """Markdown: a line per part, their sum, and what was published beside it."""
    first = run[0].asked
    lines = [
        f"| {first.model.name} on {device} | GPUs | tp cp pp vpp dp | row | batch | tokens | step s | TFLOP/s, MFU "
        "| of the square | GB | days | with failures | GPU-hours so | MWh | dollars |",
        "|" + "---|" * 15,
        *(_line(one) for one in run),
        _sum(run),
        "",
        *(_beside(run, published) if device == published.device else [_elsewhere(published)]),
    ]
    return "\n".join(lines)


def _key(name: str, key: str) -> str:
    """What a rule of layouts calls a key, as `recipes.plan` has it."""
    return f"phases.{name}.{key}" if key.startswith("parallel.") else key.removeprefix("cluster.")


def _stages(phase: Phase) -> Iterator[schedule.Stage]:
    """The schedule's stages as far as they lie in the phase."""
    first = schedule.step_at(phase.schedule, phase.parallel.from_tokens)
    end = schedule.total_steps(phase.schedule)
    if phase.until_tokens is not None:
        end = min(end, schedule.step_at(phase.schedule, phase.until_tokens))
    for stage in schedule.stages(phase.schedule):
        begin, last = max(stage.first_step, first), min(stage.first_step + (stage.steps or 0), end)
        if last > begin:
            yield dataclasses.replace(
                stage, first_step=begin, steps=last - begin, from_tokens=schedule.step_tokens(phase.schedule, begin)
            )


def _part(name: str, phase: Phase, stage: schedule.Stage, asked: Demand) -> PartOfRun:
    given = phase.parallel
    step_s = speed.total(speed.step(search.step_job(asked, given), asked.device, asked.stack))
    need, _ = layout.worst(asked.model, given, [stage], given.dp or 1, asked.numbers, Capacity(asked.memory_gb))
    sizes = " ".join(map(str, (given.tp, given.cp, given.pp, given.vpp, given.dp)))
    last = stage.sequence_length, stage.batch_tokens
    end = schedule.stages(phase.schedule)[-1]
    tflops = phase.tflops if last == (end.sequence_length, end.batch_tokens) else None
    return PartOfRun(name, asked, sizes, stage.steps or 0, step_s, need.total / 1e9, tflops)


def _line(one: PartOfRun) -> str:
    peak, asked = one.asked.device.bf16_tflops, one.asked
    causal, square = one.tflops(), one.tflops(square=True)
    reached = f"{causal:.0f}, {causal / peak:.1%} | {square:.0f}, {square / peak:.1%}"
    sizes = f"{asked.gpus:,} | {one.sizes} | {asked.sequence_length:,} | {asked.batch_tokens / 2**20:.4g}M"
    time = f"{one.gb:.1f} | {_days([one])}"
    return f"| {one.name} | {sizes} | {_tokens([one])} | {one.step_s:.2f} | {reached} | {time} | {_cost([one])} |"


def _sum(run: Sequence[PartOfRun]) -> str:
    return f"| all | | | | | {_tokens(run)} | | | | | {_days(run)} | {_cost(run)} |"


def _tokens(run: Sequence[PartOfRun]) -> str:
    count = sum(one.tokens for one in run)
    return f"{count / 1e12:.3f}T" if count >= 1e12 else f"{count / 1e9:.3g}B"


def _days(run: Sequence[PartOfRun]) -> str:
    return f"{sum(one.days for one in run):.2f} | {_elapsed(run):.2f}"


def _elapsed(run: Sequence[PartOfRun]) -> float:
    return sum(one.days / one.effective for one in run)


def _cost(run: Sequence[PartOfRun]) -> str:
    """GPU-hours, energy and money of the time that elapses."""
    device = run[0].asked.device
    hours = sum(one.gpu_hours / one.effective for one in run)
    energy = f"{hours * device.watts / 1e6:,.0f}" if device.watts else ""
    money = f"{hours * device.dollars_per_hour / 1e6:,.2f}M" if device.dollars_per_hour else ""
    return f"{hours / 1e6:.3f}M | {energy} | {money}"


def _elsewhere(published: TotalPublished) -> str:
    return f"what was published ran on {published.device}, and is not compared"


def _beside(run: Sequence[PartOfRun], published: TotalPublished) -> list[str]:
    """Predicted, published, and how far apart."""
    plain = sum(one.gpu_hours for one in run)
    model = run[0].asked.model
    flops = 6 * shapes.parameters(model) * sum(one.tokens for one in run)
    share = sum(one.days for one in run) / _elapsed(run)
    rows: list[tuple[str, float, float | None, str]] = [
        ("GPU-hours with failures", sum(one.gpu_hours / one.effective for one in run), published.gpu_hours, ",.0f"),
        ("GPU-hours without", plain, published.gpu_hours, ",.0f"),
        ("FLOPs, 6 a parameter and token", flops, published.flops, ".3g"),
        ("share of the time that trains", share, published.effective, ".1%"),
    ]
    rows += [(f"TFLOP/s of {x.name}", x.tflops(), x.published_tflops, ".0f") for x in run if x.published_tflops]
    lines = ["| | predicted | published | error |", "|---|---|---|---|"]
    for name, value, told, form in rows:
        error = "" if told is None else f"{told:{form}} | {value / told - 1:+.1%}"
        lines.append(f"| {name} | {value:{form}} | {error or ' | '} |")
    return lines
