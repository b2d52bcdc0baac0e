"""Dialogs as they are filtered: records with their messages, and the texts of them that are looked at."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llama31.dialogs import columns, store
from llama31.tokens import chat
from llama31.tokens.chat import Message

REPEATED, UNANSWERED = "repeated", "without an answer"


@dataclass(frozen=True)
class DialogRecord:
    """A record of the input, its messages, and why it cannot be looked at (None: it can).

    id: a hash of what it says, so that answers to questions about it stay true whatever else the input holds.
    index: its place in the input. place: file and line.
    """

    id: str
    index: int
    place: str
    record: Mapping[str, Any]
    messages: Sequence[Message]
    unfit: str | None

    def answers(self) -> list[str]:
        """What assistants say that is to be learned."""
        return [one.text() for one in self.messages if one.role == "assistant" and one.learned]

    def prompts(self) -> list[str]:
        """What users say."""
        return [one.text() for one in self.messages if one.role == "user"]

    def text(self) -> str:
        """The whole dialog, without roles: what it is about."""
        return "\n\n".join(one.text() for one in self.messages)

    def shown(self, longest: int) -> tuple[str, bool]:
        """The dialog with roles, for a judge, and whether its middle was left out for being longer than `longest`.

        Halves of surrogate pairs and zero bytes, which no server takes, are replaced.
        """
        text = "\n\n".join(f"[{one.role}]\n{one.text()}" for one in self.messages).replace("\0", " ")
        text = text.encode("utf-8", "replace").decode()
        if len(text) <= longest:
            return text, False
        half = longest // 2
        gap = f"\n\n[{len(text) - 2 * half} characters are left out here]\n\n"
        return text[:half] + gap + text[-half:], True


def read(given: str, added_key: str, limit: int | None = None) -> Iterator[DialogRecord]:
    """The records of the files that `given` names, in their order, at most `limit`.

    What says the same as one before it is unfit, and so is what the chat format cannot say or where no assistant says
    anything. Raises ValueError (key `input`) with file and line for what is no dialog, and where nothing is there;
    (key `added_key`) for a record that has a field of that name.
    """
    paths = store.files(given)
    seen: set[bytes] = set()
    index = -1
    for index, (place, _, (record, messages, unfit)) in enumerate(store.records(paths, "input", _dialog)):
        if index == limit:
            return
        if added_key in record:
            raise ValueError(f"added_key={added_key}: {place} has a field of that name; give another name")
        digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).digest()[:12]
        if unfit is None and digest in seen:
            unfit = REPEATED
        seen.add(digest)
        yield DialogRecord(digest.hex(), index, place, record, messages, unfit)
    if index < 0:
        raise ValueError(f"input={given}: there is no record in it; give JSON lines or Parquet of dialogs")


def _dialog(record: dict[str, Any]) -> tuple[dict[str, Any], Sequence[Message], str | None]:
    try:
        messages = chat.read(columns.dialog(record))
    except chat.OutsideFormat as error:
        return record, (), error.reason
    said = any(one.role == "assistant" and one.learned for one in messages)
    return record, messages, None if said else UNANSWERED


def line(record: Mapping[str, Any]) -> str:
    """A record as a line of JSON; with escapes where it holds halves of surrogate pairs, which UTF-8 cannot say."""
    text = json.dumps(record, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(record)
    return text + "\n"
