"""Cases with known answers, planted in real pages and through all stages: each arrives, or is counted by reason."""

from __future__ import annotations

import html
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from datatrove.data import Document

from llama31.curate.heuristics.c4 import LineFilter
from llama31.curate.heuristics.quality import QualityFilter
from llama31.curate.heuristics.repetition import RepetitionFilter
from llama31.curate.outcome import page
from llama31.curate.passage.shards import ShardReader
from tests.curate import debian, multilingual
from tests.curate.test_curate_archives import curated

SEVEN = "Whoever reads this in seven documents will not find it in any of them."
SIX = "Whoever reads this in six documents finds it in all of these six."
CODE = "def area(width, height):\n    # both in metres\n    if width < 0:\n        return None\n\n    return width * 2"
FORMULAS = [r"\int_0^1 x^{2}\,dx = \frac{1}{3}", r"a*b*c \neq \sum_{i<n} a_i", r"e^{i\pi} + 1 = 0"]
PERSONAL = {
    "jane.roe@wikimedia.org": "email", "+49 30 901820": "phone", "193.99.144.80": "ip",
    "2a00:1450:4001:80b::200e": "ip", "4539 1488 0343 6467": "card", "DE89 3704 0044 0532 0130 00": "iban",
}  # fmt: skip
SAID = [f" Reach {name} by {one}." for name, one in zip(("her", "him", "them", "us", "me", "you"), PERSONAL)]
LOG = [
    f"2024-03-{1 + i % 28:02} 10:{i % 60:02}:17,{i:03} ERROR worker-{i % 7}: link to 10.0.0.{i} failed after {i} s."
    for i in range(12)
]
WORDS = ["frobnicating", "quuxes", "wibbled"]  # whatever somebody lists


def written(lines: list[str], further: str = "") -> str:
    """A page with these paragraphs."""
    paragraphs = "".join(f"<p>{html.escape(line)}</p>" for line in lines)
    return f"<html lang=en><body><main><h1>A page of help</h1>{paragraphs}{further}</main></body></html>"


def planted(texts: list[str]) -> dict[str, str]:
    """Pages by what was planted in them; texts are taken, each once."""
    lines = [[line for line in text.split("\n") if line.strip()] for text in texts]
    take = iter(lines)
    made = {f"seven{i}": written([*next(take), SEVEN]) for i in range(9)}  # two more, in case a rule takes some
    made |= {f"six{i}": written([*next(take), SIX]) for i in range(6)}
    near = next(take)
    made |= {"near old": written(near), "near new": written([*near[:-1], near[-1] + " So it was written."])}
    same = [next(take), next(take)]
    made |= {"url old": written(same[0]), "url new": written(same[1])}
    blocks = f"<pre>{html.escape(CODE)}</pre>" * 3
    made["code"] = written(next(take), blocks)
    scripts = "".join(f'<p>So <script type="math/tex">{one}</script> holds.</p>' for one in FORMULAS)
    made["formulas"] = written(next(take), scripts)
    made["personal"] = written([line + said for line, said in zip(next(take), (*SAID, *[""] * 999))])
    made["log"] = written([*next(take), *next(take), *LOG, *next(take)])
    made["adult"] = written([f"{line} And {WORDS[i % 3]}." for i, line in enumerate(next(take))])
    made["adult list"] = written([*next(take), *(f"{word} {i}" for i in range(20) for word in WORDS)])
    made["mojibake"] = written([" ".join(next(take)).encode("utf-16-le").decode("utf-16-be", "replace")])
    made |= {
        "empty": "<html><body><p> </p></body></html>",
        "nothing": " ",
        "short": written(["This page is short."]),
    }
    return made


