"""Odd archives and texts through all stages: cut short, a thousandfold in size, other bytes; all of it is counted."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from llama31 import config
from llama31.command import entry
from llama31.curate.outcome import page, summary
from llama31.curate.running import folder, local, stages
from tests.curate.test_reading import record

PROSE = b" ".join(b"A sentence about the matter number %d, which is not like the others." % i for i in range(40))
PAGE = b"<html lang=en><body><main><p>%s</p></main></body></html>"


def curated(folder_: Path, *further: str) -> dict[str, Any]:
    """The report on what lies in `folder_`/pages."""
    words = ["name=x", f"folder={folder_}/made", f"sources.a.input={folder_}/pages", "sources.a.format=warc", "tasks=3"]
    run = entry.compose(
        config.Curate, "curate", [*words, "workers=1", "tokens.enabled=false", "domains.bundled=false", *further]
    )
    known = stages.stages(run, folder.opened(run).tasks)
    local.execute(run, known, known)
    content = summary.summary(Path(run.folder), "x", known, run.report.samples)
    json.dumps(content, allow_nan=False)
    assert "<h1>Curation of x</h1>" in page.html(content)
    return content


def reading(content: dict[str, Any]) -> tuple[int, dict[str, int]]:
    """Pages read, and the others by reason."""
    blocks = [block for block in content["stages"][0]["blocks"] if block["reads"]]
    reasons = {reason: one["documents"] for block in blocks for reason, one in block["removed"].items()}
    return sum(block["documents"] for block in blocks), reasons


def test_archives_that_end_early_and_pages_that_expand_a_thousandfold(tmp_path: Path) -> None:
    pages = tmp_path / "pages"
    pages.mkdir()
    whole = b"".join(gzip.compress(record(i, PAGE % PROSE)) for i in range(6))
    (pages / "whole.warc.gz").write_bytes(whole)
    (pages / "cut.warc.gz").write_bytes(whole[:-200])
    bomb = gzip.compress(b"<html><body>" + b"a " * 15_000_000, 9)
    assert len(bomb) * 500 < 30_000_000
    (pages / "bomb.warc.gz").write_bytes(gzip.compress(record(9, bomb, b"Content-Encoding: gzip\r\n")))
    (pages / "noise.warc.gz").write_bytes(bytes(range(256)) * 40)
    (pages / "nothing.warc.gz").write_bytes(b"")
    content = curated(tmp_path)
    read, reasons = reading(content)
    assert read == 11 and reasons.pop("too long") == 1
    assert summary.said(content).startswith("11 documents read, ") and "top_3_gram 6" in summary.said(content)
    assert sum(reasons.values()) >= 3  # the last page of the one that is cut, and two files that are none


def test_a_thousand_millions_of_bytes_are_no_billion() -> None:
    assert [page.in_bytes(size) for size in (0, 999, 1.67e9, 2e12)] == ["0B", "999B", "1.67GB", "2TB"]


def test_texts_that_are_hardly_any(tmp_path: Path) -> None:
    (tmp_path / "pages").mkdir()
    texts = [
        "",
        "\0\0\0",
        "a" * 3_000_000,
        "\ud800 half",
        "<|end_of_text|>",
        " ".join(f"word{i}" for i in range(200_000)),
    ]
    rows = [json.dumps({"text": text, "url": f"http://e.org/{i}"}) for i, text in enumerate(texts)]
    (tmp_path / "pages/a.jsonl").write_text("\n".join([*rows, "{no json", "[1, 2]", '{"text": NaN}']))
    content = curated(tmp_path, "sources.a.format=jsonl")
    read, reasons = reading(content)
    assert read + sum(reasons.values()) == len(texts) + 3
    for stage in content["stages"]:
        for block in stage["blocks"]:
            gone = sum(one["documents"] for one in block["removed"].values())
            assert block["reads"] or not block["documents_in"] or block["documents_in"] - block["documents"] == gone


def test_what_comes_from_pages_cannot_become_markup(tmp_path: Path) -> None:
    (tmp_path / "pages").mkdir()
    text = "<script>alert(1)</script> & \x07 " + "and so on. " * 40
    row = {"text": text, "url": 'http://e.org/"><img src=x onerror=alert(1)>', "id": "<b>"}
    (tmp_path / "pages/a.jsonl").write_text(json.dumps(row))
    html = page.html(curated(tmp_path, "sources.a.format=jsonl"))
    assert "&lt;script&gt;alert(1)" in html and "<script>alert" not in html and "<img src=x" not in html
    assert "\x07" not in html


def test_the_same_texts_are_shown_whatever_the_number_of_tasks(tmp_path: Path) -> None:
    shown = []
    for tasks in (1, 3):
        here = tmp_path / str(tasks)
        (here / "pages").mkdir(parents=True)
        for number in range(9):
            rows = [{"text": f"{number} {i} " + PROSE.decode(), "id": f"{number}-{i}"} for i in range(5)]
            (here / f"pages/{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        content = curated(here, "sources.a.format=jsonl", f"tasks={tasks}", "report.samples=3")
        shown.append([text["id"] for stage in content["stages"] for text in stage["samples"]["kept"]])
    assert shown[0] == shown[1] and len(shown[0]) >= 3
