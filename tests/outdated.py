"""What the package index has beyond the pins: `make outdated`, or `python -m tests.outdated`.

pip is asked twice: for what is newer and runs on this Python, and, of the packages that are pinned for their own sake,
for the newest release of all. Where the two differ, the release's Requires-Python holds it back. Nothing is installed.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.conftest import ROOT

FILES = ("requirements.txt", "requirements-curate.txt", "requirements-files.txt", "requirements-dev.txt")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")


def pins(text: str, direct: bool = False) -> dict[str, str]:
    """Name to version of a requirements file; with `direct` only those above "What those need in turn"."""
    if direct:
        text = re.split(r"^# What those need in turn", text, flags=re.MULTILINE)[0]
    result = re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", text, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in result}


def compared(pinned: Mapping[str, str], newer: Mapping[str, str], newest: Mapping[str, str]) -> list[str]:
    """A line for each pin that is behind: `newer` runs on this Python, `newest` is the index's last release."""
    lines = []
    for name, version in pinned.items():
        best = max([version, newer.get(name, version)], key=Version)
        beyond = newest.get(name, best)
        held = f"; {beyond} is held back by its Requires-Python" if Version(beyond) > Version(best) else ""
        if best != version or held:
            lines.append(f"{name} {version} -> {best}{held}" if best != version else f"{name} {version}{held}")
    return lines


def _newer() -> dict[str, str]:
    asked = subprocess.run([*PIP, "list", "--outdated", "--format=json"], check=True, capture_output=True, text=True)
    return {canonicalize_name(line["name"]): line["latest_version"] for line in json.loads(asked.stdout)}


def _newest(name: str) -> str | None:
    words = [*PIP, "index", "versions", "--ignore-requires-python", name]
    asked = subprocess.run(words, check=False, capture_output=True, text=True)
    result = re.match(r"\S+ \((\S+)\)", asked.stdout)
    return result[1] if result else None


def main() -> None:
    """Print the pins that are behind; docs/versions.md has the reasons of those that stay."""
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in FILES]
    every = {name: version for text in texts for name, version in pins(text).items()}
    direct = [name for text in texts for name in pins(text, direct=True)]
    with ThreadPoolExecutor(4) as pool:
        newest = {name: result for name, result in zip(direct, pool.map(_newest, direct), strict=True) if result}
    lines = compared(every, _newer(), newest)
    print("\n".join(lines) if lines else "every pin is the newest release that this Python runs")


if __name__ == "__main__":
    main()
