"""A run folder as the report reads it, finished or still being written. What is missing is left out, not guessed."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llama31.runs import metrics
from llama31.runs.metrics import AttemptRecord
from llama31.runs.views import Line

Facts = dict[str, Any]


@dataclass(frozen=True)
class RecordedRun:
    """One run folder. `lines` are the merged record, in which every step stands once."""

    folder: Path
    label: str
    attempts: Sequence[AttemptRecord]
    lines: Sequence[Line]
    config_text: str
    config: Facts
    decisions: Sequence[Facts]
    unread: Sequence[str]  # files that are there and could not be read, each with the reason
    now_s: float

    def of(self, kind: str) -> list[Line]:
        """Merged lines of one kind."""
        return [line for line in self.lines if line["kind"] == kind]

    @cached_property
    def train(self) -> list[Line]:
        """Steps that stand."""
        return self.of("train")

    @cached_property
    def kept(self) -> frozenset[int]:
        """Identities of the lines that stand, to tell them from those of abandoned work."""
        return frozenset(map(id, self.lines))

    @cached_property
    def last(self) -> Line:
        """The newest step that stands, or else where the newest attempt began."""
        return self.train[-1] if self.train else self.lines[-1] if self.lines else {"step": 0, "tokens": 0}

    @property
    def total_tokens(self) -> float | None:
        """Tokens of the whole schedule, where the config says so."""
        return number(self.setting("schedule.total_tokens"))

    def setting(self, key: str) -> Any:
        """A value of the config by its dotted key; None where it is not there."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value


def load(folders: Sequence[str | Path], now_s: float | None = None) -> list[RecordedRun]:
    """The runs of `folders`, each with a label of its own. `now_s` is the present, by which silence is judged.

    Raises ValueError (key `runs`) with all folders that cannot be reported on.
    """
    if not folders:
        raise ValueError("runs=[]: names no run; give at least one run folder, such as 'runs=[runs/demo]'")
    paths, runs, wrong = [Path(folder) for folder in folders], [], []
    labels = _labels(paths)
    for number, (path, label) in enumerate(zip(paths, labels)):
        try:
            if path.resolve() in [other.resolve() for other in paths[:number]]:
                raise ValueError("is named twice; name each run once")
            runs.append(_load(path, label, time.time() if now_s is None else now_s))
        except (ValueError, OSError) as error:
            wrong.append(f"runs={path}: {error}")
    if wrong:
        raise ValueError("\n".join(wrong))
    return runs


def _labels(paths: Sequence[Path]) -> list[str]:
    """Names of the folders, or more of their paths where those are the same."""
    names = [path.resolve().name for path in paths]
    return [str(path) if names.count(name) > 1 else name for path, name in zip(paths, names)]


def _load(folder: Path, label: str, now_s: float) -> RecordedRun:
    if not folder.is_dir():
        raise ValueError("there is no such folder; give the folder of a run, such as runs/demo")
    attempts = metrics.attempts(folder)
    if not attempts:
        raise ValueError(_without_attempt(folder))
    unread: list[str] = []
    text, config = _config(folder / "config.yaml", unread)
    decisions = list(_json_lines(folder / "decisions.jsonl", unread))
    lines = metrics.merged(line for attempt in attempts for line in attempt.lines)
    return RecordedRun(folder, label, attempts, lines, text, config, decisions, unread, now_s)


def _without_attempt(folder: Path) -> str:
    if (folder / metrics.RECORD).is_file():
        return (
            f"there is a {metrics.RECORD} but no attempts/: an older version wrote it; move it to "
            f"{folder}/attempts/0000/{metrics.RECORD} to report on it"
        )
    there = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
    return f"holds no attempt (attempts/0000), but {there}; give the folder of a run that has been started"


def _config(path: Path, unread: list[str]) -> tuple[str, Facts]:
    import yaml

    text = _text(path, unread)
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        unread.append(f"{path.name}: {error}")
        return text, {}
    return text, content if isinstance(content, dict) else {}


def _text(path: Path, unread: list[str]) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        unread.append(f"{path.name}: {error}")
        return ""


def _json_lines(path: Path, unread: list[str]) -> Iterator[Facts]:
    whole, _, _torn = _text(path, unread).rpartition("\n")
    for index, text in enumerate(whole.splitlines(), start=1):
        try:
            content = json.loads(text)
        except ValueError as error:
            unread.append(f"{path.name}:{index}: {error}")
            continue
        yield content if isinstance(content, dict) else {"decision": content}


def stalled(attempt: AttemptRecord) -> dict[str, str]:
    """What the guard's watch left of ranks that made no progress: text by file name, without its suffix."""
    files = sorted((attempt.folder / "stalled").glob("*.txt"))
    return {path.stem: path.read_text(encoding="utf-8", errors="replace") for path in files}


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """A config, or another nesting of dictionaries, by dotted keys."""
    if not isinstance(value, Mapping) or not value:
        return {name: value} if name else {}
    leaves: dict[str, Any] = {}
    for key, inner in value.items():
        leaves |= flat(inner, f"{name}.{key}" if name else str(key))
    return leaves


def number(value: Any) -> float | None:
    """A finite number, also where YAML reads it as text (1e12); None for all else: the record spells NaN as text."""
    if type(value) is float:  # nearly all of them, of millions
        return value if math.isfinite(value) else None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        parsed = float(value)
    except ValueError:
        return None
    return parsed if math.isfinite(parsed) else None
