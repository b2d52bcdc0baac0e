"""Which releases of torch, CUDA, cuDNN and Transformer Engine this code was tried with, and whether these are such.

Pins say what is installed where one is free to choose. Images of clusters bring their own: those are judged by ranges,
both ends included, of which docs/versions.md says what ran where. Whether they fit each other is said before weights
are loaded: a Transformer Engine that cannot work is refused, and a second cuDNN in the process is named.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

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
    return versions | _packages("transformer-engine", "megatron-core")


def _packages(*names: str) -> dict[str, str]:
    """Versions of those of the packages that are installed."""
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


ENGINE = "transformer-engine"
PARTS = (f"{ENGINE}-cu12", f"{ENGINE}-cu13", f"{ENGINE}-torch")  # what its own package asks for


def engine_fault(packages: Mapping[str, str], torch: str, cuda: str | None) -> str | None:
    """Why a Transformer Engine cannot work with this torch and its CUDA, in one line; None where it may.

    packages (name: version) holds those of ENGINE and PARTS that are installed; an image's own build has no parts.
    """
    version, parts = packages.get(ENGINE), {name: packages[name] for name in PARTS if name in packages}
    oldest, newest = TESTED[ENGINE]
    remedy = f"; install one of {oldest} to {newest} built for it (requirements-gpu.txt), or none"
    of_cuda = {name: name[-2:] for name in parts if name[-4:-2] == "cu"}
    if version is None:
        return None
    if numbers(version) < numbers(oldest):
        return f"Transformer Engine {version} is older than {oldest}, whose functions are called here{remedy}"
    if cuda and of_cuda and cuda.split(".")[0] not in of_cuda.values():
        name = next(iter(of_cuda))
        return f"Transformer Engine {version} ({name}) is of CUDA {of_cuda[name]}, torch {torch} of CUDA {cuda}{remedy}"
    apart = [f"{name} {other}" for name, other in parts.items() if other != version]
    return f"Transformer Engine {version} stands beside {', '.join(apart)}{remedy}" if apart else None


def engine_packages() -> dict[str, str]:
    """Which of Transformer Engine's packages are installed, with their versions."""
    return _packages(ENGINE, *PARTS)


def cudnn_folders(maps: str) -> list[str]:
    """Folders from which a process has loaded cuDNN, the first loaded first; maps is what /proc/PID/maps says."""
    files = re.findall(r"(/\S*)/libcudnn[\w.-]*\.so", maps)
    return list(dict.fromkeys(files))


def cudnn_said(version: str, folders: list[str]) -> str:
    """One line on the cuDNN that torch has loaded, and on a second one beside it."""
    if len(folders) < 2:
        return f"cuDNN {version} from {folders[0] if folders else 'an unknown place'}"
    return (
        f"cuDNN {version}, and more than one is loaded: {', '.join(folders)}; which of them answers may differ from "
        "kernel to kernel: keep torch's own alone (docs/installation.md)"
    )


@functools.cache
def tell() -> None:
    """What there is to say of versions, on standard error, a line each, by the first process and once.

    Where `untested` has something to say; on a GPU, which cuDNN is loaded, so call it when all libraries are.
    """
    found = installed()
    said = [untested(found)]
    maps = Path("/proc/self/maps")
    if "cuDNN" in found and maps.exists():
        said.append(cudnn_said(found["cuDNN"], cudnn_folders(maps.read_text())))
    if os.environ.get("RANK", "0") == "0":
        for line in filter(None, said):
            print(line, file=sys.stderr, flush=True)
