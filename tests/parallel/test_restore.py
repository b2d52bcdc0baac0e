"""Going back to a checkpoint without leaving the process is as good as a restart from it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.parallel.launch import torchrun
from tests.parallel.restoring import CASES

pytestmark = [pytest.mark.torch, pytest.mark.parallel]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("restored")
    torchrun(2, "tests.parallel.restoring", str(folder), str(folder / "out.json"))
    found: dict[str, Any] = json.loads((folder / "out.json").read_text())
    return found


@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_a_live_restore_is_bit_equal(name: str, results: dict[str, Any]) -> None:
    found = results[name]
    assert "error" not in found, found["error"]
    assert found["again"] == found["straight"], "the steps after the save are those of before"
    assert found["evaluated"][0][0] == pytest.approx(found["straight"][0][0], rel=1e-5)
    assert found["straight"][1][0] != found["straight"][0][0] and found["updates"] == [[2]]
