"""What a run says when it starts: from where it goes on, which keys have no effect, what the learning rate does."""

from __future__ import annotations

from dataclasses import asdict

from llama31 import config
from llama31.checkpoint.publish import Meta
from llama31.plan import schedule
from llama31.resilience.resume import Start

JUMP = 1.5  # times from one step to the next; beyond that the learning rate of a resumed run is told


def lines(run: config.Training, start: Start, validated: bool) -> list[str]:
    """Sentences for the console, the first of which says where training begins.

    Raises ValueError where validations are asked for and nothing is held out (not `validated`).
    """
    missing = [] if validated else [_not_validated(run.name, run.validation)]
    if start.resumed is None:
        return [_begins(run.name, run.seed, start), *missing]
    meta = start.resumed
    at = f"step {meta.step} ({meta.tokens:,} tokens)"
    given = {"init_from": run.init_from, "init_optimizer": run.init_optimizer, "init_changes": run.init_changes}
    idle = [f"{key}={value}" for key, value in given.items() if value]
    unheeded = f"; {', '.join(idle)} has no effect, since the run has begun: give another name= to start from it"
    first = f"{run.name}: goes on at {at} from {start.weights}" + (unheeded if idle else "")
    return [first, *_learning_rate(run.schedule, meta), *missing]


def _not_validated(name: str, validation: config.Validation) -> str:
    nothing = "no source of data has anything held out"
    remedy = "prepare them again with data.heldout_fraction above 0, or with more documents"
    if (every := validation.every_tokens) is not None:
        raise ValueError(f"validation.every_tokens={every}: {nothing}; {remedy}, or set validation.every_tokens=null")
    return f"{name}: {nothing}, so it is not validated; {remedy}"


def _begins(name: str, seed: int, start: Start) -> str:
    if start.weights is None:
        return f"{name}: begins at step 0 with weights drawn from seed {seed}"
    state = "weights and optimizer" if start.optimizer else "weights"
    return f"{name}: begins at step 0 with the {state} of {start.weights}"


def _learning_rate(given: config.Schedule, meta: Meta) -> list[str]:
    """A sentence where another schedule makes the learning rate jump from the checkpoint's last step to the next."""
    if meta.step == 0 or not meta.schedule or meta.tokens >= given.total_tokens:
        return []
    was = schedule.of_record(meta.schedule)
    last = schedule.learning_rate(was, schedule.step_tokens(was, meta.step - 1))
    ahead = schedule.learning_rate(given, meta.tokens)
    before, after = asdict(was), asdict(given)
    changed = [f"{key} {before[key]} -> {after[key]}" for key in before if before[key] != after[key]]
    if not changed or last <= 0 or 1 / JUMP <= ahead / last <= JUMP:
        return []
    return [
        f"the learning rate goes from {last:.2e} to {ahead:.2e} ({ahead / last:.2g} times) at the next step: schedule: "
        f"{'; '.join(changed)}; for a schedule of its own from here, start a new run with init_from={meta.run or 'it'}"
    ]
