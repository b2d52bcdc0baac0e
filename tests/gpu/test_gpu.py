"""One GPU computes what a CPU computes: kernels, steps, whole runs. The CPU's half runs everywhere, so it cannot rot.

`python -m pytest tests/gpu` takes at most three minutes where there is a GPU: one process for all cases of it beside
one of the CPU, each of which prints what it measured. `DEVICE=cpu python -m pytest tests/gpu` tries all of it without
a GPU, the CPU standing in for it; wide shapes, BF16 and FP8 are left out.
"""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import GPU, has_gpu
from tests.parallel.conftest import packed
from tests.processes import run, search_path

pytestmark = [pytest.mark.torch, pytest.mark.parallel]

Results = dict[str, dict[str, Any]]

# Relative bounds. Transformer Engine multiplies FP32 matrices in TF32, which has BF16's steps but keeps FP32's range.
BOUNDS = {"fp32": {"losses": 1e-3, "norms": 1e-2, "evaluated": 1e-3}}
BOUNDS["bf16"] = {"losses": 5e-3, "norms": 6e-2, "evaluated": 5e-3}
BOUNDS["recipe"] = {"losses": 5e-2, "norms": 3e-1}  # each goes on from what another did on the same device
# Against BF16 on the same device; and against what multiplies the same rounded factors in FP32, not measured yet.
BOUNDS["fp8"] = {"losses": 2e-2, "norms": 1.5e-1, "evaluated": 2e-2}
BOUNDS["twin"] = {"losses": 1e-2, "norms": 1e-1, "evaluated": 1e-2}
GRADIENTS = {"fp32": 2e-2, "bf16": 6e-2, "fp8": 3e-1, "twin": 1.5e-1}


def device() -> str:
    """What the GPU's tests run on: cuda, or by DEVICE=cpu the CPU."""
    return os.environ.get("DEVICE", "cuda")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Results]:
    """Of "cpu", and where it is asked for of the device: all cases, computed in two processes side by side."""
    folder, gpu = tmp_path_factory.mktemp("gpu"), has_gpu()
    (folder / "data").mkdir()
    data = packed(folder / "data")
    extras = ["parity", "wide"] if gpu else ["parity"] if "DEVICE" in os.environ else []
    kinds = {"cpu": "cpu", "device": device()} if extras else {"cpu": "cpu"}
    with ThreadPoolExecutor() as pool:
        return dict(zip(kinds, pool.map(lambda name: computed(kinds[name], folder / name, data, extras), kinds)))


def computed(kind: str, folder: Path, data: Path, extras: list[str]) -> Results:
    """What a process finds that runs all cases on one device; it prints what it measured."""
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": search_path(), "PYTHONUNBUFFERED": "1"}
    if kind == "cuda":
        environment |= {"CUDA_VISIBLE_DEVICES": GPU, "DS_ACCELERATOR": "cuda"}
    elif "wide" in extras:  # nobody else computes here
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 2) * 3 // 4))
    words = [sys.executable, "-m", "tests.gpu.worker", kind, str(folder), str(data), *extras]
    done = run(words, env=environment, merged=True)
    print(f"\n--- {folder.name} ---\n{done.stdout}")
    result = folder / "results.json"
    assert result.exists(), f"the process of {folder.name} ended with {done.returncode}\n{done.stdout[-4000:]}"
    return json.loads(result.read_text())


def wrong(results: Results) -> list[str]:
    """A line for everything that one device finds wrong by itself, with its numbers."""
    actual = []
    for name, result in results.items():
        if "error" in result:
            actual.append(f"{name}: {result['error'].strip().splitlines()[-1]}")
        checks = result.get("checks", [])
        actual += [
            f"{name}: {what} {value:.3g}, at most {bound:.3g}" for what, value, bound in checks if not value <= bound
        ]
    return actual


def report(lines: list[str]) -> None:
    assert not lines, "\n" + "\n".join(lines)


def test_on_a_cpu_everything_is_right(results: dict[str, Results]) -> None:
    """Kernels against their plain twins, every recipe for one step, resume bit-equal, conversion."""
    report(wrong(results["cpu"]))
    assert {"resume deterministic", "recipe dpo", "conversion", "steps narrow fp32"} <= results["cpu"].keys()


