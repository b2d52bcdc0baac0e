"""One optimizer step: Megatron's pipeline schedule over DeepSpeed ZeRO.

A step is `accumulate` (loss and gradient norm, agreed by all ranks), a verdict by the caller, then `apply` or
`discard`. The loss is divided by the tokens of the whole batch before the backward pass, so gradients of micro-batches
and ranks are summed, never averaged, and every layout computes the same numbers.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.pipeline_parallel import get_forward_backward_func, schedules
from torch import Tensor

from llama31 import config
from llama31.engine import zero
from llama31.engine.objectives import ForwardStep, MicroBatch, Objective, next_token
from llama31.model import llama
from llama31.parallel.mesh import Grid
from llama31.quantise import delayed


@dataclass(frozen=True)
class StepResult:
    """What all ranks agree on after `accumulate`."""

    loss: float  # token-weighted mean over micro-batches, data and context parallel ranks
    grad_norm: float  # before clipping
    tokens: int  # tokens that counted; pairs, where responses are compared
    measures: dict[str, float] = field(default_factory=dict)  # what else the objective tells, means of the same kind


@contextlib.contextmanager
def _after_each_backward(action: Callable[[], None] | None) -> Iterator[None]:
    """Run `action` after the backward pass of every micro-batch of Megatron's schedules."""
    if action is None:
        yield
        return
    original = schedules.backward_step

    def backward_step(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        action()
        return result

    schedules.backward_step = backward_step
    try:
        yield
    finally:
        schedules.backward_step = original


class Forward:
    """Micro-batches through the pipeline, and the loss that all ranks agree on."""

    def __init__(self, chunks: list[llama.Llama], grid: Grid) -> None:
        self.chunks, self.grid = chunks, grid
        self.called: list[Any] = list(chunks)  # the chunks as the schedule calls them; ZeRO-3 wraps them
        self.fp8 = delayed.Histories(chunks)

    def mean_loss(self, batches: Sequence[MicroBatch], objective: Objective = next_token) -> tuple[float, int]:
        """Token-weighted mean loss and the tokens that counted, over all ranks, without gradients."""
        means, tokens = self.means(batches, objective)
        return means[0], tokens

    @torch.no_grad()
    def means(self, batches: Sequence[MicroBatch], objective: Objective) -> tuple[list[float], int]:
        """The loss, then the objective's measures, each a mean over the tokens (pairs) that counted, and their number.

        Every rank of a data-parallel replica gets the same micro-batches, every replica equally many.
        """
        tokens = self.count(batches)
        factor = 1.0 / tokens.clamp(min=1).double()
        for chunk in self.chunks:
            chunk.eval()
        sums = self.run([batch.scaled(factor) for batch in batches], objective, forward_only=True)
        for chunk in self.chunks:
            chunk.train()
        *means, counted = self.agree(sums, torch.zeros_like(factor), tokens)
        return means[:-1], int(counted)

    def count(self, batches: Sequence[MicroBatch]) -> Tensor:
        """Tokens (pairs) that count in these micro-batches, over data-parallel replicas: int64 [], on the device."""
        tokens = torch.stack([batch.units() for batch in batches]).sum()
        dist.all_reduce(tokens, group=self.grid.dp_group)
        return tokens

    @torch.no_grad()
    def collect(self, batches: Sequence[MicroBatch], ask: ForwardStep) -> list[Tensor]:
        """What `ask` reports of each micro-batch's responses, FP32 [number] each, on all ranks of the replica."""
        for chunk in self.chunks:
            chunk.eval()
        sums = self.forward_backward(batches, ask, forward_only=True)
        for chunk in self.chunks:
            chunk.train()
        sizes = [batch.compared.number if batch.compared else 0 for batch in batches]
        flat = torch.cat(sums) if sums else torch.zeros(sum(sizes), device=self.grid.device)
        dist.all_reduce(flat, group=self.grid.pp_group)  # zeros but for the last stage
        return list(flat.split(sizes))

    def run(self, batches: Sequence[MicroBatch], objective: Objective, forward_only: bool) -> Tensor:
        """Sum of what this rank's micro-batches told: the weighted loss, then the objective's measures.

        Zeros where the last stage is elsewhere.
        """
        sums = self.forward_backward(batches, objective, forward_only)
        measures = len(objective.measures)
        if not sums:
            return torch.zeros(1 + measures, device=self.grid.device)
        return torch.stack(sums).sum(0).view(1 + measures)

    def forward_backward(self, batches: Sequence[MicroBatch], step: ForwardStep, forward_only: bool) -> list[Tensor]:
        """Of each micro-batch what the step reported; nothing where the last stage is elsewhere.

        What FP8 keeps between passes is left as it was where they are `forward_only`.
        """
        if not forward_only:
            return self._passes(batches, step, forward_only)
        for _ in range(delayed.LEARNING if self.fp8.scales == "ones" else 0):
            self._passes(batches, step, forward_only)
            self.fp8.measure()
        with self.fp8.untouched():
            return self._passes(batches, step, forward_only)

    def _passes(self, batches: Sequence[MicroBatch], step: ForwardStep, forward_only: bool) -> list[Tensor]:
        def forward_step(iterator: Iterator[MicroBatch], chunk: Any) -> tuple[Any, Any]:
            return step(chunk, next(iterator), self.grid)

        micro_batch, length = batches[0].tokens.shape
        sums: list[Tensor] = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=[iter(batches) for _ in self.chunks],
            model=self.called,
            num_microbatches=len(batches),
            seq_length=length,
            micro_batch_size=micro_batch,
            forward_only=forward_only,
        )
        return sums

    def agree(self, sums: Tensor, squares: Tensor, tokens: Tensor) -> list[float]:
        """The loss and what follows it, then `squares`, summed over all ranks, then `tokens` as they are: on the host.

        Sums count on the last stage alone, over data and context parallel ranks; `squares` on every rank, FP64 [].
        One message and one wait for the device, in FP64.
        """
        counts = self.grid.last_stage and self.grid.tp_rank == 0
        share = sums.double() if counts else torch.zeros_like(sums, dtype=torch.float64)
        shared = torch.cat([share, squares[None]])
        dist.all_reduce(shared)
        values: list[float] = torch.cat([shared, tokens.double()[None]]).tolist()
        return values


