"""What is learned: one signature (chunk, batch, grid) -> (output, loss function), called by the engine.

A micro-batch holds whole rows; what a context-parallel rank computes on are its two chunks of each row. `next_token`
serves pre-training and supervised finetuning, where weights say which tokens are targets; what compares whole
responses (`preference.py`) takes their numbers from `Compared`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from llama31.data.batches import Rows
from llama31.dialogs.rows import PackedRows
from llama31.model.sequences import SequenceTable, take_chunks
from llama31.parallel.mesh import Grid

LossFunction = Callable[[Any], tuple[Tensor, Tensor, Tensor]]
ForwardStep = Callable[[Any, "MicroBatch", Grid], tuple[Any, LossFunction]]


class Objective(Protocol):
    """What is learned: a forward step, and the names of what its loss function reports behind the loss."""

    @property
    def measures(self) -> tuple[str, ...]: ...

    def __call__(self, chunk: Any, batch: MicroBatch, grid: Grid) -> tuple[Any, LossFunction]: ...


@dataclass(frozen=True)
class Compared:
    """Responses of a micro-batch, and which of two is the better.

    of_token int64 [b, s]: the response that a position counts for, -1 where for none; pairs int64 [p, 2]: the better,
    then the worse; reference FP32 [number]: log-probabilities under the model that training began with; targets FP32
    [number]: labels of 0 to 1 that their rewards are to say, and of pairs none.
    """

    of_token: Tensor
    number: int
    pairs: Tensor
    reference: Tensor
    targets: Tensor


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one forward and backward pass.

    tokens, labels int64 [b, s]; weights FP32 [b, s], 0 where nothing is to be learned; documents int [n, 3] as
    (row, begin, end), sorted, covering every row, or [n, 5] (`model/attention.py`), on the host; positions int64
    [b, s], where they are not those of the row; scale multiplies what is not a sum over tokens.
    """

    tokens: Tensor
    labels: Tensor
    weights: Tensor
    documents: Tensor
    positions: Tensor | None = None
    compared: Compared | None = None
    scale: float | Tensor = 1.0
    tables: dict[tuple[int, int], SequenceTable] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_numpy(
        cls, tokens: np.ndarray, labels: np.ndarray, loss_mask: np.ndarray, documents: np.ndarray, device: torch.device
    ) -> MicroBatch:
        """From packed rows; documents int [b, s] numbers the document of each token within its row."""
        rows, length = documents.shape
        starts = np.ones((rows, length), dtype=bool)
        starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
        row, begin = np.nonzero(starts)
        end = np.append(begin[1:], length)
        end[np.append(row[1:] != row[:-1], True)] = length
        return cls(
            torch.from_numpy(np.ascontiguousarray(tokens, np.int64)).to(device),
            torch.from_numpy(np.ascontiguousarray(labels, np.int64)).to(device),
            torch.from_numpy(np.ascontiguousarray(loss_mask, np.float32)).to(device),
            torch.from_numpy(np.stack([row, begin, end], 1).astype(np.int32)),
        )

    @classmethod
    def from_rows(cls, rows: Rows | PackedRows, device: torch.device) -> MicroBatch:
        """From the data loader's rows."""
        if isinstance(rows, PackedRows):
            return cls.from_packed(rows, device)
        return cls.from_numpy(rows.tokens, rows.labels, rows.loss_mask, rows.documents, device)

    @classmethod
    def from_packed(cls, rows: PackedRows, device: torch.device) -> MicroBatch:
        """From rows of post-training."""
        given = (rows.tokens, rows.labels, rows.weights, rows.positions)
        tokens, labels, weights, positions = (torch.from_numpy(array).to(device) for array in given)
        told = (rows.of_token, rows.pairs, rows.reference, rows.targets)
        of_token, *others = (torch.from_numpy(array).to(device) for array in told)
        compared = Compared(of_token, rows.responses, *others) if rows.compares else None
        restart = positions if rows.restarts else None
        return cls(tokens, labels, weights, torch.from_numpy(rows.documents), restart, compared)

    def sequences(self, grid: Grid) -> SequenceTable:
        """What attention asks of the documents, made once for all layers, chunks and passes."""
        place = grid.cp, grid.cp_rank
        if place not in self.tables:
            rows, length = self.tokens.shape
            self.tables[place] = SequenceTable.of_rank(self.documents, rows, length, *place, self.tokens.device)
        return self.tables[place]

    def scaled(self, factor: Tensor) -> MicroBatch:
        """The same rows with every weight multiplied by `factor` [], which stays on its device."""
        return replace(self, weights=self.weights * factor, scale=self.scale * factor)

    def units(self) -> Tensor:
        """What the loss is a mean over, int64 []: pairs of responses, responses with a label, or tokens that count."""
        if self.compared is not None:
            return torch.tensor(len(self.compared.pairs) + len(self.compared.targets), device=self.weights.device)
        return (self.weights > 0).sum()


@dataclass(frozen=True)
class NextToken:
    """Weighted cross entropy of the next token."""

    measures: ClassVar[tuple[str, ...]] = ()

    def __call__(self, chunk: Any, batch: MicroBatch, grid: Grid) -> tuple[Any, LossFunction]:
        def local(row: Tensor) -> Tensor:
            return take_chunks(row, grid.cp, grid.cp_rank, 1)

        output = chunk(
            local(batch.tokens), None, batch.sequences(grid), labels=local(batch.labels), loss_mask=local(batch.weights)
        )

        def loss(output: Any) -> tuple[Tensor, Tensor, Tensor]:
            total, _ = output
            return total, torch.zeros((), dtype=torch.int), total.detach().clone()

        return output, loss


next_token = NextToken()
