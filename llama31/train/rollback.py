"""What follows from a verdict other than to go on: data left out, a checkpoint gone back to, or an end."""

from __future__ import annotations

from pathlib import Path

from llama31 import config
from llama31.checkpoint import listing, publish
from llama31.data.mixture import Skip
from llama31.engine import state as tensors
from llama31.parallel.collectives import on_first_rank
from llama31.resilience import resume
from llama31.resilience.attempt import record_decisions
from llama31.resilience.guard import Verdict
from llama31.train import checkpoints
from llama31.train.training_state import State


class TrainingStopped(config.RunError):
    """Training cannot go on; what was saved before stands."""


def follow(state: State, verdict: Verdict) -> None:
    """Leave out data that a verdict blames, from here or from an earlier checkpoint, or end where it says so.

    All ranks have the same verdict. Raises TrainingStopped.
    """
    if verdict.kind == "stop":
        checkpoints.note(state, wait=True)
        raise TrainingStopped(_stopped(state, verdict.reason))
    if verdict.kind == "rollback":
        _roll_back(state, verdict)
    if verdict.to_step > verdict.from_step:
        state.decisions = [*state.decisions, Skip(verdict.from_step, verdict.to_step)]
        folder = Path(state.run.folder)
        on_first_rank(lambda: record_decisions(folder, state.decisions))
        state.data.follow(state.decisions)


def _roll_back(state: State, verdict: Verdict) -> None:
    """Weights, optimizer and random state of the newest checkpoint of at most `verdict.before_step` steps."""
    folder = Path(state.run.folder) / "checkpoints"
    checkpoints.note(state, wait=True)
    checkpoint = resume.newest_checkpoint(state.run.folder, state.run.checkpoint.verify, verdict.before_step)
    if checkpoint is None:
        missing = f"there is no checkpoint of at most {verdict.before_step} steps to roll back to"
        raise TrainingStopped(_stopped(state, f"{verdict.reason}; {missing}"))
    meta = on_first_rank(lambda: publish.read_meta(checkpoint))
    tensors.load_optimizer(checkpoint, state.engine, resume.updates_of(meta))
    publish.load_random(checkpoint)
    state.stands_at(meta.step, meta.tokens)
    state.saved = state.saver.loaded = checkpoint
    if state.ema is not None:
        state.ema.load(checkpoint, state.main)
    state.watch.guard.restore(meta.extra.get("guard"), meta.step)
    state.attempt.went_back(meta.step, meta.tokens)
    fence = state.attempt.newer
    on_first_rank(lambda: listing.set_aside_after(folder, meta.step, fence))
    event = {"event": verdict.event, "reason": verdict.reason, "path": str(checkpoint)}
    state.record.write("rollback", step=meta.step, tokens=meta.tokens, to_step=meta.step, **event)


def _stopped(state: State, reason: str) -> str:
    last = f"the newest checkpoint is {state.saved}" if state.saved else "nothing has been saved yet"
    return (
        f"{reason}. The update was not applied; {last}. Lower schedule.peak_lr or raise schedule.warmup_tokens; "
        "at the first step, look at the weights that init_from brought; guard.on_... says what to do instead"
    )


def refuse_shut_gates(state: State) -> None:
    """RunError where the tokens have ended before the gates opened, so that no later stage begins."""
    if state.gates.every_tokens is None or state.gates.open or not state.finished:
        return
    checkpoints.note(state, wait=True)
    raise TrainingStopped(
        f"after {state.tokens:,} tokens the gates are shut: {'; '.join(state.gates.reasons)}. The newest checkpoint "
        f"is {state.saved}; give this stage more schedule.total_tokens, or change what gates.* ask for"
    )
