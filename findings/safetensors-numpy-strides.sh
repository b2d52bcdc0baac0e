#!/bin/bash
# safetensors 0.8.0, numpy 2.4.6 (28 November 2026): `safetensors.numpy.save_file` writes the memory of an array, not its
# elements. A transposed weight comes back with its shape and other values; nothing is raised or warned of, and a
# big-endian array, for which a conversion is needed as well, comes back right.
# Expected: the array, or an error, as `safetensors.torch.save_file` raises for tensors that are not contiguous.
# Remedy: np.ascontiguousarray(x) before saving.
set -euo pipefail
at=$(mktemp -d)
trap 'rm -rf "$at"' EXIT
"${PYTHON:-python3}" -m venv "$at/venv"
"$at/venv/bin/pip" install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6
cd "$at"
"$at/venv/bin/python" - <<'P'
import numpy as np
import safetensors
from safetensors.numpy import load_file, save_file

weight = np.arange(6, dtype=np.float32).reshape(2, 3)
saved = {"transposed": weight.T, "copied": np.ascontiguousarray(weight.T), "big-endian": weight.astype(">f4")}
save_file(saved, "x.safetensors")
loaded = load_file("x.safetensors")
print("safetensors", safetensors.__version__, "numpy", np.__version__)
for name, array in saved.items():
    equal = bool(np.array_equal(array, loaded[name]))
    print(f"{name}: saved {array.tolist()}, loaded {loaded[name].tolist()}, equal {equal}")
    assert equal == (name != "transposed"), "the behaviour has changed"
P
