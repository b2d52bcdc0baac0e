"""The record of a run, and its views.

Each attempt of a run has a file of its own, `attempts/0000/metrics.jsonl`: one JSON object per line, each with `kind`,
`step` and `tokens`, written by rank 0 alone. So an attempt that was cut off from the network and writes on spoils
nothing; `read` puts the attempts together. TensorBoard, Weights & Biases, the progress bar and the loss curve are views
of the record, and nothing reads a log to learn a number. No torch here: sizes measured on a GPU are passed in.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from llama31 import config
from llama31.runs import files
from llama31.runs.views import Line, Progress, TensorBoard, Unavailable, View, Wandb

logger = logging.getLogger(__name__)

RECORD = "metrics.jsonl"
KINDS = ("start", "train", "validation", "checkpoint", "ranks", "event", "rollback")


class Metrics:
    """Hands every line to its views; without views it is the null object that all ranks but the first hold."""

    def __init__(self, views: Iterable[View] = ()) -> None:
        self._views = list(views)

    def write(self, kind: str, *, step: int, tokens: int, **values: Any) -> None:
        """Record one line.

        `step` counts the optimizer steps done and `tokens` what they saw, both since the start of the run. `values` are
        numbers, strings, or dictionaries of them (losses by source). Raises ValueError for a kind that readers of the
        record do not know.
        """
        if kind not in KINDS:
            raise ValueError(f"kind={kind!r} is no line of {RECORD}; use one of {', '.join(KINDS)}")
        line = {"kind": kind, "step": step, "tokens": tokens, "time_s": round(time.time(), 3), **values}
        for view in list(self._views):
            self._spared(view, functools.partial(view.write, line))

    def close(self) -> None:
        """Close every view, the record last."""
        for view in reversed(list(self._views)):
            self._spared(view, view.close)

    def _spared(self, view: View, action: Callable[[], None]) -> None:
        """A view that fails is left out from then on, with a line: only the record itself may end a run."""
        try:
            action()
        except Exception as error:
            if isinstance(view, _Record):
                raise
            self._views.remove(view)
            logger.warning("%s shows no more of this run: %s: %s", type(view).__name__, type(error).__name__, error)

    def __enter__(self) -> Metrics:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_run(
    folder: str | Path,
    log: config.Log,
    *,
    name: str,
    total_tokens: int,
    attempt: int = 0,
    resumed_step: int = 0,
    resumed_tokens: int = 0,
    main: bool = True,
) -> Metrics:
    """The metrics of one attempt of a run, to be closed by the caller.

    `main` is true on rank 0; elsewhere nothing is written or shown. `resumed_step` and `resumed_tokens` are those of
    the checkpoint that the run continues from, 0 for a fresh run. Raises ValueError when `log` asks for a package that
    is not installed.
    """
    if not main:
        return Metrics()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # The views that can refuse come before the record is touched.
    views: list[View] = []
    if log.tensorboard:
        views.append(TensorBoard(folder / "tensorboard", resumed_step))
    if log.wandb:
        try:
            views.append(Wandb(folder, name, resumed_step > 0))
        except Unavailable as error:
            logger.warning("log.wandb=true: Weights & Biases shows nothing of this run: %s", error)
    if log.progress:
        views.append(Progress(total_tokens, resumed_tokens))
    metrics = Metrics([_Record(folder / "attempts" / f"{attempt:04d}"), *views])
    metrics.write("start", step=resumed_step, tokens=resumed_tokens)
    return metrics


# --- the record ---


@dataclass(frozen=True)
class AttemptRecord:
    """One start of the trainer, as its folder tells it."""

    number: int
    folder: Path
    info: Line  # when, where, with what it began (attempt.json); empty where it got no further than its number
    lines: list[Line]  # all that it recorded
    end: Line | None  # its last word (end.json); None where it died, or still runs


def attempts(run_folder: str | Path) -> list[AttemptRecord]:
    """All attempts of a run, in order. ValueError where one has a damaged record."""
    folders = (path for path in Path(run_folder).glob("attempts/*") if path.name.isdigit() and path.is_dir())
    return [
        AttemptRecord(
            number=int(folder.name),
            folder=folder,
            info=files.read_object(folder / "attempt.json") or {},
            lines=read_file(folder / RECORD) if (folder / RECORD).exists() else [],
            end=files.read_object(folder / "end.json"),
        )
        for folder in sorted(folders, key=lambda path: int(path.name))
    ]


def read(run_folder: str | Path) -> list[Line]:
    """The lines of a run in which every step stands once.

    An attempt begins at the step of its checkpoint, and a rollback goes back to one: what stood beyond it is left out,
    whoever wrote it and whenever, apart from events. Raises ValueError where there is no attempt, or a damaged record.
    """
    there = attempts(run_folder)
    if not there:
        raise ValueError(f"{run_folder}: no attempt of a run is recorded there; give a folder that training wrote to")
    return merged(line for attempt in there for line in attempt.lines)


def merged(lines: Iterable[Line]) -> list[Line]:
    """What is left of lines in the order of attempts: see `read`."""
    kept: list[Line] = []
    reach = math.inf  # the earliest step that anything later went on from
    for line in reversed(list(lines)):
        if line["kind"] == "event" or line["step"] <= reach:
            kept.append(line)
        if line["kind"] in ("start", "rollback"):
            # counts for all before it: a checkpoint is recorded when it is published, some steps after its own
            reach = min(reach, line["step"])
    return kept[::-1]


def read_file(path: str | Path) -> list[Line]:
    """All lines of the record of one attempt.

    A last line without its newline is what a killed process left, and is left out. Any other line that is not a JSON
    object with a kind raises ValueError with its number: the record is damaged, and a curve drawn from the rest would
    lie.
    """
    path = Path(path)
    text = path.read_text(encoding="utf-8", errors="replace")
    whole, _, _torn = text.rpartition("\n")
    return [_parse(line, path, number) for number, line in enumerate(whole.split("\n"), start=1) if line]


def _parse(text: str, path: Path, number: int) -> Line:
    try:
        line = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{number} is not JSON ({error}); remove that line to read the rest") from error
    if not isinstance(line, dict) or not {"kind", "step", "tokens"} <= line.keys():
        raise ValueError(f"{path}:{number} lacks kind, step or tokens; remove that line to read the rest")
    return line


class _Record:
    """`metrics.jsonl` of an attempt, flushed line by line so that a killed run has lost nothing that it measured."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file: TextIO = (folder / RECORD).open("a", encoding="utf-8")

    def write(self, line: Line) -> None:
        self._file.write(_dump(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _dump(line: Line) -> str:
    """JSON of one line; NaN and infinities, which JSON lacks, become strings."""
    return json.dumps(_finite(line), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
