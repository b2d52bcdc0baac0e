"""What one process of a node works out for all of them: with 16,384 processes a file is read 2,048 times."""

from __future__ import annotations

import hashlib
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from llama31.runs.files import whole

PATIENCE_S = 120.0  # a process that waited in vain works it out itself


def once_a_node[Result](name: str, make: Callable[[], Result]) -> Result:
    """The result of `make` on a node's first process, or what it raised there, on all of them that ask by `name`.

    Handed on through the folder in which torchrun keeps the errors of a node's processes: a new one for each start.
    Without torchrun, or with one process a node, this is a plain call. Results and errors have to be picklable;
    otherwise every process makes its own.
    """
    folder = _folder()
    if folder is None:
        return make()
    path = folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.pickle"
    if os.environ["LOCAL_RANK"] == "0":
        return _made(path, make)
    result = _awaited(path)
    if result is None:
        return make()
    value, error = result
    if error is not None:
        raise error
    return cast(Result, value)


def _folder() -> Path | None:
    """Where the processes of this node, and of this start, find each other's files."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not file or os.environ.get("LOCAL_WORLD_SIZE", "1") == "1" or "LOCAL_RANK" not in os.environ:
        return None
    folder = Path(file).parents[1]  # .../attempt_0/LOCAL_RANK/error.json
    return folder if folder.is_dir() else None


def _made[Result](path: Path, make: Callable[[], Result]) -> Result:
    try:
        value = make()
    except Exception as error:
        _hand_on(path, (None, error))
        raise
    _hand_on(path, (value, None))
    return value


def _hand_on(path: Path, result: tuple[Any, Exception | None]) -> None:
    try:
        packed = pickle.dumps(result)
        if str(pickle.loads(packed)[1]) != str(result[1]):  # errors with arguments of their own may come back as others
            packed = pickle.dumps(None)
    except Exception:  # noqa: BLE001 - the others work it out themselves
        packed = pickle.dumps(None)
    try:
        with whole(path) as draft:
            draft.write_bytes(packed)
    except OSError:  # a full disk: the others lose patience
        return


def _awaited(path: Path) -> Any:
    end_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < end_s:
        try:
            return pickle.loads(path.read_bytes())
        except FileNotFoundError:
            time.sleep(0.01)
    return None
