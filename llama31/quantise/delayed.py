"""Delayed scaling's state: of each linear layer the scales that its next cast uses, and the maxima they come from.

A scale follows from the largest values of earlier passes, so it is part of what training goes on from: without it a
resumed run computes other numbers. The state has the shape of Transformer Engine's, whose own tensors stand here on a
GPU. Its maxima are those of all ranks of a pipeline stage, so that every rank holds the same, and any layout can go on
from what another one saved.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llama31.parallel import mesh
from llama31.quantise import formats

PASSES = 1024  # whose largest value a scale follows: Transformer Engine's own default
LEARNING = 2  # passes after which every scale is one of its tensor: a gradient that underflows hides those below it
INPUT, WEIGHT, FORWARD = 0, 1, 3  # places among what the forward pass casts; the third, of the output, stays unused
GRADIENT, BACKWARD = 0, 2  # the same of the backward pass
PREFIX = "fp8."


@dataclass(frozen=True)
class ScaleHistory:
    """Of one linear layer, FP32, live: scales [3] and [2], and maxima [PASSES, 3] and [PASSES, 2].

    In the order input, weight, output; gradient of the output, of the input. The first row of maxima is of the pass
    that runs.
    """

    scale_forward: Tensor
    amax_forward: Tensor
    scale_backward: Tensor
    amax_backward: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """All four."""
        return self.scale_forward, self.amax_forward, self.scale_backward, self.amax_backward

    def packed(self) -> Tensor:
        """A copy of all as one tensor FP32 [1 + PASSES, 5], the scales in its first row."""
        forward = torch.cat([self.scale_forward[None], self.amax_forward])
        return torch.cat([forward, torch.cat([self.scale_backward[None], self.amax_backward])], 1)

    @torch.no_grad()
    def fill(self, packed: Tensor) -> None:
        """Take over what `packed` gave."""
        forward, backward = packed.split([FORWARD, BACKWARD], 1)
        for scale, amax, given in (
            (self.scale_forward, self.amax_forward, forward),
            (self.scale_backward, self.amax_backward, backward),
        ):
            scale.copy_(given[0])
            amax.copy_(given[1:])


SHAPE = (1 + PASSES, FORWARD + BACKWARD)


class Book:
    """The histories of a chunk's linear layers where Transformer Engine does not keep them (`twin`)."""

    def __init__(self, layers: int, device: torch.device) -> None:
        """For so many linear layers; maxima are those of all ranks of a pipeline stage."""
        self.scales = [torch.ones(layers, number, device=device) for number in (FORWARD, BACKWARD)]
        self.maxima = [torch.zeros(layers, PASSES, number, device=device) for number in (FORWARD, BACKWARD)]
        self.inside = self.learning = False  # whether the layers' forward pass runs, and with gradients to follow

    def history(self, place: int) -> ScaleHistory:
        """That of one layer: views."""
        return ScaleHistory(self.scales[0][place], self.maxima[0][place], self.scales[1][place], self.maxima[1][place])

    def follow(self, decoder: nn.Module) -> None:
        """Take in what was seen when a forward pass of `decoder` ends that has gradients to follow."""

        def begin(*_: Any) -> None:
            self.inside, self.learning = True, torch.is_grad_enabled()

        def end(*_: Any) -> None:
            self.inside = False
            if self.learning:
                self.take_in(forward=True)

        decoder.register_forward_pre_hook(begin)
        decoder.register_forward_hook(end)

    @torch.no_grad()
    def take_in(self, forward: bool) -> None:
        """The maxima of the pass that ended, over all ranks; new scales; an empty row for the next pass. Collective."""
        which, kind = (0, formats.E4M3) if forward else (1, formats.E5M2)
        maxima, scales = self.maxima[which], self.scales[which]
        seen = maxima[:, 0].contiguous()
        _over_stage(seen)
        maxima[:, 0] = seen
        highest = maxima.amax(1)
        known = (highest > 0) & highest.isfinite()
        scales.copy_(torch.where(known, formats.scale_of(highest, kind), scales))
        maxima.copy_(maxima.roll(-1, 1))
        maxima[:, 0] = 0


