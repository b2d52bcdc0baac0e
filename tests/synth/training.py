"""What training makes of records: a dialog that it could not read would end a run of `recipes.sft`."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping
from typing import Any

from llama31.dialogs import columns, preferences
from llama31.dialogs.store import Example
from llama31.tokens import chat, tokenizers


@functools.cache
def form() -> chat.Format:
    """The dialog format with a small vocabulary."""
    with tempfile.TemporaryDirectory() as folder:
        return chat.Format(tokenizers.train_bpe(["some words and some more"] * 20, 520, folder))


def learned(record: Mapping[str, Any]) -> list[str]:
    """What each assistant's message teaches, decoded, calls and ends included; read as train.feeds.dialogs does."""
    encoded = form().encode(chat.read(columns.dialog(dict(record))))
    targets, texts = encoded.targets(), dict[int, list[int]]()
    for token, place, wanted in zip(encoded.tokens, encoded.message, targets, strict=True):
        if wanted:
            texts.setdefault(int(place), []).append(int(token))
    return [form()._tokenizer.decode(ids) for ids in texts.values()]


def compared(record: Mapping[str, Any]) -> Example | str:
    """A preference as train.feeds.preferences reads it; a text says why it would be left out."""
    return preferences.encode(dict(record), form(), 0.95)
