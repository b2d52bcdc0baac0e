"""Clusters of documents that are connected by pairs, and one that stays of each; in one task, or in several.

    [MinhashSignatures]                                     T tasks
    [MinhashBuckets]                                        up to as many as buckets
    [Clusters(signatures, pairs, listed)]                   one task, which holds all documents that have a pair

or, where they are more than that task's memory holds,

    [ClusterEdges(signatures, pairs, edges0, K)]            any number of tasks
    [ClusterRound(edges0, edges1)]                          K tasks; twice or three times
    [ClusterLeaves(signatures, edges2, leaves)]             K tasks
    [ClusterSurvivors(signatures, leaves, listed, rest)]    K tasks
    [Clusters(signatures, rest, listed_rest)]               one task: what the rounds did not finish, little or nothing

and last [reader, DropListed(signatures, listed, "near duplicate"), writer] in T tasks, with [listed, listed_rest].

Whatever the way and the numbers of tasks and rounds, clusters are the connected components: a round replaces edges by
others between documents that were connected, and drops none that connects. In a round each task sees all edges of the
documents of its share (those of T / K tasks of the first stage), and ties every document of a component that it sees to
the component's first. So do Rastogi et al. 2012 ("Finding connected components in map-reduce in logarithmic rounds")
with each document's neighbours. A cluster is finished when it is a star; pairs of one signature are one from the start.
datatrove's stage is one task that holds all documents which have a pair in dictionaries.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
from datatrove.data import DocumentsPipeline
from datatrove.io import DataFolder, DataFolderLike, get_datafolder
from datatrove.pipeline.base import PipelineStep

from llama31.curate.duplicates import merging, shards
from llama31.curate.duplicates.buckets import PAIR, pair_files
from llama31.curate.duplicates.components import Nodes, losers, preferences, stars
from llama31.curate.duplicates.removal import LISTED, write_listed

EDGES, PIECES, LEAVES, REST = ".edges", ".pieces.json", ".leaves", ".rest"
EDGE = np.dtype([("at", "<u8"), ("other", "<u8")])
LEAF = np.dtype([*EDGE.descr, ("leaf", "u1"), ("preference", "<u8"), ("identity", "<u8")])
MEMORY_BYTES = 8 << 30
EDGE_BYTES = 150  # of memory for an edge: read, sorted, numbered, connected
SHIFT = np.uint64(32)


def list_documents(folder: DataFolder, rank: int, tasks: int, sources: int, nodes: Nodes) -> None:
    """List documents for DropListed."""
    ranks, places = nodes >> SHIFT, nodes & np.uint64((1 << 32) - 1)
    write_listed(folder, shards.name_of(rank, tasks, LISTED), sources, ranks, places.astype(np.uint32))


def nodes_of(pairs: npt.NDArray[np.uint32]) -> Nodes:
    """Pairs of a file, shape (pairs, 4), as pairs of documents, shape (pairs, 2)."""
    wide = pairs.astype(np.uint64)
    return (wide[:, ::2] << SHIFT) | wide[:, 1::2]


def read_pairs(folder: DataFolder, name: str, at_once: int) -> Iterator[Nodes]:
    """A file's pairs of documents, in pieces of shape (pairs, 2)."""
    count, place = folder.size(name) // (4 * PAIR.itemsize), 0
    while place < count:
        pairs = shards.read(folder, name, PAIR, 4 * place, 4 * at_once).reshape(-1, 4)
        yield nodes_of(pairs)
        place += at_once


def reduced(pairs: Nodes) -> Nodes:
    """Edges that connect what pairs connect, shape (edges, 2): each document with the first of its component."""
    nodes, labels = stars(pairs)
    edges = np.stack([nodes, labels], axis=1)
    return edges[nodes != labels]


