"""What numba compiles: kept where it can be, and right all the same where it cannot."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from llama31.curate import kernels

HASHES = st.lists(st.integers(0, 6), max_size=40).map(
    lambda values: np.array([xxhash.xxh64_intdigest(bytes([value])) for value in values], np.uint64)
)


@settings(max_examples=100, deadline=None)
@given(HASHES, st.integers(1, 4))
def test_the_most_frequent_n_gram_is_the_first_of_several(hashes: kernels.Hashes, n: int) -> None:
    grams = [tuple(hashes[i : i + n].tolist()) for i in range(len(hashes) - n + 1)]
    ((gram, times),) = Counter(grams).most_common(1) or [((), 0)]
    assert kernels.most_frequent(hashes, n) == (grams.index(gram) if grams else 0, times)


@settings(max_examples=100, deadline=None)
@given(HASHES, st.integers(1, 4))
def test_words_in_n_grams_that_stood_before(hashes: kernels.Hashes, n: int) -> None:
    grams = [tuple(hashes[i : i + n].tolist()) for i in range(len(hashes) - n + 1)]
    expected = [False] * len(hashes)
    for at, gram in enumerate(grams):
        if gram in grams[:at]:
            expected[at : at + n] = [True] * n
    assert kernels.repeated_words(hashes, n).tolist() == expected


def test_neighbouring_hashes_are_apart() -> None:
    """Words that differ in their first character have hashes that differ by little."""
    hashes = np.arange(1 << 12, dtype=np.uint64)
    assert kernels.most_frequent(hashes, 1) == (0, 1) and not kernels.repeated_words(hashes, 1).any()


def test_without_a_folder_to_keep_it_a_function_is_compiled_all_the_same() -> None:
    scope: dict[str, object] = {}
    exec("def twice(number):\n    return 2 * number", scope)  # of no file: numba finds no place beside it
    assert kernels.compiled(scope["twice"])(21) == 42  # type: ignore[type-var, operator]


def twice_of(folder: Path, source: str = "2 * number") -> Any:
    """A function as a process that begins has it, of a file in a folder."""
    path, scope = folder / "twice.py", {"__name__": __name__}
    path.write_text(f"def twice(number):\n    return {source}\n")
    exec(compile(path.read_text(), str(path), "exec"), scope)
    return kernels.compiled(scope["twice"])  # type: ignore[type-var]


def test_a_file_that_is_not_what_the_index_says_is_compiled_anew(tmp_path: Path) -> None:
    """As of two processes that began at once, of a machine that broke down, of numba itself."""
    twice = twice_of(tmp_path)
    assert (twice(1), twice(1.5)) == (2, 3.0)
    (index,), files = tmp_path.glob("__pycache__/*.nbi"), sorted(tmp_path.glob("__pycache__/*.nbc"))
    assert len(files) == 2
    whole = {path: path.read_bytes() for path in (index, *files)}
    damages = [(files[0], whole[files[1]])]
    damages += [(path, whole[path][:length]) for path in whole for length in (0, 30, len(whole[path]) - 30)]
    middle = len(whole[files[1]]) // 2
    damages.append((files[1], whole[files[1]][:middle] + bytes(512) + whole[files[1]][middle + 512 :]))
    for path, content in damages:
        path.write_bytes(content)
        for _ in range(2):  # the second takes what the first one compiled
            twice = twice_of(tmp_path)
            assert (twice(1), twice(1.5)) == (2, 3.0), path
        assert sum(twice.stats.cache_hits.values()) == 2 and not twice.stats.cache_misses, path


def test_on_a_full_disk_nothing_is_kept_and_no_older_code_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    assert twice_of(tmp_path)(2) == 4
    with monkeypatch.context() as patch:
        patch.setattr("numba.core.caching.IndexDataCacheFile._save_data", full)  # the index, written before, fits
        assert twice_of(tmp_path, "3 * number")(2) == 6
    assert twice_of(tmp_path, "3 * number")(2) == 6


def test_a_process_takes_what_another_compiled(tmp_path: Path) -> None:
    code = """if True:
        import numpy
        from llama31.curate.kernels import grams
        value, stats = grams(numpy.ones(9, numpy.uint64), 2)[0], grams.stats
        print(value, sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))
    """
    environment = {"NUMBA_CACHE_DIR": str(tmp_path), "PATH": "", "HOME": str(tmp_path)}
    said = [
        subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=120
        ).stdout.split()
        for _ in range(2)
    ]
    value = str((int(kernels.MULTIPLIER) + 1) % (1 << 64))
    assert said == [[value, "0", "1"], [value, "1", "0"]]
