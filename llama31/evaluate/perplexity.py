"""Token-weighted perplexity on packed text, by source and by position in the context, on any layout."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama31 import config
from llama31.data.batches import HeldoutText, Rows
from llama31.engine.objectives import MicroBatch, Objective, next_token
from llama31.engine.pipeline import Forward
from llama31.engine.reading import Heldout
from llama31.engine.scoring import rows_of_replica, score
from llama31.evaluate.confidence import mean_over
from llama31.parallel.mesh import Grid
from llama31.plan import layout
from llama31.tokens.tokenizers import Tokenizer

DEFAULT_LENGTH = 8192  # of the report's pre-training rows, for imported models that say nothing about theirs


def heldout_losses(
    forward: Forward, heldout: Heldout, grid: Grid, micro_batch: int, objective: Objective = next_token
) -> dict[str, tuple[float, int]]:
    """Mean loss per token (pair) and the tokens that counted, of each source that has any; see `heldout_means`."""
    by_source = heldout_means(forward, heldout, grid, micro_batch, objective)
    return {name: (means[0], tokens) for name, (means, tokens) in by_source.items()}


def heldout_means(
    forward: Forward, heldout: Heldout, grid: Grid, micro_batch: int, objective: Objective
) -> dict[str, tuple[list[float], int]]:
    """The mean loss and the objective's measures of each source that has any, and the tokens (pairs) that counted.

    Equal on all ranks. Means are weighted by tokens over rows and replicas, so they depend neither on the layout nor on
    `micro_batch`. Replicas need equally many micro-batches: what is missing is padding, which weighs nothing.
    Collective.
    """
    by_source = {}
    for name in heldout.names:
        if heldout.count(name):
            indices = rows_of_replica(heldout.count(name), forward.chunks, grid, micro_batch)
            parts = [MicroBatch.from_rows(heldout.rows(name, rows), grid.device) for rows in indices]
            by_source[name] = forward.means(parts, objective)
    return by_source


def over_sources(by_source: dict[str, tuple[list[float], int]]) -> list[float]:
    """Means over all tokens (pairs) of `heldout_means`; [0] where nothing is held out."""
    tokens = max(1, sum(count for _, count in by_source.values()))
    columns = zip(*([mean * count for mean in means] for means, count in by_source.values()))
    return [sum(column) / tokens for column in columns] or [0.0]


@dataclass(frozen=True)
class TokenLosses:
    """Every token of a source that counted: four columns of equal length."""

    losses: NDArray[np.float32]  # nats
    weights: NDArray[np.float32]
    seen: NDArray[np.int64]  # tokens of its document, in its row, that the prediction was made from: 1 and more
    document: NDArray[np.int64]  # number of its document in the source, over rows


def token_losses(forward: Forward, heldout: HeldoutText, micro_batch: int) -> dict[str, TokenLosses]:
    """Losses of single tokens of each source that has any, equal on all ranks. Collective."""
    result = {}
    for name in heldout.names:
        if count := heldout.count(name):
            losses = score(forward, functools.partial(heldout.rows, name), count, micro_batch).losses
            rows = heldout.rows(name, np.arange(count))
            seen, document = places(rows)
            kept = rows.loss_mask > 0
            result[name] = TokenLosses(losses[kept], rows.loss_mask[kept], seen[kept], document[kept])
    return result


def places(rows: Rows) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each position [b, s] the tokens of its document up to it, and its document's number over all rows."""
    count, length = rows.documents.shape
    first = np.ones((count, length), bool)
    first[:, 1:] = rows.documents[:, 1:] != rows.documents[:, :-1]
    begin = np.maximum.accumulate(np.where(first, np.arange(length), 0), 1)
    # the last label of a row belongs to the document that the next row goes on with, unless it is not predicted
    starts = first.copy()
    if rows.documents.any():  # without a document mask a row is one context, whatever stands in it
        starts[1:, 0] = rows.loss_mask[:-1, -1] == 0
    return np.arange(1, length + 1) - begin, np.cumsum(starts).reshape(count, length)


