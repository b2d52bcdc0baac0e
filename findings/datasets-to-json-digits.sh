#!/bin/bash
# datasets 5.2.0, pandas 3.1.1 (28 November 2026): `Dataset.to_json` keeps ten decimals of a float, counted from the point:
# 1/3 loses six digits, 2.5e-11 inside a dictionary becomes 0.0, and infinity becomes null. `to_parquet` keeps
# all. Log-probabilities and rewards written so differ from those that were computed; small probabilities are gone.
# Expected: the shortest text that reads back as the same number, as `json.dumps` writes.
# Remedy: to_json(double_precision=15), which pandas allows at most and which still rounds, or json.dumps line by line.
set -euo pipefail
at=$(mktemp -d)
trap 'rm -rf "$at"' EXIT
"${PYTHON:-python3}" -m venv "$at/venv"
"$at/venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0 pyarrow==26.0.1 pandas==3.1.1
cd "$at"
HF_HOME="$at/cache" HF_HUB_OFFLINE=1 "$at/venv/bin/python" - <<'P'
import json

import datasets
import pandas

datasets.disable_progress_bars()
record = {"logprob": -1 / 3, "more": {"probability": 2.5e-11}, "reward": float("inf")}
table = datasets.Dataset.from_list([record])
table.to_json("x.jsonl")
table.to_json("y.jsonl", double_precision=15)
table.to_parquet("x.parquet")
lines = [json.loads(open(name).read()) for name in ("x.jsonl", "y.jsonl")]
parquet = datasets.load_dataset("parquet", data_files="x.parquet", split="train")[0]
print("datasets", datasets.__version__, "pandas", pandas.__version__)
print("computed", record, "to_parquet", parquet, "to_json", lines[0], "double_precision=15", lines[1], sep="\n")
assert parquet == record and lines[1]["more"] == record["more"], "the behaviour has changed"
assert lines[0] == {"logprob": -0.3333333333, "more": {"probability": 0.0}, "reward": None}, "the behaviour has changed"
P
