"""A reward model as a judge: dialogs -> rewards, steps -> scores, on any layout.

    judge = Judge("runs/reward", run.parallel, run.precision, mesh.create(run.parallel))
    rewards = judge.score([chat.read({"messages": [...]}), ...])  # FP32 [dialogs], the same on all ranks

A dialog's reward is read at its last token, the termination of the last message: what the model was trained on. Dialogs
are packed whole into rows, each a document of its own, so that a reward does not depend on what was scored beside it.
Rewards of answers to one prompt may be compared with each other; the objective says nothing of other differences. Where
a model learned from labels of steps, sigmoid(reward) is how sure it is that the last step of the answer is right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from llama31 import config
from llama31.convert import pretrained
from llama31.dialogs import passes, rows, stepwise
from llama31.dialogs.feed import DialogFeed
from llama31.dialogs.stepwise import StepRecord
from llama31.engine import preference, scoring
from llama31.engine.pipeline import Forward
from llama31.evaluate import perplexity
from llama31.model import llama
from llama31.parallel.mesh import Grid
from llama31.tokens import chat, tokenizers

Rewards = NDArray[np.float32]


class RewardScorer:
    """Weights of `checkpoint`, a checkpoint or run folder of `recipes.reward`, on a layout. All calls are collective.

    `tokenizer`: its tokenizer, by default the one beside the weights. Raises ValueError for a checkpoint that cannot be
    read or is no reward model, and for a layout on which it does not fit.
    """

    def __init__(
        self,
        checkpoint: str,
        parallel: config.Parallel,
        precision: config.Precision,
        grid: Grid,
        tokenizer: config.Tokenizer | None = None,
    ) -> None:
        weights = pretrained.find(checkpoint)
        shape = weights.shape
        if shape.head != "reward":
            raise ValueError(f"checkpoint={checkpoint}: it predicts tokens; give a reward model of recipes.reward")
        perplexity.check_layout(shape, parallel, head="reward")
        self.folder, self.shape, self.grid, self._size = weights.folder, shape, grid, parallel.micro_batch
        loaded = tokenizers.load(weights.tokenizer(tokenizer or config.Tokenizer(kind="huggingface", path="")))
        perplexity.check_vocabulary(loaded.vocab_size, shape)
        self.format = chat.Format(loaded)
        chunks = llama.build(shape, weights.precision(precision), parallel, grid)
        weights.load(chunks, grid)
        self.forward = Forward(chunks, grid)

    def score(self, dialogs: Sequence[Sequence[chat.Message]], length: int | None = None) -> Rewards:
        """Rewards FP32 [dialogs], equal on all ranks, which all give the same dialogs.

        `length`: tokens per row; None: the longest dialog's. ValueError for a longer one, also where the
        model has fewer positions.
        """
        return self._read([rows.whole(self.format.encode(dialog).tokens) for dialog in dialogs], length)

    def steps(self, answers: Sequence[StepRecord], limit: int) -> list[list[float] | None]:
        """Of each answer its steps' scores, sigmoid(reward); None where it takes more than `limit` tokens.

        An answer takes those of its dialog and the end of each earlier step. None too where a score is not finite.
        Collective.
        """
        pieces = [self._steps(one) for one in answers]
        limit = min(limit, self.shape.max_positions)
        fits = [i for i, piece in enumerate(pieces) if len(piece.tokens) <= limit]
        every = self._read([pieces[i] for i in fits]) if fits else np.zeros(0, np.float32)
        ends = np.cumsum([pieces[i].responses for i in fits])
        scores = np.split(1 / (1 + np.exp(-every.astype(np.float64))), ends[:-1])
        given = {i: some.tolist() for i, some in zip(fits, scores) if np.isfinite(some).all()}
        return [given.get(i) for i in range(len(answers))]

    def _steps(self, answer: StepRecord) -> rows.Piece:
        (*ends, whole), prefixes = stepwise.sequences(answer.prompt, answer.steps, self.format)
        return rows.steps(whole, ends, prefixes[:-1])

    def _read(self, pieces: Sequence[rows.Piece], length: int | None = None) -> Rewards:
        """Rewards of all responses of the pieces, in their order; see `score`."""
        sizes = np.array([len(piece.tokens) for piece in pieces])
        firsts = np.cumsum([0, *(piece.responses for piece in pieces)])
        longest = int(sizes.max(initial=1))
        limit = min(length or longest, self.shape.max_positions)
        if longest > limit:
            raise ValueError(f"dialogs[{int(sizes.argmax())}] has {longest} tokens, more than the {limit} of a row")
        unit = scoring.row_multiple(self.grid)
        limit = -(-limit // unit) * unit
        dealt = passes.best_fit(sizes, limit)
        rewards_of = torch.zeros(int(firsts[-1]), device=self.grid.device)

        def fetch(examples: Sequence[NDArray[np.int64]]) -> rows.PackedRows:
            return rows.pack([[pieces[i] for i in row] for row in examples], limit, compares=True)

        for places, _, values in scoring.numbers(self.forward, dealt, fetch, preference.rewards, self._size):
            held = [int(i) for place in places for i in dealt[place]]
            rewards_of[[n for i in held for n in range(firsts[i], firsts[i + 1])]] = values
        return _together(rewards_of, self.grid)

    def readable(self, dialogs: Sequence[Sequence[chat.Message]], limit: int) -> list[float | None]:
        """Rewards of the dialogs of at most `limit` tokens and the model's positions; None for longer ones."""
        limit = min(limit, self.shape.max_positions)
        fits = [i for i, dialog in enumerate(dialogs) if len(self.format.encode(dialog).tokens) <= limit]
        given = dict(zip(fits, self.score([dialogs[i] for i in fits]).tolist() if fits else []))
        return [given.get(i) for i in range(len(dialogs))]


