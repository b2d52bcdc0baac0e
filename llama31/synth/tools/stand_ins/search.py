"""A search over pages on disk in the place of the web: BM25 (Robertson and Zaragoza 2009) over their passages.

The index is in memory: some kilobytes a page. `services.brave` asks the web itself.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llama31.dialogs import store
from llama31.synth.tools.interface import ATTACHED, ToolResult

K1, B = 1.2, 0.75  # the values that the paper names as good ones
PASSAGE_CHARACTERS = 1200
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Passage:
    """A part of a page."""

    title: str
    url: str
    text: str


class LocalSearch:
    """brave_search over a local index."""

    name = "brave_search"
    purpose = "searches the web and gives the passages that fit best."
    form = "a query on one line, without quotation marks."

    def __init__(self, passages: Iterable[Passage], count: int = 3) -> None:
        self.passages, self.count = list(passages), count
        self._lengths: list[int] = []
        self._places: dict[str, list[tuple[int, int]]] = {}
        digest = hashlib.sha256(str(count).encode())
        for place, passage in enumerate(self.passages):
            words = Counter(words_of(f"{passage.title} {passage.text}"))
            self._lengths.append(words.total())
            for word, times in words.items():
                self._places.setdefault(word, []).append((place, times))
            digest.update(f"{passage.title}\0{passage.url}\0{passage.text}\0".encode("utf-8", "replace"))
        self._mean = sum(self._lengths) / max(1, len(self._lengths))
        self.fingerprint = digest.hexdigest()[:16]

    def scores(self, query: str) -> dict[int, float]:
        """The score of each passage that has a word of the query, by its place."""
        scores: dict[int, float] = {}
        for word in dict.fromkeys(words_of(query)):
            places = self._places.get(word, [])
            weight = math.log(1 + (len(self.passages) - len(places) + 0.5) / (len(places) + 0.5))
            for place, times in places:
                length = 1 - B + B * self._lengths[place] / self._mean
                scores[place] = scores.get(place, 0.0) + weight * times * (K1 + 1) / (times + K1 * length)
        return scores

    def ranked(self, query: str) -> list[int]:
        """Places of the passages that fit, the best first; those of the same score in their order."""
        scores = self.scores(query)
        return heapq.nsmallest(self.count, scores, key=lambda place: (-scores[place], place))

    def call(self, given: str, before: Sequence[str], files: ATTACHED) -> ToolResult:
        """See `ChatTool`."""
        found = [self.passages[place] for place in self.ranked(given)]
        hits = [{"title": one.title, "url": one.url, "content": one.text} for one in found]
        return ToolResult(json.dumps({"query": given, "top_k": hits}, ensure_ascii=False), failed=not hits)


def words_of(text: str) -> list[str]:
    """The words of a text without case."""
    return _WORD.findall(text.casefold())


def read(given: str, count: int) -> LocalSearch:
    """The index of files of pages {"title": ..., "url": ..., "text": ...}. Raises ValueError (key `index`)."""
    paths = store.files(given)
    pages = (record for _, _, record in store.records(paths, "index", _page)) if paths else iter(())
    found = LocalSearch((passage for page in pages for passage in split(page)), count)
    if not found.passages:
        raise ValueError(f"index={given}: no page in it; give JSON lines with title, url and text")
    return found


def _page(record: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(record.get("text"), str):
        raise ValueError(f"text is no text: {str(record.get('text'))[:60]}")
    return dict(record)


def split(page: Mapping[str, Any]) -> Iterator[Passage]:
    """The passages of a page: paragraphs, put together up to a length."""
    title, url, held = str(page.get("title") or ""), str(page.get("url") or ""), ""
    for paragraph in re.split(r"\n\s*\n", str(page["text"])):
        if held and len(held) + len(paragraph) > PASSAGE_CHARACTERS:
            yield Passage(title, url, held)
            held = ""
        held = f"{held}\n\n{paragraph.strip()}".strip()
    if held:
        yield Passage(title, url, held)
