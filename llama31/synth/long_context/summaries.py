"""Summaries of summaries, and questions on them; the dialog holds the whole document (report, section 4.3.4).

chunks -> a summary of each -> a summary of the summaries, in as many levels as they need. No summary has a figure or
name that its source has not, or it is mended once; each is judged with its source. Questions are asked of a chunk's
summary and judged with the chunk itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from llama31 import config
from llama31.synth import grounding
from llama31.synth.long_context import questions
from llama31.synth.long_context.lengths import DocumentLengths
from llama31.synth.pipeline import parsing
from llama31.synth.pipeline.draw import JUDGE, ItemDraw
from llama31.synth.pipeline.items import SynthesisItem
from llama31.synth.pipeline.shard import Records

CHUNK, WHOLE, MEND = (f"long_summaries/{name}" for name in ("chunk", "whole", "mend"))
JUDGED, QUESTION, REQUEST = (f"long_summaries/{name}" for name in ("judge", "question", "request"))


@dataclass(frozen=True)
class LongSummaries:
    """See the module."""

    settings: config.LongSummariesSynthesis
    lengths: DocumentLengths = field(default_factory=DocumentLengths)
    name: str = "long_summaries"
    prompts: Sequence[str] = (
        CHUNK, WHOLE, MEND, JUDGED, QUESTION, REQUEST, questions.JUDGED, questions.DOCUMENT,
    )  # fmt: skip

    def make(self, item: SynthesisItem, draw: ItemDraw) -> Records:
        """One dialog: the document, its summary, then questions."""
        text = questions.fitting(item, draw, self.settings, self.lengths)
        chunks = self.lengths.chunks(text, self.settings.chunk_tokens)
        summaries = [self._summary(draw, CHUNK, chunk) for chunk in chunks]
        whole = self._whole(draw, summaries)
        request = draw.messages(REQUEST)[0]["content"]
        turns, asked = [(request, whole)], []
        for number in draw.random.sample(range(len(chunks)), min(len(chunks), self.settings.questions)):
            one = questions.asked_of(draw, QUESTION, summaries[number], chunks[number])
            if one is not None:
                turns.append((one.question, one.answer))
                asked.append(number)
        return questions.dialog(draw, self.lengths, text, turns, {"summaries": summaries, "chunks": asked})

    def _whole(self, draw: ItemDraw, summaries: Sequence[str]) -> str:
        """The summary of all summaries, by groups that fit into a chunk while they are too long for one."""
        size = self.settings.chunk_tokens
        while self.lengths.tokens(joined := "\n\n".join(summaries)) > size:
            groups = self.lengths.chunks(joined, size)
            summaries = [self._summary(draw, WHOLE, group) for group in groups]
            draw.counts["summaries between"] += len(summaries)
            if self.lengths.tokens("\n\n".join(summaries)) >= self.lengths.tokens(joined):
                draw.drop("summaries no shorter than their source")
        return self._summary(draw, WHOLE, joined)

    def _summary(self, draw: ItemDraw, prompt: str, source: str) -> str:
        """A summary without anything that its source has not; otherwise the item is dropped."""
        summary = draw.read(prompt, parsing.said, text=source)
        if foreign := grounding.strange(summary, [source]):
            draw.counts["summaries with a figure or name from elsewhere"] += 1
            summary = draw.read(MEND, parsing.said, text=source, summary=summary, foreign=", ".join(foreign))
            if grounding.strange(summary, [source]):
                draw.drop("a figure or name from elsewhere, after mending")
            draw.counts["summaries mended"] += 1
        if self.lengths.tokens(summary) >= self.lengths.tokens(source):
            draw.drop("summary no shorter than its source")
        fields: dict[str, Any] = {"text": source, "summary": summary}
        if draw.read(JUDGED, questions.VERDICT, model=JUDGE, temperature=0, **fields) == "no":
            draw.drop("summary judged unfaithful")
        return summary
