"""What ranks do together beside the step: over torch's groups, and over trees of small ones."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from llama31.parallel.collectives import groups_of
from tests import processes

RANKS = """
import multiprocessing, os, pickle, sys
import torch.distributed as dist
from llama31.parallel.collectives import Tree, gathered, on_all_ranks, on_first_rank, rank_of, size_of

SIZE, folder = 5, sys.argv[1]

def fail(*ranks):
    if dist.get_rank() in ranks:
        raise ValueError(f"rank {dist.get_rank()} has no disk")
    return dist.get_rank() * 10

def caught(action):
    try:
        action()
    except ValueError as error:
        return str(error)

def check(ranks, rank):
    assert (rank_of(ranks), size_of(ranks)) == (rank, SIZE)
    assert on_all_ranks(ranks, lambda: rank * 10) == rank * 10
    assert gathered(ranks, lambda: rank * 10) == ([0, 10, 20, 30, 40] if rank == 0 else [])
    assert on_first_rank(lambda: rank + 7, ranks) == 7
    assert caught(lambda: on_first_rank(lambda: fail(0), ranks)) == "rank 0 has no disk"
    for failing in ((0,), (3,), (4, 2)):
        for act in (on_all_ranks, gathered):
            assert caught(lambda: act(ranks, lambda: fail(*failing))) == f"rank {min(failing)} has no disk"

class Unpicklable(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")

def raise_odd():
    if dist.get_rank() == 1:
        raise Unpicklable(1, 2)

def check_odd(ranks, rank):
    try:
        on_all_ranks(ranks, raise_odd)
    except RuntimeError as error:  # alike on all ranks
        assert "1 and 2" in str(error)
    else:
        raise AssertionError("nothing was raised")

def work(rank):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=SIZE)
    for width in (2, 3, 32):
        tree = Tree(60, width)
        check(tree, rank)
        check_odd(tree, rank)
    check(None, rank)
    check_odd(None, rank)
    dist.barrier()
    dist.destroy_process_group()

context = multiprocessing.get_context("fork")
workers = [context.Process(target=work, args=(rank,)) for rank in range(SIZE)]
[worker.start() for worker in workers]
[worker.join() for worker in workers]
print([worker.exitcode for worker in workers])
"""


def test_ranks_agree_and_tell_the_first(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": processes.search_path()}
    done = processes.run([sys.executable, "-c", RANKS, str(tmp_path)], env=environment)
    assert done.stdout.strip() == str([0] * 5), done.stderr


@pytest.mark.parametrize(("size", "width"), [(1, 32), (5, 2), (33, 32), (1025, 32), (16384, 32), (100, 10)])
def test_a_tree_reaches_all_by_few(size: int, width: int) -> None:
    """Every rank but the first has one way up; groups are small, and none has one member."""
    groups = {tuple(ranks) for rank in range(size) for ranks in groups_of(rank, size, width)}
    assert all(1 < len(ranks) <= width for ranks in groups)
    above = [rank for ranks in groups for rank in ranks[1:]]
    assert sorted(above) == list(range(1, size))
    sockets = [sum(len(ranks) - 1 for ranks in groups_of(rank, size, width)) for rank in (0, size // 2, size - 1)]
    assert max(sockets) <= 93
    for rank in (0, size // 2, size - 1):
        assert all(rank in ranks for ranks in groups_of(rank, size, width))
