"""The capability of a task, made of its keys."""

from __future__ import annotations

from typing import Any

from llama31 import config
from llama31.synth.long_context.lengths import DocumentLengths
from llama31.synth.long_context.questions import LongQuestions
from llama31.synth.long_context.repositories import LongCode
from llama31.synth.long_context.summaries import LongSummaries
from llama31.synth.pipeline.shard import Capability


def build(task: str, settings: config.LongSynthesis) -> Capability:
    """long_questions, long_summaries or long_code. Raises ValueError for a tokenizer that cannot be read."""
    given: Any = settings
    lengths = DocumentLengths(settings.tokenizer, settings.buckets)
    if task == "long_questions":
        return LongQuestions(given, lengths)
    return LongSummaries(given, lengths) if task == "long_summaries" else LongCode(given, lengths)
