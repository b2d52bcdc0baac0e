"""The one loop. `fit` shows the order of events of a step; everything else here prepares for it."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from llama31 import checkpoint, config, evaluate, mesh, metrics, model, retention, runs, schedule, state, tokenizer
from llama31.data.batches import Batches, Heldout, check_tokenizer, check_vocabulary, rank_rows
from llama31.data.prefetch import Prefetcher
from llama31.engine import Engine, StepResult
from llama31.mesh import Grid
from llama31.metrics import Metrics, Phases
from llama31.objectives import MicroBatch, Objective, next_token
from llama31.shards import on_all_ranks


class TrainingStopped(config.RunError):
    """Training cannot go on; what was saved before stands."""


class Run:
    """What `fit` works with on one rank: the engine, the data, the record, and where training stands."""

    def __init__(self, run: config.Pretrain, grid: Grid) -> None:
        self.config, self.grid, self.main = run, grid, grid.rank == 0
        self.start = runs.find_start(run)
        self.step, self.tokens = self.start.step, self.start.tokens
        self.last_step = schedule.total_steps(run.schedule)
        if run.stop_after_steps is not None:
            self.last_step = min(self.last_step, self.step + run.stop_after_steps)
        self.weights, self.decisions = runs.decisions_of(run, self.start)
        self.batches = Batches(runs.data_of(run, self.start, self.weights), run.schedule, decisions=self.decisions)
        runs.check_data(self.start, {name: told.fingerprint for name, told in self.batches.packed.items()})
        check_vocabulary(self.batches, run.model)
        words = tokenizer.load(run.tokenizer)
        check_tokenizer(self.batches, words.fingerprint)
        self.words = {**dataclasses.asdict(run.tokenizer), "fingerprint": words.fingerprint, "folder": "tokenizer"}
        self.engine = _engine(run, grid, self.start)
        on_all_ranks(None, lambda: self._begin(words) if self.main else None)
        self.peak_tflops = run.cluster.peak_tflops or metrics.peak_tflops(_device_name(grid.device))
        self.heldout: dict[int, Heldout] = {}  # by sequence length

    def _begin(self, words: tokenizer.Tokenizer) -> None:
        """All checks passed: write down what runs, and put aside what the run went back behind."""
        run = self.config
        runs.record_attempt(run, self.start, self.decisions, self.grid.world)
        words.save_hf(Path(run.folder) / "tokenizer")
        if run.resume not in ("auto", "none"):
            checkpoint.set_aside_after(Path(run.folder) / "checkpoints", self.step)
        if self.step >= self.last_step:
            print(f"nothing left to train: {self.start.weights} has seen {self.tokens:,} tokens", flush=True)

    def micro_batches(self, step: int) -> list[MicroBatch]:
        """This rank's rows of a step."""
        rows, _ = self.batches.batch_shape(step)
        size = self.config.parallel.micro_batch
        indices = rank_rows(rows, size, self.grid.dp, self.grid.dp_rank)
        return [MicroBatch.from_rows(self.batches.rows(step, part), self.grid.device) for part in indices]


def fit(run: config.Pretrain, objective: Objective = next_token) -> Path:
    """Train `run` from where it stands to its end; return its last checkpoint.

    Raises ValueError for what is wrong with the config, the data or a checkpoint, and TrainingStopped where loss or
    gradients are not finite.
    """
    grid = mesh.create(run.parallel, run.cluster.timeout_s)
    this = Run(run, grid)
    phases, saved = Phases(), this.start.weights
    gc.collect()
    gc.freeze()  # what is built by now lives to the end: no need to look through it again and again
    with (
        _open_record(this) as record,
        Prefetcher(this.micro_batches, this.step, this.last_step, run.data.prefetch) as batches,
        _profiler(run.profile, Path(run.folder), grid) as profiler,
    ):
        for batch in _timed(batches, phases):
            lr = schedule.learning_rate(run.schedule, this.tokens)
            with phases("forward_backward"):
                result = this.engine.accumulate(batch, objective)
            _judge(this, result)
            with phases("optimizer"):
                this.engine.apply(lr)
            this.step, this.tokens = this.step + 1, schedule.step_tokens(run.schedule, this.step + 1)
            _record_step(this, record, result, lr, phases)
            if _due(run.validation.every_tokens, this):
                _validate(this, record)
            if _due(run.checkpoint.every_tokens, this):
                saved = _save(this, record)
            profiler()
            phases.pop()
    if this.main and this.step > this.start.step:
        print(f"loss curve: {metrics.draw_loss_curve(run.folder, run.model.vocab_size)}", flush=True)
    assert saved is not None
    return saved


def _due(every_tokens: int | None, this: Run) -> bool:
    """Whether something that happens every so many tokens happens after this step; always after the last."""
    if this.step == this.last_step:
        return True
    if every_tokens is None:
        return False
    before = schedule.step_tokens(this.config.schedule, this.step - 1)
    return this.tokens // every_tokens > before // every_tokens


def _judge(this: Run, result: StepResult) -> None:
    """Stop before a step that is not finite would be applied. All ranks see the same numbers, so all stop."""
    if math.isfinite(result.loss) and math.isfinite(result.grad_norm):
        return
    this.engine.discard()
    last = checkpoint.newest(Path(this.config.folder) / "checkpoints")
    raise TrainingStopped(
        f"step {this.step + 1}: loss {result.loss}, gradient norm {result.grad_norm}. The update was not applied; "
        f"{f'the newest checkpoint is {last}' if last else 'nothing has been saved yet'}. Lower schedule.peak_lr or "
        "raise schedule.warmup_tokens; at the first step, look at the weights that init_from brought"
    )


