"""Number formats: BF16 or FP32 parameters, the names of Megatron's FP8 recipes, and bits that do not vary."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch

from llama31 import config
from llama31.model import versions

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}

SLOWER = 1.2  # BF16 that takes so much longer than FP32 is worth a line
_ORDER = 128  # of the matrices that are multiplied to see

# FP8 recipe -> compute capability from which Transformer Engine offers it (Ada 8.9, Hopper 9.0, Blackwell 10.0)
FP8_CAPABILITY = {"delayed": (8, 9), "tensorwise": (8, 9), "blockwise": (9, 0), "mxfp8": (10, 0)}


def dtype(precision: config.Precision) -> torch.dtype:
    """Format of parameters and activations."""
    return DTYPES[precision.params]


def check(precision: config.Precision, device: torch.device) -> None:
    """Raise ValueError with the reason where this machine cannot compute in the format asked for.

    On a CPU without BF16 products the first process says so once: they are many times slower than those of FP32.
    """
    if precision.fp8 == "none":
        if device.type == "cpu" and precision.params == "bf16":
            _tell_slow_bf16()
        return
    refusal = f"precision.fp8={precision.fp8}: "
    remedy = "; choose precision=bf16, or run where it is available"
    if device.type != "cuda":
        raise ValueError(refusal + "there is no GPU here, and CPUs have no FP8 matrix product" + remedy)
    have, need = torch.cuda.get_device_capability(device), FP8_CAPABILITY[precision.fp8]
    if have < need:
        raise ValueError(f"{refusal}needs compute capability {need[0]}.{need[1]}, this GPU has {have}{remedy}")
    if not have_transformer_engine():
        raise ValueError(refusal + "Transformer Engine is not installed (requirements-gpu.txt)" + remedy)
    if precision.params != "bf16":
        raise ValueError(f"{refusal}goes with precision.params=bf16, not {precision.params}")


@functools.cache
def _tell_slow_bf16() -> None:
    """One line on standard error where BF16 is slower than FP32, once in a process."""
    ratio = bf16_ratio()
    if ratio > SLOWER and os.environ.get("RANK", "0") == "0":
        print(
            f"precision.params=bf16: on this CPU a product takes {ratio:.1f} times as long in BF16 as in FP32; "
            "precision=fp32 computes in FP32",
            file=sys.stderr,
            flush=True,
        )


def bf16_ratio() -> float:
    """Time of a matrix product on this CPU in BF16, relative to one in FP32; measured in a few milliseconds.

    In seconds that this thread had: how many others share its cores says nothing about its kernels.
    """
    seconds = {}
    for name, kind in DTYPES.items():
        factor = torch.full((_ORDER, _ORDER), 1 / _ORDER, dtype=kind)
        factor @ factor  # libraries load
        seconds[name] = min(_product_s(factor) for _ in range(3))
    return seconds["bf16"] / max(seconds["fp32"], 1e-9)


def _product_s(factor: torch.Tensor) -> float:
    begin = time.thread_time()
    factor @ factor
    return time.thread_time() - begin


@functools.cache
def have_transformer_engine() -> bool:
    """Whether Transformer Engine is installed. It is then loaded: after torch, whose cuDNN and NCCL it shall take.

    Raises ValueError, in one line, where it is there and cannot work with this torch: as if it were not there, training
    would go on at three quarters of the speed.
    """
    if importlib.util.find_spec("transformer_engine") is None:
        return False
    packages = versions.engine_packages()
    if fault := versions.engine_fault(packages, str(torch.__version__), torch.version.cuda):
        raise ValueError(fault)
    try:
        import transformer_engine.pytorch  # noqa: F401
    except (ImportError, OSError, RuntimeError, AssertionError) as error:
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"Transformer Engine {packages.get(versions.ENGINE, 'of no version')} cannot be loaded with torch "
            f"{torch.__version__}: {cause}; compile it against this torch "
            "(requirements-gpu.txt), or uninstall it"
        ) from None
    return True


# What the libraries ask for beside torch's switch: a workspace for each stream of cuBLAS (its documentation, "results
# reproducibility"), and of Transformer Engine's attention kernels only those that add in a fixed order.
DETERMINISTIC = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0"}


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Within it, where `wanted`, torch and the libraries below it choose kernels that give equal bits every time.

    An operation that has none raises RuntimeError. cuBLAS reads its variable at its first use: enter before that.
    """
    if not wanted:
        yield
        return
    memory: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory
    given = {name: os.environ.get(name) for name in DETERMINISTIC}
    os.environ.update(DETERMINISTIC)
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False  # a search for mistakes, which writes everything twice
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        memory.fill_uninitialized_memory = before[1]
        for name, value in given.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def transformer_config(precision: config.Precision) -> dict[str, Any]:
    """The fields of Megatron's TransformerConfig that follow from the precision."""
    fields: dict[str, Any] = {
        "params_dtype": dtype(precision),
        "pipeline_dtype": dtype(precision),
        "bf16": precision.params == "bf16",
    }
    if precision.fp8 != "none":
        fields |= {"fp8": "hybrid", "fp8_recipe": precision.fp8}
    return fields
