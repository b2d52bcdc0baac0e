"""Four processes agree, find the one that differs, and name the bad node."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llama31.resilience.guard import Control, Verdict
from tests.parallel.guarding import PROCESSES
from tests.parallel.launch import forked

pytestmark = [pytest.mark.torch, pytest.mark.parallel]


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What every rank found in every case, in one set of processes."""
    output = tmp_path_factory.mktemp("guarding") / "results.json"
    forked(PROCESSES, "tests.parallel.guarding", str(output))
    actual: dict[str, list[Any]] = json.loads(output.read_text())
    for name, ranks in actual.items():
        for rank, result in enumerate(ranks):
            assert not isinstance(result, dict) or "error" not in result, f"{name}, rank {rank}: {result['error']}"
    return actual


@pytest.fixture(scope="module")
def results(by_rank: dict[str, list[Any]]) -> dict[str, Any]:
    """What all ranks found alike."""
    for name, ranks in by_rank.items():
        assert name == "probe" or all(result == ranks[0] for result in ranks), f"{name}: ranks differ: {ranks}"
    return {name: ranks[0] for name, ranks in by_rank.items()}


def test_all_ranks_follow_one_control(results: dict[str, Any]) -> None:
    controls = [Control(**{**result, "verdict": Verdict(**result["verdict"])}) for result in results["controls"]]
    assert controls == [
        Control(),
        Control(save=True),
        Control(Verdict("rollback", "loss_spike", "far too high", 3, 3, 11)),
        Control(stop=True, reason="asked for on rank 2"),
        Control(stop=True, reason="the file stop"),
        Control(superseded=True, reason="attempt 4 has begun"),
    ]


@pytest.mark.parametrize(
    ("case", "rank"),
    [
        ("dp4", 2),
        ("dp4-bf16-norm", 1),
        ("tp2-dp2-norm", 3),
        ("tp4-norm", 1),
        ("dp4-zero2", 2),
        ("cp2-dp2", 3),
    ],
)
def test_one_flipped_bit_names_its_rank(case: str, rank: int, results: dict[str, Any]) -> None:
    assert results[case]["before"] == [], "replicas are equal after steps of the engine"
    assert results[case]["after"] == [{"rank": rank, "host": f"n{rank}", "certain": True}]


@pytest.mark.parametrize(("case", "ranks"), [("tp2-dp2", (1, 3)), ("pp2-dp2", (0, 2))])
def test_of_two_replicas_both_are_named(case: str, ranks: tuple[int, int], results: dict[str, Any]) -> None:
    assert results[case]["before"] == []
    assert results[case]["after"] == [{"rank": rank, "host": f"n{rank}", "certain": False} for rank in ranks]


def test_what_zero_3_shards_is_not_compared(results: dict[str, Any]) -> None:
    assert results["dp4-zero3"] == {"active": False, "found": []}


def test_slow_ranks_are_named_and_only_lasting_ones_left_out(results: dict[str, Any]) -> None:
    first, second, third = results["times"]
    assert first["phases"]["data_s"] == {"min": 0.01, "median": 0.01, "max": 0.5, "slowest": 2}
    assert set(first["phases"]) == {"data_s", "forward_backward_s", "probe_s"}
    assert [(one["rank"], one["host"], one["phase"]) for one in first["slow"]] == [
        (2, "n2", "data_s"),
        (2, "n2", "probe_s"),
    ]
    assert [one["hosts"] for one in (first, second, third)] == [[], ["n2"], []]
    assert [one["phase"] for one in third["slow"]] == ["data_s"]


def test_the_probe_measures(by_rank: dict[str, list[Any]]) -> None:
    assert all(seconds > 0 for seconds in by_rank["probe"])


def test_preflight_measures_every_node(results: dict[str, Any]) -> None:
    result = results["preflight"]
    assert result["problems"] == [] and result["bad"] == []
    assert result["hosts"] == ["n0", "n0", "n0", "n1"]
    first, second = result["nodes"]
    assert (first["ranks"], second["ranks"]) == ([0, 1, 2], [3])
    assert len(first["matmul_tflops"]) == 3 and all(rate > 0 for rate in first["matmul_tflops"])
    assert len(first["link_gb_s"]) == len(second["link_gb_s"]) == 1, "one lane: that of the first ranks"
    assert all(
        node["allreduce_gb_s"] > 0 and node["free_bytes"] > 0 and node["ecc"] is None for node in (first, second)
    )
    assert second["versions"]["commit"] == "abc"


@pytest.mark.parametrize(
    ("case", "bad", "said"),
    [
        ("preflight-versions", ["old"], "numpy is 1.26, 2.0 elsewhere"),
        ("preflight-links", ["n1"], "both links of rank 1"),
        ("preflight-links-odd", ["n1"], "both links of rank 1"),
        ("preflight-product", ["n1"], "rank 2: a matrix product"),
        ("preflight-disk", ["n3"], "Stale file handle"),
    ],
)
def test_preflight_names_the_bad_node(case: str, bad: list[str], said: str, results: dict[str, Any]) -> None:
    assert results[case]["bad"] == bad
    assert said in results[case]["problems"][0]


def test_preflight_blames_no_node_for_what_all_share(results: dict[str, Any]) -> None:
    result = results["preflight-too-much"]
    assert result["bad"] == []
    assert ["all-reduce" in result["problems"][0], "run folder" in result["problems"][1]] == [True, True]
