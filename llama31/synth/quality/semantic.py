"""Dialogs that say nearly the same, by their embeddings: clusters, and in each what is kept (report, section 4.2.3).

Dialogs are kept greedily, by quality times difficulty, as long as the largest cosine to one that was kept of the same
cluster stays below a threshold. What lies in two clusters is not compared: that is the price of not comparing all
pairs, and fewer clusters pay less of it. Number of clusters and threshold are not stated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]  # [n, d], each of length 1
PER_CLUSTER = 1000
ROWS = 8192  # compared with all centres at a time
BLOCK = 1024  # of one cluster, compared with each other at a time


def clusters(vectors: Vectors, count: int, iterations: int, seed: int) -> NDArray[np.int64]:
    """The cluster of each vector [n], by spherical k-means (Dhillon and Modha 2001).

    Centres begin as vectors drawn by the seed. It ends with the assignment that no longer changes, or after as many
    iterations. A centre that is nobody's nearest stays where it is.
    """
    count = min(count, len(vectors))
    drawn = np.random.default_rng(seed).choice(len(vectors), count, replace=False)
    centres, labels = vectors[np.sort(drawn)], np.full(len(vectors), -1, np.int64)
    for _ in range(iterations):
        before, labels = labels, nearest(vectors, centres)
        if (labels == before).all():
            break
        centres = _centres(vectors, labels, centres)
    return labels


def nearest(vectors: Vectors, centres: Vectors) -> NDArray[np.int64]:
    """The centre with the largest cosine [n], the first of equal ones."""
    blocks = [(vectors[begin : begin + ROWS] @ centres.T).argmax(1) for begin in range(0, len(vectors), ROWS)]
    return np.concatenate(blocks).astype(np.int64)


def _centres(vectors: Vectors, labels: NDArray[np.int64], before: Vectors) -> Vectors:
    order = np.argsort(labels, kind="stable")
    present, begins = np.unique(labels[order], return_index=True)
    sums = before.copy()
    sums[present] = np.add.reduceat(vectors[order], begins, axis=0)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    return np.where(lengths > 0, sums / np.maximum(lengths, 1e-12), before)


@dataclass(frozen=True)
class KeptOfClusters:
    """What is kept [n]; of each the largest cosine to one that was kept before it (-1: there was none), and which."""

    kept: NDArray[np.bool_]
    cosine: NDArray[np.float32]
    like: NDArray[np.int64]


def keep(vectors: Vectors, labels: NDArray[np.int64], worths: NDArray[np.float64], threshold: float) -> KeptOfClusters:
    """Go through each cluster, the greatest worth first (of equal ones the first), and keep what is unlike the kept."""
    count = len(vectors)
    result = KeptOfClusters(
        np.zeros(count, np.bool_), np.full(count, -1, np.float32), np.full(count, -1, np.int64)
    )  # fmt: skip
    order = np.lexsort((np.arange(count), -worths, labels))
    for members in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1) if count else ():
        for block in _blocks(members):
            _compare(vectors, result, block, members, threshold)
    return result


def _blocks(members: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    return (members[begin : begin + BLOCK] for begin in range(0, len(members), BLOCK))


def _compare(
    vectors: Vectors, result: KeptOfClusters, block: NDArray[np.int64], members: NDArray[np.int64], threshold: float
) -> None:
    """Decide about a block of a cluster's members, those before it being decided."""
    mine = vectors[block]
    for earlier in _blocks(members[result.kept[members]]):
        cosines = mine @ vectors[earlier].T
        _note(result, block, cosines.max(1), earlier[cosines.argmax(1)])
    inner = mine @ mine.T
    chosen = np.zeros(len(block), np.bool_)
    for row, place in enumerate(block):
        if chosen[:row].any():
            cosines = np.where(chosen[:row], inner[row, :row], -2)
            best = int(cosines.argmax())
            _note(result, block[row : row + 1], cosines[best : best + 1], block[best : best + 1])
        chosen[row] = result.kept[place] = result.cosine[place] < threshold


def _note(
    result: KeptOfClusters, places: NDArray[np.int64], cosines: NDArray[np.float32], like: NDArray[np.int64]
) -> None:
    higher = cosines > result.cosine[places]
    result.cosine[places[higher]] = cosines[higher]
    result.like[places[higher]] = like[higher]
