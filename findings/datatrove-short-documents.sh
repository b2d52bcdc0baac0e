#!/bin/bash
# datatrove 0.10.1, xxhash 3.8.1 (29 November 2026): MinHash deduplication gives a document of fewer words than its n-gram has
# no signature, and so keeps all copies of it: of a short document that stands a hundred times a hundred remain. Nothing in
# the statistics tells of it. One word more, and ninety-nine are removed.
# Expected: what is identical is a duplicate, however short.
# Remedy: exact deduplication besides, or signatures of all the words where they are fewer than an n-gram.
set -euo pipefail
at=$(mktemp -d)
trap 'rm -rf "$at"' EXIT
"${PYTHON:-python3}" -m venv "$at/venv"
"$at/venv/bin/pip" install --quiet --disable-pip-version-check datatrove==0.10.1 xxhash==3.8.1 tokenizers==0.23.3 regex orjson numpy fasteners tldextract
cd "$at"
LOGURU_LEVEL=ERROR TQDM_DISABLE=1 "$at/venv/bin/python" - <<'P'
from importlib.metadata import version

from datatrove.data import Document
from datatrove.pipeline.dedup import minhash
from datatrove.utils.word_tokenizers import WordTokenizer


class Words(WordTokenizer):
    def word_tokenize(self, text):
        return text.split()

    def sent_tokenize(self, text):
        return [text]

    def span_tokenize(self, text):
        return [(0, len(text))]


minhash.load_word_tokenizer = lambda language: Words()  # its own needs spaCy, and counts these words alike


def remain(text: str, folder: str) -> int:
    documents = [Document(text=text, id=str(i)) for i in range(100)]
    config = minhash.MinhashConfig()
    minhash.MinhashDedupSignature(f"{folder}/signatures", config=config, language="en").run(iter(documents))
    for bucket in range(config.num_buckets):
        minhash.MinhashDedupBuckets(f"{folder}/signatures", f"{folder}/buckets", config=config).run(
            rank=bucket, world_size=config.num_buckets
        )
    minhash.MinhashDedupCluster(f"{folder}/buckets", f"{folder}/removed", config=config).run()
    return len(list(minhash.MinhashDedupFilter(f"{folder}/removed").run(iter(documents))))


print("datatrove", version("datatrove"), "xxhash", version("xxhash"))
seen = {text: remain(text, f"f{i}") for i, text in enumerate(("page not found here", "this page was not found"))}
for text, count in seen.items():
    print(f"{text!r}: of 100 copies {count} remain")
assert list(seen.values()) == [100, 1], "the behaviour has changed"
P
