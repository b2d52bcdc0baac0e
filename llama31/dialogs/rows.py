"""Dialogs and compared responses -> rows of a micro-batch, in arrays without torch.

A `Piece` is what has to stand in one row together: a dialog, or a prompt with its responses. Pieces are packed whole,
each in documents of its own, so a packed row computes what its pieces compute alone.

    supervised          [dialog]                                        one document
    dpo                 [prompt, chosen] [prompt, rejected]             two documents
    reward, separate    [prompt, response] [prompt, response] ...       a document each
    reward, tree        [prompt] [response] [response] ...              responses see the prompt, not each other, and
                                                                        their positions go on from it
    reward, plain       [prompt, response, response, ...]               one document: later responses see earlier ones
    steps, separate     [prompt, steps 1 to n] [prompt, step 1] [prompt, steps 1 and 2] ...     a document each
    steps, tree         [prompt, steps 1 to n] [end] [end] ...          each end sees the dialog up to its own step, and
                                                                        its positions go on from there
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama31.tokens.chat import BODY, PROMPT

Ints = NDArray[np.integer[Any]]
LAYOUTS = ("tree", "plain", "separate")


@dataclass(frozen=True)
class Response:
    """Token ids of an answer [n], its header and termination included, and the part of each (`tokens/chat.py`)."""

    tokens: Ints
    parts: Ints


@dataclass(frozen=True)
class Piece:
    """What stands in one row together; n positions.

    tokens, labels, positions [n]; weights FP32 [n]; documents [d, 4]: begin, end, and the prefix seen; of_token [n]:
    the response that a position counts for, or -1; responses: how many; pairs [p, 2]: the better, then the worse;
    reference [responses]: their log-probabilities under the model that training began with; targets [responses]: labels
    of 0 to 1, where their rewards are to say those.
    """

    tokens: Ints
    labels: Ints
    weights: NDArray[np.float32]
    documents: Ints
    positions: Ints
    of_token: Ints
    responses: int = 0
    pairs: Ints | None = None
    reference: NDArray[np.float32] | None = None
    targets: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class PackedRows:
    """Rows of a micro-batch as in `objectives.MicroBatch`; documents [n, 5] of (row, begin, end, prefix)."""

    tokens: NDArray[np.int64]  # [b, s]
    labels: NDArray[np.int64]
    weights: NDArray[np.float32]
    documents: NDArray[np.int32]
    positions: NDArray[np.int64]
    of_token: NDArray[np.int64]
    responses: int
    pairs: NDArray[np.int64]  # [p, 2]
    reference: NDArray[np.float32]  # [responses]
    targets: NDArray[np.float32]  # [responses], or of pairs none
    compares: bool  # whether responses are compared, even if none of these rows holds any

    @property
    def restarts(self) -> bool:
        """Whether positions have to be given, as of documents with a prefix; elsewhere only distances matter."""
        return bool((self.documents[:, 4] > 0).any())


def supervised(tokens: Ints, targets: Ints) -> Piece:
    """A dialog whose `targets` [n] are learned. The last token is a label alone: a dialog of n takes n - 1 places."""
    return _dialogs([tokens], [np.asarray(targets, np.float32)], [np.zeros(len(tokens), np.int8)])


def dpo(prompt: Ints, chosen: Response, rejected: Response, nll: float = 0.0, masked: bool = True) -> Piece:
    """Both answers to a prompt, the better first.

    The preference term sees what is said and no header or termination, unless `masked` is false; `nll` is the weight
    of each token of the chosen answer in the likelihood term, format included.
    """
    tokens = [np.concatenate([prompt, answer.tokens]) for answer in (chosen, rejected)]
    before = np.zeros(len(prompt), np.int8)
    parts = [np.concatenate([before, answer.parts]) for answer in (chosen, rejected)]
    weights = [(parts[0] != PROMPT) * np.float32(nll), np.zeros(len(tokens[1]), np.float32)]
    counted = [part == BODY if masked else part != PROMPT for part in parts]
    return _dialogs(tokens, weights, counted, pairs=[[0, 1]])


def _dialogs(
    tokens: Sequence[Ints], weights: Sequence[Ints], counted: Sequence[Ints], pairs: Sequence[Sequence[int]] = ()
) -> Piece:
    """Documents one after the other; what counts is told of a token and belongs where that token is the label."""
    lengths = np.array([len(one) - 1 for one in tokens])
    ends = np.cumsum(lengths)
    numbers = [np.where(one[1:], place, -1) for place, one in enumerate(counted)]
    return Piece(
        np.concatenate([one[:-1] for one in tokens]),
        np.concatenate([one[1:] for one in tokens]),
        np.concatenate([np.asarray(one[1:], np.float32) for one in weights]),
        np.stack([ends - lengths, ends, 0 * ends, 0 * ends], 1),
        np.concatenate([np.arange(length) for length in lengths]),
        np.concatenate(numbers),
        len(tokens) if pairs else 0,
        np.array(pairs, np.int64).reshape(-1, 2),
    )


def reward(prompt: Ints, answers: Sequence[Response], pairs: Ints, order: Ints, layout: str = "tree") -> Piece:
    """A prompt and its answers, laid out in `order`; an answer's reward is read at its last token.

    `pairs` [p, 2] number the answers as given: the better, then the worse. Raises ValueError for an unknown layout.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout}: choose one of {', '.join(LAYOUTS)}")
    shared, size = layout != "separate", len(prompt)
    tokens: list[Ints] = [prompt] if shared else []
    documents, positions = ([[0, size, 0, 0]] if shared else []), ([np.arange(size)] if shared else [])
    begin, ends = (size if shared else 0), np.zeros(len(answers), np.int64)
    for number in order:
        own = answers[number].tokens if shared else np.concatenate([prompt, answers[number].tokens])
        end = begin + len(own)
        documents.append([begin, end, 0, size if shared else 0])
        positions.append(np.arange(len(own)) + (size if shared else 0))
        tokens.append(own)
        ends[number], begin = end - 1, end
    if layout == "plain":
        documents, positions = [[0, begin, 0, 0]], [np.arange(begin)]
    of_token = np.full(begin, -1, np.int64)
    of_token[ends] = np.arange(len(answers))
    zeros = np.zeros(begin, np.int64)
    where = np.concatenate(positions)
    return Piece(
        np.concatenate(tokens), zeros, zeros.astype(np.float32), np.array(documents), where, of_token, len(ends), pairs
    )


