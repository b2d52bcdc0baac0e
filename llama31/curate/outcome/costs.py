"""What stages will cost, in hours of a core, by what they were measured to cost per byte of the pages that came in.

Seconds of one core of an EPYC (family 25, model 17) for a gigabyte of HTML, out of the report.json of a run on the help
of LibreOffice in English and German and the documentation of SymPy: 5,431 pages, 90 MB of HTML with 16 MB of text. What
only some runs have (`OTHERS`): of one on 108 MB of text, the help in three languages and variants of it, three in ten
documents near duplicates, while others worked on that machine too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama31 import config
from llama31.curate.running.stages import CurationStage

SECONDS_PER_GB: dict[str, float] = {
    "extract": 86.0,
    "url_duplicates": 0.1,
    "token_counts": 0.4,
    "filter": 41.0,
    "minhash_buckets": 0.2,
    "minhash_clusters": 0.1,
    "deduplicate": 3.5,
    "line_duplicates": 0.1,
    "lines": 2.4,
    "tokenize": 8.6,
    "tokens": 4.3,
}
OTHERS: dict[str, float] = {
    "minhash_edges": 0.1,
    "minhash_round": 0.1,
    "minhash_leaves": 0.1,
    "minhash_survivors": 0.1,
    "score": 4.0,  # and each of its models
    "ranking": 0.1,
    "select": 3.0,
}
# Of a model for each gigabyte of HTML: it leaves some 40,000 documents, of which fastText scores 4,000 a second and an
# encoder of DistilRoBERTa's shape 4.3 (docs/curation.md).
FAST_TEXT, ENCODER = 10.0, 9300.0
VOCABULARY_S = 30.0  # however much text there is: it reads tokenizer.train_bytes of it
# Bytes of pages or text for each byte of a compressed file; of archives without what else stands in them.
EXPANDED, ARCHIVED = 4.0, 4.5
TEXT = 5.6  # bytes of HTML with as much text as a byte of text
READ_TEXT_S = 110.0  # for a gigabyte of text that is read, in place of pages


@dataclass(frozen=True)
class PageBytes:
    """Bytes of pages in HTML, and of records that are text already."""

    html: float = 0.0
    text: float = 0.0

    def __str__(self) -> str:
        html = [f"{_bytes(self.html)} of pages"] if self.html or not self.text else []
        return " and ".join([*html, *([f"{_bytes(self.text)} of text"] if self.text else [])])


@dataclass(frozen=True)
class Models:
    """What documents are asked about with: whether their language, and how many fastText models and encoders score.

    `copies`: whether the best of near duplicates is one by a fastText score, which is asked before.
    """

    language: bool = False
    fast_text: int = 0
    encoders: int = 0
    copies: bool = False


def models(
    language: config.LanguageIdentification,
    cited: config.CitedScore,
    encoders: dict[str, config.EncoderScore],
    knowledge: config.KnowledgeClasses,
    minhash: config.DocumentDeduplication,
) -> Models:
    """Those of a run: one for classes of knowledge is an encoder where it is a folder."""
    folders = len(encoders) + (bool(knowledge.model) and Path(knowledge.model).is_dir())
    single = bool(cited.model) + (bool(knowledge.model) and not Path(knowledge.model).is_dir())
    return Models(bool(language.model), single, folders, minhash.enabled and minhash.score == "cited")


def input_bytes(sources: dict[str, config.PageSource], inputs: dict[str, Any]) -> PageBytes:
    """What the files of the sources hold, compressed ones as they expand."""
    found = {True: 0.0, False: 0.0}
    for name, one in inputs.items():
        source = sources[name]
        is_text = source.format not in ("warc", "html") and source.content == "text"
        packed = one["bytes"] if source.format == "parquet" else one["packed"]
        found[is_text] += one["bytes"] - packed + packed * (ARCHIVED if source.format == "warc" else EXPANDED)
    return PageBytes(found[False], found[True])


def core_hours(stage: str, size: PageBytes, asked: Models) -> float:
    """Hours of a core that all tasks of a stage take."""
    name = re.sub(r"_\d+$", "", stage)
    if name == "vocabulary":
        return VOCABULARY_S / 3600
    rate, whole = (SECONDS_PER_GB | OTHERS)[name], size.html + TEXT * size.text
    seconds = rate * size.html + READ_TEXT_S * size.text if name == "extract" else rate * whole
    if name == "extract" and asked.language:
        seconds += 1.5 * FAST_TEXT * whole  # all pages are asked, also those that go later
    if name == "filter" and asked.copies:
        seconds += FAST_TEXT * whole
    if name == "score":
        seconds += (FAST_TEXT * asked.fast_text + ENCODER * asked.encoders) * whole
    return seconds / 1e9 / 3600


def bill(size: float) -> str:
    """One line for all stages that a run has without models, of bytes of HTML."""
    total = sum(SECONDS_PER_GB.values()) * size / 1e9 / 3600
    return f"0 GPUs, {total:.2g} core-h for {_bytes(size)} of HTML"


def table(known: Sequence[CurationStage], missing: dict[str, list[int]], size: PageBytes, asked: Models) -> list[str]:
    """Lines for people: each stage with its tasks, what is done of them, memory and hours, and the total."""
    rows = [("stage", "tasks", "done", "memory each", "core-h", "what")]
    total = 0.0
    for stage in known:
        hours = core_hours(stage.name, size, asked) * len(missing[stage.name]) / stage.tasks
        total += hours
        done = stage.tasks - len(missing[stage.name])
        memory = f"{stage.memory_gb:g} GB"
        rows.append((stage.name, f"{stage.tasks:,}", f"{done:,}", memory, f"{hours:.2g}", stage.what))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [*(f"# {line}" for line in lines), f"# total: {total:.2g} core-h, 0 GPUs, for {size}"]


def _bytes(size: float) -> str:
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size:,.0f} bytes"
