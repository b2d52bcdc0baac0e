"""Every case on one device, in one process: `python -m tests.gpu.worker cpu|cuda FOLDER DATA [parity] [wide]`.

Prints a line per case, into FOLDER/log.txt too, and writes FOLDER/results.json: of each its checks (what, error,
largest right one), facts that the other device is compared by, seconds, and peak memory; or the error that ended it.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before torch is imported: what `deterministic` asks of cuBLAS holds from its first use on.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
if sys.argv[1:2] == ["cpu"]:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import torch

from llama31.model import precision
from llama31.parallel import mesh
from tests.gpu import steps, training, twins


def record(what: str, value: Any) -> str:
    numbers = value if isinstance(value, list) else [value]
    return f"{what} {' '.join(f'{number:.4g}' for number in numbers)}"


def line(name: str, result: dict[str, Any]) -> str:
    """What a log should say of a case."""
    if "error" in result:
        return f"{name}: FAILED {result['error'].strip().splitlines()[-1]}"
    parts = [
        record(what, value) for what, value in result.items() if what not in ("checks", "gradients") and value != []
    ]
    checks = result.get("checks", [])
    wrong = [f"{record(what, value)} > {bound:.2g}" for what, value, bound in checks if not value <= bound]
    if checks:
        what, value, bound = max(checks, key=lambda one: one[1] / one[2] if one[2] else 0.0)
        parts.append(f"of {len(checks)} checks the closest: {record(what, value)} of {bound:.2g}")
    return f"{name}: {'; '.join(parts)}{'; WRONG: ' if wrong else ''}{'; '.join(wrong)}"


def measured(work: Callable[[], Any], device: torch.device) -> dict[str, Any]:
    """A case's result. Nothing of it stays in memory."""
    gpu = device.type == "cuda"
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    try:
        actual = work()
        result = {"checks": actual} if isinstance(actual, list) else dict(actual)
        if gpu:
            torch.cuda.synchronize()
    except (Exception, SystemExit):  # noqa: BLE001 - the test of this case shows it
        result = {"error": traceback.format_exc()}
    result["seconds"] = round(time.perf_counter() - begin, 2)
    if gpu:
        result["peak GB"] = round(torch.cuda.max_memory_allocated() / 1e9, 3)
    gc.collect()
    if gpu:
        torch.cuda.empty_cache()
    return result


def cases(
    device: torch.device, extras: tuple[str, ...], room: Path, data: Path
) -> Iterator[tuple[str, Callable[[], Any]]]:
    yield from twins.cases(device)
    yield from steps.cases(device, extras)
    yield from training.cases(device, extras, room, data)


def main(kind: str, folder: str, data: str, *extras: str) -> None:
    begin = time.perf_counter()
    engine = kind == "cuda" and precision.have_transformer_engine()  # imported before anything runs: it brings a cuDNN
    device = mesh.connect(timeout_s=120)
    if device.type != kind:
        sys.exit(f"asked for {kind}, and this process computes on {device}")
    name = torch.cuda.get_device_name(device) if kind == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"torch {torch.__version__} on {device}: {name}; Transformer Engine: {engine}", flush=True)
    if kind == "cuda":
        print(f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}", flush=True)
    results: dict[str, Any] = {}
    for case, work in cases(device, extras, Path(folder), Path(data)):
        results[case] = measured(work, device)
        print(line(case, results[case]), flush=True)
        with Path(folder, "log.txt").open("a") as log:  # whole up to here, whatever ends this process
            print(line(case, results[case]), file=log)
    slowest = sorted(results, key=lambda case: -results[case]["seconds"])[:5]
    print(f"{len(results)} cases in {time.perf_counter() - begin:.0f} s; slowest: {', '.join(slowest)}", flush=True)
    Path(folder, "results.json").write_text(json.dumps(results))
    mesh.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
