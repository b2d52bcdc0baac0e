"""Connected components of a graph in memory, and which of each component goes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from datatrove.io import DataFolder

from llama31.curate.duplicates import merging, shards
from llama31.curate.duplicates.signatures import PREFERENCE, PREFERENCES

Nodes = npt.NDArray[np.uint64]  # a document: its task << 32 | its place in that task's stream


def components(count: int, a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The smallest vertex of each vertex's component, shape (count), from edges a - b, both shape (edges).

    Each root hooks onto a smaller neighbour, paths are made short, edges inside a component go, until none is left
    (after Shiloach and Vishkin 1982). Memory: about 40 bytes per edge and 16 per vertex.
    """
    labels = np.arange(count)
    while len(a):
        low, high = np.minimum(a, b), np.maximum(a, b)
        labels[high] = low
        while not np.array_equal(shorter := labels[labels], labels):
            labels = shorter
        a, b = labels[low], labels[high]
        apart = a != b
        a, b = a[apart], b[apart]
    return labels


def stars(pairs: npt.NDArray[np.uint64]) -> tuple[Nodes, Nodes]:
    """All nodes of edges, shape (edges, 2), sorted, and the smallest node that each is connected with."""
    nodes, places = np.unique(pairs, return_inverse=True)
    places = places.reshape(-1, 2)
    return nodes, nodes[components(len(nodes), places[:, 0], places[:, 1])]


def preferences(folder: DataFolder, nodes: Nodes, tasks: int) -> shards.Records:
    """What decides about documents, in the order of sorted nodes. Memory: 16 bytes per document of a task."""
    result = np.zeros(len(nodes), PREFERENCE)
    ranks = (nodes >> np.uint64(32)).astype(np.int64)
    for rank in np.unique(ranks).tolist():
        if rank >= tasks:
            raise ValueError(
                f"{folder.path} is of {tasks} tasks, and a pair names task {rank}; give the folder of those pairs' "
                "signatures, and pairs without matches with an index, which are for datatrove's MinhashDedupCluster"
            )
        start, end = np.searchsorted(ranks, [rank, rank + 1])
        table = shards.read(folder, shards.name_of(rank, tasks, PREFERENCES), PREFERENCE)
        result[start:end] = table[(nodes[start:end] & np.uint64((1 << 32) - 1)).astype(np.int64)]
    return result


def losers(nodes: Nodes, labels: Nodes, preferred: shards.Records) -> Nodes:
    """All but one of the nodes with one label: the largest preference, between equals the smallest identity, stays."""
    order = np.lexsort((preferred["identity"], ~preferred["preference"], labels))
    return nodes[order][~merging.starts(labels[order])]
