"""What a model thinks of given tokens: losses and likeliest tokens, on any layout, without decoding.

One pass of the training's own pipeline answers what perplexity, multiple choice and the needle in a haystack ask: how
likely is each token given those before it, and would greedy decoding have written it? Where every token of an answer
is the likeliest after the prompt and the answer so far, decoding the prompt greedily gives that answer, token by token.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from llama31.data.batches import Rows, rank_rows
from llama31.dialogs.rows import PackedRows
from llama31.engine.objectives import ForwardStep, LossFunction, MicroBatch
from llama31.engine.pipeline import Forward
from llama31.model.llama import Llama
from llama31.model.sequences import take_chunks
from llama31.parallel.mesh import Grid

ROWS_AT_ONCE = 16  # rows per replica between two reductions of what was found


@dataclass(frozen=True)
class Scores:
    """Of rows [n, s]: cross entropy in nats of each label and the likeliest token; 0 and -1 where nothing is asked."""

    losses: NDArray[np.float32]
    likeliest: NDArray[np.int64]


@dataclass(frozen=True)
class ScoreRequest:
    """Tokens of which the last `answer` are asked about, given those before them."""

    tokens: Sequence[int] | NDArray[np.int64]
    answer: int


Fetch = Callable[[NDArray[np.int64]], Rows]  # rows by index; those at or beyond the count weigh nothing


def score(forward: Forward, fetch: Fetch, count: int, micro_batch: int) -> Scores:
    """Scores of `count` rows of equal length, the same on all ranks. Collective.

    `fetch` gives rows by index, the same on all ranks; those at or beyond `count` have to be padding with a loss mask
    of 0, to make up whole micro-batches. Each replica computes its share. Rows have to split over context parallelism.
    """
    unit = whole_batches(forward.chunks, forward.grid) * micro_batch  # rows of a replica that a schedule takes
    block = -(-ROWS_AT_ONCE // unit) * unit * forward.grid.dp
    parts = [_block(forward, fetch, first, min(block, count - first), micro_batch) for first in range(0, count, block)]
    return Scores(np.concatenate([p.losses for p in parts]), np.concatenate([p.likeliest for p in parts]))


def whole_batches(chunks: list[Llama], grid: Grid) -> int:
    """Micro-batches per replica that the pipeline's schedule takes at least: interleaving takes whole groups."""
    return chunks[0].config.microbatch_group_size_per_vp_stage if grid.vpp > 1 else 1


