"""Pages per second and core, and formulas kept: this project's extraction beside resiliparse's own main content.

    python -m benchmarks.curate_extract FOLDER...     folders of HTML, as Debian's documentation packages unpacked

Both read each page in turn, in one process, so that what else the machine does falls on both. Formulas are those of
Sphinx: alternative texts of images, and MathJax's source; one counts as kept as often as it stands in the text.
"""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.html import HTMLTree

from llama31.curate.extraction import page

PAGES = 300  # evenly drawn from each folder


def _bare(text: str) -> str:
    return re.sub(r"\s+", "", text)


def formulas(html: str) -> Counter[str]:
    """Formulas of a page by how often each stands in it, without white space."""
    if 'class="math' not in html:
        return Counter()
    body: Any = HTMLTree.parse(html).body
    found = body.query_selector_all("img.math, span.math, div.math").values()
    texts = (_bare(one.getattr("alt") or "" if one.tag == "img" else one.text) for one in found)
    return Counter(text for text in texts if text)


def kept(wanted: Counter[str], text: str) -> int:
    """How many of them stand in a text."""
    bare = _bare(text)
    return sum(min(count, bare.count(formula)) for formula, count in wanted.items())


def measure(pages: Iterable[str]) -> dict[str, float]:
    """Seconds of both, characters of both, formulas wanted and kept by both."""
    result: Counter[str] = Counter()
    for html in pages:
        start = time.process_time()
        plain = extract_plain_text(html, main_content=True, alt_texts=True)
        middle = time.process_time()
        ours = page.extract(html).text
        end = time.process_time()
        wanted = formulas(html)
        one = {"pages": 1, "plain_s": middle - start, "ours_s": end - middle, "wanted": wanted.total()}
        one |= {"plain_characters": len(plain), "ours_characters": len(ours)}
        result.update(one | {"plain_kept": kept(wanted, plain), "ours_kept": kept(wanted, ours)})
    return dict(result)


def line(name: str, found: dict[str, float]) -> str:
    """A row of the table."""
    plain, ours = found["pages"] / found["plain_s"], found["pages"] / found["ours_s"]
    share = [f"{found[key] / found['wanted']:.2%}" if found["wanted"] else "-" for key in ("plain_kept", "ours_kept")]
    return f"{name:<28}{found['pages']:>6.0f}{plain:>9.0f}{ours:>9.0f}{ours / plain:>7.2f}{share[0]:>10}{share[1]:>10}"


def main(folders: list[str]) -> None:
    """Print a row for each folder and one for all of them."""
    print(f"{'':<28}{'pages':>6}{'plain/s':>9}{'ours/s':>9}{'ratio':>7}{'formulas':>10}{'ours':>10}")
    everything: dict[str, float] = {}
    for folder in folders:
        files = sorted(path for path in Path(folder).rglob("*.htm*") if path.is_file())
        drawn = files[:: max(1, len(files) // PAGES)]
        found = measure(path.read_bytes().decode("utf-8", "replace") for path in drawn)
        print(line(Path(folder).name, found), flush=True)
        for key, value in found.items():
            everything[key] = everything.get(key, 0.0) + value * len(files) / len(drawn)
    print(line("all, by their pages", everything))


if __name__ == "__main__":
    main(sys.argv[1:])
