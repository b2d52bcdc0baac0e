"""The runs of a ladder: for each budget the models around its expected optimum, with schedule, nodes and layout.

A budget fixes the batch (report); a model's tokens are the budget over its FLOPs per token. The models of a budget are
those whose tokens stand around the optimum that is expected, so that its minimum is inside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llama31 import config
from llama31.config import Issue
from llama31.plan import shapes
from llama31.planner import proposals, search
from llama31.planner.search import Demand, Proposal
from llama31.scaling import family

FEWEST = 4  # models of a budget: a parabola takes three
FIRST_MFU = 0.4  # where the search for a budget's nodes begins


@dataclass(frozen=True)
class Site:
    """What the ladder is laid out for."""

    device: config.Device
    stack: config.Stack
    numbers: config.Precision
    memory_gb: float


@dataclass(frozen=True)
class Rung:
    """One run: a model, what it is trained on by which processes, and the seconds of a step that are expected."""

    name: str
    budget: float
    model: config.Model
    schedule: config.Schedule
    parallel: config.Parallel
    nodes: int
    gpus: int
    step_s: float

    @property
    def hours(self) -> float:
        """Of the whole schedule, without failures."""
        return self.schedule.total_tokens / self.schedule.batch_tokens * self.step_s / 3600

    @property
    def flops(self) -> float:
        """FLOPs of the whole schedule: the budget, but for the rounding to whole steps."""
        return self.schedule.total_tokens * shapes.flops_per_token(self.model, self.schedule.sequence_length)


def site_of(ladder: config.Ladder, hardware: config.Hardware, numbers: config.Precision) -> Site:
    """What a ladder is laid out for. ConfigError where device or stack is not there."""
    issues = proposals.unknown(hardware, ladder.device, ladder.stack, numbers, "ladder.")
    if issues:
        raise config.ConfigError(issues)
    device = hardware.devices[ladder.device]
    return Site(device, hardware.stacks[ladder.stack], numbers, proposals.room_gb(device))


def expected_tokens(budget: float, ladder: config.Ladder) -> float:
    """Tokens that are expected to be best for a budget: the law around which models are chosen."""
    return ladder.expected_factor * budget**ladder.expected_exponent


def batch_tokens(budget: float, ladder: config.Ladder) -> int:
    """Tokens per step of a budget: a power of two times the smallest batch, by the logarithm of FLOPs.

    The same whatever other budgets the ladder has.
    """
    share = math.log(budget / ladder.smallest_batch_flops)
    share /= math.log(ladder.largest_batch_flops / ladder.smallest_batch_flops)
    doublings = math.log2(ladder.largest_batch / ladder.smallest_batch)
    return ladder.smallest_batch * 2 ** round(min(max(share, 0.0), 1.0) * doublings)


def rungs(ladder: config.Ladder, site: Site) -> list[Rung]:
    """All runs, budget by budget, smaller models first.

    Raises ConfigError for what no run can be made of, and for budgets that too few models fit.
    """
    issues = problems(ladder)
    if issues:
        raise config.ConfigError(issues)
    models = [
        (size, family.model(size, ladder.vocab_size, ladder.sequence_length))
        for size in family.sizes(ladder.smallest, ladder.largest, ladder.sizes)
    ]
    made: list[Rung] = []
    for budget in sorted(ladder.budgets):
        expected = expected_tokens(budget, ladder)
        around = []
        for size, model in models:
            tokens = budget / shapes.flops_per_token(model, ladder.sequence_length)
            if expected / ladder.span <= tokens <= expected * ladder.span:
                around.append((size, model, tokens))
        issues += _few(budget, len(around), expected, ladder)
        issues += _short(budget, around, ladder)
        if not issues:
            made += on_nodes(budget, around, ladder, site)
    if issues:
        raise config.ConfigError(issues)
    return made


def problems(ladder: config.Ladder) -> list[Issue]:
    """What is wrong with the keys together."""
    issues = []
    if not ladder.budgets or min(ladder.budgets) <= 0 or len(set(ladder.budgets)) < len(ladder.budgets):
        issues.append(Issue("ladder.budgets", ladder.budgets, "no budgets", "give different numbers of FLOPs above 0"))
    if ladder.largest <= ladder.smallest:
        remedy = f"give more than {ladder.smallest:g}"
        issues.append(Issue("ladder.largest", ladder.largest, "not above ladder.smallest", remedy))
    if ladder.largest_batch_flops <= ladder.smallest_batch_flops:
        remedy = f"give more than {ladder.smallest_batch_flops:g}"
        reason = "not above ladder.smallest_batch_flops"
        issues.append(Issue("ladder.largest_batch_flops", ladder.largest_batch_flops, reason, remedy))
    if ladder.smallest_batch % ladder.sequence_length:
        reason = f"not a whole number of sequences of {ladder.sequence_length} tokens"
        near = max(1, round(ladder.smallest_batch / ladder.sequence_length)) * ladder.sequence_length
        issues.append(Issue("ladder.smallest_batch", ladder.smallest_batch, reason, f"give {near}"))
    doublings = math.log2(ladder.largest_batch / ladder.smallest_batch)
    if doublings < 0 or doublings != round(doublings):
        reason = f"not a power of two times ladder.smallest_batch={ladder.smallest_batch}"
        near = ladder.smallest_batch * 2 ** max(0, round(doublings))
        issues.append(Issue("ladder.largest_batch", ladder.largest_batch, reason, f"give {near}"))
    return issues


def _few(budget: float, there: int, expected: float, ladder: config.Ladder) -> list[Issue]:
    if there >= FEWEST:
        return []
    reason = (
        f"{there} of {ladder.sizes} models reach {expected:.2g} tokens over or times {ladder.span:g} at {budget:g} "
        f"FLOPs, and a minimum takes {FEWEST}"
    )
    remedy = "give more ladder.sizes, a larger ladder.span, or other ends (ladder.smallest, ladder.largest)"
    return [Issue("ladder.budgets", f"{budget:g}", reason, remedy)]


def _short(budget: float, around: list[tuple[float, config.Model, float]], ladder: config.Ladder) -> list[Issue]:
    batch = batch_tokens(budget, ladder)
    least = min((tokens for _, _, tokens in around), default=math.inf) / batch
    if least > 2 * ladder.warmup_steps:
        return []
    reason = f"a model would end after {least:,.0f} steps of {batch:,} tokens, {ladder.warmup_steps:,} of them warm-up"
    remedy = (
        "give smaller batches (ladder.smallest_batch, .largest_batch), fewer ladder.warmup_steps, or a smaller span"
    )
    return [Issue("ladder.budgets", f"{budget:g}", reason, remedy)]


def on_nodes(
    budget: float, around: Sequence[tuple[float, config.Model, float]], ladder: config.Ladder, site: Site
) -> list[Rung]:
    """The runs of a budget on so many nodes that the slowest ends within `hours`, or that each row has a GPU."""
    rows = batch_tokens(budget, ladder) // ladder.sequence_length
    nodes = nodes_of(budget, rows, ladder, site)
    while True:
        made = [rung_of(budget, size, model, tokens, nodes, ladder, site) for size, model, tokens in around]
        if max(rung.hours for rung in made) <= ladder.hours or nodes == most_nodes(rows, ladder):
            return made
        nodes *= 2


def rung_of(
    budget: float, size: float, model: config.Model, tokens: float, nodes: int, ladder: config.Ladder, site: Site
) -> Rung:
    """The run of a `model` of about `size` parameters on about so many tokens: whole steps of its budget's batch."""
    batch, rate = batch_tokens(budget, ladder), family.learning_rate(size, ladder)
    schedule = config.Schedule(
        total_tokens=max(1, round(tokens / batch)) * batch,
        batch_tokens=batch,
        sequence_length=ladder.sequence_length,
        peak_lr=rate,
        final_lr=float(f"{rate * ladder.final_share:.6g}"),
        warmup_tokens=ladder.warmup_steps * batch,
    )
    best = laid_out(model, schedule, nodes * ladder.gpus_per_node, site)
    name = f"{budget:g}".replace("+", "") + f"_{family.named(size)}"
    return Rung(name, budget, model, schedule, best.parallel, nodes, nodes * ladder.gpus_per_node, best.step_s)


