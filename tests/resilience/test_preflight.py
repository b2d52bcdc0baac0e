"""What preflight makes of planted records. That it measures what it says is in tests/parallel/test_guard.py."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from llama31 import config
from llama31.resilience.preflight import PreflightReport, Problem, judge, lanes, parse_ecc, rounds, summarise

pytestmark = pytest.mark.torch
SETTINGS = config.Preflight()
NEEDED = 10**9
VERSIONS = {"python": "3.12.1", "torch": "2.13.0", "commit": "abc"}


def records(nodes: int = 4, per_node: int = 2) -> list[dict[str, Any]]:
    """A sound cluster, one record per rank."""
    result = []
    for rank in range(nodes * per_node):
        record = {
            "rank": rank,
            "host": f"n{rank // per_node}",
            "time_s": 1000.0 + 0.001 * rank,
            "errors": [],
            "matmul_tflops": 600.0 + rank,
            "link_gb_s": 40.0 + rank,
            "allreduce_gb_s": 300.0,
            "gpu_free_share": 0.97,
        }
        if rank % per_node == 0:
            record |= {"free_bytes": 5 * NEEDED, "scratch_free_bytes": 2**40, "versions": dict(VERSIONS)}
            record["ecc"] = [{"gpu": 0, "uncorrected": 0, "remap_pending": 0, "remap_failed": None}]
        result.append(record)
    return result


def judged(result: list[dict[str, Any]], **keys: Any) -> list[Problem]:
    return judge(result, replace(SETTINGS, **keys), NEEDED)


def test_a_sound_cluster_has_no_problems() -> None:
    assert judged(records()) == []
    assert judged(records(1, 1)) == []


def test_on_cpus_the_same_code_runs_with_what_applies() -> None:
    result = records()
    for record in result:
        record |= {"gpu_free_share": None, "ecc": None}
    assert judged(result) == []
    alone = {**result[0], "link_gb_s": None, "allreduce_gb_s": None}
    assert judged([alone]) == []


@pytest.mark.parametrize(
    ("planted", "said"),
    [
        ({"matmul_tflops": 200.0}, "rank 4: a matrix product runs at 200 TFLOPS"),
        ({"gpu_free_share": 0.5}, "rank 4: 50% of the GPU's memory"),
        ({"errors": ["ecc: nvidia-smi exited with 9"]}, "nvidia-smi exited with 9"),
        ({"free_bytes": NEEDED - 1}, "unlike other nodes"),
        ({"free_bytes": 0}, "unlike other nodes"),
        ({"scratch_free_bytes": 1000}, "/dev/shm has 0.001 MB"),
        ({"time_s": 1007.0}, "its clock is +7.0 s"),
        ({"time_s": 900.0}, "its clock is -100"),
        ({"versions": VERSIONS | {"torch": "2.12.0"}}, "torch is 2.12.0, 2.13.0 elsewhere"),
        ({"versions": VERSIONS | {"commit": "abc-dirty"}}, "commit is abc-dirty, abc elsewhere"),
        ({"versions": {"python": "3.12.1", "commit": "abc"}}, "torch is none, 2.13.0 elsewhere"),
        ({"ecc": [{"gpu": 3, "uncorrected": 2, "remap_pending": 0, "remap_failed": 0}]}, "GPU 3 has 2 uncorrected"),
        ({"ecc": [{"gpu": 3, "uncorrected": 0, "remap_pending": 1, "remap_failed": 0}]}, "GPU 3 has 1 rows"),
        ({"ecc": [{"gpu": 3, "uncorrected": 0, "remap_pending": 0, "remap_failed": 1}]}, "could not be remapped"),
    ],
)
def test_one_bad_node_is_named(planted: dict[str, Any], said: str) -> None:
    result = records()
    result[4] |= planted  # the first rank of n2
    (problem,) = judged(result)
    assert problem.node == "n2" and said in str(problem), problem
    assert problem.remedy


def test_a_slow_gpu_that_is_not_a_nodes_first_is_named_too() -> None:
    result = records()
    result[3]["matmul_tflops"] = 100.0
    assert [problem.node for problem in judged(result)] == ["n1"]
    assert judged(result, matmul_share=0.1) == []


def test_matrix_products_have_a_least_rate() -> None:
    assert [problem.node for problem in judged(records(), min_matmul_tflops=602.5)] == ["n0", "n0", "n1"]


def test_a_node_is_bad_when_both_its_links_are_slow() -> None:
    result = records()
    result[4]["link_gb_s"] = 5.0  # n1 -> n2
    assert judged(result) == [], "either end may be to blame"
    result[6]["link_gb_s"] = 5.0  # n2 -> n3
    (problem,) = judged(result)
    assert problem.node == "n2" and "both links of rank 4" in problem.what
    result[5]["link_gb_s"], result[6]["link_gb_s"], result[7]["link_gb_s"] = 5.0, 46.0, 47.0
    assert judged(result) == [], "two lanes, and one slow link in each"


def test_the_ring_is_closed() -> None:
    result = records(3, 1)
    result[0]["link_gb_s"] = result[1]["link_gb_s"] = 5.0  # n2 -> n0 and n0 -> n1
    assert [problem.node for problem in judged(result)] == ["n0"]


def test_two_nodes_share_their_links_and_none_is_named() -> None:
    result = records(2, 1)
    result[0]["link_gb_s"] = 1.0
    assert judged(result) == []


def test_a_slow_all_reduce_is_nobodys_in_particular() -> None:
    result = records()
    result[3]["allreduce_gb_s"] = 20.0
    assert judged(result) == []
    (problem,) = judged(result, min_allreduce_gb_s=100.0)
    assert problem.node is None and "20 GB/s" in problem.what


def test_a_full_shared_disk_excludes_no_node() -> None:
    result = records()
    for record in result[::2]:
        record["free_bytes"] = 1000
    (problem,) = judged(result)
    assert problem.node is None and "run folder" in problem.what
    assert judged(result, min_free_bytes=1000) == []


def test_a_tie_of_versions_names_both_sides_and_excludes_neither() -> None:
    result = records()
    for rank in (0, 2):
        result[rank]["versions"] = VERSIONS | {"torch": "2.12.0"}
    (problem,) = judged(result)
    assert problem.node is None
    assert problem.what == "torch is 2.12.0 on n0, n1 and 2.13.0 on n2, n3"


def test_three_versions_without_a_majority_are_a_tie() -> None:
    result = records(3, 1)
    for rank, version in enumerate(("1", "2", "3")):
        result[rank]["versions"] = VERSIONS | {"numpy": version}
    (problem,) = judged(result)
    assert problem.node is None and "1 on n0 and 2 on n1 and 3 on n2" in problem.what


def test_all_problems_are_told_at_once_and_bad_nodes_once() -> None:
    result = records()
    result[2] |= {"time_s": 0.0, "scratch_free_bytes": 0}
    result[7]["matmul_tflops"] = 1.0
    problems = judged(result, min_allreduce_gb_s=1000.0)
    report = PreflightReport(summarise(result), problems, [record["host"] for record in result])
    assert len(problems) == 4 and report.bad_nodes() == ["n3", "n1"]
    recorded = json.loads(report.to_json())
    assert recorded["problems"] == [str(problem) for problem in problems]
    node = recorded["nodes"][1]
    assert (node["host"], node["ranks"], node["matmul_tflops"]) == ("n1", [2, 3], [602.0, 603.0])
    assert node["clock_skew_s"] == pytest.approx(-1000.003) and node["versions"] == VERSIONS


# --- the ring ---


def test_lanes_join_equal_places_of_all_nodes() -> None:
    assert lanes(["a", "a", "b", "b", "c", "c"]) == [[0, 2, 4], [1, 3, 5]]
    assert lanes(["a", "b", "b"]) == [[0, 1]]
    assert lanes(["a", "a"]) == []


@pytest.mark.parametrize("nodes", range(2, 9))
def test_nobody_sends_and_receives_in_one_round(nodes: int) -> None:
    result = rounds(nodes)
    assert sorted(node for sending in result for node in sending) == list(range(nodes))
    for sending in result:
        assert not sending & {(node + 1) % nodes for node in sending}


# --- nvidia-smi ---


def test_the_state_of_gpu_memory_is_read() -> None:
    text = "0, 0, No, No\n1, 3, Yes, No\n2, [N/A], [N/A], [N/A]\n10, 0, 0, 1\n\n"
    assert parse_ecc(text) == [
        {"gpu": 0, "uncorrected": 0, "remap_pending": 0, "remap_failed": 0},
        {"gpu": 1, "uncorrected": 3, "remap_pending": 1, "remap_failed": 0},
        {"gpu": 2, "uncorrected": None, "remap_pending": None, "remap_failed": None},
        {"gpu": 10, "uncorrected": 0, "remap_pending": 0, "remap_failed": 1},
    ]
    assert parse_ecc("") == []


@pytest.mark.parametrize(
    "text", ["Field 'x' is not a valid field to query.", "0, 1, No", "Unable to, determine, the, id"]
)
def test_what_is_no_state_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="nvidia-smi printed"):
        parse_ecc(text)
