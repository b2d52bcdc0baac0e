"""Multiple choice: which continuation does the model find likeliest? Numbers as lm-evaluation-harness computes them.

A continuation's score is the sum of its tokens' log-likelihoods after the context. Three choices are made from it: by
the sum (acc), by the sum per character of the choice (acc_norm) and per byte (acc_bytes), which do not favour short
choices. Context and continuation are tokenized together and cut where the context alone ends; white space at the end
of a context belongs to the continuation, because a tokenizer joins it with the next word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llama31.config import Task
from llama31.engine.pipeline import Forward
from llama31.engine.scoring import ScoreRequest, answers
from llama31.evaluate import tasks
from llama31.evaluate.confidence import proportion
from llama31.evaluate.tasks import TaskExample, TaskPrompt
from llama31.tokens.tokenizers import Tokenizer


@dataclass(frozen=True)
class Judged:
    """An example and, for each of its choices, log-likelihood in nats and whether greedy decoding would write it."""

    example: TaskExample
    loglikelihoods: tuple[float, ...]
    greedy: tuple[bool, ...]

    def chosen(self, lengths: Sequence[int] | None = None) -> int:
        """The choice with the highest log-likelihood, per unit of its length where lengths are given; ties: first."""
        scores = np.asarray(self.loglikelihoods)
        return int(np.argmax(scores if lengths is None else scores / np.asarray(lengths, float)))

    def right(self) -> dict[str, bool]:
        """Whether the choice is right, by each of the three measures."""
        texts, gold = self.example.choices, self.example.gold
        return {
            "acc": self.chosen() == gold,
            "acc_norm": self.chosen([len(text) for text in texts]) == gold,
            "acc_bytes": self.chosen([len(text.encode(errors="replace")) for text in texts]) == gold,
        }


@dataclass(frozen=True)
class Prepared:
    """A task in tokens: one request per choice, those of example i from `begins[i]` to `begins[i + 1]`."""

    examples: list[TaskExample]
    requests: list[ScoreRequest]
    begins: list[int]


def prepare(name: str, task: Task, tokenizer: Tokenizer, max_tokens: int) -> Prepared:
    """Read and tokenize a task. Prompts of more than `max_tokens` are cut from the left, as the harness does.

    ValueError (keys `tasks.NAME.*`) for files and examples that cannot be used.
    """
    examples = tasks.read(name, task)
    requests: list[ScoreRequest] = []
    begins = [0]
    for example, prompt in zip(examples, tasks.prompts(examples, task), strict=True):
        requests += _requests(prompt, tokenizer, max_tokens, f"tasks.{name}: {task.path}, line {example.line}")
        begins.append(len(requests))
    return Prepared(examples, requests, begins)


def judge(forward: Forward, task: Prepared, micro_batch: int) -> list[Judged]:
    """Every example with the log-likelihoods of its choices, equal on all ranks. Collective."""
    scored = answers(forward, task.requests, micro_batch)
    judged = []
    for example, begin, end in zip(task.examples, task.begins, task.begins[1:]):
        sums = tuple(-float(losses.sum(dtype=np.float64)) for losses, _ in scored[begin:end])
        judged.append(Judged(example, sums, tuple(bool(right.all()) for _, right in scored[begin:end])))
    return judged


def summary(judged: Sequence[Judged], details: bool = False) -> dict[str, Any]:
    """The three accuracies with their 95 % intervals, ready for JSON; with `details` also every example's numbers."""
    right = [one.right() for one in judged]
    result: dict[str, Any] = {
        measure: proportion([single[measure] for single in right]).json()
        for measure in ("acc", "acc_norm", "acc_bytes")
    }
    if details:
        result["examples"] = [
            {"line": one.example.line, "gold": one.example.gold, "loglikelihoods": list(one.loglikelihoods)}
            for one in judged
        ]
    return result


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Tokens of a context, BOS first, and of its continuation, cut as the harness cuts them."""
    stripped = context.rstrip()
    context, continuation = stripped, context[len(stripped) :] + continuation
    if not context:
        return [tokenizer.bos_id], tokenizer.encode(continuation)
    before = tokenizer.encode(context)
    return [tokenizer.bos_id, *before], tokenizer.encode(context + continuation)[len(before) :]


def _requests(prompt: TaskPrompt, tokenizer: Tokenizer, max_tokens: int, where: str) -> list[ScoreRequest]:
    requests = []
    for continuation in prompt.continuations:
        before, after = encode_pair(tokenizer, prompt.context, continuation)
        if not after:
            raise ValueError(
                f"{where}: {continuation!r} adds no token to its context, they are one token together; change the "
                "context, the choice or the delimiter"
            )
        if len(after) > max_tokens:
            raise ValueError(
                f"{where}: {continuation!r} has {len(after)} tokens, more than the context of {max_tokens}; shorten it "
                "or give a longer sequence_length"
            )
        requests.append(ScoreRequest((before + after)[-(max_tokens + 1) :], len(after)))
    return requests
