"""What the runs of this folder train on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from llama31 import config
from llama31.tokens import pack


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two packed sources of words, and their tokenizer."""
    return packed(tmp_path_factory.mktemp("packed"))


def packed(folder: Path) -> Path:
    """Two packed sources of words that a model can learn a little of, and their tokenizer, in `folder`."""
    random = np.random.default_rng(0)
    words = [f"word{i}" for i in range(60)]
    sources = {}
    for name in ("a", "b"):
        texts = [" ".join(random.choice(words, random.integers(5, 60))) for _ in range(150)]
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
        sources[name] = config.Source(input=str(folder / f"{name}.jsonl"))
    data = config.Data(folder=str(folder), sources=sources, heldout_fraction=0.1, workers=1)
    settings = config.Tokenizer(kind="bpe", path=str(folder / "tokenizer"), vocab_size=560)
    pack.train_tokenizer(data, settings)
    for name in sources:
        pack.pack(data, name, settings)
    return folder
