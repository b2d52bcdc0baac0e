"""Pages of Debian's documentation to token files, and three steps of training on them, by the demo's commands."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path

import pytest

from llama31.runs import metrics
from tests import processes
from tests.conftest import ROOT
from tests.curate import debian

pytestmark = [pytest.mark.torch, pytest.mark.parallel, pytest.mark.slow]

PACKAGES = {"english": "libreoffice-help-en-us", "german": "libreoffice-help-de", "mathematics": "python-sympy-doc"}


def run(folder: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": processes.search_path()}
    done = processes.run([sys.executable, "-m", *words], cwd=folder, env=environment, merged=True)
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make curate-demo` makes, by its own commands."""
    folder = tmp_path_factory.mktemp("demo")
    inputs = [f"sources.{name}.input={debian.folder(package)}" for name, package in PACKAGES.items()]
    said = run(folder, "recipes.curate", "--config-name", "curate_demo", *inputs)
    assert "report: curated/curate_demo/report.html" in said
    return folder


def test_three_steps_of_pre_training(folder: Path) -> None:
    """The commands of the Makefile, word for word."""
    commands = (ROOT / "Makefile").read_text().replace("\\\n", "").splitlines()
    line = next(one for one in commands if "name=curate-demo" in one)
    run(folder, *line.split()[2:])
    steps = [one for one in metrics.read(folder / "runs/curate-demo") if one["kind"] == "train"]
    assert [one["step"] for one in steps] == [1, 2, 3]
    assert steps[0]["loss"] == pytest.approx(math.log(8192), abs=0.2) and all(one["loss"] < 9.5 for one in steps)


def test_most_pages_arrive_and_formulas_with_them(folder: Path) -> None:
    report = json.loads((folder / "curated/curate_demo/report.json").read_text())
    assert all(stage["done"] == stage["tasks"] for stage in report["stages"])
    packed = report["packed"]
    assert {"general-en", "general-de", "mathematics-en"} <= packed.keys()
    read = sum(block["documents"] for block in report["stages"][0]["blocks"] if block["reads"])
    kept = sum(one[split]["documents"] for one in packed.values() for split in ("train", "heldout"))
    assert read > 5000 and 0.2 * read < kept < read
    for stage in report["stages"]:
        for block in stage["blocks"]:
            gone = sum(reason["documents"] for reason in block["removed"].values())
            assert block["reads"] or not block["documents_in"] or gone == block["documents_in"] - block["documents"]