def is_prose(text: str) -> bool:
    """Whether the rules leave a page with room for what is planted."""
    document = Document(text, "", metadata={"language": "en"})
    kept = all(block.filter(document) is True for block in (RepetitionFilter(), QualityFilter(), LineFilter()))
    return kept and document.text.count("\n") >= 8


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder and the report: planted pages among real ones, as records, and some files with broken bytes."""
    target = tmp_path_factory.mktemp("planted")
    texts = [text for text in multilingual.english(400).values() if 120 <= len(text.split()) < 600 and is_prose(text)]
    pages = planted(texts) | {f"real {i}": written(text.split("\n")) for i, text in enumerate(texts[40:100])}
    rows = [
        {"id": name, "text": page, "url": f"http://e.org/{name.removesuffix(' old').removesuffix(' new')}"
         if name.startswith("url") else f"http://e.org/{name}", "date": "2020-01-01" if "old" in name else "2024-01-01"}
        for name, page in pages.items()
    ]  # fmt: skip
    (target / "pages").mkdir()
    (target / "pages/a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (target / "files").mkdir()
    (target / "code").mkdir()
    row = {"text": f"# Copyright\n\n{CODE}\n\n# The end\n", "id": "c", "class": "politics", "format": "pdf"}
    (target / "code/a.jsonl").write_text(json.dumps(row))
    german = debian.files("libreoffice-help-de", limit=40)[7]
    shutil.copy2(german, target / "files/whole.html")
    page = german.read_bytes()
    (target / "files/invalid.html").write_bytes(page.replace("können".encode(), b"k\xc3nnen"))
    (target / "words.txt").write_text("\n".join(WORDS))
    further = ["sources.a.format=jsonl", "sources.a.content=html", f"sources.b.input={target}/files"]
    further += ["sources.b.format=html", "report.samples=100", "divergence.min_tokens=5000"]
    further += [f"sources.c.input={target}/code", "sources.c.format=jsonl", "sources.c.kind=code"]
    further += [f"adult.lists={{en: {target}/words.txt}}"]
    return target / "made", curated(target, *further)


def documents(folder: Path, stage: str) -> list[Document]:
    return [*ShardReader(sorted(folder.glob(f"{stage}/documents/*"))).run(None)]


def texts(folder: Path, stage: str) -> dict[str, str]:
    return {one.id: one.text for one in documents(folder, stage)}


def removed(content: dict[str, Any]) -> dict[str, set[str]]:
    """Ids that samples show, by reason."""
    found: dict[str, set[str]] = {}
    for stage in content["stages"]:
        for reasons in stage["samples"]["removed"].values():
            for reason, shown in reasons.items():
                found.setdefault(reason, set()).update(one["id"] for one in shown)
    return found


def test_each_goes_for_its_reason_and_the_others_stay(made: tuple[Path, dict[str, Any]]) -> None:
    folder, content = made
    last, gone = texts(folder, "lines"), removed(content)
    for name, reason in {
        "near old": "near duplicate",
        "url old": "same URL",
        "adult": "adult_words",
        "adult list": "adult_words",
    }.items():
        assert name in gone[reason] and name not in last, (name, gone)
    assert {"near new", "url new", "code", "formulas", "personal", "log"} <= last.keys()
    for name in ("mojibake", "short"):
        assert name not in last and any(name in ids for ids in gone.values())
    assert sum(name.startswith("real") for name in last) > 45
    left_out = [one["removed"]["empty"]["documents"] for one in content["stages"][0]["blocks"] if one["removed"]]
    assert sum(left_out) == 2
    for stage in content["stages"]:
        for block in stage["blocks"]:
            lost = sum(one["documents"] for one in block["removed"].values())
            assert block["reads"] or not block["documents_in"] or block["documents_in"] - block["documents"] == lost


def test_what_is_within_a_page_stays_or_goes(made: tuple[Path, dict[str, Any]]) -> None:
    last = texts(made[0], "lines")
    assert sum(name.startswith("seven") for name in last) >= 7
    assert not [name for name, text in last.items() if SEVEN in text]
    assert sum(SIX in text for text in last.values()) == 6
    assert last["code"].count(CODE) == 3 and last["c"] == f"# Copyright\n\n{CODE}\n\n# The end\n"
    assert all(one in last["formulas"] for one in FORMULAS)
    assert not [one for one in PERSONAL if one in last["personal"]]
    for said, (value, kind) in zip(SAID, PERSONAL.items(), strict=True):
        assert said.replace(value, f"<{kind}>") in last["personal"]
    assert [line in last["log"] for line in LOG] == [True] + [False] * 11


def test_lines_that_went_out_of_pages_are_counted_and_shown(made: tuple[Path, dict[str, Any]]) -> None:
    shown: dict[str, str] = {}
    for stage in made[1]["stages"]:
        for name, drawn in stage["samples"]["shortened"].items():
            shown[name] = "\n".join(one["text"] for one in drawn)
        for block in stage["blocks"]:
            if (cut := block["shortened"]) is not None:
                whole = sum(one["bytes"] for one in block["removed"].values())
                assert block["bytes_in"] - block["bytes"] == whole + cut["bytes"] and cut["documents"] >= 2
    assert shown.keys() == {"Repeated content", "C4 lines", "Remove lines"}
    assert shown["Remove lines"].count(SEVEN) >= 7 and SIX not in shown["Remove lines"]
    assert all(line in shown["Repeated content"] for line in LOG[1:]) and LOG[0] not in shown["Repeated content"]
    assert html.escape(SEVEN) in page.html(made[1]) and "lines of documents that stay" in page.html(made[1])


def test_each_source_has_languages_and_lengths_of_its_own(made: tuple[Path, dict[str, Any]]) -> None:
    readers = [block for block in made[1]["stages"][0]["blocks"] if block["reads"]]
    assert [block["documents"] for block in readers][1:] == [2, 1]
    for block in readers:
        assert block["documents"] == sum(block["languages"].values()) == sum(block["lengths"].values())


def test_columns_of_others_are_theirs(made: tuple[Path, dict[str, Any]]) -> None:
    (one,) = [one for one in documents(made[0], "lines") if one.id == "c"]
    assert one.metadata["class"] == "code" and one.metadata["format"] == "text"
    assert (one.metadata["given_class"], one.metadata["given_format"]) == ("politics", "pdf")


def test_a_broken_byte_costs_one_character(made: tuple[Path, dict[str, Any]]) -> None:
    whole, invalid = (texts(made[0], "extract")[f"b/{name}.html"] for name in ("whole", "invalid"))
    assert "können" in whole and "ö" in invalid.replace("können", "") and invalid == whole.replace("kön", "k\ufffdn")
    (reader,) = [one for one in made[1]["stages"][0]["blocks"] if one["name"].endswith(", b")]
    assert reader["counts"]["pages with characters that could not be read"] == 1