def rows_of_replica(rows: int, chunks: list[Llama], grid: Grid, micro_batch: int) -> list[NDArray[np.int64]]:
    """This replica's rows of each micro-batch, padded up to what the pipeline schedule can run."""
    unit = micro_batch * grid.dp * whole_batches(chunks, grid)
    return rank_rows(-(-rows // unit) * unit, micro_batch, grid.dp, grid.dp_rank)


def _block(forward: Forward, fetch: Fetch, first: int, count: int, micro_batch: int) -> Scores:
    grid = forward.grid
    indices = rows_of_replica(count, forward.chunks, grid, micro_batch)
    rows = [fetch(part + first) for part in indices]
    batches = [MicroBatch.from_rows(part, grid.device) for part in rows]
    places = {id(batch): torch.from_numpy(part) for batch, part in zip(batches, indices, strict=True)}
    length = batches[0].tokens.size(1)
    scores = torch.zeros(2, len(indices) * micro_batch * grid.dp, length, device=grid.device)
    positions = take_chunks(torch.arange(length), grid.cp, grid.cp_rank, 0)

    def step(chunk: Any, batch: MicroBatch, grid: Grid) -> tuple[Any, LossFunction]:
        tokens, labels, wanted = (
            take_chunks(part, grid.cp, grid.cp_rank, 1) for part in (batch.tokens, batch.labels, batch.weights)
        )

        def keep(output: Any) -> tuple[Tensor, Tensor, Tensor]:
            losses, likeliest = output
            if grid.tp_rank == 0:  # the group agrees, and the sum over all ranks is to count once
                place = places[id(batch)][:, None], positions[None]
                scores[0][place], scores[1][place] = losses, (likeliest + 1).float()
            nothing = torch.zeros((), device=grid.device)
            return nothing, torch.zeros((), dtype=torch.int), nothing

        return chunk(tokens, None, batch.sequences(grid), labels=labels, loss_mask=wanted), keep

    with torch.no_grad(), _scoring(forward.chunks):
        forward.forward_backward(batches, step, forward_only=True)
    dist.all_reduce(scores)  # each number has one owner; ids are exact in FP32 up to 16 million
    return Scores(scores[0, :count].cpu().numpy(), scores[1, :count].cpu().numpy().astype(np.int64) - 1)


def numbers(
    forward: Forward,
    dealt: Sequence[NDArray[np.int64]],
    fetch: Callable[[Sequence[NDArray[np.int64]]], PackedRows],
    ask: ForwardStep,
    micro_batch: int,
) -> Iterator[tuple[NDArray[np.int64], PackedRows, Tensor]]:
    """What `ask` (`preference.rewards`, `preference.log_probabilities`) tells of the responses in rows of examples.

    `dealt`: the examples of each row; `fetch` packs such rows, those without any being padding. Yields this replica's
    micro-batches: the places of their rows in `dealt`, the rows, the numbers FP32 [responses]. Collective.
    """
    grid, nothing = forward.grid, np.zeros(0, np.int64)
    unit = whole_batches(forward.chunks, grid) * micro_batch
    block = -(-ROWS_AT_ONCE // unit) * unit * grid.dp
    for first in range(0, len(dealt), block):
        held = dealt[first : first + block]
        places = rows_of_replica(len(held), forward.chunks, grid, micro_batch)
        packed = [fetch([held[i] if i < len(held) else nothing for i in part]) for part in places]
        collected = forward.collect([MicroBatch.from_packed(rows, grid.device) for rows in packed], ask)
        for part, rows, values in zip(places, packed, collected, strict=True):
            yield first + part[part < len(held)], rows, values


@contextlib.contextmanager
def _scoring(chunks: list[Llama]) -> Iterator[None]:
    training = [chunk.training for chunk in chunks]
    for chunk in chunks:
        chunk.eval()
        chunk.scoring = True
    try:
        yield
    finally:
        for chunk, before in zip(chunks, training, strict=True):
            chunk.train(before)
            chunk.scoring = False


def answers(
    forward: Forward, requests: Sequence[ScoreRequest], micro_batch: int
) -> list[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
    """Of each request (losses [answer], whether each token is the likeliest [answer]), equal on all ranks. Collective.

    Requests are scored longest first, those of similar length together, each padded to the longest beside it. Raises
    ValueError for an answer that is empty or has nothing before it, and for tokens beyond the model's positions.
    """
    _check(forward.chunks[0], requests)
    grid, result = forward.grid, {}
    order = sorted(range(len(requests)), key=lambda i: -len(requests[i].tokens))
    step = micro_batch * grid.dp * max(grid.pp, whole_batches(forward.chunks, grid))
    for first in range(0, len(order), step):
        group = order[first : first + step]
        scores = score(forward, _fetcher([requests[i] for i in group], row_multiple(grid)), len(group), micro_batch)
        for row, index in enumerate(group):
            tokens, answer = requests[index].tokens, requests[index].answer
            span = slice(len(tokens) - 1 - answer, len(tokens) - 1)
            right = scores.likeliest[row, span] == np.asarray(tokens[len(tokens) - answer :])
            result[index] = scores.losses[row, span], right
    return [result[index] for index in range(len(requests))]


def _check(chunk: Llama, requests: Sequence[ScoreRequest]) -> None:
    for index, request in enumerate(requests):
        if not 0 < request.answer < len(request.tokens):
            raise ValueError(
                f"requests[{index}]: an answer of {request.answer} of {len(request.tokens)} tokens; it needs at least "
                "one token, and one before it"
            )
        if len(request.tokens) - 1 > chunk.max_sequence_length:
            raise ValueError(
                f"requests[{index}]: {len(request.tokens)} tokens exceed model.max_positions="
                f"{chunk.max_sequence_length} and the one that is only predicted; shorten the prompt"
            )
        low, high = int(np.min(request.tokens)), int(np.max(request.tokens))
        if low < 0 or high >= chunk.vocab_size:
            raise ValueError(
                f"requests[{index}] holds ids from {low} to {high}, the model has 0 to {chunk.vocab_size - 1}; use the "
                "tokenizer that it was trained with"
            )


def row_multiple(grid: Grid) -> int:
    """Row lengths have to be multiples of this: two chunks per context-parallel rank, each split by TP at most."""
    return (2 * grid.cp if grid.cp > 1 else 1) * grid.tp


def _fetcher(requests: Sequence[ScoreRequest], multiple: int) -> Fetch:
    """Rows of one length that hold the requests; what follows one in its row is a document of its own."""
    longest = max(len(request.tokens) - 1 for request in requests)
    length = -(-longest // multiple) * multiple

    def fetch(indices: NDArray[np.int64]) -> Rows:
        tokens, documents = np.zeros((indices.size, length + 1), np.int64), np.zeros((indices.size, length), np.int32)
        mask = np.zeros((indices.size, length), np.float32)
        for row, index in enumerate(indices):
            if index < len(requests):
                request = requests[index]
                end = len(request.tokens)
                tokens[row, :end] = request.tokens
                documents[row, end - 1 :] = 1
                mask[row, end - 1 - request.answer : end - 1] = 1
        return Rows(tokens[:, :-1], tokens[:, 1:], mask, documents, np.zeros(indices.size, np.int64))

    return fetch