@pytest.mark.gpu
def test_on_a_gpu_everything_is_right(results: dict[str, Results]) -> None:
    """The same, with what only a GPU has: BF16 and FP8 kernels, wide shapes."""
    report(wrong(results["device"]))
    assert len(results["device"]) >= len(results["cpu"])


# --- the same case on both ---


def norm(values: list[float]) -> float:
    return sum(value * value for value in values) ** 0.5


def apart(result: dict[str, Any], expected: dict[str, Any], kind: str) -> list[tuple[str, float, float]]:
    """What two results of one case have in common: its relative difference, and the largest right one."""
    record = []
    for what, bound in BOUNDS[kind].items():
        if what in result and what in expected:
            pairs = list(zip(result[what], expected[what], strict=True))
            record.append((what, max(abs(a - b) / abs(b) for a, b in pairs) if pairs else 0.0, bound))
    for name, values in expected.get("gradients", {}).items():
        off = norm([a - b for a, b in zip(result["gradients"][name], values, strict=True)]) / max(norm(values), 1e-30)
        record.append((f"gradient of {name}", off, GRADIENTS[kind]))
    return record


def partners(results: dict[str, Results]) -> list[tuple[str, dict[str, Any], dict[str, Any], str]]:
    """(name, found, expected, kind of bound) of every case that can be compared."""
    cpu, gpu = results["cpu"], results["device"]
    actual = []
    for name, result in gpu.items():
        shape, _, numbers = name.rpartition(" ")
        if name.startswith("steps") and (" fp8 " in name or " twin " in name):
            twin, kind = gpu.get(f"{' '.join(name.split()[:2])} bf16"), "fp8"
            rounds = gpu.get(name.replace(" fp8 ", " twin "))
            if " fp8 " in name and rounds is not None and "error" not in {**result, **rounds}:
                actual.append((f"{name} by its twin", result, rounds, "twin"))
        elif name.startswith("steps"):
            twin, kind = cpu.get(f"{shape} fp32"), numbers
        elif name.startswith("parity"):
            twin, kind = cpu.get(name), "bf16" if "bf16" in name else "fp32"
        elif name.startswith("recipe"):
            twin, kind = (
                cpu.get(name.removesuffix(" fp32").removesuffix(" fp8")),
                "fp32" if name.endswith("fp32") else "recipe",
            )
        else:
            continue
        if twin is not None and "error" not in result and "error" not in twin:
            actual.append((name, result, twin, kind))
    return actual


@pytest.mark.gpu
def test_a_gpu_computes_what_a_cpu_computes(results: dict[str, Results]) -> None:
    """Losses, norms and gradients in FP32 and BF16 against the CPU's FP32; FP8 against BF16 and against its twin."""
    lines = []
    for name, result, expected, kind in partners(results):
        record = apart(result, expected, kind)
        short = [*record[: len(BOUNDS[kind])], *sorted(record[len(BOUNDS[kind]) :], key=lambda one: -one[1])[:3]]
        print(f"{name} ({kind}): {', '.join(f'{what} {off:.2g}' for what, off, _ in short)}")
        lines += [
            f"{name}: {what} off by {off:.3g}, at most {bound:.3g}" for what, off, bound in record if not off <= bound
        ]
    report(lines)
    assert len(partners(results)) >= 8


def test_differences_are_seen() -> None:
    """What compares the devices finds a loss, a norm and a gradient that are off."""
    right = {"losses": [5.0, 4.0], "norms": [1.0, 1.0], "gradients": {"w": [1.0, 2.0]}}
    assert all(off == 0 for _, off, _ in apart(right, right, "fp32"))
    for changed in ({"losses": [5.0, 4.1]}, {"norms": [1.2, 1.0]}, {"gradients": {"w": [1.0, 2.3]}}):
        assert sum(off > bound for _, off, bound in apart({**right, **changed}, right, "bf16")) == 1
    checks = [("out", float("nan"), 1.0), ("in", 0.5, 1.0), ("bits", 1e-9, 0.0)]
    lines = ["a: out nan, at most 1", "a: bits 1e-09, at most 0", "b: ValueError: y"]
    assert wrong({"a": {"checks": checks}, "b": {"error": "x\nValueError: y\n"}}) == lines
