"""What stands before the first step: processes and nodes, where to start, data, model, optimizer, the rest."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from llama31 import config
from llama31.checkpoint import publish, retention, shards
from llama31.checkpoint.saver import Saver, background_group
from llama31.command import written
from llama31.data.mixture import Decision
from llama31.engine import state as tensors
from llama31.engine.ema import Ema
from llama31.engine.pipeline import Engine
from llama31.evaluate import perplexity
from llama31.evaluate.gates import Examiner, GateState
from llama31.model import llama, precision
from llama31.parallel import mesh
from llama31.parallel.collectives import on_first_rank
from llama31.parallel.mesh import Grid
from llama31.plan import schedule, shapes
from llama31.resilience import resume
from llama31.resilience.attempt import Attempt
from llama31.resilience.resume import Start
from llama31.resilience.watch import Watch
from llama31.runs import metrics
from llama31.runs.metrics import Metrics, Phases
from llama31.tokens import tokenizers
from llama31.train import outset
from llama31.train.feeds import Feed

log = logging.getLogger(__name__)


@dataclass
class Place:
    """Where a run trains and from where it goes on: its processes, its attempt, what watches both, its start."""

    grid: Grid
    attempt: Attempt
    watch: Watch
    start: Start


@dataclass
class State:
    """A run on one rank, and where its training stands."""

    run: config.Training
    grid: Grid
    attempt: Attempt
    watch: Watch
    start: Start
    data: Feed
    decisions: list[Decision]
    tokenizer: dict[str, Any]  # as checkpoints name it
    engine: Engine
    ema: Ema | None
    gates: GateState
    saver: Saver
    last_step: int
    peak_tflops: float | None
    step: int  # optimizer steps done
    tokens: int  # seen by then
    saved: Path | None  # the newest checkpoint
    heldout: dict[int, perplexity.Heldout | None] = field(default_factory=dict)  # by sequence length
    validation_loss: float | None = None
    phases: Phases = field(default_factory=Phases)
    record: Metrics = field(default_factory=Metrics)  # writes nothing until training begins
    record_s: float = 0.0  # that writing the last step took

    @property
    def main(self) -> bool:
        """Whether this is the rank that speaks and writes for all."""
        return self.grid.rank == 0

    @property
    def finished(self) -> bool:
        """Whether the last step is done."""
        return self.step >= self.last_step

    @property
    def done(self) -> bool:
        """Whether there is no further step: the end, a request to stop, gates that have opened."""
        return self.finished or bool(self.attempt.stopped) or self.gates.open

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure a phase of the step; its beginning is a sign of life."""
        self.watch.dog.beat(self.step, name)
        with self.phases(name):
            yield

    def stands_at(self, step: int, tokens: int) -> None:
        """Training stands there now; the attempt's last word will say so."""
        self.step, self.tokens = step, tokens
        self.attempt.reached = (step, tokens)


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
            watch.check_nodes(run.preflight, 2 * shapes.checkpoint_bytes(run.model, run.precision.params))
        yield Place(grid, attempt, watch, resume.find_start(run))


def setup(run: config.Training, place: Place, data: Feed) -> State:
    """All that `loop.fit` works with, and the run folder with what stands in it before the first step. Collective.

    Raises ValueError for what is wrong with the config, the data or a checkpoint.
    """
    grid, attempt, watch, start = place.grid, place.attempt, place.watch, place.start
    last_step = schedule.total_steps(run.schedule)
    if run.stop_after_steps is not None:
        last_step = min(last_step, start.step + run.stop_after_steps)

    decisions = data.begin(start)
    resume.check_data(start, data.fingerprints)
    tokenizer = tokenizers.load(run.tokenizer)
    data.check(run.model, tokenizer)
    _, length = data.batch_shape(max(0, last_step - 1))
    heldout = data.heldout(length, run.validation.tokens)
    notes = outset.lines(run, start, heldout is not None)

    engine = open_engine(run, grid, start)
    ema = open_average(run, grid, start, engine)
    gates = open_gates(run, tokenizer, length, grid.rank == 0)
    watch.follow(engine, start)

    on_first_rank(lambda: open_folder(run, place, decisions, tokenizer))
    if grid.rank == 0:
        print(*notes, sep="\n", flush=True)
        if start.step >= last_step:
            print(f"nothing left to train: {start.weights} has seen {start.tokens:,} tokens", flush=True)
    resumed_from = start.weights if start.resumed else None
    saver = Saver(
        Path(run.folder) / "checkpoints",
        background_group(),
        asynchronous=run.checkpoint.asynchronous,
        keep=run.checkpoint,
        loaded=resumed_from,
        fence=attempt.newer,
    )
    saver.reserve(tensors.weights(engine), optimizer_shards(engine, ema))
    tokenizer_record = {
        **dataclasses.asdict(run.tokenizer),
        "fingerprint": tokenizer.fingerprint,
        "folder": "tokenizer",
    }
    peak_tflops = run.cluster.peak_tflops or metrics.peak_tflops(_device_name(grid.device))
    state = State(
        run, grid, attempt, watch, start, data, decisions, tokenizer_record, engine, ema, gates, saver, last_step,
        peak_tflops, start.step, start.tokens, resumed_from, {length: heldout},
    )  # fmt: skip
    state.stands_at(start.step, start.tokens)
    return state


