"""The runs of a ladder: for each budget the models around its expected optimum, with schedule, nodes and layout.

A budget fixes the batch (report); a model's tokens are the budget over its FLOPs per token. The models of a budget are
those whose tokens stand around the optimum that is expected, so that its minimum is inside.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llama31 import config
from llama31.config import Issue
from llama31.plan import layout, memory, shapes
from llama31.plan.schedule import Stage
from llama31.scaling import family

FEWEST = 4  # models of a budget: a parabola takes three
FILLED = 0.8  # share of a GPU's memory that is planned with
STATE_BYTES, SHARDED_BYTES = 6, 12  # per parameter: BF16 weights and FP32 gradients; masters and moments over dp
LOGIT_BYTES = 6  # per token and row of the vocabulary: BF16, and FP32 in the loss


@dataclass(frozen=True)
class Rung:
    """One run: a model, and what it is trained on by which processes."""

    name: str
    budget: float
    model: config.Model
    schedule: config.Schedule
    parallel: config.Parallel
    nodes: int
    gpus: int

    @property
    def flops(self) -> float:
        """FLOPs of the whole schedule: the budget, but for the rounding to whole steps."""
        return self.schedule.total_tokens * shapes.flops_per_token(self.model, self.schedule.sequence_length)


def expected_tokens(budget: float, ladder: config.Ladder) -> float:
    """Tokens that are expected to be best for a budget: the law around which models are chosen."""
    return ladder.expected_factor * budget**ladder.expected_exponent


def batch_tokens(budget: float, ladder: config.Ladder) -> int:
    """Tokens per step of a budget: a power of two times the smallest batch, by the logarithm of FLOPs."""
    least, most = min(ladder.budgets), max(ladder.budgets)
    share = 0.0 if least == most else math.log(budget / least) / math.log(most / least)
    return ladder.smallest_batch * 2 ** round(share * math.log2(ladder.largest_batch / ladder.smallest_batch))


def rungs(ladder: config.Ladder) -> list[Rung]:
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
            made += [rung_of(budget, size, model, tokens, ladder) for size, model, tokens in around]
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


def rung_of(budget: float, size: float, model: config.Model, tokens: float, ladder: config.Ladder) -> Rung:
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
    nodes = nodes_of(budget, batch // ladder.sequence_length, ladder)
    gpus = nodes * ladder.gpus_per_node
    parallel = layout_of(model, schedule, gpus, ladder.gpu_gb)
    return Rung(
        f"{budget:g}".replace("+", "") + f"_{family.named(size)}", budget, model, schedule, parallel, nodes, gpus
    )


def nodes_of(budget: float, rows: int, ladder: config.Ladder) -> int:
    """Nodes of a budget's array: as `hours` ask for, in powers of two, at most a GPU for each of a step's `rows`."""
    gpus = budget / (ladder.peak_tflops * 1e12 * ladder.mfu * 3600 * ladder.hours)
    nodes = 2 ** max(0, math.ceil(math.log2(max(1.0, gpus / ladder.gpus_per_node))))
    most = max(1, rows // ladder.gpus_per_node)
    return min(nodes, 2 ** int(math.log2(most)))


def layout_of(model: config.Model, schedule: config.Schedule, gpus: int, gpu_gb: float) -> config.Parallel:
    """A layout of `gpus` processes that should fit: the least tensor parallelism and the largest micro-batch that do.

    A rule of thumb over `plan/memory.py`: of that, whatever the model does not split into is replaced by the nearest
    layout that is possible. Raises ValueError where none is.
    """
    stage = Stage(0, None, 0, schedule.batch_tokens, schedule.sequence_length)
    wanted = config.Parallel(tp=gpus)
    for tp in (2**n for n in range(int(math.log2(gpus)) + 1)):
        fits = [
            parallel
            for parallel in (config.Parallel(tp=tp, micro_batch=size) for size in (4, 2, 1))
            if stage.rows % (parallel.micro_batch * gpus // tp) == 0
            and bytes_of(model, parallel, stage.sequence_length, gpus) <= FILLED * gpu_gb * 1e9
        ]
        if fits:
            wanted = fits[0]
            break
    if not layout.problems(model, wanted, [stage], gpus):
        return wanted
    possible = layout.nearest(model, wanted, [stage], gpus)
    if possible is None:
        raise ValueError(
            f"ladder: no layout of {gpus} processes works for {model.name} at {schedule.batch_tokens:,} tokens a step; "
            "give other ladder.gpus_per_node, or batches with more sequences"
        )
    return possible


def bytes_of(model: config.Model, parallel: config.Parallel, sequence_length: int, gpus: int) -> float:
    """Bytes on a GPU of a model without pipeline: state, what the backward pass needs, and logits."""
    tokens = parallel.micro_batch * sequence_length / parallel.cp
    state = shapes.parameters(model) * (STATE_BYTES / parallel.tp + SHARDED_BYTES / gpus)
    kept = tokens * model.layers * sum(memory.layer_bytes(model, parallel).values())
    return state + kept + tokens * model.vocab_size * LOGIT_BYTES / parallel.tp
