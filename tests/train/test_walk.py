"""The way from a recipe to its first step: few modules, and none that a reader has to come back to twice."""

from __future__ import annotations

import contextlib
import itertools
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from llama31 import config
from llama31.tokens import tokenizers
from tests.conftest import ROOT
from tests.data.conftest import Packer, bpe, packed_source  # noqa: F401 - fixtures

pytestmark = pytest.mark.torch

READ = {("recipes/pretrain.py", "main"), ("llama31/train/setup.py", "placed"), ("llama31/train/setup.py", "setup")}
READ |= {("llama31/train/loop.py", "fit")}  # functions that a reader goes through line by line


class FirstStep(Exception):
    """The first step has begun."""


def file_of(frame: FrameType) -> str:
    """The file, relative to the checkout."""
    return frame.f_code.co_filename.removeprefix(f"{ROOT}/")


def caller_of(frame: FrameType) -> tuple[str, str]:
    """File and function of the project that called, through the standard library's context managers too."""
    above = frame.f_back
    while above is not None and above.f_code.co_filename == contextlib.__file__:
        above = above.f_back
    return ("", "") if above is None else (file_of(above), above.f_code.co_name)


def test_the_way_to_the_first_step(
    tmp_path: Path, packed_source: Packer, bpe: config.Tokenizer  # noqa: F811
) -> None:  # fmt: skip
    from llama31.parallel import mesh
    from llama31.train import feeds, loop, reference, setup  # noqa: F401 - imports are no part of the way
    from recipes import pretrain

    fingerprint = tokenizers.load(bpe).fingerprint
    packed_source("a", [100] * 5, tokenizer_fingerprint=fingerprint, vocab_size=560)
    run = config.Pretrain(
        name="walk", folder=str(tmp_path / "run"), tokenizer=bpe, precision=config.Precision(params="fp32"),
        model=config.Model("m", layers=1, hidden_size=32, ffn_hidden_size=64, heads=4, kv_heads=2, vocab_size=560),
        schedule=config.Schedule(total_tokens=128, batch_tokens=64, sequence_length=32, peak_lr=1e-3),
        data=config.Data(folder=str(tmp_path), sources={"a": config.Source()}),
    )  # fmt: skip
    called: list[str] = []

    def notice(frame: FrameType, event: str, argument: Any) -> None:
        file = file_of(frame)
        if event != "call" or not file.startswith("llama31/"):
            return
        caller = caller_of(frame)
        if caller in READ and caller[0] != file:
            called.append(file)
            if frame.f_code.co_name == "accumulate":
                raise FirstStep

    sys.setprofile(notice)
    try:
        with pytest.raises(FirstStep):
            pretrain.main(run)
    finally:
        sys.setprofile(None)
        mesh.close()
    visits = [file for file, _ in itertools.groupby(called)]
    assert called[-1] == "llama31/engine/pipeline.py" and len(set(visits)) <= 12, "\n".join(visits)
    assert max(map(visits.count, visits)) <= 2, "\n".join(visits)
