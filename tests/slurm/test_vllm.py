"""Rejection sampling by servers of vLLM, as a job; `VLLM_PYTHON` is the Python of an environment in which vLLM runs.

VLLM_PYTHON=/opt/vllm/bin/python make test PYTEST_ARGS='tests/slurm/test_vllm.py'
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import small_rounds
from llama31 import config
from llama31.command import entry, inputs
from llama31.sampling import drawing
from tests.slurm.conftest import Slurm, submit

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif("VLLM_PYTHON" not in os.environ, reason="VLLM_PYTHON names no Python that has vLLM"),
]

SCALE = replace(small_rounds.SMALL, hidden_size=128, reward_tokens=16_384)  # heads of 32, the least that vLLM takes
SCHEMAS = {"pack": config.Pack, "pretrain": config.Pretrain, "sft": config.Sft, "reward": config.Reward}
# FP32, as our own decoder is asked for; on a CPU, whose generators cannot be rewound, no prompt may be read in parts.
OPTIONS = "--dtype float32 --max-model-len 256 --enforce-eager --max-num-batched-tokens 65536"


def recipe(name: str, arguments: Sequence[str]) -> None:
    """Run a recipe in this process: another would have to import torch."""
    run = entry.load({**SCHEMAS, "sample": config.Sample}[name], name, arguments, lambda given: 1)
    inputs.check(run)
    importlib.import_module(f"recipes.{name}").main(run)


CPU = pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="vLLM 0.32's CPU build fails on pipelines")


@pytest.mark.parametrize("per_server", [1, pytest.param(2, marks=CPU)])
def test_servers_start_answer_as_we_do_and_leave(per_server: int, slurm: Slurm, tmp_path: Path) -> None:
    """A server on each of two nodes, or one on both, as 405B needs it."""
    small_rounds.write_task(tmp_path, SCALE)
    small_rounds.write_config(tmp_path, SCALE.layers, SCALE.hidden_size)
    for name, arguments, _ in small_rounds.before(tmp_path, SCALE):
        recipe(name, arguments)
    own = ["--config-dir", str(tmp_path / "conf")]
    reward = [*small_rounds.COMMON, *small_rounds.schedule(SCALE.reward_tokens, 1e-3, 256, 1024), "name=reward"]
    reward += [f"folder={tmp_path / 'reward'}", f"init_from={tmp_path / 'seed'}", f"data.folder={tmp_path / 'encoded'}"]
    recipe("reward", [*own, *reward, f"data.sources.mine.input={tmp_path / 'preferences-01.jsonl'}"])

    asked = [*own, f"prompts={tmp_path / 'judge.jsonl'}", f"policy={tmp_path / 'seed'}", "sampling.max_new_tokens=40"]
    asked += ["precision=fp32", "sampling.answers=1", "sampling.temperature=0"]
    (number,) = submit(
        slurm, tmp_path, "recipe=sample", "submit.nodes=2", *asked, f"folder={tmp_path / 'served'}",
        f"reward={tmp_path / 'reward'}", "cluster.processes_per_node=1", "parallel.dp=2",
        VLLM_OPTIONS=os.environ.get("VLLM_OPTIONS", OPTIONS), VLLM_TENSOR_PARALLEL="1", VLLM_CPU_KVCACHE_SPACE="1",
        VLLM_NODES_PER_SERVER=str(per_server),
    )  # fmt: skip
    slurm.logs = [tmp_path / f"served/logs/{number}.out"]
    assert slurm.end(number) == "COMPLETED", slurm.logs[0].read_text()[-3000:]
    log = slurm.logs[0].read_text()
    assert (
        len(re.findall("prompts as ids, ends by stop_token_ids; honours n, seeds and temperature 0", log))
        == 2 // per_server
    )
    served = {line["prompt"]: line for line in drawing.read_lines(tmp_path / "served" / drawing.CANDIDATES)}
    summary = json.loads((tmp_path / "served" / drawing.SUMMARY).read_text())
    assert summary["answers"] == SCALE.judged and summary["without a reward"] == 0
    assert len({line["server"] for line in served.values()}) == 2 // per_server, "all servers answered"

    exported = f"policy={tmp_path / 'served' / 'hf'}"  # in BF16, as the servers read it
    recipe("sample", [*asked, f"folder={tmp_path / 'own'}", "part=draw", exported])
    ours = {line["prompt"]: line for line in drawing.read_lines(tmp_path / "own" / drawing.CANDIDATES)}
    said = {name: [(line["text"], line["end"]) for line in lines] for name, lines in (
        ("vllm", [served[prompt] for prompt in ours]), ("ours", list(ours.values()))
    )}  # fmt: skip
    assert said["vllm"] == said["ours"] and len({text for text, _ in said["ours"]}) > 10
