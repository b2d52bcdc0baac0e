"""Pins, ranges of versions, and the Python that `make` finds."""

from __future__ import annotations

import os
import re
import stat
import sys
from pathlib import Path

import pytest

from llama31.model import versions
from tests import processes
from tests.conftest import ROOT
from tests.outdated import compared, pins


@pytest.mark.parametrize(
    ("installed", "named"),
    [
        ({"torch": "2.11.0+cu130", "CUDA": "13.0", "transformer-engine": "2.12.0"}, []),
        ({"torch": "2.13.0+cpu", "megatron-core": "0.19.2", "numpy": "99.0"}, []),
        ({"torch": "2.9.1", "megatron-core": "0.16.1"}, ["torch 2.9.1 (tested: 2.11 to ", "megatron-core 0.16.1 ("]),
        (
            {"torch": "2.13.0", "CUDA": "12.8", "cuDNN": "8.9.7"},
            ["CUDA 12.8 (tested: 13.0)", "cuDNN 8.9.7 (tested: 9."],
        ),
        ({"transformer-engine": "2.9.0"}, ["transformer-engine 2.9.0 (tested: 2.12 to 2.20)"]),
        ({"transformer-engine": "3.0.0.dev1"}, ["transformer-engine 3.0.0.dev1 (tested"]),
    ],
)
def test_versions_outside_of_the_tested_ranges_are_named_in_one_line(
    installed: dict[str, str], named: list[str]
) -> None:
    said = versions.untested(installed)
    assert (said is None) == (not named)
    assert said is None or ("\n" not in said and all(part in said for part in [*named, "docs/versions.md"]))


def test_a_version_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="'main' is no version.*2.13"):
        versions.untested({"torch": "main"})


