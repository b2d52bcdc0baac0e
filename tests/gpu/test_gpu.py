"""On one GPU: the losses of the CPU, and a run of two steps from text to checkpoint. Skipped where there is none.

Each test starts processes of its own, since this one hides the GPU from all others (conftest).
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest

from llama31 import metrics
from tests.conftest import GPU, Command
from tests.parallel.cases import CASES

pytestmark = [pytest.mark.gpu]

ON_GPU = {"CUDA_VISIBLE_DEVICES": GPU, "DS_ACCELERATOR": "cuda"}
# Transformer Engine multiplies FP32 matrices in TF32, which has BF16's steps but keeps FP32's range.
BOUNDS = {"fp32": {"losses": 1e-3, "norms": 1e-2, "evaluated": 1e-3}}
BOUNDS["bf16"] = {"losses": 5e-3, "norms": 6e-2, "evaluated": 5e-3}
VOCABULARY = 560


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gpu")


@pytest.mark.parametrize("name", [case.name for case in CASES if case.processes == 1])
def test_a_gpu_computes_what_a_cpu_computes(name: str, folder: Path, command: Command) -> None:
    found = {}
    for device, environment in {"cpu": {}, "gpu": ON_GPU}.items():
        output = folder / f"{device}.json"
        if not output.exists():
            command("-m", "tests.parallel.worker", output, env=environment, check=True)
        found[device] = json.loads(output.read_text())[name]
        assert "error" not in found[device], found[device]["error"]
    case = next(case for case in CASES if case.name == name)
    for what, bound in BOUNDS[case.params].items():
        assert found["gpu"][what] == pytest.approx(found["cpu"][what], rel=bound), what


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_two_steps_of_training(precision: str, tmp_path: Path, command: Command) -> None:
    chosen = random.Random(0)
    texts = [" ".join(f"word{chosen.randrange(60)}" for _ in range(40)) for _ in range(100)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    data = ["data=own", f"data.folder={tmp_path}/data", f"data.sources.a.input={tmp_path}/texts.jsonl"]
    words = ["tokenizer=demo", f"tokenizer.path={tmp_path}/tokenizer", f"tokenizer.vocab_size={VOCABULARY}"]
    command("-m", "recipes.pack", *data, *words, check=True)
    shape = ["model=tiny", f"model.vocab_size={VOCABULARY}"]
    steps = ["schedule=demo", "schedule.batch_tokens=2048", "schedule.warmup_tokens=2048", "stop_after_steps=2"]
    run = ["name=gpu", f"folder={tmp_path}/run", f"precision={precision}", "validation.tokens=256"]
    command("-m", "recipes.pretrain", *run, *shape, *steps, *data, *words, env=ON_GPU, check=True)
    lines = [line for line in metrics.read(tmp_path / "run") if line["kind"] == "train"]
    assert [line["step"] for line in lines] == [1, 2]
    assert lines[0]["loss"] == pytest.approx(math.log(VOCABULARY), abs=0.5)
    assert all(math.isfinite(line["grad_norm"]) and line["grad_norm"] > 0 for line in lines)
    assert (tmp_path / "run" / "checkpoints" / "step-00000002" / "checkpoint.json").exists()
