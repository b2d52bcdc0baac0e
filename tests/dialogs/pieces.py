"""Dialogs and preferences as ids alone: what every implementation of a loss is compared on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from llama31.dialogs import rows
from llama31.dialogs.rows import Piece, Response
from llama31.tokens.chat import BODY, END, HEADER

VOCAB = 320


def ids(random: np.random.Generator, low: int, high: int) -> np.ndarray:
    return random.integers(4, 300, random.integers(low, high))  # 300 to 304 are format


def answer(random: np.random.Generator) -> Response:
    """A header of four tokens, what is said, and a termination."""
    said = ids(random, 3, 12)
    tokens = np.concatenate([[300, 301, 302, 303], said, [304]])
    return Response(tokens, np.array([HEADER] * 4 + [BODY] * len(said) + [END], np.int8))


def dialogs(count: int = 6, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Token ids and targets; some of the tokens in the middle are none, as between turns."""
    random = np.random.default_rng(seed)
    result = []
    for _ in range(count):
        tokens = ids(random, 8, 30)
        targets = random.random(len(tokens)) < 0.6
        targets[:3], targets[-1] = False, True
        result.append((tokens, targets))
    return result


def preferences(count: int = 4, answers: int = 2, seed: int = 0) -> list[tuple[np.ndarray, list[Response]]]:
    """Prompts with answers, the best first."""
    random = np.random.default_rng(seed)
    return [(ids(random, 3, 10), [answer(random) for _ in range(answers)]) for _ in range(count)]


def pairs_of(answers: int) -> np.ndarray:
    return np.array([(i, j) for i in range(answers) for j in range(i + 1, answers)])


def dpo_pieces(nll: float = 0.0, masked: bool = True, count: int = 4) -> list[Piece]:
    """`nll` is the factor of the likelihood term, a mean over the tokens of all chosen answers."""
    result = preferences(count)
    tokens = sum(len(answers[0].tokens) for _, answers in result)
    return [rows.dpo(prompt, *answers, nll=nll * count / tokens, masked=masked) for prompt, answers in result]


def reward_pieces(layout: str, answers: int = 2, count: int = 4, seed: int = 1) -> list[Piece]:
    random = np.random.default_rng(seed)
    return [
        rows.reward(prompt, given, pairs_of(answers), random.permutation(answers), layout)
        for prompt, given in preferences(count, answers)
    ]


def step_pieces(layout: str, count: int = 4, seed: int = 2) -> list[Piece]:
    """Dialogs of two to four steps, with soft labels; the end of an earlier step is one token, or two."""
    random = np.random.default_rng(seed)
    result = []
    for number in range(count):
        prefixes = 5 + np.cumsum(random.integers(2, 6, 1 + number % 3))
        whole = np.append(random.integers(4, 300, int(prefixes[-1]) + 4), 304)
        ends = [np.append(random.integers(4, 300, number % 2), 304) for _ in prefixes]
        labels = random.random(len(prefixes) + 1).astype(np.float32)
        result.append(replace(rows.steps(whole, ends, prefixes.tolist(), layout), targets=labels))
    return result


def supervised_pieces(count: int = 6) -> list[Piece]:
    return [rows.supervised(tokens, targets) for tokens, targets in dialogs(count)]


def dealt(pieces: list[Piece], per_row: int) -> list[list[Piece]]:
    """Rows of so many pieces each; the last may have fewer."""
    return [pieces[begin : begin + per_row] for begin in range(0, len(pieces), per_row)]
