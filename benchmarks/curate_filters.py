"""Documents per second and core: this project's Gopher and C4 rules beside datatrove's own, on the same documents.

    python -m benchmarks.curate_filters FOLDER...     folders of HTML, as Debian's documentation packages unpacked

Both judge some documents in turn, in one process, so that what else the machine does falls on both. datatrove's filters
split words with spaCy where it is installed (it is none of this project's packages), and in any case with this
project's words; with those the verdicts have to be the same, and their number is printed.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.filters import c4_filters, gopher_quality_filter, gopher_repetition_filter
from datatrove.utils import text as datatrove_text

from llama31.curate import words
from llama31.curate.extraction import page
from llama31.curate.heuristics.c4 import LineFilter
from llama31.curate.heuristics.quality import QualityFilter
from llama31.curate.heuristics.repetition import RepetitionFilter

PAGES = 300  # evenly drawn from each folder
TURN = 50  # documents at once: of one alone, what spaCy has in the processor's caches would be measured as well
Rules = list[Any]


def _by_words(split: Callable[..., list[str]], sentences: Callable[..., list[str]]) -> None:
    """Let datatrove's filters take words and sentences from these functions."""
    for module in (gopher_quality_filter, gopher_repetition_filter):
        vars(module)["split_into_words"] = split
    vars(c4_filters)["split_into_sentences"] = sentences


def _ours(text: str, language: str) -> list[str]:
    return words.split(text, language, symbols=True)


def judge(rules: Rules, texts: Sequence[str]) -> tuple[float, list[Any]]:
    """CPU seconds, and what each rule says of each text."""
    verdicts = []
    begin = time.process_time()
    for text in texts:
        for rule in rules:
            verdicts.append(rule.filter(Document(text=text, id="", metadata={"language": "en"})))
    return time.process_time() - begin, verdicts


def measure(texts: Iterable[str]) -> dict[str, float]:
    """Seconds of each, and how many verdicts differ where the words are the same."""
    quality, repetition = gopher_quality_filter.GopherQualityFilter, gopher_repetition_filter.GopherRepetitionFilter
    theirs: Rules = [quality(language="en"), repetition(language="en"), c4_filters.C4QualityFilter(language="en")]
    ours: Rules = [QualityFilter(by_language={}), RepetitionFilter(by_language={}), LineFilter(by_language={})]
    by_spacy = find_spec("spacy") is not None
    result = dict.fromkeys(("pages", "characters", "ours", "same words", "spaCy", "different"), 0.0)
    # Tables are made, and functions compiled.
    judge(ours, ["Text.", "Text, é.", "Join: \u0939\u093f\u0902.", "Tag: \U000e0041.", "Han: \U00020000."])
    for turn in itertools.batched(texts, TURN):
        result["pages"] += len(turn)
        result["characters"] += sum(map(len, turn))
        seconds, verdicts = judge(ours, turn)
        result["ours"] += seconds
        _by_words(_ours, words.sentences)
        seconds, others = judge(theirs, turn)
        result["same words"] += seconds
        result["different"] += sum(a != b for a, b in zip(verdicts, others))
        if by_spacy:
            _by_words(datatrove_text.split_into_words, datatrove_text.split_into_sentences)
            result["spaCy"] += judge(theirs, turn)[0]
    return result


def line(name: str, found: dict[str, float]) -> str:
    """A row of the table."""
    pages = found["pages"]
    speeds = [pages / found[key] if found[key] else 0.0 for key in ("ours", "same words", "spaCy")]
    ratio = speeds[0] / speeds[2] if speeds[2] else speeds[0] / speeds[1]
    size = found["characters"] / pages
    row = f"{name:<28}{pages:>6.0f}{size:>8.0f}{speeds[0]:>9.0f}{speeds[1]:>12.0f}{speeds[2]:>8.0f}{ratio:>7.1f}"
    return f"{row}{found['different']:>11.0f}"


def main(folders: list[str]) -> None:
    """Print a row for each folder and one for all of them, by their pages."""
    print(f"{'':<28}{'pages':>6}{'chars':>8}{'ours/s':>9}{'same words':>12}{'spaCy':>8}{'ratio':>7}{'different':>11}")
    everything: dict[str, float] = {}
    for folder in folders:
        files = sorted(path for path in Path(folder).rglob("*.htm*") if path.is_file() and not path.is_symlink())
        drawn = files[:: max(1, len(files) // PAGES)]
        texts = (page.extract(path.read_bytes().decode("utf-8", "replace")).text for path in drawn)
        found = measure(text for text in texts if text.strip())
        print(line(Path(folder).name, found), flush=True)
        for key, value in found.items():
            everything[key] = everything.get(key, 0.0) + value * len(files) / len(drawn)
    print(line("all, by their pages", everything))


if __name__ == "__main__":
    main(sys.argv[1:])
