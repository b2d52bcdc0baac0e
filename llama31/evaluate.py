"""Token-weighted perplexity on packed text, source by source, on any layout."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llama31 import checkpoint, config, layout
from llama31.data.batches import rank_rows
from llama31.engine import Forward
from llama31.mesh import Grid
from llama31.objectives import MicroBatch, Objective, next_token

DEFAULT_LENGTH = 8192  # of the report's pre-training rows, for imported models that say nothing about theirs


class Heldout(Protocol):
    """Held-out rows by source; those at or beyond `count` are padding."""

    names: list[str]

    def count(self, name: str) -> int: ...
    def rows(self, name: str, indices: NDArray[np.int64]) -> Any: ...


def heldout_losses(
    forward: Forward, heldout: Heldout, grid: Grid, micro_batch: int, objective: Objective = next_token
) -> dict[str, tuple[float, int]]:
    """Mean loss per token (pair) and the tokens that counted, of each source that has any; equal on all ranks.

    The loss is weighted by tokens over rows and replicas, so it depends neither on the layout nor on `micro_batch`.
    Replicas need equally many micro-batches: what is missing is padding, which weighs nothing.
    Collective.
    """
    found = {}
    for name in heldout.names:
        if heldout.count(name):
            indices = dealt_rows(heldout.count(name), forward, grid, micro_batch)
            parts = [MicroBatch.from_rows(heldout.rows(name, rows), grid.device) for rows in indices]
            found[name] = forward.mean_loss(parts, objective)
    return found


def dealt_rows(rows: int, forward: Forward, grid: Grid, micro_batch: int) -> list[NDArray[np.int64]]:
    """This replica's rows of each micro-batch, padded up to what the pipeline schedule can run."""
    unit = micro_batch * grid.dp
    if grid.vpp > 1:  # interleaving takes whole groups of micro-batches
        unit *= forward.chunks[0].config.microbatch_group_size_per_vp_stage
    return rank_rows(-(-rows // unit) * unit, micro_batch, grid.dp, grid.dp_rank)


def summary(losses: dict[str, tuple[float, int]]) -> dict[str, Any]:
    """Losses and tokens by source -> {"sources": {name: figures}, "total": figures}, ready for JSON.

    Figures are the loss in nats per token, the perplexity and the tokens; the total weighs each token alike.
    """
    tokens = sum(count for _, count in losses.values())
    mean = sum(loss * count for loss, count in losses.values()) / max(tokens, 1)
    return {
        "sources": {name: _figures(loss, count) for name, (loss, count) in losses.items()},
        "total": _figures(mean, tokens),
    }


def _figures(loss: float, tokens: int) -> dict[str, float | int]:
    perplexity = math.exp(loss) if not loss > 700 else math.inf  # beyond, a double overflows
    return {"loss": loss, "perplexity": perplexity, "tokens": tokens}


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


def tokenizer_settings(given: config.Tokenizer, folder: Path, meta: checkpoint.Meta) -> config.Tokenizer:
    """The tokenizer that is `given`; without a path, the one that lies beside the checkpoint `folder`."""
    if given.path:
        return given
    beside = checkpoint.run_folder(folder) / meta.tokenizer.get("folder", "tokenizer")
    kind = "tiktoken" if (beside / "tokenizer.model").is_file() else "huggingface"
    return config.Tokenizer(kind=kind, path=str(beside))


def check_layout(model: config.Model, parallel: config.Parallel) -> None:
    """Raises ConfigError where the checkpoint's model does not split over the layout and the processes started."""
    found = layout.problems(model, parallel, [], int(os.environ.get("WORLD_SIZE", "1")))
    if model.head != "tokens":
        found.append(config.Issue("checkpoint", model.head, "its head predicts no tokens", "give a language model"))
    if found:
        raise config.ConfigError(found)