def nodes_of(budget: float, rows: int, ladder: config.Ladder, site: Site) -> int:
    """Nodes to begin with: `hours` at a share of the peak, in powers of two, at most a GPU for each of `rows`."""
    gpus = budget / (site.device.bf16_tflops * 1e12 * FIRST_MFU * 3600 * ladder.hours)
    nodes = 2 ** max(0, math.ceil(math.log2(max(1.0, gpus / ladder.gpus_per_node))))
    return min(nodes, most_nodes(rows, ladder))


def most_nodes(rows: int, ladder: config.Ladder) -> int:
    """A power of two of nodes with a GPU for each of a step's `rows` at most."""
    return 2 ** int(math.log2(max(1, rows // ladder.gpus_per_node)))


def laid_out(model: config.Model, schedule: config.Schedule, gpus: int, site: Site) -> Proposal:
    """The planner's fastest layout on `gpus`. ConfigError says what would make one possible where there is none."""
    asked = Demand(
        model, site.numbers, site.device, site.stack, gpus, schedule.sequence_length, schedule.batch_tokens,
        site.memory_gb,
    )  # fmt: skip
    found = search.fastest(asked, 1)
    if not found:
        reason = f"no layout of {model.name} on {gpus} GPUs is accepted and fits {site.memory_gb:.1f} GB"
        remedy = "give fewer or more, another ladder.device, or batches of more rows (ladder.smallest_batch)"
        raise config.ConfigError([Issue("ladder.gpus_per_node", gpus, reason, remedy)])
    return found[0]