def perplexity(losses: dict[str, TokenLosses]) -> dict[str, Any]:
    """-> {"sources": {name: figures}, "total": figures, "positions": {name: [figures]}}, ready for JSON.

    Figures are the loss in nats per token, the half width of its 95 % interval over documents (rows, where packing was
    without a document mask; null for a single one), the perplexity with its interval's ends, and the tokens. The total
    weighs each token alike. Positions are those that a prediction saw of its document, in bins [from, to] that double.
    """
    every = {**losses, "total": _joined(list(losses.values()))} if losses else {}
    return {
        "sources": {name: _figures(values) for name, values in losses.items()},
        "total": _figures(every["total"]) if every else {},
        "positions": {name: _by_position(values) for name, values in every.items()},
    }


def _joined(parts: list[TokenLosses]) -> TokenLosses:
    """All sources as one, their documents kept apart."""
    shift = np.cumsum([0, *(part.document.max(initial=0) + 1 for part in parts)])
    documents = [part.document + int(offset) for part, offset in zip(parts, shift)]
    return TokenLosses(
        np.concatenate([part.losses for part in parts]),
        np.concatenate([part.weights for part in parts]),
        np.concatenate([part.seen for part in parts]),
        np.concatenate(documents),
    )


def _by_position(losses: TokenLosses) -> list[dict[str, float | int | None]]:
    if not losses.seen.size:
        return []
    bins = np.log2(losses.seen).astype(int)  # exact at the powers of two that begin each bin
    figures: list[dict[str, float | int | None]] = []
    for number in range(int(bins.max()) + 1):
        inside = bins == number
        if inside.any():
            part = TokenLosses(*(column[inside] for column in vars(losses).values()))
            figures.append({"from": 2**number, "to": 2 ** (number + 1) - 1, **_figures(part)})
    return figures


def _figures(losses: TokenLosses) -> dict[str, float | int | None]:
    if not losses.losses.size:
        return {"loss": 0.0, "loss_ci95": None, "perplexity": 1.0, "low": None, "high": None, "tokens": 0}
    loss, ci = mean_over(losses.document, losses.losses, losses.weights)
    return {
        "loss": loss,
        "loss_ci95": ci,
        "perplexity": _exp(loss),
        "low": None if ci is None else _exp(loss - ci),
        "high": None if ci is None else _exp(loss + ci),
        "tokens": int(losses.losses.size),
    }


def _exp(loss: float) -> float:
    return math.exp(loss) if not loss > 700 else math.inf  # beyond, a double overflows


def sequence_length(given: int | None, schedule: dict[str, Any], model: config.Model) -> int:
    """Tokens per row: as given, or as at the end of the training `schedule`; imported models have none (8,192).

    Raises ValueError (key `sequence_length`) where the model has fewer positions.
    """
    if given is not None and given > model.max_positions:
        raise ValueError(
            f"sequence_length={given}: the model has max_positions={model.max_positions}; give at most that"
        )
    last = [schedule, *schedule.get("ramp", [])][-1]
    return given or min(last.get("sequence_length", DEFAULT_LENGTH), model.max_positions)


def spelled(prompts: Sequence[str], tokenizer: Tokenizer) -> list[str]:
    """A line on each of the texts `prompts` that spells a special token: it is read letter by letter, as any text."""
    return [
        f"prompts[{place}]: {name} is read as text, not as the token; recipes.sample has dialogs as prompts=FILE.jsonl"
        for place, prompt in enumerate(prompts)
        if (name := next((name for name in tokenizer.special if name in prompt), None))
    ]


def check_layout(model: config.Model, parallel: config.Parallel, head: str = "tokens") -> None:
    """Raises ConfigError where the checkpoint's model does not split over the layout and the processes started."""
    problems = layout.problems(model, parallel, [], int(os.environ.get("WORLD_SIZE", "1")))
    if model.head != head:
        problems.append(config.Issue("checkpoint", model.head, "its head predicts no tokens", "give a language model"))
    if problems:
        raise config.ConfigError(problems)


def check_vocabulary(ids: int, model: config.Model) -> None:
    """Raises ValueError (key tokenizer.path) where the tokenizer has ids for which the model has no embedding."""
    if ids > model.vocab_size:
        raise ValueError(
            f"tokenizer.path: it has {ids} ids, the model {model.vocab_size}; give the tokenizer that the model was "
            "trained with"
        )
