"""What the benchmark of the whole pipeline plants, and how it counts. Nothing here is timed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import curate_pipeline
from benchmarks.curate_pipeline import Deduplicated
from llama31 import config
from recipes import benchmark

TEXT = " ".join(f"word{chr(97 + i % 26)}{chr(97 + i // 26 % 26)}" for i in range(600))


@pytest.mark.parametrize("similarity", [0.95, 0.9, 0.8])
def test_a_changed_page_is_as_similar_as_wanted(similarity: float) -> None:
    page = f"<head><title>{TEXT}</title></head><body class='wordy words'><p>{TEXT}</p><script>{TEXT}</script></body>"
    changed = curate_pipeline.changed(page, similarity)
    assert changed.replace(text_of(changed), TEXT) == page, "something else than the text was changed"
    before, after = curate_pipeline.shingled(TEXT), curate_pipeline.shingled(text_of(changed))
    assert len(before & after) / len(before | after) == pytest.approx(similarity, abs=0.01)


def text_of(page: str) -> str:
    return page.partition("<p>")[2].partition("</p>")[0]


def test_copies_are_planted_by_turns(tmp_path: Path) -> None:
    for i in range(24):
        (tmp_path / f"{i}.html").write_text(f"<html><p>{i} {TEXT}</p></html>")
    count, kinds = curate_pipeline.write_pages([str(tmp_path)], tmp_path / "work")
    few, lines = ((tmp_path / "work" / name / "pages/pages.jsonl").read_text().splitlines() for name in ("few", "all"))
    rows = {row["id"]: row for row in map(json.loads, lines)}
    assert count == len(rows) and few == lines[::10]
    assert list(kinds.values()) == ["exact", "0.95", "0.9", "0.8", "exact", "0.95"]
    assert len(rows) == 30 and kinds.keys() < rows.keys()
    same = [rows[name]["text"] == rows[name.removesuffix("-copy")]["text"] for name in kinds]
    assert same == [True, False, False, False, True, False]
    assert len({row["url"] for row in rows.values()}) == 30


def test_recall_is_of_copies_that_came_and_precision_by_exact_similarity() -> None:
    came = {
        "a": TEXT,
        "a-copy": TEXT,
        "b": "other words " * 9,
        "b-copy": "yet others " * 9,
        "c": TEXT[: len(TEXT) // 2],
    }
    kinds = {"a-copy": "exact", "b-copy": "0.9", "d-copy": "0.8"}
    found = Deduplicated(came, {"a", "c"}, tokens=0)
    assert curate_pipeline.recall(found, kinds) == {"exact": (1, 1), "0.95": (0, 0), "0.9": (0, 1), "0.8": (0, 0)}
    assert curate_pipeline.precision(found) == 0.5


def test_a_rate_is_without_what_a_run_of_few_takes() -> None:
    assert curate_pipeline.rate(100, {"few": {"cpu_s": 3.0}, "all": {"cpu_s": 12.0}}) == 10


def test_pages_are_asked_for() -> None:
    assert benchmark.check(config.Benchmark(parts=["curate"]))[0].startswith("pages=[]: curate has nothing to read")
    assert benchmark.check(config.Benchmark(parts=["curate"], pages=["here"])) == []
