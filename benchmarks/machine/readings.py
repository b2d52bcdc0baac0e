"""What is measured of a machine: plain numbers, as they come out of `worker` as JSON. No torch."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from llama31.config import Model, Parallel

MARK = "readings: "  # what the line begins with in which a worker says them


@dataclass(frozen=True)
class StepCase:
    """A model on a layout, and the rows of its step on each data-parallel replica."""

    name: str
    model: Model
    parallel: Parallel
    sequence_length: int
    micro_batches: int
    layout: str = ""  # as it is told

    @classmethod
    def of(cls, plain: dict[str, Any]) -> StepCase:
        """From its `dataclasses.asdict`."""
        made = {"model": Model(**plain["model"]), "parallel": Parallel(**plain["parallel"])}
        return cls(**{**plain, **made})


@dataclass
class Readings:
    """Seconds of the parts of a step, each measured alone, while `processes` do the same at once.

    Of each measurement the arguments stand before the seconds, which are the median of repetitions on the slowest
    process, and of rounds.
    """

    processes: int
    params: str  # fp32 or bf16: what the parts compute in
    device: str  # its name
    gpu: bool
    memory_bytes: float
    versions: str
    products: list[list[float]] = field(default_factory=list)  # rows, columns, terms of the sum, s
    wide: list[list[float]] = field(default_factory=list)  # the same of BF16, where the parts compute in FP32
    attention: list[list[float]] = field(default_factory=list)  # length, tokens, columns of Q, s forward, s backward
    elementwise: list[list[float]] = field(default_factory=list)  # tokens, hidden size, columns of SwiGLU, s
    accumulated: list[list[float]] = field(default_factory=list)  # numbers of a gradient, s to add one to it
    copies: list[list[float]] = field(default_factory=list)  # bytes, s to copy them
    optimizer: list[list[float]] = field(default_factory=list)  # parameters, s to update them
    losses: list[list[float]] = field(default_factory=list)  # tokens, vocabulary, hidden size, s forward and backward
    messages: list[tuple[str, int, float, float]] = field(default_factory=list)  # kind, ranks, bytes that one sends, s
    steps: list[tuple[str, float]] = field(default_factory=list)  # name of a case, s

    def to_plain(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def median(cls, rounds: Sequence[Readings]) -> Readings:
        """Of several rounds the median of each reading, place by place."""
        merged: dict[str, Any] = {}
        for one in dataclasses.fields(cls):
            each = [getattr(found, one.name) for found in rounds]
            if isinstance(each[0], list):
                seconds = 2 if one.name == "attention" else 1
                merged[one.name] = [_middle(rows, seconds) for rows in zip(*each, strict=True)]
        return dataclasses.replace(rounds[0], **merged)


def _middle(rows: Sequence[Sequence[Any]], seconds: int) -> list[Any]:
    """The arguments of a measurement, and the medians of its last `seconds` numbers."""
    ends = [statistics.median(column) for column in list(zip(*rows, strict=True))[-seconds:]]
    return [*rows[0][:-seconds], *ends]
