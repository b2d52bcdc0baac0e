"""Learning rate, batch and sequence length as functions of tokens seen. Arithmetic alone, no torch.

"Tokens seen" are always those before a step: step 0 has seen none, so a run with warm-up starts at learning rate 0,
and a ramp takes effect at the first step that has seen its `from_tokens`. Everything costs O(ramp), never O(steps),
so that the place of step 1,000,000 is known at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from llama31.config import Ramp, Schedule


@dataclass(frozen=True)
class Stage:
    """Consecutive steps with one batch and sequence length. `steps` is None for a stage without end."""

    first_step: int
    steps: int | None
    from_tokens: int
    batch_tokens: int
    sequence_length: int

    @property
    def rows(self) -> int:
        """Sequences per optimizer step."""
        return self.batch_tokens // self.sequence_length


def of_record(record: Mapping[str, Any]) -> Schedule:
    """The schedule that a checkpoint was saved with, from its fields; those of other versions are left out."""
    known = {field.name for field in fields(Schedule)}
    schedule = Schedule(**{key: value for key, value in record.items() if key in known})
    schedule.ramp = [Ramp(**ramp) for ramp in record.get("ramp", [])]
    return schedule


def unbounded(schedule: Schedule) -> list[Stage]:
    """The stages as if training never ended: the last one has no end. Stages without a step are left out."""
    sizes = [(0, schedule.batch_tokens, schedule.sequence_length)]
    sizes += [(ramp.from_tokens, ramp.batch_tokens, ramp.sequence_length) for ramp in schedule.ramp]
    result: list[Stage] = []
    step = tokens = 0
    for index, (_from, batch, length) in enumerate(sizes):
        steps = None
        if index + 1 < len(sizes):
            steps = max(0, _ceil_div(sizes[index + 1][0] - tokens, batch))
        if steps != 0:
            result.append(Stage(step, steps, tokens, batch, length))
        if steps is not None:
            step, tokens = step + steps, tokens + steps * batch
    return result


def stages(schedule: Schedule) -> list[Stage]:
    """The stages that training reaches, in order, each with its number of steps; the last ends with training."""
    end = total_steps(schedule)
    result = []
    for stage in unbounded(schedule):
        if stage.first_step < end:
            steps = end - stage.first_step if stage.steps is None else min(stage.steps, end - stage.first_step)
            result.append(Stage(stage.first_step, steps, stage.from_tokens, stage.batch_tokens, stage.sequence_length))
    return result


def batch_at(schedule: Schedule, tokens: int) -> Stage:
    """The stage that the step belongs to that has seen `tokens`: its batch_tokens and sequence_length."""
    return [stage for stage in unbounded(schedule) if stage.from_tokens <= tokens][-1]


def step_tokens(schedule: Schedule, step: int) -> int:
    """Tokens seen before `step` (counted from 0)."""
    stage = [stage for stage in unbounded(schedule) if stage.first_step <= step][-1]
    return stage.from_tokens + (step - stage.first_step) * stage.batch_tokens


def step_at(schedule: Schedule, tokens: int) -> int:
    """The first step that has seen at least `tokens`."""
    stage = batch_at(schedule, tokens)
    return stage.first_step + _ceil_div(tokens - stage.from_tokens, stage.batch_tokens)


def total_steps(schedule: Schedule) -> int:
    """Steps of the whole training: it ends at the first step that has seen `total_tokens`."""
    return step_at(schedule, schedule.total_tokens)


def last_step(schedule: Schedule, from_step: int, most: int | None) -> int:
    """The step after which training ends: the schedule's last, or after `most` steps from `from_step`."""
    return total_steps(schedule) if most is None else min(total_steps(schedule), from_step + most)


def learning_rate(schedule: Schedule, tokens: int) -> float:
    """Learning rate of the step that has seen `tokens`: linear warm-up from 0, then the decay, then `final_lr`.

    With `clock: steps` progress is counted in optimizer steps, as in the report, where the batch grows on the way;
    the keys stay in tokens. A constant schedule keeps `peak_lr`.
    """
    end_tokens = schedule.total_tokens if schedule.decay_tokens is None else schedule.decay_tokens
    now, warm, end = (_clock(schedule, at) for at in (tokens, schedule.warmup_tokens, end_tokens))
    if now < warm:
        return schedule.peak_lr * now / warm
    if schedule.decay == "constant":
        return schedule.peak_lr
    if now >= end:
        return schedule.final_lr
    left = 1 - (now - warm) / (end - warm)
    share = left if schedule.decay == "linear" else (1 - math.cos(math.pi * left)) / 2
    return schedule.final_lr + (schedule.peak_lr - schedule.final_lr) * share


def _clock(schedule: Schedule, tokens: int) -> float:
    """`tokens` on the schedule's clock: themselves, or the (fractional) optimizer steps that they took."""
    if schedule.clock == "tokens":
        return tokens
    stage = batch_at(schedule, tokens)
    return stage.first_step + (tokens - stage.from_tokens) / stage.batch_tokens


def _ceil_div(tokens: int, batch: int) -> int:
    return -(-tokens // batch)
