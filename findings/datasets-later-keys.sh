#!/bin/bash
# datasets 5.2.0, pyarrow 26.0.1 (28 November 2026): what makes a table of Python dictionaries takes the columns of the
# first one. A key that the second record brings is dropped without a word by `Dataset.from_list`, `from_generator` and
# `map`; the same records as a JSONL file keep it, and so does a key inside a nested dictionary.
# Expected: one behaviour, the union of keys with None, as the JSON reader has it. Dialogs and preferences have such keys
# (weight, tools, strength), often not in their first record.
# Remedy: give `features=`, or let every record have every key.
set -euo pipefail
at=$(mktemp -d)
trap 'rm -rf "$at"' EXIT
"${PYTHON:-python3}" -m venv "$at/venv"
"$at/venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0 pyarrow==26.0.1
cd "$at"
HF_HOME="$at/cache" HF_HUB_OFFLINE=1 "$at/venv/bin/python" - <<'P'
import json

import datasets
import pyarrow

datasets.disable_progress_bars()
records = [{"prompt": "p"}, {"prompt": "q", "weight": 0.5}]
with open("records.jsonl", "w") as file:
    file.writelines(json.dumps(record) + "\n" for record in records)
numbers = datasets.Dataset.from_dict({"i": [0, 1]})
made = {
    "from_list": datasets.Dataset.from_list(records),
    "from_generator": datasets.Dataset.from_generator(lambda: iter(records)),
    "map": numbers.map(lambda row: records[row["i"]], remove_columns="i"),
    "load_dataset json": datasets.load_dataset("json", data_files="records.jsonl", split="train"),
    "from_list, nested": datasets.Dataset.from_list([{"record": record} for record in records]),
}
print("datasets", datasets.__version__, "pyarrow", pyarrow.__version__)
for name, table in made.items():
    kept = "weight" in str(table.features)
    print(f"{name}: {table[1]}, weight kept: {kept}")
    assert kept == (name in ("load_dataset json", "from_list, nested")), "the behaviour has changed"
P
