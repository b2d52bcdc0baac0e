"""Pins, ranges of versions, and the Python that `make` finds."""

from __future__ import annotations

import os
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
    assert (
        len(set(gpu.values())) == 1
        and versions.untested({"transformer-engine": gpu["transformer-engine-torch"]}) is None
    )


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
