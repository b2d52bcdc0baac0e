"""Real text that nobody made for us: packages of Debian, fetched once into a cache and unpacked, never installed."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

CACHE = Path.home() / ".cache/llama31/debian"
LIMIT_S = 300


def folder(package: str) -> Path:
    """Where the files of a package lie, as `usr/share/doc/...`; skips, with apt's reason, where none can be fetched.

    Of one package several processes may ask at once. A folder appears whole or not at all; it is shared: do not write
    into it. Versions differ between Debian's releases, so tests count what they find there instead of stating it.
    """
    place = CACHE / package
    if place.is_dir():
        return place
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            pytest.skip(f"{package} cannot be fetched: no {program} here")
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / f"{package}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.is_dir():
            _fetch(package, place)
    return place


def files(package: str, pattern: str = "*.html", limit: int | None = None) -> list[Path]:
    """Regular files of a package whose names match, sorted by path; with `limit` evenly drawn from all of them."""
    result = sorted(path for path in folder(package).rglob(pattern) if path.is_file() and not path.is_symlink())
    return result if limit is None or len(result) <= limit else [result[i * len(result) // limit] for i in range(limit)]


def _fetch(package: str, place: Path) -> None:
    with tempfile.TemporaryDirectory(dir=CACHE, prefix=f".{package}.") as name:
        work = Path(name)
        _run(package, ["apt-get", "download", package], work)
        (archive,) = work.glob("*.deb")
        _run(package, ["dpkg-deb", "-x", str(archive), "unpacked"], work)
        os.rename(work / "unpacked", place)


def _run(package: str, words: list[str], cwd: Path) -> None:
    # As root apt fetches as another user, who may not write here.
    words = [words[0], "-o", "APT::Sandbox::User=root", *words[1:]] if words[0] == "apt-get" else words
    try:
        asked = subprocess.run(words, cwd=cwd, check=False, capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{package} cannot be fetched: {words[0]} takes longer than {LIMIT_S} s")
    if asked.returncode != 0:
        said = re.sub(r"\s+", " ", asked.stderr).strip()
        pytest.skip(f"{package} cannot be fetched: {said[-300:]} (apt-get update may help)")