def _validate(this: Run, record: Metrics) -> None:
    """Held-out loss by source, over all ranks."""
    run = this.config
    _, length = this.batches.batch_shape(this.step - 1)
    if length not in this.heldout:
        this.heldout[length] = Heldout(run.data, length, run.validation.tokens)
    begin = time.perf_counter()
    losses = evaluate.heldout_losses(this.engine.forward, this.heldout[length], this.grid, run.parallel.micro_batch)
    tokens = sum(count for _, count in losses.values())
    mean = sum(loss * count for loss, count in losses.values()) / max(tokens, 1)
    by_source = {name: loss for name, (loss, _) in losses.items()}
    record.write(
        "validation",
        step=this.step,
        tokens=this.tokens,
        loss=mean,
        losses=by_source,
        validation_s=round(time.perf_counter() - begin, 3),
    )


def _save(this: Run, record: Metrics) -> Path:
    """Publish a checkpoint and drop those that `keep_last` does not cover."""
    run, folder = this.config, Path(this.config.folder) / "checkpoints"
    begin = time.perf_counter()
    meta = runs.meta_of(
        run,
        this.step,
        this.tokens,
        this.engine.reducer.steps_applied(),
        this.words,
        this.batches,
        this.weights,
        this.decisions,
    )
    path = checkpoint.save(folder, meta, state.weights(this.engine), state.optimizer(this.engine))
    if this.main:
        retention.prune(folder, run.checkpoint)
    elapsed = round(time.perf_counter() - begin, 3)
    record.write("checkpoint", step=this.step, tokens=this.tokens, path=str(path), save_s=elapsed)
    return path


def _record_step(this: Run, record: Metrics, result: StepResult, lr: float, phases: Phases) -> None:
    run, world = this.config, this.grid.world
    seconds = phases.pop()
    batch_tokens = this.tokens - schedule.step_tokens(run.schedule, this.step - 1)
    _, length = this.batches.batch_shape(this.step - 1)
    rate = batch_tokens / seconds["step_s"]
    record.write(
        "train",
        step=this.step,
        tokens=this.tokens,
        loss=result.loss,
        grad_norm=result.grad_norm,
        lr=lr,
        loss_tokens=result.tokens,
        batch_tokens=batch_tokens,
        sequence_length=length,
        tokens_per_s=rate,
        tflops=metrics.tflops(run.model, length, rate, world),
        mfu=metrics.mfu(run.model, length, rate, world, this.peak_tflops),
        memory_bytes=metrics.peak_memory_bytes(_cuda_peak_bytes(this.grid.device)),
        **{name: round(value, 6) for name, value in seconds.items()},
    )


def _engine(run: config.Pretrain, grid: Grid, start: runs.Start) -> Engine:
    """Weights drawn or loaded, then the optimizer, then its state where the run goes on."""
    fresh = start.weights is None
    chunks = model.build(run.model, run.precision, run.parallel, grid, seed=run.seed if fresh else None)
    if start.weights is not None:
        state.load_weights(start.weights, chunks, run.model, grid)
    engine = Engine(chunks, run.model, run.optimizer, run.precision, run.parallel, grid)
    if start.weights is not None and start.resumed is not None:
        state.load_optimizer(start.weights, engine, start.updates)
        checkpoint.load_random(start.weights)
    return engine


def _open_record(this: Run) -> Metrics:
    return metrics.open_run(
        this.config.folder,
        this.config.log,
        name=this.config.name,
        total_tokens=schedule.step_tokens(this.config.schedule, this.last_step),
        resumed_step=this.step,
        resumed_tokens=this.tokens,
        main=this.main,
    )


def _timed(batches: Prefetcher[list[MicroBatch]], phases: Phases) -> Iterator[list[MicroBatch]]:
    """The batches, with the time spent waiting for each one counted as the phase `data`."""
    iterator = iter(batches)
    while True:
        with phases("data"):
            batch = next(iterator, None)
        if batch is None:
            return
        yield batch


@contextlib.contextmanager
def _profiler(profile: config.Profile, folder: Path, grid: Grid) -> Iterator[Any]:
    """A function to call after each step; it profiles the chosen ones into the folder `profile` of the run."""
    if profile.first_step is None:
        yield lambda: None
        return
    target = folder / "profile"
    if profile.memory and grid.device.type == "cuda":
        torch.cuda.memory._record_memory_history()

    def write(trace: Any) -> None:
        target.mkdir(parents=True, exist_ok=True)
        trace.export_chrome_trace(str(target / f"rank-{grid.rank}.json"))
        if profile.memory and grid.device.type == "cuda":
            torch.cuda.memory._dump_snapshot(str(target / f"memory-rank-{grid.rank}.pickle"))

    plan = torch.profiler.schedule(skip_first=profile.first_step, wait=0, warmup=0, active=profile.steps, repeat=1)
    with torch.profiler.profile(schedule=plan, on_trace_ready=write, profile_memory=profile.memory) as profiler:
        yield profiler.step


def _device_name(device: torch.device) -> str | None:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


def _cuda_peak_bytes(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
