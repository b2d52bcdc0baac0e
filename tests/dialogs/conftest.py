"""A tokenizer of bytes alone, and files of records."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llama31 import config
from llama31.tokens import chat

Written = Callable[..., Path]


class Bytes:
    """256 bytes, then Llama 3's special tokens."""

    names = ("begin_of_text", "start_header_id", "end_header_id", "eom_id", "eot_id", "python_tag")
    special = {f"<|{name}|>": 256 + place for place, name in enumerate(names)}  # noqa: RUF012
    bos_id, eot_id = 256, 260
    fingerprint, vocab_size = "bytes", 262

    def encode(self, text: str) -> list[int]:
        return list(text.encode())


@pytest.fixture
def form() -> chat.Format:
    return chat.Format(Bytes())


@pytest.fixture
def write(tmp_path: Path) -> Written:
    """write(name, records, ...) -> the file."""

    def written(name: str, *records: Any) -> Path:
        path = tmp_path / name
        path.write_text("".join(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in records))
        return path

    return written


def dialog(*texts: str) -> dict[str, Any]:
    """Users and assistants by turns."""
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]}


def preference(prompt: str, chosen: str, rejected: str, strength: str = "better", **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "strength": strength, **more}


SCHEDULE = config.Schedule(total_tokens=4096, batch_tokens=256, sequence_length=64, peak_lr=1e-3)
