"""A small model that was really trained: converted both ways, continued, and scored as lm_eval scores it. FP32."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llama31 import config
from llama31.checkpoint import listing, publish
from llama31.config import Task
from llama31.convert import checkpoints, pretrained
from llama31.engine.pipeline import Forward
from llama31.evaluate import choices
from llama31.evaluate.generate import generate
from llama31.model import llama
from llama31.parallel import mesh
from llama31.tokens import tokenizers
from tests import smollm2
from tests.convert.test_convert import read_hf, settings
from tests.model.test_model import FP32, ONE

pytestmark = pytest.mark.torch

QUESTIONS = [
    ("The capital of France is", ["Paris", "Madrid", "bread"], 0),
    ("Two plus two is", ["seven", "four"], 1),
    ("The opposite of hot is", ["cold", "green", "Tuesday"], 0),
]


def test_a_real_model_is_itself_on_every_way(tmp_path: Path) -> None:
    """One test, for the model is made once: 538 MB, which nobody keeps."""
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM

    folder = smollm2.write(tmp_path / "hf")
    checkpoints.run(settings("from_hf", folder, tmp_path / "run", dtype="fp32"))
    path = listing.resolve(tmp_path / "run")
    shape = publish.read_meta(path).shape()
    assert shape.norm_eps != 1e-5  # but in FP32 it is:
    publish.check_model(publish.read_meta(path), replace(shape, norm_eps=1e-5))
    checkpoints.run(settings("to_hf", tmp_path / "out", tmp_path / "run", dtype="fp32"))
    stored, back = load_file(folder / "model.safetensors"), read_hf(tmp_path / "out")
    assert all(torch.equal(stored[name], tensor) for name, tensor in back.items()) and len(back) == 30 * 9 + 2

    lines = [{"query": query, "choices": given, "gold": gold} for query, given, gold in QUESTIONS]
    (tmp_path / "task.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result, grid = pretrained.find(str(tmp_path / "run")), mesh.create(ONE)
    words = tokenizers.load(result.tokenizer(config.Tokenizer("huggingface", "")))
    chunks = llama.build(result.shape, FP32, ONE, grid)
    result.load(chunks, grid)
    task = Task(str(tmp_path / "task.jsonl"))
    judged = choices.judge(Forward(chunks, grid), choices.prepare("t", task, words, 64), 4)
    prompt = words.encode("The capital of France is")
    new = generate(chunks, grid, [[words.bos_id, *prompt]], 1, vocab_size=words.vocab_size)
    mesh.close()
    assert all(one.right()["acc"] for one in judged) and words.decode(new[0]) == " Paris"

    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").eval()
    harness = HFLM(pretrained=reference, tokenizer=str(folder), device="cpu", batch_size=4)
    for one, (query, given, _) in zip(judged, QUESTIONS, strict=True):
        asked = [(("", ""), *choices.encode_pair(words, query, f" {choice}")) for choice in given]
        theirs = harness._loglikelihood_tokens(asked, disable_tqdm=True)
        assert list(one.loglikelihoods) == pytest.approx([sum_ for sum_, _ in theirs], abs=1e-3)
        assert list(one.greedy) == [greedy for _, greedy in theirs]
