#!/bin/bash
# zstandard 0.25.0 (28 November 2026): of a file of two frames, which `cat a.zst b.zst` and parallel compressors make,
# `zstandard.decompress` and `ZstdDecompressor.read_to_iter` give the first frame and end without an error;
# `zstandard.open`, `stream_reader` and `copy_stream` give both. Which part of a corpus is read depends on the call.
# Expected: all frames, as gzip, bz2 and lzma of the standard library read all members, or an error about the rest.
# Remedy: zstandard.open, or a new decompressobj for what `unused_data` holds.
set -euo pipefail
at=$(mktemp -d)
trap 'rm -rf "$at"' EXIT
"${PYTHON:-python3}" -m venv "$at/venv"
"$at/venv/bin/pip" install --quiet --disable-pip-version-check zstandard==0.25.0
cd "$at"
"$at/venv/bin/python" - <<'P'
import gzip
import io

import zstandard

data = b"".join(zstandard.compress(line) for line in (b"first\n", b"second\n"))
copied = io.BytesIO()
zstandard.ZstdDecompressor().copy_stream(io.BytesIO(data), copied)
read = {
    "decompress": zstandard.decompress(data),
    "read_to_iter": b"".join(zstandard.ZstdDecompressor().read_to_iter(data)),
    "open": zstandard.open(io.BytesIO(data)).read(),
    "stream_reader": zstandard.ZstdDecompressor().stream_reader(data).read(),
    "copy_stream": copied.getvalue(),
    "gzip": gzip.decompress(gzip.compress(b"first\n") + gzip.compress(b"second\n")),
}
print("zstandard", zstandard.__version__)
for name, found in read.items():
    print(f"{name}: {found!r}")
    whole = name not in ("decompress", "read_to_iter")
    assert found == (b"first\nsecond\n" if whole else b"first\n"), "the behaviour has changed"
P
