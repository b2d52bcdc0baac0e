#!/bin/bash
# faust-cchardet 3.2.0 (29 November 2026): of a Russian sentence in windows-1251 it says BIG5 with confidence 1.0, the highest
# that there is; for most sentences it says WINDOWS-1251 with 0.8. The third byte cannot stand in BIG5 at all, so whoever
# decodes with errors="replace", as readers of web archives do, keeps Chinese characters for Russian.
# Expected: a charset in which the bytes are impossible is not named, or not without doubt.
# Remedy: decode a sample strictly before a detected charset is believed; no threshold on confidence finds this.
set -euo pipefail
at=$(mktemp -d)
trap 'rm -rf "$at"' EXIT
"${PYTHON:-python3}" -m venv "$at/venv"
"$at/venv/bin/pip" install --quiet --disable-pip-version-check faust-cchardet==3.2.0
cd "$at"
"$at/venv/bin/python" - <<'P'
from importlib.metadata import version

import cchardet


def told(text: str) -> tuple[str, float, bool]:
    data = text.encode("windows-1251")
    found = cchardet.detect(data)
    try:
        data.decode(found["encoding"])
        possible = True
    except UnicodeDecodeError:
        possible = False
    return found["encoding"], round(found["confidence"], 2), possible


print("faust-cchardet", version("faust-cchardet"))
wrong = told("Для этого понадобится колориметр или спектрометр.")  # "This takes a colorimeter or a spectrometer."
usual = told("Сегодня в нашем городе идёт дождь, и дети остались дома.")  # "It rains in our town, and the children stay in."
for found in (wrong, usual):
    print("{}, confidence {}, can be decoded: {}".format(*found))
assert wrong == ("BIG5", 1.0, False) and usual[0] == "WINDOWS-1251" and usual[2], "the behaviour has changed"
P
