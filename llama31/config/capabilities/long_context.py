"""Keys of long_questions, long_summaries and long_code."""

from __future__ import annotations

from dataclasses import dataclass

from llama31.config.keys import key


@dataclass
class LongSynthesis:
    """What tasks on long documents have in common (report, section 4.3.4)."""

    tokenizer: str | None = key(
        None, "tokenizer.model, tokenizer.json or its folder, by which tokens are counted; null: four bytes each (ours)"
    )
    chunk_tokens: int = key(8192, "longest chunk; documents no longer than one are dropped (report: 8K)", low=1)
    buckets: list[int] = key(
        [16_384, 32_768, 65_536, 131_072], "tokens of a dialog up to which it is in a bucket (report: 16K to 128K)"
    )
    short: str | None = key(
        None, "files of the dialogs that these are mixed with: the gathering says how often to read them"
    )
    share: float = key(0.001, "share of long dialogs in all examples (report: 0.1 %)", above=0, high=0.5)


@dataclass
class LongQuestionsSynthesis(LongSynthesis):
    """Questions on random chunks of a document. Their number is ours, after the 6.7 turns of the report's Table 7."""

    questions: int = key(3, "questions on each document", low=1)
    spare_chunks: int = key(3, "further chunks that are tried where a question is not kept", low=0)


@dataclass
class LongSummariesSynthesis(LongSynthesis):
    """Summaries of summaries, and questions on them."""

    questions: int = key(2, "questions on each document beside its summary (ours)", low=0)


@dataclass
class LongCodeSynthesis(LongSynthesis):
    """A repository without a file that others import."""

    importers: int = key(5, "files that have to import the one that is left out (report: 5)", low=1)
    least_tokens: int = key(64, "shortest file that is left out (ours)", low=1)
    most_tokens: int = key(4096, "longest file that is left out (ours)", low=1)
