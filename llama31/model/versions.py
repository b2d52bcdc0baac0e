"""Which releases of torch, CUDA, cuDNN and Transformer Engine this code was tried with, and whether these are such.

Pins say what is installed where one is free to choose. Images of clusters bring their own: those are judged by ranges,
both ends included, of which docs/versions.md says what ran where.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Mapping
from importlib import metadata

TESTED = {
    "torch": ("2.11", "2.14"),
    "CUDA": ("13.0", "13.0"),
    "cuDNN": ("9.0", "9.99"),  # its major release: the minor that the H100 loaded was not written down
    "transformer-engine": ("2.12", "2.20"),
    "megatron-core": ("0.19", "0.19"),
}


def numbers(version: str) -> tuple[int, ...]:
    """Of `2.11.0+cu130` (2, 11): what ranges compare. Raises ValueError where a version has no two numbers."""
    match = re.match(r"(\d+)\.(\d+)", version)
    if match is None:
        raise ValueError(f"{version!r} is no version: give at least two numbers, as in 2.13")
    return int(match[1]), int(match[2])


def untested(versions: Mapping[str, str]) -> str | None:
    """One line that names all of `versions` (name: version) outside of its tested range, or None where none is."""
    outside = []
    for name, version in versions.items():
        if name in TESTED and not numbers(TESTED[name][0]) <= numbers(version) <= numbers(TESTED[name][1]):
            lowest, highest = TESTED[name]
            outside.append(f"{name} {version} (tested: {lowest if lowest == highest else f'{lowest} to {highest}'})")
    if not outside:
        return None
    return (
        f"versions outside of what this code was tried with: {', '.join(outside)}; docs/versions.md says which belong "
        "together, and tests/gpu whether these do"
    )


def installed() -> dict[str, str]:
    """Versions of what `TESTED` names, as far as this machine has them; CUDA and cuDNN are those that torch loads."""
    import torch

    versions: dict[str, str] = {"torch": str(torch.__version__)}
    if torch.version.cuda and torch.cuda.is_available():
        versions["CUDA"] = torch.version.cuda
        cudnn = torch.backends.cudnn.version()
        if cudnn:
            versions["cuDNN"] = f"{cudnn // 10000}.{cudnn // 100 % 100}.{cudnn % 100}"
    for name in ("transformer-engine", "megatron-core"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


@functools.cache
def tell() -> None:
    """One line on standard error where `untested` has something to say, by the first process and once."""
    said = untested(installed())
    if said and os.environ.get("RANK", "0") == "0":
        print(said, file=sys.stderr, flush=True)