def at_once(memory_bytes: int) -> int:
    """Edges that half of a memory holds."""
    return max(1, memory_bytes // (2 * EDGE_BYTES))


def too_many(memory_bytes: int, what: str) -> ValueError:
    """What to do where a task's memory does not hold what it has to."""
    return ValueError(
        f"memory_bytes={memory_bytes} holds {at_once(memory_bytes)} {what}, and there are more; give it more, or run "
        "ClusterEdges, ClusterRound and so on in more tasks (minhash.memory_gb and minhash.cluster_tasks)"
    )


def connecting(pieces: Iterable[Nodes], memory_bytes: int) -> Nodes:
    """Edges, shape (edges, 2), that connect what all pieces connect, of which there may be many more.

    A piece has `at_once` edges at most. Memory: `memory_bytes`, and ValueError where the documents are too many for it.
    """
    hand, most = [np.zeros((0, 2), np.uint64)], at_once(memory_bytes)
    for piece in itertools.chain(pieces, [None]):
        if piece is None or sum(map(len, hand)) + len(piece) > 2 * most:
            hand = [reduced(np.concatenate(hand))]
            if len(hand[0]) > most:
                raise too_many(memory_bytes, "documents that have a pair")
        if piece is not None:
            hand.append(piece)
    return hand[0]


class Clusters(PipelineStep):
    """List all documents of each cluster but one, in one task.

    Statistics: `clusters`, `listed`. Memory: about 150 bytes for each document that has a pair, up to half of
    `memory_bytes`, beyond which ValueError says so, and as much for pairs in hand.

    Args:
        signature_folder: what MinhashSignatures wrote.
        pairs_folder: what MinhashBuckets, datatrove's MinhashDedupBuckets or ClusterSurvivors wrote.
        output_folder: for 4 bytes per document that is listed.
        memory_bytes: of this task.
    """

    name = "Clusters"
    type = "Deduplication"

    def __init__(
        self,
        signature_folder: DataFolderLike,
        pairs_folder: DataFolderLike,
        output_folder: DataFolderLike,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        super().__init__()
        self.signature_folder, self.pairs_folder = get_datafolder(signature_folder), get_datafolder(pairs_folder)
        self.output_folder, self.memory_bytes = get_datafolder(output_folder), memory_bytes

    def _pairs(self, buckets: int) -> Iterator[Nodes]:
        left = self.pairs_folder.list_files(glob_pattern=f"*{REST}")
        for name in shards.complete(self.pairs_folder, REST) if left else pair_files(self.pairs_folder, buckets):
            yield from read_pairs(self.pairs_folder, name, at_once(self.memory_bytes))

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:
        """Find all clusters."""
        if world_size != 1:
            raise ValueError(f"tasks={world_size}, but Clusters is one task; give tasks=1, or ClusterEdges and so on")
        tasks = len(shards.complete(self.signature_folder, shards.SEEN))
        with self.track_time("task"):
            buckets = shards.load_seen(self.signature_folder, 0, tasks)["buckets"]
            edges = connecting(self._pairs(buckets), self.memory_bytes)
            nodes, labels = stars(edges)
            gone = losers(nodes, labels, preferences(self.signature_folder, nodes, tasks))
            list_documents(self.output_folder, 0, 1, tasks, gone)
        self.stat_update("clusters", value=len(nodes) - len(gone))
        self.stat_update("listed", value=len(gone))


def write_shares(folder: DataFolder, name: str, records: shards.Records, tasks: int, partitions: int) -> None:
    """Records by the task whose share their `at` is in: of the first stage's tasks equal runs, in order."""
    shares = (records["at"] >> SHIFT).astype(np.int64) * partitions // tasks
    shards.write_sections(folder, name, partitions, shares, records)


def both_ways(edges: Nodes) -> shards.Records:
    """Edges as each of their two ends sees them."""
    result = np.zeros(2 * len(edges), EDGE)
    result["at"], result["other"] = edges.T.ravel(), edges[:, ::-1].T.ravel()
    return result


class ClusterEdges(PipelineStep):
    """Of several tasks the first: edges out of pairs, for the tasks of the rounds.

    Chains of pairs become stars already here, as far as they lie in one file. Statistics: `edges`. Memory:
    `memory_bytes`.

    Args:
        signature_folder: what MinhashSignatures wrote.
        pairs_folder: what MinhashBuckets or datatrove's MinhashDedupBuckets wrote.
        output_folder: for at most 32 bytes per pair.
        partitions: tasks of each round.
        memory_bytes: for pairs in hand.
    """

    name = "Cluster edges"
    type = "Deduplication"

    def __init__(
        self,
        signature_folder: DataFolderLike,
        pairs_folder: DataFolderLike,
        output_folder: DataFolderLike,
        partitions: int,
        memory_bytes: int = merging.MEMORY_BYTES,
    ) -> None:
        super().__init__()
        if partitions < 1:
            raise ValueError(f"partitions={partitions} leaves no task for a round; give 1 or more")
        self.signature_folder, self.pairs_folder = get_datafolder(signature_folder), get_datafolder(pairs_folder)
        self.output_folder, self.partitions = get_datafolder(output_folder), partitions
        self.memory_bytes = memory_bytes

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:
        """Share out the edges of this task's files."""
        tasks = len(shards.complete(self.signature_folder, shards.SEEN))
        names = pair_files(self.pairs_folder, shards.load_seen(self.signature_folder, 0, tasks)["buckets"])
        at_once, pieces = max(1, self.memory_bytes // EDGE_BYTES), 0
        for name in names[rank::world_size]:
            for pairs in read_pairs(self.pairs_folder, name, at_once):
                with self.track_time("piece"):
                    edges = reduced(pairs)
                    self.stat_update("edges", value=len(edges))
                    piece = f"{pieces:05d}/{shards.name_of(rank, world_size, EDGES)}"
                    write_shares(self.output_folder, piece, both_ways(edges), tasks, self.partitions)
                    pieces += 1
        save_pieces(self.output_folder, rank, world_size, pieces, tasks, self.partitions)


def save_pieces(folder: DataFolder, rank: int, world_size: int, pieces: int, tasks: int, partitions: int) -> None:
    """The last file that a task writes which shares out edges."""
    content = {"pieces": pieces, "tasks": tasks, "partitions": partitions}
    with shards.whole(folder, shards.name_of(rank, world_size, PIECES)) as file:
        file.write(json.dumps(content).encode())


def shared_out(folder: DataFolder, world_size: int) -> tuple[list[str], int]:
    """What the step before shared out, as paths without their suffix, and the number of tasks of the first stage."""
    found, tasks = list[str](), 0
    for name in shards.complete(folder, PIECES):
        with folder.open(name, "rb") as file:
            content = json.loads(file.read())
        tasks, partitions = content["tasks"], content["partitions"]
        if partitions != world_size:
            raise ValueError(f"tasks={world_size}, but {folder.path} is for {partitions}; give tasks={partitions}")
        found += [f"{piece:05d}/{name.removesuffix(PIECES)}" for piece in range(content["pieces"])]
    return found, tasks


def distinct(records: shards.Records) -> shards.Records:
    """Edges in order, each once."""
    records = records[np.lexsort((records["other"], records["at"]))]
    return records[merging.starts(records["at"]) | merging.starts(records["other"])]


class ClusterRound(PipelineStep):
    """One round: what a task sees to be connected is tied to one document.

    As many tasks as ClusterEdges had partitions. Statistics: `edges`. Memory: about 150 bytes for each document of this
    task's share and each that is tied to one, up to half of `memory_bytes`, beyond which ValueError says so; an edge of
    each document of a cluster lies with the cluster's first one.

    Args:
        input_folder: what ClusterEdges or the round before wrote.
        output_folder: for at most 32 bytes per edge.
        memory_bytes: of this task.
    """

    name = "Cluster round"
    type = "Deduplication"

    def __init__(
        self, input_folder: DataFolderLike, output_folder: DataFolderLike, memory_bytes: int = MEMORY_BYTES
    ) -> None:
        super().__init__()
        self.input_folder, self.output_folder = get_datafolder(input_folder), get_datafolder(output_folder)
        self.memory_bytes = memory_bytes

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:
        """Connect what this task sees."""
        with self.track_time("task"):
            names, tasks = shared_out(self.input_folder, world_size)
            edges = connecting(self._seen(names, rank, world_size), self.memory_bytes)
            self.stat_update("edges", value=len(edges))
            piece = f"00000/{shards.name_of(rank, world_size, EDGES)}"
            write_shares(self.output_folder, piece, both_ways(edges), tasks, world_size)
            save_pieces(self.output_folder, rank, world_size, 1, tasks, world_size)

    def _seen(self, names: list[str], rank: int, world_size: int) -> Iterator[Nodes]:
        most = at_once(self.memory_bytes)
        for name in names:
            records = shards.read_section(self.input_folder, f"{name}{EDGES}", world_size, rank, EDGE)
            for start in range(0, len(records), most):
                piece = records[start : start + most]
                yield np.stack([piece["at"], piece["other"]], axis=1)


class ClusterLeaves(PipelineStep):
    """After the rounds: each document tells those before it that it is tied to whether it is tied to them alone.

    One that is not, and has another before it, says so to itself: it is no cluster's first. Statistics: `leaves`. As
    many tasks as the rounds. Memory: 150 bytes per edge of this task's share, up to half of `memory_bytes`, beyond
    which ValueError says so, and 16 per document of one task of the first stage.

    Args:
        signature_folder: what MinhashSignatures wrote.
        input_folder: what the last round wrote.
        output_folder: for 33 bytes per edge.
        memory_bytes: of this task.
    """

    name = "Cluster leaves"
    type = "Deduplication"

    def __init__(
        self,
        signature_folder: DataFolderLike,
        input_folder: DataFolderLike,
        output_folder: DataFolderLike,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        super().__init__()
        self.signature_folder, self.memory_bytes = get_datafolder(signature_folder), memory_bytes
        self.input_folder, self.output_folder = get_datafolder(input_folder), get_datafolder(output_folder)

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:
        """Tell what this task's documents are."""
        with self.track_time("task"):
            names, tasks = shared_out(self.input_folder, world_size)
            records = self._edges(names, rank, world_size)
            _, places, degrees = np.unique(records["at"], return_inverse=True, return_counts=True)
            alone = degrees[places] == 1
            up = records["other"] < records["at"]
            told = np.zeros(int(up.sum()), LEAF)
            told["at"], told["other"], told["leaf"] = records["other"][up], records["at"][up], alone[up]
            leaf = told["leaf"] == 1
            preferred = preferences(self.signature_folder, told["other"][leaf], tasks)
            for field in ("preference", "identity"):
                told[field][leaf] = preferred[field]
            between = np.unique(told["other"][~leaf])
            no_first = np.zeros(len(between), LEAF)
            no_first["at"] = no_first["other"] = between
            self.stat_update("leaves", value=int(leaf.sum()))
            piece = f"00000/{shards.name_of(rank, world_size, LEAVES)}"
            write_shares(self.output_folder, piece, np.concatenate([told, no_first]), tasks, world_size)
            save_pieces(self.output_folder, rank, world_size, 1, tasks, world_size)

    def _edges(self, names: list[str], rank: int, world_size: int) -> shards.Records:
        """Of this task's documents, each once: the rounds tell one in as many files as there are tasks."""
        records = np.zeros(0, EDGE)
        for name in names:
            read = shards.read_section(self.input_folder, f"{name}{EDGES}", world_size, rank, EDGE)
            records = distinct(np.concatenate([records, read]))
            if len(records) > at_once(self.memory_bytes):
                raise too_many(self.memory_bytes, "edges of a task's share")
        return records


class ClusterSurvivors(PipelineStep):
    """Of several tasks the last: list all documents of each finished cluster but one, and leave the others' edges.

    As many tasks as the rounds. Statistics: `clusters`, `listed`, `rest` (edges of clusters that are not finished).
    Memory: as ClusterLeaves.

    Args:
        signature_folder: what MinhashSignatures wrote.
        input_folder: what ClusterLeaves wrote.
        output_folder: for 4 bytes per document that is listed.
        rest_folder: for Clusters, which must follow.
        memory_bytes: of this task.
    """

    name = "Cluster survivors"
    type = "Deduplication"

    def __init__(
        self,
        signature_folder: DataFolderLike,
        input_folder: DataFolderLike,
        output_folder: DataFolderLike,
        rest_folder: DataFolderLike,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        super().__init__()
        self.signature_folder, self.input_folder = get_datafolder(signature_folder), get_datafolder(input_folder)
        self.output_folder, self.rest_folder = get_datafolder(output_folder), get_datafolder(rest_folder)
        self.memory_bytes = memory_bytes

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:
        """Finish the clusters whose first document is in this task's share."""
        with self.track_time("task"):
            names, tasks = shared_out(self.input_folder, world_size)
            told = [shards.read_section(self.input_folder, f"{one}{LEAVES}", world_size, rank, LEAF) for one in names]
            records = np.concatenate([np.zeros(0, LEAF), *told])
            if len(records) > at_once(self.memory_bytes):
                raise too_many(self.memory_bytes, "edges of a task's share")
            firsts, places = np.unique(records["at"], return_inverse=True)
            unfinished = np.bincount(places, records["leaf"] == 0, len(firsts)) > 0
            done = records[~unfinished[places]]
            firsts = firsts[~unfinished]
            first_preferred = preferences(self.signature_folder, firsts, tasks)
            preferred = np.concatenate([first_preferred, np.zeros(len(done), first_preferred.dtype)])
            for field in ("preference", "identity"):
                preferred[field][len(firsts) :] = done[field]
            gone = losers(np.concatenate([firsts, done["other"]]), np.concatenate([firsts, done["at"]]), preferred)
            list_documents(self.output_folder, rank, world_size, tasks, gone)
            left = records[unfinished[places] & (records["at"] != records["other"])]
            pairs = np.stack([left["at"] >> SHIFT, left["at"], left["other"] >> SHIFT, left["other"]], axis=1)
            shards.write(self.rest_folder, shards.name_of(rank, world_size, REST), pairs.astype(PAIR))
        self.stat_update("clusters", value=len(firsts))
        self.stat_update("listed", value=len(gone))
        self.stat_update("rest", value=len(left))