def open_engine(run: config.Training, grid: Grid, start: Start) -> Engine:
    """Weights drawn or loaded, then the optimizer, then its state where the run goes on."""
    fresh = start.weights is None
    chunks = llama.build(run.model, run.precision, run.parallel, grid, seed=run.seed if fresh else None)
    if start.weights is not None:
        new = (llama.REWARD_HEAD,) if start.head != run.model.head else ()
        tensors.load_weights(start.weights, chunks, run.model, grid, without=new)
        if new:
            llama.initialise_reward_head(chunks, run.model, grid, run.seed)
    engine = Engine(chunks, run.model, run.optimizer, run.precision, run.parallel, grid)
    if start.weights is not None and start.optimizer:
        tensors.load_optimizer(start.weights, engine, start.updates)
        publish.load_random(start.weights)
    return engine


def open_average(run: config.Training, grid: Grid, start: Start, engine: Engine) -> Ema | None:
    """The moving average of the masters: that of the checkpoint, or a copy of them to begin with."""
    decay = run.optimizer.ema_decay
    if decay is None:
        return None
    average = Ema(tensors.optimizer(engine), decay)
    if start.weights is not None and start.optimizer:
        load_average(average, start.weights, grid.rank == 0)
    return average


def open_gates(run: config.Training, tokenizer: tokenizers.Tokenizer, length: int, main: bool) -> GateState:
    """What may end a stage of long context; nothing for a run that has no such key."""
    if not isinstance(run, config.Pretrain) or run.gates.every_tokens is None:
        return GateState(config.Gates(), run.folder, None, main)
    examiner = Examiner(run.gates, run.data, tokenizer, length, run.parallel.micro_batch)
    return GateState(run.gates, run.folder, examiner, main)


def load_average(average: Ema, folder: Path, main: bool) -> None:
    """Fill the average from a checkpoint; one that has none is warned of, and the average begins anew."""
    saved = shards.names(folder / "optimizer")
    if any(name.startswith("ema.") for name in saved):
        publish.load_optimizer(folder, average.shards())
    elif main:
        log.warning("%s holds no moving average: it begins anew, with the masters as they are", folder)


def optimizer_shards(engine: Engine, ema: Ema | None) -> list[shards.Shard]:
    """What a checkpoint keeps beside the weights."""
    return [*tensors.optimizer(engine), *(ema.shards() if ema is not None else [])]


def open_folder(run: config.Training, place: Place, decisions: list[Decision], tokenizer: tokenizers.Tokenizer) -> None:
    """All checks passed: write down what runs, and put aside what the run went back behind. First rank alone."""
    place.attempt.record(written.to_yaml(run), place.start, decisions, place.watch.hosts, place.watch.environment)
    tokenizer.save_hf(Path(run.folder) / "tokenizer")
    folder = Path(run.folder) / "checkpoints"
    if run.resume not in ("auto", "none"):
        publish.set_aside_after(folder, place.start.step)
    retention.remove_torn(folder, place.attempt.number, place.attempt.newer)


def _device_name(device: torch.device) -> str | None:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None