class Stopwatch:
    """Seconds that this rank computes: by the device's clock on a GPU, where asking ours would mean to wait."""

    def __init__(self, device: torch.device) -> None:
        self.marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device.type == "cuda" else []
        self._begin = self._seconds = 0.0

    def begin(self) -> None:
        """Now, or when the device gets here."""
        self._begin = time.perf_counter()
        if self.marks:
            self.marks[0].record()

    def end(self) -> None:
        """The same, of the end."""
        self._seconds = time.perf_counter() - self._begin
        if self.marks:
            self.marks[1].record()

    def seconds(self) -> float:
        """What lay between; on a GPU once something else waited for the device."""
        return self.marks[0].elapsed_time(self.marks[1]) / 1000 if self.marks else self._seconds


class Engine:
    """Chunks of a model, their gradients and their optimizer, on one rank."""

    def __init__(
        self,
        chunks: list[llama.Llama],
        shape: config.Model,
        optimizer: config.Optimizer,
        numbers: config.Precision,
        parallel: config.Parallel,
        grid: Grid,
    ) -> None:
        self.chunks, self.grid = chunks, grid
        self.shards = llama.shards(chunks, shape, grid)
        self.reducer = zero.create(chunks, self.shards, optimizer, numbers, parallel, grid)
        self.forward = Forward(chunks, grid)
        self.forward.called = self.reducer.forward_chunks
        self.own_s = 0.0  # seconds of the last forward and backward passes, before waiting for other replicas
        self._watch = Stopwatch(grid.device)
        self._norm = 0.0

    def accumulate(self, batches: Sequence[MicroBatch], objective: Objective = next_token) -> StepResult:
        """Forward and backward of this rank's micro-batches; weights are not touched.

        Every rank of a data-parallel replica gets the same batches (all of one size). Returns what all ranks agree on;
        to read it is the only time that the host waits for a GPU. FP8's delayed scaling learns its first scales from
        these batches, where it has none.
        """
        state = self.forward.fp8
        if state.scales != "learned":
            state.forget()
            for _ in range(delayed.LEARNING):
                self._accumulate(batches, objective)
                self.reducer.discard()
            state.scales = "learned"
        state.keep()
        return self._accumulate(batches, objective)

    def _accumulate(self, batches: Sequence[MicroBatch], objective: Objective) -> StepResult:
        self.reducer.begin(len(batches))
        tokens = self.forward.count(batches)
        factor = self.reducer.loss_scale / tokens.clamp(min=1).double()
        self._watch.begin()
        with _after_each_backward(self.reducer.after_backward()):
            sums = self.forward.run([batch.scaled(factor) for batch in batches], objective, forward_only=False)
        self._watch.end()
        *sums_of_all, squares, counted = self.forward.agree(sums, self.reducer.reduce(), tokens)
        self.own_s, self._norm = self._watch.seconds(), math.sqrt(squares)
        loss, *others = [value / self.reducer.loss_scale for value in sums_of_all]
        return StepResult(loss, self._norm, int(counted), dict(zip(objective.measures, others, strict=True)))

    def apply(self, lr: float) -> None:
        """Clip the accumulated gradients and update weights with learning rate `lr`."""
        self.reducer.apply(lr, self._norm)

    def settle(self) -> None:
        """Wait for the weights that other ranks updated: for who reads them otherwise than by a forward pass."""
        self.reducer.settle()

    def discard(self) -> None:
        """Forget the accumulated gradients, and what FP8 saw of them."""
        self.reducer.discard()
        self.forward.fp8.restore()
