"""`make demo` at a tenth of its steps: the real commands on the real text, from packing to a continuation."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from pathlib import Path

import pytest

from llama31 import config
from llama31.command import entry
from llama31.plan import schedule
from llama31.runs import metrics
from tests import processes
from tests.conftest import ROOT

pytestmark = [pytest.mark.torch, pytest.mark.parallel, pytest.mark.slow]

RUN = ROOT / "runs" / "demo-short"
VOCABULARY = 8192


@pytest.fixture(scope="module")
def printed() -> str:
    """What `make demo-short` prints, in a fresh run folder; packing is done where it was not before."""
    shutil.rmtree(RUN, ignore_errors=True)
    # torchrun's fixed port may be taken by another run; a make around pytest must not share its settings with this one.
    environment = {
        k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES")
    }
    done = processes.run(["make", "demo-short"], env={**environment, "PET_STANDALONE": "1"}, merged=True)
    assert done.returncode == 0, f"make demo-short exited with {done.returncode}\n{done.stdout[-6000:]}"
    return done.stdout


def test_it_is_the_demo_at_a_tenth_of_its_steps(printed: str) -> None:
    whole = schedule.total_steps(entry.compose(config.Pretrain, "demo").schedule)
    steps = [line["step"] for line in metrics.read(RUN) if line["kind"] == "train"]
    assert steps == list(range(1, steps[-1] + 1))
    assert steps[-1] == pytest.approx(whole / 10, abs=1)


def test_it_learns(printed: str) -> None:
    lines = metrics.read(RUN)
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert losses[0] == pytest.approx(math.log(VOCABULARY), abs=0.2)
    assert losses[-1] < losses[0] - 0.5
    validated = [line for line in lines if line["kind"] == "validation"]
    assert validated[-1]["losses"].keys() == {"python", "docs"} and validated[-1]["loss"] < losses[0] - 0.5


def test_it_is_evaluated(printed: str) -> None:
    result = re.search(r"^\{\n.*?^\}$", printed, re.DOTALL | re.MULTILINE)
    assert result, printed
    total = json.loads(result[0])["total"]
    assert total["loss"] < math.log(VOCABULARY) - 0.5 and total["tokens"] > 10_000
    assert total["perplexity"] == pytest.approx(math.exp(total["loss"]))


def test_it_leaves_a_curve_and_a_model_that_goes_on_writing(printed: str) -> None:
    from transformers import AutoModelForCausalLM

    curve = (RUN / "loss.png").read_bytes()
    assert curve.startswith(b"\x89PNG\r\n\x1a\n") and len(curve) > 10_000
    assert "loss curve: runs/demo-short/loss.png" in printed
    model = AutoModelForCausalLM.from_pretrained(RUN / "hf")
    assert model.config.vocab_size == VOCABULARY and Path(RUN / "hf" / "tokenizer.json").is_file()
    assert printed.splitlines().count("def read(self, path):") <= 1 and "\ndef read(self, path):" in printed
