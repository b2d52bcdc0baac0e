"""What a rank of 16,384 makes at its start, beside one of 8: flat, but for what is named here."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests import forkserver, processes


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("scale") / "out.json"
    environment = {**forkserver.environment(), "OMP_NUM_THREADS": "1"}
    words = [str(forkserver.programs() / "python"), "-m", "tests.parallel.scale", str(output)]
    done = processes.run(words, env=environment, merged=True)
    assert done.returncode == 0, done.stdout[-4000:]
    result: dict[str, Any] = json.loads(output.read_text())
    return result


def test_groups_are_megatrons(played: dict[str, Any]) -> None:
    assert played["rank_lists_differ"] == []
    middle = played["16384"]["8192"]
    assert middle["pp"] == list(range(8192, 8192 + 128, 8)), "stages lie tp x cp apart"
    assert middle["dp_cp"] == list(range(0, 16384, 128)), "replicas lie tp x cp x pp apart"


@pytest.mark.parametrize("world", ["8", "1024", "16384", "16384 cp16"])
def test_a_rank_is_in_few_groups(world: str, played: dict[str, Any]) -> None:
    """Each once, and one of a single member, which all axes of one process share."""
    for rank, one in played[world].items():
        assert one["mine"] and one["twice"] == 0, (world, rank)
        assert len(one["members"]) <= 13 and one["members"].count(1) == 1, (world, rank, one["members"])


def test_groups_are_made_without_splitting_the_communicator_of_all(played: dict[str, Any]) -> None:
    """Torch splits it for each group while the default one has its device, which all ranks would have to join."""
    for world in ("8", "16384"):
        assert all(one["bound"] == ["None", "cuda:0"] for one in played[world].values())


def test_what_a_start_costs_hardly_depends_on_the_ranks(played: dict[str, Any]) -> None:
    """Calls: one for each group of the world along each axis, as torch names groups by their number."""
    assert max(one["calls"] for one in played["16384"].values()) < 5_000  # 77,601 by Megatron alone
    assert max(one["calls"] for one in played["16384 cp16"].values()) < 9_000
    for name in ("16384", "16384 cp16"):
        for one in played[name].values():
            assert one["kept_bytes"] < 20e6 and one["peak_bytes"] < 80e6, one  # torch's table of each group's ranks


def test_in_a_step_all_ranks_share_numbers_and_the_verdict_alone(played: dict[str, Any]) -> None:
    for rank, one in played["steps"].items():
        assert one["groups"] == 0, "engine and optimizer make no groups of their own"
        of_all = {message: count for message, count in one["sent"].items() if int(message.split()[-1]) > 128}
        assert of_all == {"all_reduce 16384": 2}, (rank, of_all)
        assert one["sent"]["reduce_scatter_tensor 128"] == one["sent"]["all_gather_into_tensor 128"] >= 2
