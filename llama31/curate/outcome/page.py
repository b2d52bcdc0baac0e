"""The report as one HTML page: what came in, what each block removed and why, what is left, and texts of both to read.

All that comes from pages is escaped; the page needs no network and no other file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llama31.curate.outcome.summary import warnings
from llama31.report.charts import Chart, Point, Series, draw
from llama31.report.style import document
from llama31.report.tables import Cell, bar, table
from llama31.report.text import NONE, count, duration, escape, percent, plain
from llama31.runs import files

NAME = "report.html"
ROWS = 60  # of the table of reasons; the others stand in report.json
LINES = "lines of documents that stay"
STYLE = """
.text{border-left:3px solid var(--line);padding-left:10px;margin:10px 0}.text.removed{border-color:var(--lost)}
.text.kept{border-color:var(--good)}.text small{color:var(--soft);overflow-wrap:anywhere}
details details{margin-left:14px}h3{margin-top:18px}
"""

Summary = dict[str, Any]


def write(folder: Path, summary: Summary) -> Path:
    """Write report.html, whole or not at all."""
    path = folder / NAME
    files.write_whole(path, html(summary))
    return path


def html(summary: Summary) -> str:
    """The page."""
    title = f"Curation of {summary['name']}"
    stages = [stage for stage in summary["stages"] if stage["blocks"]]
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="sub">{escape(summary["folder"])} · {plain(summary["shards"])} shards</p>',
        _unfinished(summary["stages"]),
        *(f'<div class="verdict look">{escape(line)}</div>' for line in warnings(summary)),
        _tiles(summary, stages),
        f"<h2>What is left behind each block</h2>{_funnel(stages)}",
        f"<h2>What was removed, and why</h2>{_reasons(stages)}{_counts(stages)}",
        f'<h2>Lengths and time</h2><div class="grid">{_lengths(stages)}{_time(stages)}</div>',
        f"<h2>Languages</h2>{_languages(stages)}",
        f"<h2>Token files and mixture</h2>{_packed(summary['packed'], summary['mixture'])}"
        if summary["packed"]
        else "",
        "<h2>Texts</h2><p class='sub'>Drawn by a hash of each document's name, whatever the number of tasks.</p>",
        *map(_samples, stages),
        f"<h2>Made with</h2>{_made_with(summary)}",
    ]
    return document(
        title,
        "".join(parts),
        "Written by python -m recipes.curate; the same in numbers: report.json. Tokens of what was removed are "
        "estimated, from the bytes per token of the texts shown.",
        STYLE,
    )


def _unfinished(stages: list[Summary]) -> str:
    left = [f"{one['name']} ({one['done']} of {one['tasks']} tasks)" for one in stages if one["done"] < one["tasks"]]
    if not left:
        return '<div class="verdict fine"><b class="well">Every stage is done.</b></div>'
    return f'<div class="verdict look"><b>Not done</b><ul><li>{escape(", ".join(left))}</li></ul></div>'


# --- numbers ---


def _read(stages: list[Summary]) -> tuple[int, int]:
    """Documents and bytes that the readers gave."""
    readers = [block for block in stages[0]["blocks"] if block["reads"]] if stages else []
    return sum(block["documents"] for block in readers), sum(block["bytes"] for block in readers)


def in_bytes(size: float) -> str:
    """Bytes, whose thousand millions are no B: 1670000000 is 1.67GB."""
    return f"{count(size)}B".replace("BB", "GB")


def _passing(stages: list[Summary]) -> Iterator[tuple[Summary, Summary]]:
    """Blocks that documents pass, with their stages: no readers of shards, no writers, none that make files alone."""
    for stage in stages:
        for number, block in enumerate(stage["blocks"]):
            first = number == 0 and stage is not stages[0]
            if not block["reads"] and not first and block["documents_in"] and not block["name"].startswith("Shards"):
                yield stage, block


def _tiles(summary: Summary, stages: list[Summary]) -> str:
    documents, size = _read(stages)
    final = [block for _, block in _passing(stages)][-1:] or [{"documents": 0, "bytes": 0}]
    tokens = sum(split["tokens"] for one in summary["packed"].values() for split in one.values())
    seconds, peak = sum(one["cpu_seconds"] for one in stages), max((one["peak_bytes"] for one in stages), default=0)
    kept = final[0]["documents"]
    rate = f"{documents / seconds:,.0f} pages per core and second" if seconds else ""
    tiles = [
        ("pages read", f"{documents:,}", f"{in_bytes(size)} of HTML or text"),
        ("documents left", f"{kept:,}", f"{percent(kept / documents if documents else None)} of the pages"),
        ("text left", in_bytes(final[0]["bytes"]), ""),
        ("tokens", count(tokens) if tokens else NONE, f"in {len(summary['packed'])} sources"),
        ("time of cores", duration(seconds), f"{rate}; {in_bytes(peak)} of memory at most"),
    ]
    cells = (
        f'<div class="tile"><span>{name}</span><b>{value}</b><small>{escape(note)}</small></div>'
        for name, value, note in tiles
    )
    return f'<div class="tiles">{"".join(cells)}</div>'


def _funnel(stages: list[Summary]) -> str:
    documents, _ = _read(stages)
    rows = [
        [
            Cell(stage["name"]),
            Cell(block["name"]),
            Cell(bar(block["documents"] / documents if documents else 0), markup=True),
            Cell(f"{block['documents']:,}", right=True),
            Cell(f"{block['documents_in'] - block['documents']:,}", right=True),
            Cell(percent(1 - block["documents"] / block["documents_in"]), right=True),
            Cell(in_bytes(block["bytes"]), right=True),
            Cell(_tokens(block), right=True),
            Cell(f"{block['documents_in'] / block['seconds']:,.0f}" if block["seconds"] else NONE, right=True),
        ]
        for stage, block in _passing(stages)
    ]
    names = ["stage", "block", "of all pages", "left", "removed", "of those in", "bytes left", "tokens removed, about"]
    return table([*names, "documents/s"], rows, wide=True)


def _tokens(block: Summary) -> str:
    """Of all that a block removed, documents and lines."""
    known = [one["tokens_estimated"] for one in (*block["removed"].values(), block["shortened"] or {}) if one]
    return count(sum(filter(None, known))) if any(known) else NONE


def _reasons(stages: list[Summary]) -> str:
    found = [
        (removed["documents"], stage["name"], block["name"], reason, removed)
        for stage in stages
        for block in stage["blocks"]
        for reason, removed in (*block["removed"].items(), (LINES, block["shortened"]))
        if removed and removed["documents"]
    ]
    if not found:
        return '<div class="card"><p class="none">Nothing was removed.</p></div>'
    found.sort(key=lambda one: (-one[0], one[1:4]))
    most = found[0][0] or 1
    rows = [
        [
            Cell(f"{stage}: {block}"),
            Cell(reason),
            Cell(bar(number / most, "gone"), markup=True),
            Cell(f"{number:,}", right=True),
            Cell(NONE if removed["bytes"] is None else in_bytes(removed["bytes"]), right=True),
            Cell(count(removed["tokens_estimated"]) if removed["tokens_estimated"] else NONE, right=True),
        ]
        for number, stage, block, reason, removed in found[:ROWS]
    ]
    more = f'<p class="sub">{len(found) - ROWS} more reasons stand in report.json.</p>' if len(found) > ROWS else ""
    return table(["block", "reason", "", "documents", "bytes", "tokens, about"], rows, wide=True) + more


def _counts(stages: list[Summary]) -> str:
    rows = [
        [Cell(f"{stage['name']}: {block['name']}"), Cell(name), Cell(f"{value:,g}", right=True)]
        for stage in stages
        for block in stage["blocks"]
        for name, value in block["counts"].items()
    ]
    if not rows:
        return ""
    inner = table(["block", "what", "number"], rows, wide=True)
    return f"<details><summary>{len(rows)} numbers that blocks counted</summary>{inner}</details>"


def _lengths(stages: list[Summary]) -> str:
    passing = [block for _, block in _passing(stages)]
    shown = [passing[0], passing[-1]] if len(passing) > 1 else passing
    series = [
        Series(f"behind {block['name']}", _histogram(block["lengths"]), colour=number, style="step")
        for number, block in enumerate(shown)
    ]
    return draw(Chart("Documents by length", series, "doublings of a byte", unit="count", x_name="log2", zero=True))


def _histogram(lengths: dict[str, int]) -> list[Point]:
    known = {int(key): value for key, value in lengths.items()}
    ends = range(min(known, default=0), max(known, default=0) + 2)
    return [Point(float(length), float(known.get(length, 0))) for length in ends]


def _time(stages: list[Summary]) -> str:
    blocks = sorted(
        ((block["seconds"], stage["name"], block["name"]) for stage in stages for block in stage["blocks"]),
        reverse=True,
    )[:14]
    most = max((seconds for seconds, _, _ in blocks), default=0) or 1
    rows = [
        [Cell(f"{stage}: {name}"), Cell(bar(seconds / most), markup=True), Cell(duration(seconds), right=True)]
        for seconds, stage, name in blocks
    ]
    return table(["time of cores", "", ""], rows)


def _languages(stages: list[Summary]) -> str:
    passing = [block for _, block in _passing(stages)]
    if not passing:
        return ""
    first, last = passing[0]["languages"], passing[-1]["languages"]
    rows = [
        [
            Cell(language or "unknown"),
            Cell(bar(last.get(language, 0) / (max(first.values()) or 1)), markup=True),
            Cell(f"{number:,}", right=True),
            Cell(f"{last.get(language, 0):,}", right=True),
            Cell(percent(last.get(language, 0) / number), right=True),
        ]
        for language, number in sorted(first.items(), key=lambda one: (-one[1], one[0]))[:ROWS]
    ]
    return table(["language", "", f"behind {passing[0]['name']}", "at the end", "kept"], rows, wide=True)


def _packed(packed: dict[str, Summary], mixture: Summary | None) -> str:
    total = sum(one["train"]["tokens"] for one in packed.values()) or 1
    mixed = mixture["sources"] if mixture else {}
    rows = [
        [
            Cell(name),
            Cell(bar(one["train"]["tokens"] / total), markup=True),
            Cell(f"{one['train']['tokens']:,}", right=True),
            Cell(f"{one['train']['documents']:,}", right=True),
            Cell(f"{one['heldout']['tokens']:,}", right=True),
            Cell(percent(one["train"]["tokens"] / total), right=True),
            *([Cell(percent(mixed[name]["weight"]), right=True)] if mixed else []),
            *([Cell(f"{mixed[name]['epochs']:.2f}", right=True, changed=mixed[name]["repeated"])] if mixed else []),
        ]
        for name, one in packed.items()
    ]
    names = ["source", "", "tokens", "documents", "tokens held out", "share"]
    told = table([*names, *(["weight", "epochs"] if mixed else [])], rows, wide=True)
    return told + "".join(f'<p class="sub">{escape(line)}</p>' for line in (mixture["said"] if mixture else []))


# --- texts ---


def _samples(stage: Summary) -> str:
    kept, removed, shortened = (stage["samples"][name] for name in ("kept", "removed", "shortened"))
    if not kept and not any(removed.values()) and not shortened:
        return ""
    parts = [f"<h3>{escape(stage['name'])}: {escape(stage['what'])}</h3>"]
    for block, reasons in removed.items():
        for reason, texts in reasons.items():
            parts.append(_folded(f"removed by {block}: {reason}", texts, "removed"))
    parts += [_folded(f"removed by {block}: {LINES}", texts, "removed") for block, texts in shortened.items()]
    if kept:
        parts.append(_folded("left at its end", kept, "kept"))
    return f'<div class="card wide">{"".join(parts)}</div>'


def _folded(title: str, texts: Sequence[Summary], kind: str) -> str:
    inner = "".join(
        f'<div class="text {kind}"><small>{escape(_whence(text))}</small><pre>{escape(clean(text["text"]))}</pre></div>'
        for text in texts
    )
    return f"<details><summary>{escape(title)}</summary>{inner}</details>"


def _whence(text: Summary) -> str:
    known = [text["url"] or text["id"], text["source"], text["language"], f"{text['chars']:,} characters"]
    return " · ".join(str(one) for one in known if one)


def clean(text: str) -> str:
    """Without characters that HTML has no place for."""
    return "".join(c if c in "\n\t" or c >= " " else "\N{REPLACEMENT CHARACTER}" for c in text)


def _made_with(summary: Summary) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    commits = "code: " + (" → ".join(summary["commits"]) or "not in a checkout")
    rows = [[Cell(key), Cell(plain(value))] for key, value in summary["keys"].items()]
    order = " → ".join(stage["name"] for stage in summary["stages"])
    return (
        f'<p class="sub">{escape(order)}</p><p class="sub">{escape(versions)}</p><p class="sub">{escape(commits)}</p>'
        f"<details><summary>{len(rows)} keys</summary>{table(['key', 'value'], rows, wide=True)}</details>"
    )
