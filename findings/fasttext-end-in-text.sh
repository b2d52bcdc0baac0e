#!/bin/bash
# fasttext-numpy2-wheel 0.9.2 (29 November 2026): a `</s>` within a line, as pages with strike-through or `<s>` markup have it,
# ends the line for training and prediction alike; what follows is not read. And `__label__x` anywhere in a training text
# becomes one more label of it.
# Expected: the text is text; only `\n` is refused, as the documentation says.
# Remedy: put a space into `</s>` and `__label__` before training and before asking.
set -euo pipefail
at=$(mktemp -d)
trap 'rm -rf "$at"' EXIT
"${PYTHON:-python3}" -m venv "$at/venv"
"$at/venv/bin/pip" install --quiet --disable-pip-version-check fasttext-numpy2-wheel==0.9.2 numpy==2.4.6
cd "$at"
"$at/venv/bin/python" - <<'P'
from importlib.metadata import version

import fasttext

lines = ["__label__bread flour water salt", "__label__sea tide ship sail"] * 200
with open("train.txt", "w") as file:
    file.write("\n".join([*lines, "__label__sea a tag named __label__html stands here"]) + "\n")
model = fasttext.train_supervised("train.txt", thread=12, epoch=20, seed=1, verbose=0)
print("fasttext-numpy2-wheel", version("fasttext-numpy2-wheel"))
seen = {text: model.predict(text)[0][0] for text in ("salt tide ship sail", "salt </s> tide ship sail")}
print(f"labels: {sorted(model.labels)}")
for text, label in seen.items():
    print(f"{text!r}: {label}")
assert sorted(model.labels) == ["__label__bread", "__label__html", "__label__sea"], "the behaviour has changed"
assert list(seen.values()) == ["__label__sea", "__label__bread"], "the behaviour has changed"
P
