"""Every layout computes what one process computes, for every objective of post-training."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest

from llama31.parallel import mesh
from tests.parallel import aligning
from tests.parallel.launch import forked

pytestmark = [pytest.mark.torch, pytest.mark.parallel]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("aligning") / "out.json"
    forked(aligning.PROCESSES, "tests.parallel.aligning", str(output))
    return json.loads(output.read_text())


def test_no_layout_leaves_threads_behind(results: dict[str, Any]) -> None:
    assert results["threads"] < 300, "of gloo, some fifty per layout"


@functools.lru_cache
def alone(name: str, tied: bool) -> dict[str, Any]:
    result = aligning.alone(name, tied)
    mesh.close()
    return result


@pytest.mark.parametrize(
    ("case", "name"),
    [(case, name) for case in aligning.LAYOUTS for name in aligning.asked(case)],
    ids=lambda one: getattr(one, "name", one),
)
def test_layout_equals_one_process(case: aligning.Case, name: str, results: dict[str, Any]) -> None:
    result, expected = results[f"{case.name}/{name}"], alone(name, case.tied)
    assert "error" not in result, result["error"]
    assert result.keys() == expected.keys()
    for key, values in expected.items():
        assert result[key] == pytest.approx(values, rel=1e-5, abs=2e-6), key
    assert expected["loss"][1] < expected["loss"][0], "it learns"
