"""The Triton kernel of head and loss on a CPU, in Triton's interpreter, against its plain twin."""

from __future__ import annotations

import json

import pytest

from tests.conftest import Command

pytestmark = pytest.mark.torch

BOUNDS = {"fp32": 2e-6, "bf16": 8e-3}  # a BF16 gradient is rounded once: half a unit in its last place is 4e-3


def test_kernel_computes_what_its_plain_twin_does(command: Command) -> None:
    """Of one block and many, split over ranks, one of which may hold padding alone; rows that do not count."""
    pytest.importorskip("triton", reason="torch's build for CPUs brings no Triton")
    result = command("-m", "tests.model.interpreted", env={"TRITON_INTERPRET": "1"}, check=True)
    found = json.loads(result.stdout.splitlines()[-1])
    fault = found.pop("fault")
    assert len(found) == 8
    assert not {
        (name, what, error)
        for name, those in found.items()
        for what, error in those.items()
        if not error <= (0 if what.startswith("padding") else BOUNDS[name.split()[0]])
    }
    assert fault["losses 0"] > 1e-2 and fault["gradient 0"] > 1e-2  # a wrong call is seen
