"""What stands before the first step, in order: processes and nodes, where to start, data, model, optimizer, folder."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llama31 import config
from llama31.checkpoint import listing, publish, retention
from llama31.checkpoint.saver import Saver, background_group
from llama31.command import hardware, written
from llama31.data.mixture import Decision
from llama31.data.plans import Plans
from llama31.engine import reading
from llama31.engine import state as tensors
from llama31.engine.ema import Ema
from llama31.engine.pipeline import Engine
from llama31.engine.reading import Heldout
from llama31.evaluate.gates import Examiner, GateState
from llama31.model import llama, precision
from llama31.parallel import mesh
from llama31.parallel.collectives import on_first_rank
from llama31.parallel.mesh import Grid
from llama31.parallel.replica import Replica
from llama31.plan import schedule
from llama31.resilience import expectation, resume
from llama31.resilience.attempt import Attempt
from llama31.resilience.expectation import Expectation
from llama31.resilience.resume import Start
from llama31.resilience.watch import Watch
from llama31.tokens import tokenizers
from llama31.train import outset
from llama31.train.feeds import Feed
from llama31.train.training_state import State


@dataclass
class Place:
    """Where a run trains and from where it goes on: its processes, its attempt, what watches both, its start, and
    who reads the rows."""

    grid: Grid
    replica: Replica
    plans: Plans  # of rows of whole documents
    attempt: Attempt
    watch: Watch
    start: Start


@contextlib.contextmanager
def placed(run: config.Training) -> Iterator[Place]:
    """Connect the processes, claim an attempt of the run, ask the nodes whether they are fit, find where to start.

    Raises ValueError for a layout that is impossible and a checkpoint that does not fit, RunError where the folder is
    another's or a node is not fit. Collective.
    """
    grid = mesh.create(run.parallel, run.cluster.timeout_s)
    with precision.deterministic(run.deterministic), Attempt(run.folder, run.take_over) as attempt:
        watch = Watch(run.guard, run.checkpoint, run.parallel.zero, grid, attempt)
        if run.preflight.enabled:
            watch.check_nodes(run.preflight, run.model, run.precision)
        start = resume.find_start(run)
        replica, plans = _readers(run.folder, grid, run.cluster.timeout_s)
        with contextlib.closing(replica):
            yield Place(grid, replica, plans, attempt, watch, start)


def _readers(folder: str, grid: Grid, wait_s: float) -> tuple[Replica, Plans]:
    """Who reads the rows, and where the first rank keeps what it works out of them. Collective."""
    return Replica.of(grid, wait_s), Plans(Path(folder) / "rows", grid.rank == 0, wait_s)


def setup(run: config.Training, place: Place, data: Feed) -> State:
    """All that `loop.fit` works with: data, model and optimizer, what looks at them, the folder. Collective.

    Raises ValueError for what is wrong with the config, the data or a checkpoint.
    """
    start = place.start
    text = open_data(run, start, data, place.replica)
    engine = open_engine(run, place.grid, start)
    ema = open_average(run.optimizer.ema_decay, place.grid, start, engine)
    gates = open_gates(run, text.tokenizer, text.length)
    expected = open_expectation(run, place, text)
    place.watch.follow(engine, start)
    open_folder(run, place, text)
    saver = open_saver(run.checkpoint, place, engine, ema)
    return State(
        run, place.grid, place.replica, place.attempt, place.watch, start, data, text.decisions, text.record, engine,
        ema, gates, saver, text.last_step, start.step, start.tokens, saver.loaded, expected,
        {text.length: text.heldout},
    )  # fmt: skip


@dataclass
class Opened:
    """Data that were found right; the length of the last step's rows, what is held out, and what the start says."""

    last_step: int
    tokenizer: tokenizers.Tokenizer
    decisions: list[Decision]
    length: int
    heldout: Heldout | None
    record: dict[str, Any]  # of the tokenizer, as checkpoints name it
    notes: list[str]


def open_data(run: config.Training, start: Start, data: Feed, replica: Replica) -> Opened:
    """Read the data from where training begins. ValueError where model, tokenizer or checkpoint want others."""
    last_step = schedule.last_step(run.schedule, start.step, run.stop_after_steps)
    decisions = data.begin(start)
    resume.check_data(start, data.fingerprints)
    tokenizer = tokenizers.load(run.tokenizer)
    data.check(run.model, tokenizer)
    _, length = data.batch_shape(max(0, last_step - 1))
    heldout = reading.heldout(replica, lambda: data.heldout(length, run.validation.tokens))
    named = {**dataclasses.asdict(run.tokenizer), "fingerprint": tokenizer.fingerprint, "folder": "tokenizer"}
    notes = outset.lines(run, start, heldout is not None)
    return Opened(last_step, tokenizer, decisions, length, heldout, named, notes)