def test_it_is_said_once_and_by_the_first_process(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(versions, "installed", lambda: {"torch": "1.13.1"})
    for rank, lines in (("1", 0), ("0", 1)):
        monkeypatch.setenv("RANK", rank)
        versions.tell.cache_clear()
        versions.tell()
        versions.tell()
        assert capfd.readouterr().err.count("torch 1.13.1 (tested: ") == lines
    versions.tell.cache_clear()


def test_what_is_pinned_is_tested() -> None:
    pinned = pins((ROOT / "requirements.txt").read_text())
    assert versions.untested(pinned) is None
    gpu = pins((ROOT / "requirements-gpu.txt").read_text())
    engine = {name: version for name, version in gpu.items() if name.startswith(versions.ENGINE)}
    assert set(engine) == {versions.ENGINE, "transformer-engine-cu13", "transformer-engine-torch"}
    assert versions.untested(engine) is None and versions.engine_fault(engine, pinned["torch"], "13.0") is None


def test_images_are_made_of_what_is_pinned() -> None:
    """Both on the same CUDA, the one that torch's build of the index is of, with no cuDNN beside torch's."""
    docker, apptainer = ((ROOT / "images" / name).read_text() for name in ("Dockerfile", "llama31.def"))
    bases = re.findall(r"^FROM (\S+)$", docker, re.MULTILINE) + re.findall(r"^From: (\S+)$", apptainer, re.MULTILINE)
    assert len(bases) == 2 and len(set(bases)) == 1
    cuda = re.fullmatch(r"nvidia/cuda:(\d+\.\d+)\.\d+-devel-ubuntu24.04", bases[0])  # Ubuntu 24.04 has Python 3.12
    assert (
        cuda
        and versions.untested({"CUDA": cuda[1]}) is None
        and f"cu{cuda[1].split('.')[0]}" in (ROOT / "requirements-gpu.txt").read_text()
    )
    for text in (docker, apptainer):
        commands = text.replace("\\\n", " ")
        steps = [
            "requirements.txt && ",
            "--no-build-isolation -r requirements-gpu.txt",
            "--no-deps --no-build-isolation -e .",
        ]
        places = [commands.index(step) for step in steps]
        assert places == sorted(places)
        assert not pins(commands), "a version that the requirements do not know"
    setting = re.compile(r"^\s*(?:ENV|export) (\w+=.*)$", re.MULTILINE)
    assert setting.findall(docker) == setting.findall(apptainer)


ENGINE_2_12 = dict.fromkeys(("transformer-engine", "transformer-engine-cu13", "transformer-engine-torch"), "2.12.0")


@pytest.mark.parametrize(
    ("packages", "named"),
    [
        ({}, None),
        (ENGINE_2_12, None),
        ({"transformer-engine": "2.13.0+5be81251"}, None),  # an image's own build
        ({**ENGINE_2_12, "transformer-engine-cu12": "2.12.0"}, None),  # both cores: the loader takes torch's
        ({"transformer-engine": "2.9.0"}, "Transformer Engine 2.9.0 is older than 2.12"),
        (
            {"transformer-engine": "2.12.0", "transformer-engine-cu12": "2.12.0"},
            "2.12.0 (transformer-engine-cu12) is of CUDA 12, torch 2.14.1 of CUDA 13.0",
        ),
        ({**ENGINE_2_12, "transformer-engine-torch": "2.13.0"}, "beside transformer-engine-torch 2.13.0"),
    ],
)
def test_a_transformer_engine_that_cannot_work_is_named_in_one_line(
    packages: dict[str, str], named: str | None
) -> None:
    said = versions.engine_fault(packages, "2.14.1", "13.0")
    assert (said is None) == (named is None)
    assert said is None or (named and named in said and "\n" not in said and "requirements-gpu.txt" in said)


@pytest.mark.torch
def test_a_transformer_engine_that_cannot_be_loaded_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llama31.model import precision

    precision.have_transformer_engine.cache_clear()
    (tmp_path / "transformer_engine" / "pytorch").mkdir(parents=True)
    (tmp_path / "transformer_engine" / "__init__.py").touch()
    (tmp_path / "transformer_engine" / "pytorch" / "__init__.py").write_text(
        "import sys\nassert 'torch' in sys.modules\nraise ImportError('undefined symbol: _ZN3c10\\nmore')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"cannot be loaded with torch .*: undefined symbol: _ZN3c10; compile it"):
        precision.have_transformer_engine()
    for name in [name for name in sys.modules if name.startswith("transformer_engine")]:
        del sys.modules[name]
    precision.have_transformer_engine.cache_clear()


MAPS = """
7f00-7f01 r-xp 00000000 08:01 1 /usr/lib/x86_64-linux-gnu/libc.so.6
7f02-7f03 r-xp 00000000 08:01 2 {0}/libcudnn.so.9
7f04-7f05 r--p 00000000 08:01 2 {0}/libcudnn_graph.so.9.24.0
7f06-7f07 r--p 00000000 08:01 3 {1}/libcudnn_ops.so.9 (deleted)
7f08-7f09 rw-p 00000000 00:00 0
"""


def test_a_second_cudnn_of_a_process_is_named() -> None:
    one, other = "/venv/nvidia/cudnn/lib", "/usr/lib/x86_64-linux-gnu"
    assert versions.cudnn_folders(MAPS.format(one, other)) == [one, other]
    assert versions.cudnn_folders(MAPS.format(one, one)) == [one]
    assert versions.cudnn_said("9.24.0", [one]) == f"cuDNN 9.24.0 from {one}"
    said = versions.cudnn_said("9.24.0", [one, other])
    assert one in said and other in said and "more than one is loaded" in said and "\n" not in said


def test_the_cudnn_of_a_gpu_is_said_at_the_start(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(versions, "installed", lambda: {"torch": "2.14.1", "CUDA": "13.0", "cuDNN": "9.24.0"})
    versions.tell.cache_clear()
    versions.tell()
    assert capfd.readouterr().err.startswith("cuDNN 9.24.0 from ")
    versions.tell.cache_clear()


def test_pins_that_are_behind_are_listed_and_requires_python_holds_back() -> None:
    text = "# why\na==1.9\nB_b==2.0\n\n# What those need in turn\nc==1.0\nd==3.0\n"
    assert pins(text) == {"a": "1.9", "b-b": "2.0", "c": "1.0", "d": "3.0"}
    assert pins(text, direct=True) == {"a": "1.9", "b-b": "2.0"}
    newer, newest = {"a": "1.10", "c": "1.1"}, {"a": "1.10", "b-b": "3.0"}
    assert compared(pins(text), newer, newest) == [
        "a 1.9 -> 1.10",
        "b-b 2.0; 3.0 is held back by its Requires-Python",
        "c 1.0 -> 1.1",
    ]
    assert compared({"a": "1.9"}, {"a": "1.10"}, {"a": "2.0"}) == [
        "a 1.9 -> 1.10; 2.0 is held back by its Requires-Python"
    ]
    assert compared({"a": "2.0"}, {"a": "1.10"}, {"a": "2.0"}) == []


def make(folder: Path, *words: str, path: str = "/usr/bin:/bin", home: Path | None = None) -> tuple[int, str]:
    """`make` with a copy of the Makefile in `folder`, given what it may find."""
    (folder / "Makefile").write_text((ROOT / "Makefile").read_text())
    environment = {"PATH": path, "HOME": str(home or folder), "PYTHONDONTWRITEBYTECODE": "1"}
    done = processes.run(["make", *words], cwd=folder, env=environment, merged=True)
    return done.returncode, done.stdout


def python(path: Path, minor: int, log: Path) -> Path:
    """A program that answers as Python 3.`minor` and writes down the environments that it is asked to make."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'#!/bin/sh\n[ "$1" = -m ] && echo "$0 $*" >>{log} && exit 0\n'
        f'exec {sys.executable} -c "import sys; sys.version_info = (3, {minor}, 1); exec(sys.argv[1])" "$2"\n'
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_make_finds_python_312_behind_a_shim_that_refuses(tmp_path: Path) -> None:
    log, bin_ = tmp_path / "log", tmp_path / "bin"
    python(bin_ / "python3", 11, log)
    python(bin_ / "python", 11, log)
    refusing = python(bin_ / "python3.12", 12, log)
    refusing.write_text("#!/bin/sh\nexit 127\n")
    result = python(tmp_path / ".pyenv" / "versions" / "3.12.1" / "bin" / "python3.12", 12, log)
    code, said = make(tmp_path, ".venv/bin/python", path=f"{bin_}:/usr/bin:/bin")
    assert code == 0, said
    assert log.read_text() == f"{result} -m venv .venv\n"


def test_make_says_how_to_get_python_312(tmp_path: Path) -> None:
    bin_ = tmp_path / "bin"
    for name in ("python3.12", "python3", "python"):
        python(bin_ / name, 11, tmp_path / "log")
    code, said = make(tmp_path, ".venv/bin/python", path=f"{bin_}:/usr/bin:/bin")
    assert code != 0 and "Python 3.12 is needed" in said and "pyenv install 3.12" in said and "PYTHON=" in said
    code, said = make(tmp_path, ".venv/bin/python", f"PYTHON={bin_}/python3", path=f"{bin_}:/usr/bin:/bin")
    assert code != 0 and "python3 is 3.11" in said and not (tmp_path / "log").exists()


@pytest.mark.parametrize("minor", [11, 12, None])
def test_make_renews_an_environment_of_another_python(tmp_path: Path, minor: int | None) -> None:
    log, bin_ = tmp_path / "log", tmp_path / "bin"
    python(bin_ / "python3.12", 12, log)
    stamp = tmp_path / ".venv" / ".runtime"
    if minor:
        python(tmp_path / ".venv" / "bin" / "python", minor, log)
    else:
        (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name in ("requirements.txt", "pyproject.toml"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1, 1))
    stamp.touch()
    _, said = make(tmp_path, ".venv/.runtime", path=f"{bin_}:/usr/bin:/bin")
    renewed = ".venv is of another Python than 3.12: it is made anew" in said
    assert renewed == (minor != 12) == log.exists() and stamp.exists() == (minor == 12)
