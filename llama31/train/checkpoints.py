"""Checkpoints of a run that trains: begun after a step, published while the next ones run."""

from __future__ import annotations

from dataclasses import asdict

from llama31.checkpoint.publish import Meta
from llama31.data.mixture import to_record
from llama31.engine import state as tensors
from llama31.train.training_state import State


def meta_of(state: State) -> Meta:
    """What a checkpoint says about itself, were it begun now."""
    run, updates = state.run, state.engine.reducer.steps_applied()
    return Meta(
        model=asdict(run.model),
        step=state.step,
        tokens=state.tokens,
        run=run.name,
        precision=run.precision.params,
        tokenizer=state.tokenizer,
        schedule=asdict(run.schedule),
        decisions=[to_record(decision) for decision in state.decisions],
        extra={"updates": updates, **state.data.extra(), "guard": state.watch.guard.history()},
        attempt=state.attempt.number,
        validation_loss=state.validation_loss,
    )


def save(state: State) -> None:
    """Begin a checkpoint; it is published while training goes on, where `checkpoint.asynchronous` says so."""
    meta = meta_of(state)
    with state.phase("checkpoint"):
        shards = tensors.optimizer(state.engine, state.ema)
        stall_s = state.saver.save(meta, tensors.weights(state.engine), shards, overlap=True)
    state.watch.interval.saved(stall_s)


def note(state: State, wait: bool = False) -> None:
    """Record what has been published since the last look; the first rank alone is told, unless all wait."""
    for one in state.saver.wait() if wait else state.saver.poll():
        state.saved = one.path
        state.watch.interval.written(one.write_s)
        record = {"path": str(one.path), "asynchronous": state.run.checkpoint.asynchronous}
        seconds = {"stall_s": round(one.stall_s, 4), "write_s": round(one.write_s, 4)}
        state.record.write("checkpoint", step=one.step, tokens=one.tokens, **record, **seconds)
