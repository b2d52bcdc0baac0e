"""A small trained tokenizer, and packed sources whose tokens say where they stand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llama31 import config
from llama31.tokens import tokenizers
from llama31.tokens.indexed import IndexedWriter, dtype_for
from llama31.tokens.packed import Packed, Split


@pytest.fixture(scope="session")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> config.Tokenizer:
    folder = tmp_path_factory.mktemp("bpe")
    tokenizers.train_bpe([f"some words number {i} and some more, Wörter auch" for i in range(50)], 560, folder)
    return config.Tokenizer(kind="bpe", path=str(folder))


Packer = Callable[..., None]


@pytest.fixture
def packed_source(tmp_path: Path) -> Packer:
    """Writes a packed source of given document lengths; its tokens count up from `first`."""

    def write(name: str, lengths: list[int], first: int = 0, heldout: list[int] = [], **changed: object) -> None:  # noqa: B006
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        splits = {}
        for split, sizes in (("train", lengths), ("heldout", heldout)):
            splits[split] = Split(0, 0, "")
            if sizes:
                writer = IndexedWriter(folder / split, dtype_for(100_000))
                writer.add(first + np.arange(sum(sizes)), np.array(sizes, np.int32))
                splits[split] = Split(writer.tokens, writer.documents, writer.close())
        record = {"tokenizer_fingerprint": "t", "vocab_size": 100_000, "fingerprint": f"{name} {lengths} {first}"}
        Packed(version=1, tokenizer_kind="bpe", settings={}, input={}, **splits, **(record | changed)).write(folder)  # type: ignore[arg-type]

    return write
