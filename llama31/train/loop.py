"""The one loop. `fit` shows the order of events of a step; everything else here prepares for it."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import torch

from llama31 import config
from llama31.checkpoint import publish, retention, shards
from llama31.checkpoint.saver import Saver, background_group
from llama31.checkpoint.shards import Shard
from llama31.data.batches import rank_rows
from llama31.data.mixture import Skip
from llama31.data.prefetch import Prefetcher
from llama31.engine import state
from llama31.engine.ema import Ema
from llama31.engine.objectives import MicroBatch, Objective, next_token
from llama31.engine.pipeline import StepResult
from llama31.evaluate import perplexity
from llama31.evaluate.gates import Gates
from llama31.model import precision
from llama31.parallel import mesh
from llama31.parallel.collectives import on_all_ranks
from llama31.parallel.mesh import Grid
from llama31.plan import schedule
from llama31.resilience import resume
from llama31.resilience.attempt import Attempt, record_decisions
from llama31.resilience.guard import Verdict
from llama31.resilience.watch import Watch
from llama31.runs import metrics, plots
from llama31.runs.metrics import Metrics, Phases
from llama31.tokens import tokenizer
from llama31.train import outset, profiler, setup
from llama31.train.feeds import Feed, Open, Text

log = logging.getLogger(__name__)


class TrainingStopped(config.RunError):
    """Training cannot go on; what was saved before stands."""


def fit(
    run: config.Training,
    objective: Objective = next_token,
    data: Open | None = None,
    finish: Callable[[Run], None] | None = None,
) -> Path | None:
    """Train `run` from where it stands to its end, or to a request to stop; return its last checkpoint.

    `data` opens what it trains on, by default the packed text of a `config.Pretrain`; `finish` is called on all ranks
    after the last step, with the model as it is then.
    Raises ValueError for what is wrong with the config, the data or a checkpoint, and RunError where training cannot go
    on: loss or gradients that stay not finite, a disk that stays full, a newer attempt of the same run.
    """
    grid = mesh.create(run.parallel, run.cluster.timeout_s)
    always_equal = precision.deterministic(run.deterministic)
    with always_equal, Attempt(run) as attempt, Run(run, grid, attempt, objective, data) as this:
        phases = this.phases
        while not this.done:
            with phases("data"):
                batch = this.feed.take()
            lr = schedule.learning_rate(run.schedule, this.tokens)
            with phases("forward_backward"):
                result = this.engine.accumulate(batch, objective)
            with phases("guard"):
                control = this.watch.judge(this.step, this.tokens, result, phases.seconds("data"))
            if control.verdict.kind != "continue":
                this.engine.discard()
                this.go_back(control.verdict)
                continue
            with phases("checkpoint"):
                this.saver.staged()  # what is being saved is about to change
            with phases("optimizer"):
                this.apply(lr)
            this.step, this.tokens = this.step + 1, schedule.step_tokens(run.schedule, this.step + 1)
            this.record_step(result, lr)
            ending = control.stop or this.step == this.last_step
            if ending:
                this.save()  # before all that could still fail
                this.saves(wait=True)
            if this.due(run.validation.every_tokens):
                this.validate()
            if this.gates.every_tokens is not None and this.due(this.gates.every_tokens):
                this.examine()
            if not ending and (this.due(run.checkpoint.every_tokens) or control.save or this.gates.open):
                this.save()
            if control.stop:
                attempt.stopped = control.reason
            phases.pop()
        this.refuse_shut_gates()
        if finish is not None and this.step >= this.last_step:
            finish(this)
    return this.saved or this.start.weights


class Run:
    """What `fit` works with on one rank: the engine, the data, the record, and where training stands.

    Used in a `with`, from whose beginning batches are read ahead, signals are heard and the record is open.
    """

    def __init__(
        self,
        run: config.Training,
        grid: Grid,
        attempt: Attempt,
        objective: Objective = next_token,
        data: Open | None = None,
    ) -> None:
        self.objective = objective
        self.config, self.grid, self.attempt, self.main = run, grid, attempt, grid.rank == 0
        self.watch = Watch(run, grid, attempt)
        if run.preflight.enabled:
            self.watch.check_nodes(run)
        self.start = resume.find_start(run)
        self._step, self.tokens = self.start.step, self.start.tokens
        self.last_step = schedule.total_steps(run.schedule)
        if run.stop_after_steps is not None:
            self.last_step = min(self.last_step, self.step + run.stop_after_steps)
        self.data = data(grid, self.start) if data else _text(run)
        self.decisions = self.data.begin(self.start)
        resume.check_data(self.start, self.data.fingerprints)
        words = tokenizer.load(run.tokenizer)
        self.data.check(run.model, words)
        self.words = {**dataclasses.asdict(run.tokenizer), "fingerprint": words.fingerprint, "folder": "tokenizer"}
        self.heldout: dict[int, perplexity.Heldout | None] = {}  # by sequence length
        self.notes = outset.lines(run, self.start, self._heldout(max(0, self.last_step - 1)) is not None)
        self.engine = setup.open_engine(run, grid, self.start)
        self.ema = self._average()
        self.gates = Gates(run, words, self.data.batch_shape(max(0, self.last_step - 1))[1], self.main)
        self.watch.follow(self.engine, self.start)
        on_all_ranks(None, lambda: self._begin(words) if self.main else None)
        self.saver = Saver(
            Path(run.folder) / "checkpoints",
            background_group(),
            asynchronous=run.checkpoint.asynchronous,
            keep=run.checkpoint,
            loaded=self.start.weights if self.start.resumed else None,
            fence=attempt.newer,
        )
        self.saved = self.start.weights if self.start.resumed else None
        self.peak_tflops = run.cluster.peak_tflops or metrics.peak_tflops(_device_name(grid.device))
        self.phases = Phases(begins=lambda name: self.watch.dog.beat(self.step, name))
        self.validation_loss: float | None = None
        self._record_s = 0.0
        self._parts = contextlib.ExitStack()
        self.saver.reserve(state.weights(self.engine), self._optimizer())

    def _begin(self, words: tokenizer.Tokenizer) -> None:
        """All checks passed: write down what runs, and put aside what the run went back behind."""
        run = self.config
        self.attempt.record(run, self.start, self.decisions, self.watch.hosts, self.watch.environment)
        words.save_hf(Path(run.folder) / "tokenizer")
        folder = Path(run.folder) / "checkpoints"
        if run.resume not in ("auto", "none"):
            publish.set_aside_after(folder, self.step)
        retention.remove_torn(folder, self.attempt.number, self.attempt.newer)
        print(*self.notes, sep="\n", flush=True)
        if self.step >= self.last_step:
            print(f"nothing left to train: {self.start.weights} has seen {self.tokens:,} tokens", flush=True)

    def __enter__(self) -> Run:
        run, parts = self.config, self._parts
        with contextlib.ExitStack() as opened:
            self.record = opened.enter_context(self._open_record())
            self.watch.begin(opened, self.record)
            self.feed = opened.enter_context(
                Prefetcher(self._micro_batches, self.step, self.last_step, self.data.prefetch)
            )
            self._profiled = opened.enter_context(profiler.profiled(run.profile, Path(run.folder), self.grid))
            parts.push(opened.pop_all())
        self.gates.begin(self.engine.forward, self.step)
        gc.collect()
        gc.freeze()  # what is built by now lives to the end: no need to look through it again and again
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._parts:
            try:
                if error is None:
                    self.saves(wait=True)
            finally:
                self.saver.__exit__(kind, error, trace)  # knows the error, so that a failed save does not hide it
        if error is None and self.main and self.step > self.start.step:
            words = None if hasattr(self.objective, "measures") else self.config.model.vocab_size  # of the ln(V) line
            plots.show_loss_curve(self.config.folder, words)

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self._step

    @step.setter
    def step(self, step: int) -> None:
        """Also where the attempt's last word will say that it got to."""
        self._step = step
        self.attempt.reached = (step, schedule.step_tokens(self.config.schedule, step))

    def _micro_batches(self, step: int) -> list[MicroBatch]:
        """This rank's rows of a step."""
        rows, _ = self.data.batch_shape(step)
        size = self.config.parallel.micro_batch
        indices = rank_rows(rows, size, self.grid.dp, self.grid.dp_rank)
        return [MicroBatch.from_rows(self.data.rows(step, part), self.grid.device) for part in indices]

    def _open_record(self) -> Metrics:
        run = self.config
        return metrics.open_run(
            run.folder,
            run.log,
            name=run.name,
            attempt=self.attempt.number,
            total_tokens=schedule.step_tokens(run.schedule, self.last_step),
            resumed_step=self.step,
            resumed_tokens=self.tokens,
            main=self.main,
        )

    @property
    def done(self) -> bool:
        """Whether there is no further step: the end, a request to stop, gates that have opened."""
        return self.step >= self.last_step or bool(self.attempt.stopped) or self.gates.open

    def apply(self, lr: float) -> None:
        """Update weights, and the average of the masters where one is kept."""
        self.engine.apply(lr)
        if self.ema is not None:
            self.ema.update()

    def _average(self) -> Ema | None:
        """The moving average of the masters: that of the checkpoint, or a copy of them to begin with."""
        decay = self.config.optimizer.ema_decay
        if decay is None:
            return None
        average = Ema(state.optimizer(self.engine), decay)
        if self.start.weights is not None and self.start.optimizer:
            self._load_average(average, self.start.weights)
        return average

    def _load_average(self, average: Ema, folder: Path) -> None:
        saved = shards.names(folder / "optimizer")
        if any(name.startswith("ema.") for name in saved):
            publish.load_optimizer(folder, average.shards())
        elif self.main:
            log.warning("%s holds no moving average: it begins anew, with the masters as they are", folder)

    def _optimizer(self) -> list[Shard]:
        """What a checkpoint keeps beside the weights."""
        return [*state.optimizer(self.engine), *(self.ema.shards() if self.ema is not None else [])]

    def due(self, every_tokens: int | None) -> bool:
        """Whether something that happens every so many tokens happens after this step; always after the last."""
        if self.step == self.last_step:
            return True
        if every_tokens is None:
            return False
        before = schedule.step_tokens(self.config.schedule, self.step - 1)
        return self.tokens // every_tokens > before // every_tokens

    def go_back(self, verdict: Verdict) -> None:
        """Leave out data that a verdict blames, from here or from an earlier checkpoint, or end where it says so.

        All ranks have the same verdict. Raises TrainingStopped.
        """
        if verdict.kind == "stop":
            self.saves(wait=True)
            raise TrainingStopped(self._stopped(verdict.reason))
        if verdict.kind == "rollback":
            self._roll_back(verdict)
        if verdict.to_step > verdict.from_step:
            self.decisions = [*self.decisions, Skip(verdict.from_step, verdict.to_step)]
            folder = Path(self.config.folder)
            on_all_ranks(None, lambda: record_decisions(folder, self.decisions) if self.main else None)
            self.data.follow(self.decisions)
        self.feed.restart(self.step)
        self.phases.pop()

    def _roll_back(self, verdict: Verdict) -> None:
        """Weights, optimizer and random state of the newest checkpoint of at most `verdict.before_step` steps."""
        folder = Path(self.config.folder) / "checkpoints"
        self.saves(wait=True)
        found = resume.newest_checkpoint(self.config, verdict.before_step)
        if found is None:
            missing = f"there is no checkpoint of at most {verdict.before_step} steps to roll back to"
            raise TrainingStopped(self._stopped(f"{verdict.reason}; {missing}"))
        meta = publish.read_meta(found)
        state.load_optimizer(found, self.engine, resume.updates_of(meta))
        publish.load_random(found)
        self.step, self.tokens = meta.step, meta.tokens
        self.saved = self.saver.loaded = found
        if self.ema is not None:
            self._load_average(self.ema, found)
        self.watch.guard.restore(meta.extra.get("guard"), meta.step)
        self.attempt.went_back(self.step, self.tokens)
        fence = self.attempt.newer
        on_all_ranks(None, lambda: publish.set_aside_after(folder, meta.step, fence) if self.main else None)
        told = {"event": verdict.event, "reason": verdict.reason, "path": str(found)}
        self.record.write("rollback", step=self.step, tokens=self.tokens, to_step=self.step, **told)

    def _stopped(self, reason: str) -> str:
        last = f"the newest checkpoint is {self.saved}" if self.saved else "nothing has been saved yet"
        return (
            f"{reason}. The update was not applied; {last}. Lower schedule.peak_lr or raise schedule.warmup_tokens; "
            "at the first step, look at the weights that init_from brought; guard.on_... says what to do instead"
        )

    def _heldout(self, step: int) -> perplexity.Heldout | None:
        """Held-out rows of the length of a step, read once; None where nothing is held out."""
        _, length = self.data.batch_shape(step)
        if length not in self.heldout:
            self.heldout[length] = self.data.heldout(length, self.config.validation.tokens)
        return self.heldout[length]

    def validate(self) -> None:
        """Held-out loss by source, over all ranks."""
        run, size = self.config, self.config.parallel.micro_batch
        heldout = self._heldout(self.step - 1)
        if heldout is None:
            return
        with self.phases("validation"):
            begin = time.perf_counter()
            found = perplexity.heldout_means(self.engine.forward, heldout, self.grid, size, self.objective)
        self.validation_loss, *others = perplexity.over_sources(found)
        published, loss = self.saver.newest, self.validation_loss
        if published is not None and published.name == publish.name_of(self.step, self.attempt.number):
            keep, fence = run.checkpoint, self.attempt.newer
            on_all_ranks(None, lambda: retention.note_validation(published, loss, keep, fence) if self.main else None)
        self.record.write(
            "validation",
            step=self.step,
            tokens=self.tokens,
            loss=self.validation_loss,
            losses={name: means[0] for name, (means, _) in found.items()},
            **dict(zip(getattr(self.objective, "measures", ()), others)),
            validation_s=round(time.perf_counter() - begin, 3),
        )

    def examine(self) -> None:
        """Ask whether this stage of long context may end."""
        with self.phases("gates"):
            scores, reasons = self.gates.examine(self.engine.forward, self.step, self.tokens)
        event, reason = ("gates_shut", "; ".join(reasons)) if reasons else ("gates_open", "all scores are reached")
        self.record.write("event", step=self.step, tokens=self.tokens, event=event, reason=reason)
        if self.main and "needle" in scores:
            plots.draw_recall(Path(self.config.folder) / "needle.png", scores["needle"])

    def refuse_shut_gates(self) -> None:
        """RunError where the tokens have ended before the gates opened, so that no later stage begins."""
        if self.gates.every_tokens is None or self.gates.open or self.step < self.last_step:
            return
        self.saves(wait=True)
        raise TrainingStopped(
            f"after {self.tokens:,} tokens the gates are shut: {'; '.join(self.gates.reasons)}. The newest checkpoint "
            f"is {self.saved}; give this stage more schedule.total_tokens, or change what gates.* ask for"
        )

    def save(self) -> None:
        """Begin a checkpoint; it is published while training goes on, where `checkpoint.asynchronous` says so."""
        updates = self.engine.reducer.steps_applied()
        meta = resume.meta_of(
            self.config,
            self.step,
            self.tokens,
            updates,
            self.words,
            self.data.told(),
            self.decisions,
            attempt=self.attempt.number,
            guard=self.watch.guard.history(),
            validation_loss=self.validation_loss,
        )
        with self.phases("checkpoint"):
            stall_s = self.saver.save(meta, state.weights(self.engine), self._optimizer(), overlap=True)
        self.watch.interval.saved(stall_s)

    def saves(self, wait: bool = False) -> None:
        """Record what has been published since the last look; the first rank alone is told, unless all wait."""
        for one in self.saver.wait() if wait else self.saver.poll():
            self.saved = one.path
            self.watch.interval.written(one.write_s)
            told = {"path": str(one.path), "asynchronous": self.config.checkpoint.asynchronous}
            seconds = {"stall_s": round(one.stall_s, 4), "write_s": round(one.write_s, 4)}
            self.record.write("checkpoint", step=one.step, tokens=one.tokens, **told, **seconds)

    def record_step(self, result: StepResult, lr: float) -> None:
        """Write down the step that was just done."""
        run, world = self.config, self.grid.world
        seconds = self.phases.pop()
        begin = time.perf_counter()
        self._profiled()
        self.saves()
        batch_tokens = self.tokens - schedule.step_tokens(run.schedule, self.step - 1)
        _, length = self.data.batch_shape(self.step - 1)
        rate = batch_tokens / seconds["step_s"]
        self.record.write(
            "train",
            step=self.step,
            tokens=self.tokens,
            loss=result.loss,
            grad_norm=result.grad_norm,
            lr=lr,
            loss_tokens=result.tokens,
            **result.measures,
            batch_tokens=batch_tokens,
            sequence_length=length,
            tokens_per_s=rate,
            tflops=metrics.tflops(run.model, length, rate, world),
            mfu=metrics.mfu(run.model, length, rate, world, self.peak_tflops),
            memory_bytes=metrics.peak_memory_bytes(_cuda_peak_bytes(self.grid.device)),
            **(self.data.facts(self.step - 1) if self.main else {}),
            **{name: round(value, 6) for name, value in seconds.items()},
            record_s=round(self._record_s, 6),
        )
        self._record_s = time.perf_counter() - begin  # stands in the line of the next step


def _text(run: config.Training) -> Feed:
    assert isinstance(run, config.Pretrain), "other recipes say what they train on"
    return Text(run)


def _device_name(device: torch.device) -> str | None:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


def _cuda_peak_bytes(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
