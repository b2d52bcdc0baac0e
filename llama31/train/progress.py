"""What is measured of a run that trains, and written to its record: steps, held-out loss, examinations."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from llama31.checkpoint import publish, retention
from llama31.engine import reading
from llama31.engine.objectives import Objective
from llama31.engine.pipeline import StepResult
from llama31.engine.reading import Heldout
from llama31.evaluate import perplexity
from llama31.parallel.collectives import on_first_rank
from llama31.plan import schedule, utilisation
from llama31.resilience.expectation import Taken
from llama31.runs import measured, plots
from llama31.train import checkpoints
from llama31.train.training_state import State


def write_step(state: State, result: StepResult, lr: float, profiled: Callable[[], None]) -> None:
    """Write down the step that was just done, and tell the profiler, and what has been published meanwhile."""
    run, world = state.run, state.grid.world
    seconds = state.phases.pop()
    begin = time.perf_counter()
    profiled()
    checkpoints.note(state)
    batch_tokens = state.tokens - schedule.step_tokens(run.schedule, state.step - 1)
    _, length = state.data.batch_shape(state.step - 1)
    rate = batch_tokens / seconds["step_s"]
    peak = run.cluster.peak_tflops or utilisation.peak_tflops(_device_name(state.grid.device))
    state.record.write(
        "train",
        step=state.step,
        tokens=state.tokens,
        loss=result.loss,
        grad_norm=result.grad_norm,
        lr=lr,
        loss_tokens=result.tokens,
        **result.measures,
        batch_tokens=batch_tokens,
        sequence_length=length,
        tokens_per_s=rate,
        tflops=utilisation.tflops(run.model, length, rate, world),
        mfu=utilisation.mfu(run.model, length, rate, world, peak),
        memory_bytes=measured.peak_memory_bytes(_cuda_peak_bytes(state.grid.device)),
        **(state.data.facts(state.step - 1) if state.main else {}),
        **{name: round(value, 6) for name, value in seconds.items()},
        record_s=round(state.record_s, 6),
    )
    _compare(state, seconds, batch_tokens, length)
    state.record_s = time.perf_counter() - begin  # stands in the line of the next step


def _compare(state: State, seconds: Mapping[str, float], batch_tokens: int, length: int) -> None:
    """Hold a step against what was expected of it; what is off is an event of the record."""
    if state.expectation is None:
        return
    device, saving = state.grid.device, seconds.get("checkpoint_s", 0.0)
    cuda = device.type == "cuda"
    taken = Taken(
        seconds["step_s"] - saving,
        seconds["data_s"],
        state.engine.own_s,
        float(torch.cuda.max_memory_allocated(device)) if cuda else None,
        float(torch.cuda.max_memory_reserved(device)) if cuda else None,
    )
    for departure in state.expectation.compare(taken, batch_tokens, length):
        told = {"event": departure.event, "reason": departure.reason}
        state.record.write("event", step=state.step, tokens=state.tokens, **told)


def validate(state: State, objective: Objective) -> None:
    """Held-out loss by source, over all ranks."""
    run, size = state.run, state.run.parallel.micro_batch
    heldout = _heldout(state, state.step - 1)
    if heldout is None:
        return
    with state.phase("validation"):
        begin = time.perf_counter()
        means = perplexity.heldout_means(state.engine.forward, heldout, state.grid, size, objective)
    loss, *others = perplexity.over_sources(means)
    state.validation_loss = loss
    published = state.saver.newest
    if published is not None and published.name == publish.name_of(state.step, state.attempt.number):
        keep, fence = run.checkpoint, state.attempt.newer
        on_first_rank(lambda: retention.note_validation(published, loss, keep, fence))
    state.record.write(
        "validation",
        step=state.step,
        tokens=state.tokens,
        loss=loss,
        losses={name: of_source[0] for name, (of_source, _) in means.items()},
        **dict(zip(objective.measures, others, strict=True)),
        validation_s=round(time.perf_counter() - begin, 3),
    )


def _heldout(state: State, step: int) -> Heldout | None:
    """Held-out rows of the length of a step, read once; None where nothing is held out."""
    _, length = state.data.batch_shape(step)
    if length not in state.heldout:
        tokens = state.run.validation.tokens
        state.heldout[length] = reading.heldout(state.replica, lambda: state.data.heldout(length, tokens))
    return state.heldout[length]


def examine(state: State) -> None:
    """Ask whether this stage of long context may end."""
    with state.phase("gates"):
        scores, reasons = state.gates.examine(state.engine.forward, state.step, state.tokens)
    event, reason = ("gates_shut", "; ".join(reasons)) if reasons else ("gates_open", "all scores are reached")
    state.record.write("event", step=state.step, tokens=state.tokens, event=event, reason=reason)
    if state.main and "needle" in scores:
        plots.draw_recall(Path(state.run.folder) / "needle.png", scores["needle"])


def _cuda_peak_bytes(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


@functools.cache  # it does not change, and every step asks
def _device_name(device: torch.device) -> str | None:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None
