"""No sandbox shows a home, whatever it is told to show."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

import pytest

from llama31.sandbox import homes
from llama31.sandbox.isolation import Sandbox
from tests.sandbox import bwrap


@pytest.fixture
def ann(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of somebody."""
    home = tmp_path.resolve() / "people" / "ann"
    home.mkdir(parents=True)
    monkeypatch.setattr(homes, "homes", lambda: frozenset({home}))
    return home


def test_homes_and_what_holds_them_are_refused_by_name(ann: Path) -> None:
    link = ann.parent.parent / "link"
    link.symlink_to(ann)
    for path in (ann, ann.parent, ann.parent.parent, link, Path("/")):
        with pytest.raises(ValueError, match=f"readable={re.escape(str(path))}: it is or holds a home .*; name the"):
            Sandbox(readable=(path,))
    (ann / "tools").mkdir()
    assert homes.shown_by(ann / "tools") is None
    assert homes.shown_by(Path("/home/somebody-that-no-list-names")) == Path("/home/somebody-that-no-list-names")


def test_our_own_home_is_refused_by_its_variable_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    homes.homes.cache_clear()
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ValueError, match=f"readable={tmp_path}: it is or holds a home"):
        Sandbox(readable=(tmp_path,))
    homes.homes.cache_clear()


def test_programs_that_lead_into_a_home_are_found_by_name(ann: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = ann.parent.parent / "bin"
    for folder in (outside, ann / "bin", ann / "given/bin"):
        folder.mkdir(parents=True)
    for path in (ann / "bin/rustc", ann / "given/bin/node", outside / "php"):
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    (outside / "rustc").symlink_to(ann / "bin/rustc")
    monkeypatch.setattr(homes, "PATH", str(outside))
    assert homes.hidden(["php", "rustc"]) == outside / "rustc"
    assert homes.hidden(["php", "no-such-program"]) is None
    monkeypatch.setenv("PATH", f"{ann}/given/bin")
    assert homes.hidden(["node"]) == ann / "given/bin/node"
    assert homes.hidden(["node"], [f"{ann}/given/bin"]) is None


def test_a_folder_of_a_home_shows_itself_alone() -> None:
    """By a home that anybody may pass through; where root asks, nobody runs it."""
    program = bwrap.program()
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        home = Path(folder)
        os.chmod(home, 0o755)
        (home / "tools").mkdir(mode=0o755)
        (home / "tools/given").write_text("found\n")
        (home / "secret").write_text("found\n")
        outcome = Sandbox(readable=(home / "tools",), program=program).run(["ls", str(home), f"{home}/tools"])
    assert outcome.stdout.split() == [f"{home}:", "tools", f"{home}/tools:", "given"]
