"""The one loop. `fit` shows the order of events of a step."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from pathlib import Path

from llama31 import config
from llama31.data.batches import rank_rows
from llama31.engine.objectives import Objective, next_token
from llama31.engine.reading import Reading
from llama31.plan import schedule
from llama31.runs import metrics, plots
from llama31.train import checkpoints, profiler, progress, rollback
from llama31.train.feeds import Rows
from llama31.train.training_state import State


def fit(state: State, objective: Objective = next_token) -> Path | None:
    """Train from where `state` stands to the end, or to a request to stop; return the last checkpoint.

    Raises ValueError for what is wrong with the config, the data or a checkpoint, and RunError where training cannot go
    on: loss or gradients that stay not finite, a disk that stays full, a newer attempt of the same run.
    """
    run, engine = state.run, state.engine
    with opened(state) as (feed, profiled):
        while not state.done:
            with state.phase("data"):
                batch = feed.take()
            with state.phase("forward_backward"):
                result = engine.accumulate(batch, objective)
            with state.phase("guard"):
                control = state.watch.judge(state.step, state.tokens, result, feed.waited_s)
            if control.verdict.kind != "continue":
                engine.discard()
                rollback.follow(state, control.verdict)
                feed.restart(state.step)
                state.phases.pop()
                continue
            with state.phase("checkpoint"):
                state.saver.staged()  # what is being saved is about to change
            lr = schedule.learning_rate(run.schedule, state.tokens)
            with state.phase("optimizer"):
                engine.apply(lr)
                if state.ema is not None:
                    state.ema.update()
            state.stands_at(state.step + 1, schedule.step_tokens(run.schedule, state.step + 1))
            progress.write_step(state, result, lr, profiled)
            ending = control.stop or state.finished
            if ending:
                checkpoints.save(state)  # before all that could still fail
                checkpoints.note(state, wait=True)
            if due(state, run.validation.every_tokens):
                progress.validate(state, objective)
            if state.gates.every_tokens is not None and due(state, state.gates.every_tokens):
                progress.examine(state)
            if not ending and (due(state, run.checkpoint.every_tokens) or control.save or state.gates.open):
                checkpoints.save(state)
            if control.stop:
                state.attempt.stopped = control.reason
            state.phases.pop()
        rollback.refuse_shut_gates(state)
    if state.main and state.step > state.start.step:
        vocab_size = None if objective.measures else run.model.vocab_size  # of the ln(V) line
        plots.show_loss_curve(run.folder, vocab_size)
    return state.saved or state.start.weights


def due(state: State, every_tokens: int | None) -> bool:
    """Whether something that happens every so many tokens happens after this step; always after the last."""
    if state.finished:
        return True
    if every_tokens is None:
        return False
    before = schedule.step_tokens(state.run.schedule, state.step - 1)
    return state.tokens // every_tokens > before // every_tokens


@contextlib.contextmanager
def opened(state: State) -> Iterator[tuple[Reading, Callable[[], None]]]:
    """Batches, read ahead, and what to call after a step for the profiler; signals are heard, the record is open.

    Afterwards all that is being saved is complete, unless an error ends the run: then that error is the one to show.
    """
    run = state.run
    with contextlib.ExitStack() as parts:
        state.record = parts.enter_context(_open_record(state))
        state.watch.begin(parts, state.record)
        where = state.grid.device, state.step, state.last_step, state.data.prefetch, state.data.interrupted
        feed = parts.enter_context(Reading(state.replica, lambda step: replica_rows(state, step), *where))
        profiled = parts.enter_context(
            profiler.profiled(run.profile, Path(run.folder), state.grid, state.engine.settle)
        )
        state.gates.begin(state.engine.forward, state.step)
        gc.collect()
        gc.freeze()  # what is built by now lives to the end: no need to look through it again and again
        parts.callback(gc.unfreeze)
        with state.saver:
            yield feed, profiled
            checkpoints.note(state, wait=True)


def replica_rows(state: State, step: int) -> list[Rows]:
    """The rows of a step that this model replica trains on, by micro-batch."""
    rows, _ = state.data.batch_shape(step)
    indices = rank_rows(rows, state.run.parallel.micro_batch, state.grid.dp, state.grid.dp_rank)
    return [state.data.rows(step, part) for part in indices]


def _open_record(state: State) -> metrics.Metrics:
    run: config.Training = state.run
    return metrics.open_run(
        run.folder,
        run.log,
        name=run.name,
        attempt=state.attempt.number,
        total_tokens=schedule.step_tokens(run.schedule, state.last_step),
        resumed_step=state.step,
        resumed_tokens=state.tokens,
        main=state.main,
    )