class Rounding:
    """Casts of one linear layer by its history (`twin.Cast`).

    Where a layer is computed again in the backward pass, it casts as it did the first time, and nothing is seen twice.
    """

    def __init__(self, book: Book, place: int) -> None:
        self.book, self.last = book, place == 0  # of the chunk's layers the first is the last in the backward pass
        self.history = book.history(place)
        self._kept: deque[Tensor] = deque()
        self._scale, self._sees = self.history.scale_forward, True

    def begin(self) -> None:
        """Before the casts of a forward pass."""
        self._scale, self._sees = self.history.scale_forward, self.book.inside
        if not self.book.inside:
            self._scale = self._kept.popleft()
        elif self.book.learning and not torch.is_grad_enabled():
            self._scale = self._scale.clone()
            self._kept.append(self._scale)

    def input(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [n, k], for products along k and along n."""
        return self._forward(x, INPUT)

    def weight(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """weight [m, k], for products along k and along m."""
        return self._forward(weight, WEIGHT)

    def gradient(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        """grad [n, m], for products along m and along n."""
        _see(self.history.amax_backward, GRADIENT, grad)
        held = formats.rounded(grad, self.history.scale_backward[GRADIENT].clone(), formats.E5M2)
        return held, held

    def end_backward(self) -> None:
        """After the layer's backward pass."""
        if self.last:
            self.book.take_in(forward=False)

    def _forward(self, x: Tensor, place: int) -> tuple[Tensor, Tensor]:
        if self._sees:
            _see(self.history.amax_forward, place, x)
        held = formats.rounded(x, self._scale[place].clone(), formats.E4M3)
        return held, held


def _see(maxima: Tensor, place: int, x: Tensor) -> None:
    maxima[0, place] = torch.maximum(maxima[0, place], x.detach().abs().amax().float())


class Histories:
    """Of all chunks of this rank, by the layer's global name; empty where no recipe keeps any.

    `chunk.fp8_scales` says what their scales are: "ones", as they begin; "measured" on tensors that were evaluated
    before any training; "learned" in training, and where there is nothing to learn. It is the same on all ranks.
    """

    def __init__(self, chunks: Sequence[Any]) -> None:
        self.chunks = chunks
        self.named: dict[str, ScaleHistory] = {name: one for chunk in chunks for name, one in chunk.histories.items()}
        self._live = [tensor for history in self.named.values() for tensor in history.tensors()]
        self._kept: list[Tensor] = []

    @property
    def scales(self) -> str:
        return str(self.chunks[0].fp8_scales)

    @scales.setter
    def scales(self, what: str) -> None:
        for chunk in self.chunks:
            chunk.fp8_scales = what

    def keep(self) -> None:
        """Remember the state as it is, for `restore`."""
        if not self._kept:
            self._kept = [torch.empty_like(tensor) for tensor in self._live]
        _copy(self._kept, self._live)

    def restore(self) -> None:
        """The state of the last `keep`."""
        if self._kept:
            _copy(self._live, self._kept)

    @contextlib.contextmanager
    def untouched(self) -> Iterator[None]:
        """Leave the state as it was found: passes without gradients, too, put their maxima into it."""
        before = [tensor.clone() for tensor in self._live]
        try:
            yield
        finally:
            _copy(self._live, before)

    @torch.no_grad()
    def forget(self) -> None:
        """Scales of 1 and no maxima, as a run begins."""
        nothing = torch.zeros(SHAPE)
        nothing[0] = 1
        for history in self.named.values():
            history.fill(nothing)
        self.scales = "ones"

    @torch.no_grad()
    def measure(self) -> None:
        """Scales of the forward pass from the maxima of one that just ran without gradients. Collective."""
        self.scales = "measured"
        if not self.named:
            return
        seen = torch.stack([history.amax_forward[0] for history in self.named.values()])
        _over_stage(seen)
        for history, scale in zip(self.named.values(), formats.scale_of(seen, formats.E4M3), strict=True):
            history.scale_forward.copy_(scale)


def _over_stage(maxima: Tensor) -> None:
    """The largest of all ranks of a stage, in place."""
    group = mesh.stage_group()  # not kept: a group that something holds on to keeps its threads
    if dist.get_world_size(group) > 1:
        dist.all_reduce(maxima, op=dist.ReduceOp.MAX, group=group)


@torch.no_grad()
def _copy(to: list[Tensor], source: list[Tensor]) -> None:
    if to:
        torch._foreach_copy_(to, source)