def steps(whole: Ints, ends: Sequence[Ints], prefixes: Sequence[int], layout: str = "tree") -> Piece:
    """A dialog whose rewards are read at its last token, and where it is cut short after earlier steps.

    `ends`: what the dialog of each earlier step has behind the first `prefixes` tokens of the `whole`; the whole is the
    last response. Raises ValueError for a layout that is neither tree nor separate.
    """
    if layout not in ("tree", "separate"):
        raise ValueError(f"layout={layout}: steps are laid out as tree or separate; choose one of them")
    tree, size = layout == "tree", len(whole)
    tokens, positions, documents = [whole], [np.arange(size)], [[0, size, 0, 0]]
    of_token = [np.where(np.arange(size) == size - 1, len(ends), -1)]
    begin = size
    for number, (own, prefix) in enumerate(zip(ends, prefixes)):
        tokens.append(own if tree else np.concatenate([whole[:prefix], own]))
        count = len(tokens[-1])
        positions.append(np.arange(count) + (prefix if tree else 0))
        of_token.append(np.where(np.arange(count) == count - 1, number, -1))
        documents.append([begin, begin + count, 0, prefix if tree else 0])
        begin += count
    zeros, places = np.zeros(begin, np.int64), np.concatenate(positions)
    weights, where = zeros.astype(np.float32), np.concatenate(of_token)
    return Piece(np.concatenate(tokens), zeros, weights, np.array(documents), places, where, len(ends) + 1)


def whole(tokens: Ints) -> Piece:
    """A dialog of n places whose reward is read at its last token."""
    return steps(tokens, (), ())


def pack(rows: Sequence[Sequence[Piece]], length: int, compares: bool) -> PackedRows:
    """Rows of `length` places, each of whole pieces; what is left is padding, a document of its own."""
    shape = (len(rows), length)
    tokens, labels, positions = (np.zeros(shape, np.int64) for _ in range(3))
    weights, of_token = np.zeros(shape, np.float32), np.full(shape, -1, np.int64)
    documents: list[NDArray[Any]] = []
    pairs: list[NDArray[Any]] = [np.zeros((0, 2), np.int64)]
    reference: list[NDArray[np.float32]] = [np.zeros(0, np.float32)]
    targets: list[NDArray[np.float32]] = [np.zeros(0, np.float32)]
    responses = 0
    for row, pieces in enumerate(rows):
        begin = 0
        for piece in pieces:
            end = begin + len(piece.tokens)
            assert end <= length, "a row is packed beyond its end"
            tokens[row, begin:end], labels[row, begin:end] = piece.tokens, piece.labels
            weights[row, begin:end], positions[row, begin:end] = piece.weights, piece.positions
            of_token[row, begin:end] = np.where(piece.of_token >= 0, piece.of_token + responses, -1)
            moved = piece.documents + begin * np.array([1, 1, 0, 0])
            moved[:, 2:] += begin * (piece.documents[:, 3:] > 0)
            documents.append(np.insert(moved, 0, row, axis=1))
            if piece.pairs is not None:
                pairs.append(piece.pairs + responses)
            if piece.targets is not None:
                targets.append(piece.targets)
            known = piece.reference
            reference.append(np.zeros(piece.responses, np.float32) if known is None else known)
            responses, begin = responses + piece.responses, end
        if begin < length:
            documents.append(np.array([[row, begin, length, 0, 0]]))
            positions[row, begin:] = np.arange(length - begin)
    table = np.concatenate(documents).astype(np.int32)
    return PackedRows(
        tokens,
        labels,
        weights,
        table,
        positions,
        of_token,
        responses,
        np.concatenate(pairs),
        np.concatenate(reference),
        np.concatenate(targets),
        compares,
    )
