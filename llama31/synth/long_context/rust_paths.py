"""The files that Rust's `use` names: crate::, self::, super:: and their groups, by the layout of modules in files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from posixpath import basename, dirname, join

_USE = re.compile(r"\buse\s+((?:crate|self|super)\s*::[^;]{0,4000});")
DEEPEST = 20  # groups in groups


def used(path: str, text: str, files: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    """(place in the text, file) of each file that a `use` names; text without comments. Each file once a statement."""
    for match in _USE.finditer(text):
        targets = (_file(path, one, files) for one in expanded(re.sub(r"\s+", " ", match[1])))
        for target in dict.fromkeys(target for target in targets if target and target != path):
            yield match.start(), target


def expanded(tree: str, depth: int = 0) -> list[list[str]]:
    """Paths of a use tree as their segments: `a::{b, c::d as e}` is [[a, b], [a, c, d]].

    Raises ValueError where groups are nested beyond reason.
    """
    if depth > DEEPEST:
        raise ValueError("use: groups nested too deep")
    head, brace, inside = tree.partition("{")
    first = [part.strip() for part in head.partition(" as ")[0].split("::") if part.strip()]
    if not brace:
        return [first]
    inner, _, _ = inside.rpartition("}")
    return [first + rest for part in _parted(inner) if part for rest in expanded(part, depth + 1)]


def _parted(text: str) -> list[str]:
    """A group at its commas, groups inside whole."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "{") - (letter == "}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _file(path: str, segments: list[str], files: Mapping[str, str]) -> str | None:
    """The file of the innermost module that a path names."""
    folder: str | None = _inside(path)
    if segments[0] == "crate":
        folder, segments = _root(path, files), segments[1:]
    else:
        while segments and segments[0] in ("self", "super"):
            folder = dirname(folder) if segments[0] == "super" and folder else folder
            segments = segments[1:]
    if folder is None:
        return None
    found = None
    for segment in segments:
        found_here = next((one for one in _places(folder, segment) if one in files), None)
        if found_here is None:
            break
        found, folder = found_here, join(folder, segment)
    return found


def _places(folder: str, segment: str) -> tuple[str, str]:
    return join(folder, f"{segment}.rs"), join(folder, segment, "mod.rs")


def _inside(path: str) -> str:
    """The folder in which the modules of a file lie."""
    return dirname(path) if basename(path) in ("mod.rs", "lib.rs", "main.rs") else path.removesuffix(".rs")


def _root(path: str, files: Mapping[str, str]) -> str | None:
    """The folder of the crate: the nearest above with lib.rs or main.rs."""
    folder = dirname(path)
    while True:
        if join(folder, "lib.rs") in files or join(folder, "main.rs") in files:
            return folder
        if not folder:
            return None
        folder = dirname(folder)
