"""The process of one case: `python -m benchmarks.gpu.worker '{"case": ..., "work": ...}'`; `conductor` starts it.

It imports what the case needs, prints `{"ready": ...}` with what this machine is, waits for a line, and only then
touches the device. Lines that begin with MARK are for the conductor, whatever libraries print beside them.
"""

from __future__ import annotations

import contextlib
import json
import platform
import resource
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.gpu.plan import GpuCase, GpuWork, flops_per_token
from llama31 import config

MARK = "@gpu "
PACKAGES = ("torch", "triton", "transformer-engine", "megatron-core", "deepspeed", "transformers")
Step = Callable[[], float]  # one optimizer step; returns its loss


def tell(**said: Any) -> None:
    """One line to the conductor."""
    print("\n" + MARK + json.dumps(said), flush=True)


def machine() -> dict[str, Any]:
    """Device, driver and versions; touches no GPU beyond asking what it is."""
    import torch

    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    versions["torch"] = str(torch.__version__)
    if not torch.cuda.is_available():
        model = next((x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")), "")
        return {"device": "cpu", "name": model.partition(": ")[2] or platform.machine(), "versions": versions}
    versions |= {"CUDA": str(torch.version.cuda), "cuDNN": str(torch.backends.cudnn.version())}
    driver = Path("/proc/driver/nvidia/version")
    if driver.exists():
        versions["driver"] = next((w for w in driver.read_text().split() if w[0].isdigit() and "." in w), "")
    card = torch.cuda.get_device_properties(0)
    return {"device": "cuda", "name": card.name, "memory_bytes": card.total_memory, "versions": versions}


def synchronised(cuda: bool) -> float:
    """Seconds, when all that was launched is done."""
    import torch

    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def steps(step: Step, work: GpuWork, cuda: bool) -> dict[str, Any]:
    """Milliseconds of each measured step, the last loss, and the most memory that any of them took."""
    import torch

    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    loss, took = 0.0, []
    for _ in range(work.warmup_steps):
        loss = step()
    for _ in range(work.steps):
        begin = synchronised(cuda)
        loss = step()
        took.append((synchronised(cuda) - begin) * 1e3)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if cuda:
        peak = torch.cuda.max_memory_allocated()
    return {"steps_ms": took, "loss": loss, "peak_bytes": peak}


def measure(case: GpuCase, work: GpuWork) -> dict[str, Any]:
    """All that is measured of a case, in this process."""
    import torch

    from benchmarks.gpu import ceilings, micro, profiles, trainers

    cuda = torch.cuda.is_available()
    if case.trainer == "ceilings":
        return {"ceilings": ceilings.measure(work)}
    if case.trainer == "micro":
        return {"micro": micro.TOPICS[case.topic](work)}
    step, notes = trainers.TRAINERS[case.trainer](case, work)
    result = steps(step, work, cuda)
    result |= {"tokens": work.tokens, "notes": notes, "profile": profiles.profile(step, cuda)}
    if case.documents == "one":
        result["flops_per_token"] = flops_per_token(work.model, work.sequence_length)
    return result


def main() -> None:
    """Measure the case that the first argument describes as JSON, when a line comes."""
    asked = json.loads(sys.argv[1])
    case = GpuCase(**asked["case"])
    work = GpuWork(**{**asked["work"], "model": config.Model(**asked["work"]["model"])}).for_case(case)
    from benchmarks.gpu import trainers

    trainers.imports(case)
    tell(ready=machine())
    sys.stdin.readline()
    try:
        tell(result=measure(case, work))
    except Exception as error:  # whatever a library says: the table names it
        lines = str(error).strip().splitlines() or [""]
        tell(failed=f"{type(error).__name__}: {lines[0][:300]}")
        raise


if __name__ == "__main__":
    main()
