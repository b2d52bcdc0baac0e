"""How long a text is, the chunks that it is cut into, and the bucket that a dialog belongs to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import Any

from llama31 import config
from llama31.tokens import tokenizers

BYTES_A_TOKEN = 4  # of English; the estimate where no tokenizer is given (ours)
SPECIAL_TOKENS = 3  # of a message: around its role, and at its end


@dataclass(frozen=True)
class DocumentLengths:
    """Counts tokens, by the tokenizer of `path` (tokenizer.model, tokenizer.json or its folder) or by bytes."""

    path: str | None = None
    buckets: Sequence[int] = (16_384, 32_768, 65_536, 131_072)  # tokens: the report's 16K, 32K, 64K and 128K
    _tokenizer: tokenizers.Tokenizer | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if not self.buckets or any(one >= other for one, other in pairwise(self.buckets)):
            raise ValueError(f"buckets={list(self.buckets)}: give tokens from short to long, as 16384,32768")
        if self.path is not None:
            object.__setattr__(self, "_tokenizer", _loaded(self.path))

    def tokens(self, text: str) -> int:
        """Tokens of a text."""
        if self._tokenizer is not None:
            return len(self._tokenizer.encode(text))
        return ceil(len(text.encode("utf-8", "replace")) / BYTES_A_TOKEN)

    def dialog(self, messages: Sequence[Mapping[str, Any]]) -> int:
        """Tokens of a dialog of texts, with its headers and ends."""
        texts = [text for message in messages for text in (message["role"], "\n\n", message["content"])]
        return 1 + SPECIAL_TOKENS * len(messages) + sum(map(self.tokens, texts))

    def bucket(self, tokens: int) -> str | None:
        """The shortest bucket that holds so many tokens: 16K, ...; None where none does."""
        size = next((one for one in self.buckets if tokens <= one), None)
        return None if size is None else self.name(size)

    @staticmethod
    def name(size: int) -> str:
        """What a bucket of so many tokens is called: 131072 is 128K."""
        return f"{size // 1024}K" if size % 1024 == 0 else str(size)

    @property
    def longest(self) -> int:
        """Tokens of the longest bucket."""
        return self.buckets[-1]

    def chunks(self, text: str, size: int) -> list[str]:
        """The text in pieces of about the same length, none of more than `size` tokens, cut at ends of lines.

        Put together they are the text. Tokens are counted line by line, so that a chunk may be a few shorter.
        """
        lines = [(line, self.tokens(line)) for line in self._lines(text, size)]
        total = sum(count for _, count in lines)
        wanted = ceil(total / max(1, ceil(total / size)))
        chunks, length = [""], 0
        for line, count in lines:
            if chunks[-1] and (length >= wanted or length + count > size):
                chunks.append("")
                length = 0
            chunks[-1] += line
            length += count
        return chunks

    def _lines(self, text: str, size: int) -> Iterator[str]:
        """Lines with their ends; one of more than `size` tokens in halves, until none is."""
        waiting = text.splitlines(keepends=True)[::-1]
        while waiting:
            line = waiting.pop()
            if len(line) > 1 and self.tokens(line) > size:
                waiting += [line[len(line) // 2 :], line[: len(line) // 2]]
            else:
                yield line


def _loaded(path: str) -> tokenizers.Tokenizer:
    kind = "tiktoken" if Path(path).name.endswith(".model") else "huggingface"
    return tokenizers.load(config.Tokenizer(kind=kind, path=path))
