"""Arrays that one process of a run makes and all others map from files.

Each file holds named arrays, and the key of all that they depend on: a file of another key, or one that is not whole,
is not used. Files appear whole under their names. The process that makes them removes those that it has not held for a
while; that comes long after the last process has let go of them, since steps keep processes together.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama31.config import RunError
from llama31.runs import files
from llama31.tokens.mapped import mapped

Arrays = dict[str, NDArray[Any]]

VERSION = 1
KEPT_STEPS = 100  # processes stand at most a few steps apart, those included that are read ahead
_LOOKED = 10  # steps from one look through the folder to the next
_ALIGNED = 64  # bytes
NAME = re.compile(r"[a-z]+-[0-9a-f]{20}")


class Plans:
    """The folder of a run's plans. One process `makes` them; the others wait for a file, at most `wait_s` seconds."""

    def __init__(self, folder: Path, makes: bool, wait_s: float) -> None:
        self.makes = makes
        self._folder, self._wait_s = folder, wait_s
        self._needed: dict[str, int] = {}  # the last step at which it was, by file
        self.interrupted = threading.Event()  # while it is set nobody waits

    def arrays(self, kind: str, depends: object, make: Callable[[], Arrays]) -> tuple[str, Arrays]:
        """(name of the file, its arrays as maps); `depends` is all that they depend on, as JSON.

        Raises RunError where nobody makes them, OSError where they cannot be written.
        """
        key = hashlib.sha256(json.dumps([VERSION, kind, depends]).encode()).hexdigest()
        name = f"{kind}-{key[:20]}"
        path = self._folder / name
        found = read(path, key)
        if found is None and self.makes:
            self._folder.mkdir(parents=True, exist_ok=True)
            write(path, key, make())
            found = read(path, key)
            assert found is not None, "what was just written"
        return name, found if found is not None else self._waited(path, key)

    def needed(self, step: int, names: Iterable[str]) -> None:
        """At `step` these files are held: remove plans that have not been for a hundred steps."""
        self._needed.update(dict.fromkeys(names, step))
        if step % _LOOKED or not self._folder.is_dir():
            return
        for path in self._folder.iterdir():  # what NFS calls .nfs... is a removed file that somebody still maps
            if NAME.fullmatch(path.name) and self._needed.setdefault(path.name, step) < step - KEPT_STEPS:
                with contextlib.suppress(OSError):  # space alone is at stake
                    path.unlink()
                del self._needed[path.name]

    def _waited(self, path: Path, key: str) -> Arrays:
        """What the process that makes it is making."""
        begun, pause = time.monotonic(), 0.02
        while (found := read(path, key)) is None:
            if self.interrupted.is_set():
                raise RunError(f"{path}: the wait for this plan of rows was given up")
            if time.monotonic() - begun > self._wait_s:
                raise RunError(
                    f"{path}: the first process has not written this plan of rows within cluster.timeout_s="
                    f"{self._wait_s:g}; see whether it lives, and whether all nodes see one folder; or give more"
                )
            time.sleep(pause)
            pause = min(2 * pause, 1.0)
        return found


def write(path: Path, key: str, arrays: Arrays) -> None:
    """Write `arrays` as a file that is there whole or not at all. Raises OSError."""
    table, at = [], 0
    for name, array in arrays.items():
        table.append([name, array.dtype.str, list(array.shape), at])
        at += -(-array.nbytes // _ALIGNED) * _ALIGNED
    head = json.dumps({"key": key, "arrays": table, "bytes": at}).encode()
    head += b" " * (-(len(head) + 8) % _ALIGNED)
    with files.whole(path) as draft, draft.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for array in arrays.values():
            np.ascontiguousarray(array).tofile(file)
            file.write(bytes(-array.nbytes % _ALIGNED))


def read(path: Path, key: str) -> Arrays | None:
    """The arrays of a file, mapped; None where there is none, or another one, or a part of one."""
    try:
        content = mapped(path, np.dtype(np.uint8))
        begin = 8 + int(content[:8].view("<u8")[0])
        head = json.loads(content[8:begin].tobytes())
        if head["key"] != key or content.size != begin + head["bytes"]:
            return None
    except (OSError, ValueError, IndexError, KeyError, TypeError):
        return None
    found: Arrays = {}
    for name, dtype, shape, at in head["arrays"]:
        size = int(np.dtype(dtype).itemsize * np.prod(shape))
        found[name] = content[begin + at : begin + at + size].view(dtype).reshape(shape)
    return found
