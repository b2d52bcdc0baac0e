"""What was synthesised as one HTML page: how many items went where, what programs counted, and records to read."""

from __future__ import annotations

import hashlib
import heapq
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama31.report.style import document
from llama31.report.tables import Cell, bar, table
from llama31.report.text import escape, percent, plain
from llama31.runs import files
from llama31.synth.pipeline import gather

NAME = "summary.html"
REASONS = (
    "unparsed NAME: twice an answer to the prompt NAME.txt had not the form that it asks for. "
    "unfinished NAME: twice it was cut by sampling.max_new_tokens."
)
STYLE = """
.said{border-left:3px solid var(--good);padding-left:10px;margin:10px 0}.said.dropped{border-color:var(--lost)}
.said small{color:var(--soft)}.said pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:2px 0 8px}
"""


@dataclass
class PageSamples:
    """Records by kind and dropped items by reason, the `count` of each whose hashes are lowest."""

    count: int = 5
    _heaps: dict[tuple[bool, str], list[tuple[int, int, Any]]] = field(default_factory=lambda: defaultdict(list))
    _number: int = 0

    def add(self, result: Mapping[str, Any]) -> None:
        """Look at one result."""
        rank = -int.from_bytes(hashlib.sha256(result["item"].encode()).digest()[:8], "big")
        shown = [((True, kind), record) for kind, made in result["records"].items() for record in made[:1]]
        shown = shown or [((False, result["dropped"]), _told(result))]
        for key, record in shown:
            heap = self._heaps[key]
            (heapq.heappush if len(heap) < self.count else heapq.heappushpop)(heap, (rank, self._number, record))
        self._number += 1

    def drawn(self, kept: bool) -> dict[str, list[Any]]:
        """Records by kind, or dropped items by reason."""
        heaps = sorted((name, heap) for (whether, name), heap in self._heaps.items() if whether is kept)
        return {name: [record for _, _, record in sorted(heap, reverse=True)] for name, heap in heaps}


def write(folder: Path, title: str, summary: Mapping[str, Any], samples: PageSamples, characters: int = 3000) -> Path:
    """Write summary.html, whole or not at all, with what was drawn to read."""
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="sub">{escape(folder)}</p>',
        _tiles(summary),
        f"<h2>Why items were dropped</h2>{_reasons(summary)}",
        f"<h2>Counted on the way</h2>{_counts(summary)}",
        "<h2>To read</h2><p class='sub'>Drawn by a hash of each item's name, whatever the number of shards.</p>",
        *(_records(kind, records, characters) for kind, records in samples.drawn(True).items()),
        *(_items(reason, items, characters) for reason, items in samples.drawn(False).items()),
        f"<h2>Made with</h2>{_made_with(summary)}",
    ]
    page = document(title, "".join(parts), f"The same in numbers: {gather.SUMMARY}.", STYLE)
    files.write_whole(folder / NAME, page)
    return folder / NAME


def _told(result: Mapping[str, Any]) -> dict[str, str]:
    """A dropped item: its name, its text, and the last answer that could not be read, if there was one."""
    return {"item": result["item"], "text": result.get("excerpt", ""), "unread": result.get("unread", "")}


def _tiles(summary: Mapping[str, Any]) -> str:
    kept = summary["kept"] / summary["items"] if summary["items"] else None
    others = f"; {plain(count)} of another input left out" if (count := summary.get("of_other_input")) else ""
    cells = [("items", plain(summary["items"]), f"{plain(summary.get('missing', 0))} have no result yet{others}")]
    cells += [("kept", plain(summary["kept"]), percent(kept))]
    cells += [
        (kind, plain(count), f"{plain(summary['repeated'].get(kind, 0))} repeated one of them")
        for kind, count in summary["records"].items()
    ]
    tiles = (
        f'<div class="tile"><span>{escape(a)}</span><b>{b}</b><small>{escape(c)}</small></div>' for a, b, c in cells
    )
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _reasons(summary: Mapping[str, Any]) -> str:
    if not summary["dropped"]:
        return '<div class="card"><p class="none">Nothing was dropped.</p></div>'
    rows = (
        [
            Cell(reason),
            Cell(plain(count), right=True),
            Cell(percent(count / summary["items"]), right=True),
            Cell(bar(count / summary["items"], "gone"), markup=True),
        ]
        for reason, count in summary["dropped"].items()
    )
    return f"{table(['reason', 'items', 'share', ''], rows, wide=True)}<p class='sub'>{escape(REASONS)}</p>"


def _counts(summary: Mapping[str, Any]) -> str:
    if not summary["counts"]:
        return '<div class="card"><p class="none">Nothing.</p></div>'
    return table(
        ["what", "count"], ([Cell(name), Cell(plain(count), right=True)] for name, count in summary["counts"].items())
    )


def _records(kind: str, records: Sequence[Mapping[str, Any]], characters: int) -> str:
    said = "".join(f'<div class="said">{_spoken(record, characters)}</div>' for record in records)
    return f'<div class="card wide"><details open><summary>{escape(kind)}</summary>{said}</details></div>'


def _spoken(record: Mapping[str, Any], characters: int) -> str:
    """A record's messages by who says them, and of a pair both answers; what is no dialog as its JSON."""
    turns = record.get("messages", record.get("prompt"))
    if not isinstance(turns, list):
        return f"<pre>{escape(_cut(json.dumps(record, indent=1, ensure_ascii=False), characters))}</pre>"
    said = [_turns(turns, characters)]
    for name in ("chosen", "rejected"):
        answer = record.get(name, [])
        answers = answer if isinstance(answer, list) else [answer if isinstance(answer, dict) else {"content": answer}]
        said += [_turns([{**one, "role": name} for one in answers], characters)]
    return "".join(said)


def _turns(turns: Sequence[Mapping[str, Any]], characters: int) -> str:
    parts = []
    for turn in turns:
        content = turn.get("content") or ""
        if turn.get("tool_calls"):
            content = f"{content}\n{json.dumps(turn['tool_calls'], ensure_ascii=False)}".strip()
        content = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        parts.append(f"<small>{escape(turn.get('role'))}</small><pre>{escape(_cut(content, characters))}</pre>")
    return "".join(parts)


def _items(reason: str, items: Sequence[Mapping[str, Any]], characters: int) -> str:
    said = "".join(
        f'<div class="said dropped"><small>{escape(one["item"])}</small>'
        f"<pre>{escape(_cut(one['text'], characters))}</pre>{_unread(one['unread'], characters)}</div>"
        for one in items
    )
    return f'<div class="card wide"><details><summary>dropped: {escape(reason)}</summary>{said}</details></div>'


def _unread(answer: str, characters: int) -> str:
    return (
        f"<small>an answer that could not be read, or was cut</small><pre>{escape(_cut(answer, characters))}</pre>"
        * bool(answer)
    )


def _cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else f"{text[:characters]} ... ({len(text):,} characters)"


def _made_with(summary: Mapping[str, Any]) -> str:
    rows = [(f"prompt {name}", fingerprint) for name, fingerprint in summary["prompts"].items()]
    rows += [(f"{role}", ", ".join(names)) for role, names in summary["models"].items()]
    rows += [(name, json.dumps(value)) for name, value in summary["settings"].items()]
    return table(["what", "value"], ([Cell(name), Cell(value)] for name, value in rows))
