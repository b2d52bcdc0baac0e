"""Where people's homes are: no sandbox shows one, nor a folder that holds one."""

from __future__ import annotations

import functools
import os
import pwd
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from llama31.sandbox.bubblewrap import NOBODY, PATH

FIRST_PERSON = 1000  # user numbers below are the system's own (login.defs(5))
HOMES = Path("/home")  # also of people whom no list here names


@functools.cache
def homes() -> frozenset[Path]:
    """Those of root, of people and of who asks, links followed."""
    people = [one for one in pwd.getpwall() if one.pw_uid == 0 or FIRST_PERSON <= one.pw_uid != NOBODY]
    named = [*(one.pw_dir for one in people), os.path.expanduser("~")]
    return frozenset(Path(os.path.realpath(name)) for name in named if name.strip("/"))


def shown_by(path: Path) -> Path | None:
    """A home that a folder is, or holds; None where it is or holds none."""
    real = Path(os.path.realpath(path))
    if real in (Path("/"), HOMES) or real.parent == HOMES:
        return real
    return next((home for home in sorted(homes()) if home.is_relative_to(real)), None)


def hidden(tools: Iterable[str], folders: Sequence[str] = ()) -> Path | None:
    """The program behind the first of these names that lies in a home, where programs inside do not find it.

    folders: with tools, before those of the sandbox's PATH; what stands beside them in their parent is shown.
    """
    shown = ["/usr", *(os.path.realpath(Path(folder).parent) for folder in folders)]
    for tool in tools:
        found = shutil.which(tool, path=":".join([*folders, PATH])) or shutil.which(tool)
        real = Path(os.path.realpath(found)) if found else Path("/")
        if not any(real.is_relative_to(folder) for folder in shown) and any(
            real.is_relative_to(home) for home in (*homes(), HOMES)
        ):
            return Path(found or "")
    return None
