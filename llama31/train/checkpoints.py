"""Checkpoints of a run that trains: begun after a step, published while the next ones run."""

from __future__ import annotations

from llama31.engine import state as tensors
from llama31.resilience import resume
from llama31.train.setup import State, optimizer_shards


def save(state: State) -> None:
    """Begin a checkpoint; it is published while training goes on, where `checkpoint.asynchronous` says so."""
    meta = resume.meta_of(
        state.run,
        state.step,
        state.tokens,
        state.engine.reducer.steps_applied(),
        state.tokenizer,
        state.data.extra(),
        state.decisions,
        attempt=state.attempt.number,
        guard=state.watch.guard.history(),
        validation_loss=state.validation_loss,
    )
    with state.phase("checkpoint"):
        shards = optimizer_shards(state.engine, state.ema)
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
