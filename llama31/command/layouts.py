"""The layout of a run's processes: what is wrong with it, the nearest one that works, and what it wastes. No torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from llama31.command.incomplete import known
from llama31.config import Dpo, Issue, Model, Parallel, Precision, Training
from llama31.plan import layout, schedule
from llama31.plan.memory import Capacity
from llama31.plan.schedule import Stage


def judge(
    run: Any, model: Model | None, parallel: Parallel, stages: Sequence[Stage], world_size: int
) -> tuple[list[Issue], str]:
    """What is impossible about the layout of a run, and a sentence with the nearest one where another would help."""
    numbers: Precision | None = getattr(run, "precision", None)
    capacity = next(iter(known(_capacity, run)), None)
    wrong = layout.problems(model, parallel, stages, world_size, numbers, capacity)
    misfit = any(issue.key.startswith("parallel.") or issue.key == "cluster.memory_gb" for issue in wrong)
    return wrong, _hint(model, parallel, stages, world_size, numbers, capacity) if misfit else ""


def _capacity(run: Any) -> list[Capacity]:
    """Of the devices of a training run, where it is known."""
    if not isinstance(run, Training) or run.cluster.memory_gb is None:
        return []
    return [Capacity(run.cluster.memory_gb, run.optimizer.ema_decay is not None, isinstance(run, Dpo))]


def stages(run: Any) -> list[Stage]:
    """Stages of the schedule that the layout has to carry; none of a recipe that has none."""
    if not isinstance(run, Training):
        return []
    first = schedule.step_at(run.schedule, run.parallel.from_tokens)
    current = schedule.batch_at(run.schedule, schedule.step_tokens(run.schedule, first)).first_step
    return [stage for stage in schedule.stages(run.schedule) if stage.first_step >= current]


def _hint(
    model: Model | None,
    parallel: Parallel,
    stages: Sequence[Stage],
    world_size: int,
    numbers: Precision | None,
    capacity: Capacity | None,
) -> str:
    other = layout.nearest(model, parallel, stages, world_size, numbers, capacity)
    if other is None:
        return f"no layout of {world_size} process(es) works for this model and schedule"
    shown = " ".join(f"parallel.{key}={_shown(new)}" for key, new in layout.changes(parallel, other).items())
    replicas = layout.dp(other, world_size)
    return f"nearest layout that works with {world_size} process(es): {shown} (dp={replicas})"


def _shown(value: Any) -> str:
    return "null" if value is None else re.sub("[' ]", "", str(value).lower())  # a list as it is typed


def warnings(run: Any, parallel: Parallel, stages: Sequence[Stage], world_size: int) -> list[str]:
    """What works and wastes."""
    issues = []
    for stage in stages:
        count = layout.micro_batches(parallel, stage.batch_tokens, stage.sequence_length, world_size)
        if count < parallel.pp:
            share = layout.bubble(parallel, count)
            issues.append(
                f"parallel.pp={parallel.pp}: only {count} micro-batches per step of {stage.batch_tokens} tokens; the "
                f"pipeline idles {share:.0%} of its busy time; give fewer stages, a smaller micro_batch or a larger "
                "batch"
            )
    per_node = run.cluster.processes_per_node
    if per_node and parallel.tp > per_node:
        issues.append(f"parallel.tp={parallel.tp}: reaches beyond one node of {per_node}, over the slow network")
    return issues
