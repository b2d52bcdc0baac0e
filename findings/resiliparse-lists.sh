#!/bin/bash
# resiliparse 2.0.1 (29 November 2026): `extract_plain_text(main_content=True)`, the fast extraction of web corpora, leaves
# out every `ul` that stands at most three levels below `body`. A plain static page loses all of its bullet points; the
# same list as `ol`, or some levels deeper, is kept.
# Expected: lists of navigation go, lists in the text stay, wherever they stand.
# Remedy: before extraction, rename such lists or put them some levels deeper, if they are no links alone.
set -euo pipefail
at=$(mktemp -d)
trap 'rm -rf "$at"' EXIT
"${PYTHON:-python3}" -m venv "$at/venv"
"$at/venv/bin/pip" install --quiet --disable-pip-version-check resiliparse==2.0.1 fastwarc==2.0.1
cd "$at"
"$at/venv/bin/python" - <<'P'
from importlib.metadata import version

from resiliparse.extract.html2text import extract_plain_text

PROSE = "<p>Bread needs four things, which every kitchen has at hand on a quiet day.</p>"


def kept(levels: int, tag: str) -> bool:
    items = f"<{tag}><li>five hundred grams of strong flour</li><li>a little more than half as much water</li></{tag}>"
    page = f"<html><body>{'<div>' * levels}<h1>Bread</h1>{PROSE}{items}{PROSE}{'</div>' * levels}</body></html>"
    text = extract_plain_text(page, main_content=True)
    assert "four things" in text
    return "strong flour" in text


print("resiliparse", version("resiliparse"))
seen = {tag: [kept(levels, tag) for levels in range(6)] for tag in ("ul", "ol")}
for tag, levels in seen.items():
    print(f"{tag} kept below body and 0 to 5 levels of div: {levels}")
assert seen == {"ul": [False, False, False, True, True, True], "ol": [True] * 6}, "the behaviour has changed"
P
