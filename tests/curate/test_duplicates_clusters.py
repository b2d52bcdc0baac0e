"""Connected components by every way to them, and the document of each that stays."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import numpy as np
import pytest
from datatrove.io import get_datafolder
from hypothesis import given, settings
from hypothesis import strategies as st

from llama31.curate.duplicates import shards
from llama31.curate.duplicates.buckets import PAIR
from llama31.curate.duplicates.clusters import (
    ClusterEdges,
    ClusterLeaves,
    ClusterRound,
    Clusters,
    ClusterSurvivors,
)
from llama31.curate.duplicates.components import components
from llama31.curate.duplicates.removal import LISTED, PLACE
from llama31.curate.duplicates.signatures import PREFERENCE, PREFERENCES
from tests.curate.stages import alone, document

Pairs = list[tuple[int, int]]


def union_find(count: int, pairs: Pairs) -> list[int]:
    parents = list(range(count))

    def root(one: int) -> int:
        while parents[one] != one:
            one = parents[one]
        return one

    for a, b in pairs:
        a, b = sorted((root(a), root(b)))
        parents[b] = a
    return [root(one) for one in range(count)]


GRAPH = st.integers(2, 40).flatmap(
    lambda count: st.tuples(
        st.just(count), st.lists(st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)), max_size=60)
    )
)


@settings(max_examples=200, deadline=None)
@given(GRAPH)
def test_components_are_those_of_union_find(graph: tuple[int, Pairs]) -> None:
    count, pairs = graph
    ends = np.array(pairs, np.int64).reshape(-1, 2)
    assert components(count, ends[:, 0], ends[:, 1]).tolist() == union_find(count, pairs)


def plant(folder: Path, count: int, tasks: int, pairs: Pairs, buckets: int, seed: int = 0) -> list[int]:
    """Files of a first stage of `count` documents and their pairs, document n in task n % tasks; their preferences."""
    generator = random.Random(seed)
    signatures, found = get_datafolder(str(folder / "signatures")), get_datafolder(str(folder / "pairs"))
    preferred = [generator.randrange(5) for _ in range(count)]
    for rank in range(tasks):
        table = [(preferred[n], n) for n in range(rank, count, tasks)]
        shards.write(signatures, shards.name_of(rank, tasks, PREFERENCES), np.array(table, PREFERENCE))
        seen = shards.SeenDocuments()
        for _ in table:
            seen.add(document("", ""), 0)
        seen.save(signatures, rank, tasks, buckets=buckets)
    for bucket in range(buckets):
        rows = [(a % tasks, a // tasks, b % tasks, b // tasks) for a, b in pairs[bucket::buckets]]
        shards.write(found, f"{bucket:05d}_00.dups", np.array(rows, PAIR).reshape(-1, 4))
    return preferred


def listed(folder: Path, tasks: int) -> list[int]:
    """The documents that are listed, by number; a list, for none may be listed twice."""
    opened = get_datafolder(str(folder))
    return [
        int(place) * tasks + rank
        for name in shards.complete(opened, LISTED)
        for rank in range(tasks)
        for place in shards.read_section(opened, name, tasks, rank, PLACE)
    ]


def in_one_task(folder: Path, tasks: int, memory: int = 1 << 20) -> list[int]:
    alone(lambda: Clusters(*(str(folder / name) for name in ("signatures", "pairs", "one")), memory), 1)
    return sorted(listed(folder / "one", tasks))


def in_several(
    folder: Path, tasks: int, partitions: int, rounds: int, memory: int = 1, round_memory: int = 1 << 24
) -> tuple[list[int], int]:
    """What is listed, and the edges that the rounds left."""
    signatures, pairs, leaves, many, rest, last = (
        str(folder / name) for name in ("signatures", "pairs", "leaves", "many", "rest", "last")
    )
    edges = [str(folder / f"edges{number}") for number in range(rounds + 1)]
    alone(lambda: ClusterEdges(signatures, pairs, edges[0], partitions, memory), 3)
    for before, after in itertools.pairwise(edges):
        alone(lambda before=before, after=after: ClusterRound(before, after, round_memory), partitions)
    alone(lambda: ClusterLeaves(signatures, edges[-1], leaves, round_memory), partitions)
    counts = alone(lambda: ClusterSurvivors(signatures, leaves, many, rest, round_memory), partitions)
    alone(lambda: Clusters(signatures, rest, last), 1)
    return sorted(listed(Path(many), tasks) + listed(Path(last), tasks)), counts["rest"]


def expected(count: int, pairs: Pairs, preferred: list[int]) -> list[int]:
    labels = union_find(count, pairs)
    best = {}
    for n in range(count):
        if labels[n] not in best or (-preferred[n], n) < (-preferred[best[labels[n]]], best[labels[n]]):
            best[labels[n]] = n
    return [n for n in range(count) if best[labels[n]] != n]


@settings(max_examples=60, deadline=None)
@given(GRAPH, st.integers(1, 5), st.integers(1, 4), st.integers(0, 3), st.integers(0, 9))
def test_one_task_and_several_list_the_same_documents(
    tmp_path_factory: pytest.TempPathFactory,
    graph: tuple[int, Pairs],
    tasks: int,
    partitions: int,
    rounds: int,
    seed: int,
) -> None:
    (count, pairs), folder = graph, tmp_path_factory.mktemp("graph")
    preferred = plant(folder, count, tasks, pairs, 2, seed)
    wanted = expected(count, pairs, preferred)
    assert in_one_task(folder, tasks) == wanted
    assert in_several(folder, tasks, partitions, rounds)[0] == wanted


def test_rounds_finish_chains_and_what_they_do_not_is_left_whole(tmp_path: Path) -> None:
    # A chain of 3,000 documents in an order of chance, by turns in two buckets: no file connects more than two.
    generator = random.Random(1)
    order = list(range(3000))
    generator.shuffle(order)
    pairs = list(itertools.pairwise(order))
    left = []
    for rounds in (0, 2, 5, 10):
        folder = tmp_path / str(rounds)
        wanted = expected(3000, pairs, plant(folder, 3000, 16, pairs, 2))
        assert len(wanted) == 2999
        found, rest = in_several(folder, 16, 16, rounds, memory=1 << 20)
        assert found == wanted
        left.append(rest)
    assert left[0] > 0 and left[1] > 0 and left[-1] == 0


def test_what_hangs_on_one_that_is_no_first_is_not_finished_alone(tmp_path: Path) -> None:
    # a - b in one file and b - c in the other: c is tied to b alone, and b to a.
    pairs = [pair for a in range(0, 300, 3) for pair in ((a, a + 1), (a + 1, a + 2))]
    wanted = expected(300, pairs, plant(tmp_path, 300, 1, pairs, 2))
    assert in_several(tmp_path, 1, 1, 0, memory=1 << 20) == (wanted, 200)


def test_rounds_hold_no_more_than_their_memory_and_say_when_it_is_too_little(tmp_path: Path) -> None:
    # 60 documents of which all have pairs, in each of 20 files: 1,180 pairs, and 60 documents to hold.
    pairs = [(a, b) for a, b in itertools.combinations(range(60), 2) if b - a < 24][:1180]
    wanted = expected(60, pairs, plant(tmp_path, 60, 4, pairs, 20))
    # Half of it holds 100 edges, and each task reads hundreds.
    assert in_several(tmp_path, 4, 2, 2, memory=1000, round_memory=200 * 150)[0] == wanted
    with pytest.raises(ValueError, match="memory_bytes=2000 holds 6 documents .* minhash.cluster_tasks"):
        alone(lambda: ClusterRound(str(tmp_path / "edges0"), str(tmp_path / "x"), 2000), 2)
    for step in (ClusterLeaves, ClusterSurvivors):
        places = [str(tmp_path / name) for name in ("signatures", "edges2", "x", "y")]
        if step is ClusterSurvivors:
            places[1] = str(tmp_path / "leaves")
        with pytest.raises(ValueError, match="memory_bytes=2000 holds 6 edges of a task's share"):
            alone(lambda step=step, places=places: step(*places[: 3 + (step is ClusterSurvivors)], 2000), 2)


def test_what_is_missing_or_too_much_is_told(tmp_path: Path) -> None:
    plant(tmp_path, 100, 2, [(n, n + 1) for n in range(99)], 3)
    with pytest.raises(ValueError, match="memory_bytes=2000 holds 6 documents .* give it more, or run ClusterEdges"):
        in_one_task(tmp_path, 2, memory=2000)
    with pytest.raises(ValueError, match="tasks=2, but Clusters is one task"):
        alone(lambda: Clusters(*(str(tmp_path / name) for name in ("signatures", "pairs", "one"))), 2)
    in_several(tmp_path, 2, 2, 1)
    with pytest.raises(ValueError, match="tasks=3, but .* is for 2; give tasks=2"):
        alone(lambda: ClusterRound(str(tmp_path / "edges0"), str(tmp_path / "other")), 3)
    index = np.array([[2**32 - 1, 2**32 - 1, 0, 0]], PAIR)
    shards.write(get_datafolder(str(tmp_path / "pairs")), "00000_00.dups", index)
    with pytest.raises(ValueError, match="a pair names task 4294967295; .* for datatrove's MinhashDedupCluster"):
        in_one_task(tmp_path, 2)
    (tmp_path / "pairs/00001_00.dups").unlink()
    with pytest.raises(ValueError, match=r"lacks pairs of the buckets \[1\]; run MinhashBuckets first"):
        in_one_task(tmp_path, 2)