def margins(forward: Forward, feed: DialogFeed, length: int, size: int) -> tuple[Rewards, NDArray[np.int64]]:
    """Of every pair of the held-out examples: reward of the better minus that of the worse, and its kind.

    `length`: places of a row, `size`: rows of a micro-batch. Equal on all ranks; collective.
    """
    dealt = feed.held(length)
    kinds = [feed.kinds(row) for row in dealt]

    def difference(packed: rows.PackedRows, values: torch.Tensor) -> torch.Tensor:
        better, worse = values[torch.from_numpy(packed.pairs).to(values.device)].unbind(1)
        return better - worse

    found = _of_rows(forward, feed, dealt, [len(some) for some in kinds], (length, size), difference)
    return found, np.concatenate([*kinds, np.zeros(0, np.int64)])


def step_margins(forward: Forward, feed: DialogFeed, length: int, size: int) -> tuple[Rewards, NDArray[np.int64]]:
    """Of every step of the held-out examples: its reward if it is right, else minus that, and whether it is (1, 0).

    A label of at least 0.5 is right. Otherwise as `margins`.
    """
    dealt = feed.held(length)
    labels = [feed.labels(row) for row in dealt]
    counts = [len(some) for some in labels]
    rewards_of = _of_rows(forward, feed, dealt, counts, (length, size), lambda _, values: values)
    right = np.concatenate([*labels, np.zeros(0, np.float32)]) >= stepwise.RIGHT
    return np.where(right, rewards_of, -rewards_of), right.astype(np.int64)


def _of_rows(
    forward: Forward, feed: DialogFeed, dealt: Sequence[NDArray[np.int64]], counts: Sequence[int],
    shape: tuple[int, int], told: Callable[[rows.PackedRows, torch.Tensor], torch.Tensor],
) -> Rewards:  # fmt: skip
    """What `told` makes of the responses' rewards, `counts` numbers of each row; `shape`: places, rows at a time."""
    length, size = shape
    firsts = np.cumsum([0, *counts])
    result = torch.zeros(int(firsts[-1]), device=forward.grid.device)
    for places, packed, values in scoring.numbers(
        forward, dealt, lambda examples: feed.alone(examples, length), preference.rewards, size
    ):
        result[[i for place in places for i in range(firsts[place], firsts[place + 1])]] = told(packed, values)
    return _together(result, forward.grid)


def _together(mine: torch.Tensor, grid: Grid) -> Rewards:
    """What replicas found: each number has one owner, and is 0 elsewhere."""
    dist.all_reduce(mine, group=grid.dp_group)
    return mine.cpu().numpy()
