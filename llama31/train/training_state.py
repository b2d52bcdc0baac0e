"""A run that trains, on one rank: what it was set up with, and where its training stands."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama31 import config
from llama31.checkpoint.saver import Saver
from llama31.data.mixture import Decision
from llama31.engine.ema import Ema
from llama31.engine.pipeline import Engine
from llama31.engine.reading import Heldout
from llama31.evaluate.gates import GateState
from llama31.parallel.mesh import Grid
from llama31.parallel.replica import Replica
from llama31.resilience.attempt import Attempt
from llama31.resilience.expectation import Expectation
from llama31.resilience.resume import Start
from llama31.resilience.watch import Watch
from llama31.runs.measured import Phases
from llama31.runs.metrics import Metrics
from llama31.train.feeds import Feed


@dataclass
class State:
    """A run on one rank, and where its training stands."""

    run: config.Training
    grid: Grid
    replica: Replica
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
    step: int  # optimizer steps done
    tokens: int  # seen by then
    saved: Path | None  # the newest checkpoint
    expectation: Expectation | None = None  # of step time and memory, where constants were given
    heldout: dict[int, Heldout | None] = field(default_factory=dict)  # by sequence length
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
