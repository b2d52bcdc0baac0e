"""Lines that consist of what a document has said before: logs, error messages, tables of one sentence.

The report removes them by "duplicated n-gram coverage ratio" (Rae et al. 2021): each line is long and unique, by a
time, a number or a name, so that no comparison of lines finds it. Here a line's ratio is the share of its words'
characters that lie in runs of n words that stood before in the document, and words with a digit in them are all one
word: times, addresses and identifiers make no two lines of a log different. The first of such lines stays.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.disk_base import DiskWriter

from llama31.curate import kernels, spans, words

Verdict = bool | tuple[bool, str]
NUMBER = np.uint64(spans.hash_of("0"))


class RepeatedContentFilter(BaseFilter):
    """Drops lines of repeated content, and documents of which little else is left.

    Statistics: `lines` and `repeated lines`, of documents that have any; `technical`, of documents left alone. Adds
    metadata `repeated_content` to those: the share of their words' characters in such lines.

    Args:
        n: words of a run; where words are characters, two or three times as many (`words.PIECES`). 6: ours, the middle
            of Gopher's 5 to 10 that takes no common phrase for a repetition.
        max_coverage: a line goes whose ratio is higher. 0.8: ours.
        max_removed: documents go of whose words' characters more lie in such lines, reason `repeated_content`. 0.8:
            ours. What is left of a log is a line or two.
        fold_numbers: words with a digit count as the same word.
        keep_technical: leave documents alone whose metadata say `extraction` "technical": code and tables repeat
            themselves. Ours.
        exclusion_writer: where what is dropped is written.
    """

    name = "Repeated content"

    def __init__(
        self,
        n: int = 6,
        max_coverage: float = 0.8,
        max_removed: float = 0.8,
        fold_numbers: bool = True,
        keep_technical: bool = True,
        exclusion_writer: DiskWriter | None = None,
    ) -> None:
        super().__init__(exclusion_writer)
        if n < 1:
            raise ValueError(f"n={n}: a run has one word at least; give a number from 5 to 10")
        self.n, self.max_coverage, self.max_removed = n, max_coverage, max_removed
        self.fold_numbers, self.keep_technical = fold_numbers, keep_technical

    def filter(self, document: Document) -> Verdict:
        """True, with the lines that are left as text, or False and the reason."""
        if self.keep_technical and document.metadata.get("extraction") == "technical":
            self.stat_update("technical")
            return True
        language = document.metadata.get("language") or ""
        found, n = spans.of(document.text, language), self.n * words.PIECES.get(language, 1)
        inside = repeated_words(found, n, self.fold_numbers)
        if not inside.any():
            return True
        lines = document.text.split("\n")
        owners, ratios = coverage(lines, found, inside)
        gone = ratios > self.max_coverage
        if not gone.any():
            return True
        share = float(found.lengths[gone[owners]].sum() / found.lengths.sum())
        document.metadata["repeated_content"] = round(share, 4)
        self.stat_update("lines", value=len(lines))
        self.stat_update("repeated lines", value=int(gone.sum()))
        if share > self.max_removed:
            return False, "repeated_content"
        document.text = "\n".join(line for line, out in zip(lines, gone.tolist()) if not out).strip()
        return True


def coverage(
    lines: list[str], found: spans.Spans, inside: npt.NDArray[np.bool_]
) -> tuple[kernels.Ints, npt.NDArray[np.float64]]:
    """The line of each word, [words], and of each line the share of its words' characters that are inside, [lines]."""
    begins = np.cumsum([0, *(len(line) + 1 for line in lines[:-1])])
    owners = np.searchsorted(begins, found.places, "right") - 1
    every = np.bincount(owners, found.lengths, len(lines))
    return owners, np.bincount(owners[inside], found.lengths[inside], len(lines)) / np.maximum(every, 1)


def repeated_words(found: spans.Spans, n: int, fold_numbers: bool) -> npt.NDArray[np.bool_]:
    """Which words lie in a run of n that stood before, [words]."""
    digits = (found.kinds & kernels.DIGIT) != 0
    return kernels.repeated_words(np.where(digits, NUMBER, found.hashes) if fold_numbers else found.hashes, n)
