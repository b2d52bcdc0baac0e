"""Questions on random chunks of a long document; the dialog that is trained holds the whole (report, section 4.3.4).

chunk -> question, answer and the sentences that it rests on -> those stand in the chunk, and no figure or name in the
answer is from elsewhere -> judged with the chunk alone -> document and all questions as one dialog.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llama31 import config
from llama31.synth import grounding, labelled
from llama31.synth.long_context.lengths import DocumentLengths
from llama31.synth.pipeline import parsing
from llama31.synth.pipeline.draw import JUDGE, Dropped, ItemDraw
from llama31.synth.pipeline.items import SynthesisItem
from llama31.synth.pipeline.shard import DIALOGS, Records

VERDICT = parsing.choice(("yes", "no"))
QUESTION, JUDGED, DOCUMENT = "long_questions/question", "long_questions/judge", "long_questions/document"
SPARE_TOKENS = 4096  # room for questions and answers beside a document


@dataclass(frozen=True)
class DocumentQuestion:
    """A question, its answer, and what the answer rests on."""

    question: str
    answer: str
    quotes: tuple[str, ...]


@dataclass(frozen=True)
class LongQuestions:
    """See the module."""

    settings: config.LongQuestionsSynthesis
    lengths: DocumentLengths = field(default_factory=DocumentLengths)
    name: str = "long_questions"
    prompts: Sequence[str] = (QUESTION, JUDGED, DOCUMENT)

    def make(self, item: SynthesisItem, draw: ItemDraw) -> Records:
        """One dialog of several questions."""
        text = fitting(item, draw, self.settings, self.lengths)
        chunks = self.lengths.chunks(text, self.settings.chunk_tokens)
        order = draw.random.sample(range(len(chunks)), len(chunks))
        asked: dict[int, DocumentQuestion] = {}
        for number in (order * 2)[: self.settings.questions + self.settings.spare_chunks]:
            if len(asked) < self.settings.questions and number not in asked:
                one = asked_of(draw, QUESTION, chunks[number], chunks[number])
                asked |= {number: one} if one else {}
        if not asked:
            draw.drop("no question that its chunk answers")
        origin = {"chunks": list(asked), "quotes": [list(one.quotes) for one in asked.values()]}
        turns = [(one.question, one.answer) for one in asked.values()]
        return dialog(draw, self.lengths, text, turns, origin)


def fitting(item: SynthesisItem, draw: ItemDraw, settings: config.LongSynthesis, lengths: DocumentLengths) -> str:
    """The text of an item, if it is longer than a chunk and a dialog on it can be in a bucket; else dropped."""
    tokens = lengths.tokens(item.text)
    if tokens <= settings.chunk_tokens:
        draw.drop("document no longer than a chunk")
    if tokens + SPARE_TOKENS > lengths.longest:
        draw.drop(f"document longer than {lengths.name(lengths.longest)}")
    return item.text.strip()


def parsed(answer: str) -> DocumentQuestion:
    """Question, answer and quotations of an answer. Raises ValueError."""
    found = labelled.parts(answer, ("Question", "Answer", "Quote"))
    if [label for label, _ in found[:3]] != ["Question", "Answer", "Quote"] or {one[0] for one in found[3:]} - {
        "Quote"
    }:
        raise ValueError("one question, one answer, then quotations were asked for")
    quotes = tuple(text.strip().strip("\"'“”‘’") for _, text in found[2:])  # noqa: RUF001
    return DocumentQuestion(found[0][1], found[1][1], quotes)


def asked_of(draw: ItemDraw, prompt: str, shown: str, source: str) -> DocumentQuestion | None:
    """A question that the model asks of `shown`, a part of the document or its summary, and that `source` answers.

    None, counted by reason, where it asks or answers something else. `source` is the part itself, which the judge sees.
    """
    try:
        one = draw.read(prompt, parsed, text=shown)
        if reason := wrong(one, shown):
            draw.counts[reason] += 1
            return None
        fields: dict[str, Any] = {"text": source, "question": one.question, "answer": one.answer}
        if draw.read(JUDGED, VERDICT, model=JUDGE, temperature=0, **fields) == "no":
            draw.counts["answers that are judged wrong"] += 1
            return None
    except Dropped:  # not understood twice, which the draw has counted: other chunks may do better
        return None
    return one


def wrong(one: DocumentQuestion, text: str) -> str | None:
    """Why a question is not kept, by what a program can tell from the text that it is about."""
    if labelled.speaks_of_excerpt(one.question):
        return "questions that speak of an excerpt"
    if grounding.misquoted(one.quotes, text):
        return "answers with a quotation that is none"
    if grounding.strange(one.answer, [text, one.question]):
        return "answers with a figure or name from elsewhere"
    return None


def dialog(
    draw: ItemDraw, lengths: DocumentLengths, document: str, turns: Sequence[tuple[str, str]], origin: Mapping[str, Any]
) -> Records:
    """The record of questions and answers on a document, which stands in the first message; dropped if too long."""
    first, *others = turns
    question_first = draw.random.random() < 0.5
    content = draw.messages(DOCUMENT, document=document, question=first[0], question_first=question_first)[0]["content"]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": first[1]}]
    for question, answer in others:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    tokens = lengths.dialog(messages)
    bucket = lengths.bucket(tokens)
    if bucket is None:
        draw.drop(f"dialog longer than {lengths.name(lengths.longest)}")
    draw.counts[f"dialogs of {bucket}"] += 1
    return {DIALOGS: [{"messages": messages, "provenance": {**origin, "tokens": tokens, "bucket": bucket}}]}