def open_engine(run: config.Training, grid: Grid, start: Start) -> Engine:
    """Weights drawn or loaded, then the optimizer, then its state where the run goes on, and the weights with it."""
    fresh = start.weights is None
    row = schedule.batch_at(run.schedule, start.tokens).sequence_length
    tokens = row * run.parallel.micro_batch // run.parallel.cp
    seed = run.seed if fresh else None
    chunks = llama.build(run.model, run.precision, run.parallel, grid, seed, micro_batch_tokens=tokens)
    if start.weights is not None:
        new = (llama.REWARD_HEAD,) if start.head != run.model.head else ()
        bring = tensors.check_weights if start.optimizer else tensors.load_weights
        bring(start.weights, chunks, run.model, grid, without=new)
        if new:
            llama.initialise_reward_head(chunks, run.model, grid, run.seed)
    engine = Engine(chunks, run.model, run.optimizer, run.precision, run.parallel, grid)
    if start.weights is not None and start.optimizer:
        tensors.load_optimizer(start.weights, engine, start.updates)
        publish.load_random(start.weights)
    return engine


def open_average(decay: float | None, grid: Grid, start: Start, engine: Engine) -> Ema | None:
    """The moving average of the masters: that of the checkpoint, or a copy of them to begin with."""
    if decay is None:
        return None
    average = Ema(tensors.optimizer(engine), decay)
    if start.weights is not None and start.optimizer:
        average.load(start.weights, grid.rank == 0)
    return average


def open_gates(run: config.Training, tokenizer: tokenizers.Tokenizer, length: int) -> GateState:
    """What may end a stage of long context; nothing for a run that has no such key."""
    if not isinstance(run, config.Pretrain) or run.gates.every_tokens is None:
        return GateState(config.Gates(), run.folder, None)
    examiner = Examiner(run.gates, run.data, tokenizer, length, run.parallel.micro_batch)
    return GateState(run.gates, run.folder, examiner)


def open_expectation(run: config.Training, place: Place, text: Opened) -> Expectation | None:
    """What `cluster.device` lets expect, on the rank that speaks; None, and a note, where that cannot be said."""
    grid, chosen = place.grid, hardware.chosen(run.cluster) if place.grid.rank == 0 else None
    if chosen is None:
        return None
    other = None if isinstance(run, config.Pretrain | config.Sft) else "its objective is not the next token alone"
    unknown = other or expectation.unknown(chosen[0], run.precision)
    if unknown:
        text.notes.append(f"{run.name}: cluster.device={run.cluster.device} lets nothing be expected: {unknown}")
        return None
    parallel = dataclasses.replace(run.parallel, dp=grid.dp)
    average = run.optimizer.ema_decay is not None
    planned = expectation.Planned(run.model, parallel, run.precision, *chosen, grid.world, grid.pp_rank, average)
    live = float(torch.cuda.memory_allocated(grid.device)) if grid.device.type == "cuda" else None
    made, batch = Expectation(planned, live), schedule.batch_at(run.schedule, place.start.tokens)
    text.notes.append(f"{run.name}: {made.line(batch.batch_tokens, batch.sequence_length)}")
    return made


def open_saver(settings: config.Checkpoint, place: Place, engine: Engine, ema: Ema | None) -> Saver:
    """What writes checkpoints behind the steps, its buffers reserved."""
    saver = Saver(
        place.attempt.run_folder / "checkpoints",
        background_group(),
        asynchronous=settings.asynchronous,
        keep=settings,
        loaded=place.start.weights if place.start.resumed else None,
        fence=place.attempt.newer,
    )
    saver.reserve(tensors.weights(engine), tensors.optimizer(engine, ema))
    return saver


def open_folder(run: config.Training, place: Place, text: Opened) -> None:
    """All checks passed: write down what runs, put aside what the run went back behind, say where it begins."""
    place.attempt.reached = (place.start.step, place.start.tokens)
    on_first_rank(lambda: _write_folder(run, place, text))
    if place.grid.rank == 0:
        print(*text.notes, sep="\n", flush=True)
        if place.start.step >= text.last_step:
            tokens = place.start.tokens
            print(f"nothing left to train: {place.start.weights} has seen {tokens:,} tokens", flush=True)


def _write_folder(run: config.Training, place: Place, text: Opened) -> None:
    place.attempt.record(written.to_yaml(run), place.start, text.decisions, place.watch.hosts, place.watch.environment)
    text.tokenizer.save_hf(Path(run.folder) / "tokenizer")
    folder = Path(run.folder) / "checkpoints"
    if run.resume not in ("auto", "none"):
        listing.set_aside_after(folder, place.start.step)
    retention.remove_torn(folder, place.attempt.number, place.attempt.newer)
