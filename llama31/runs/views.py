"""Views of a run's record: TensorBoard, Weights & Biases, and the progress bar.

Each is shown every line that goes to `metrics.jsonl`, and knows nothing that does not stand there.
"""

from __future__ import annotations

import importlib
import math
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO

from llama31.runs import files

Line = dict[str, Any]


class View(Protocol):
    """Something that is shown every line of the record."""

    def write(self, line: Line) -> None:
        """Show one line."""

    def close(self) -> None:
        """Flush and release."""


def _scalars(line: Line) -> dict[str, float]:
    """Numbers of a line as `kind/name`, or `kind/name/source`, for backends that want flat names."""
    flat: dict[str, float] = {}
    for name, value in line.items():
        inner = value if isinstance(value, Mapping) else {"": value}
        for source, number in inner.items():
            if isinstance(number, int | float) and name not in ("step", "time_s"):
                flat["/".join(part for part in (line["kind"], name, source) if part)] = float(number)
    return flat


class Unavailable(Exception):
    """A view cannot be had here; training does without it."""


class TensorBoard:
    """Scalars by step, named `kind/name`, as TensorBoard events."""

    def __init__(self, folder: Path, resumed_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # torch takes seconds to import

        self._writer: Any = SummaryWriter(str(folder), purge_step=resumed_step + 1 if resumed_step else None)

    def write(self, line: Line) -> None:
        """Add one line of the record."""
        for name, value in _scalars(line).items():
            self._writer.add_scalar(name, value, global_step=line["step"])

    def close(self) -> None:
        """Flush and release."""
        self._writer.close()


class Wandb:
    """The same scalars, sent to Weights & Biases; the environment's WANDB_PROJECT, WANDB_ENTITY and WANDB_MODE hold.

    A run that goes on continues its page, by the id that its folder keeps; one that begins gets a page of its own.
    """

    def __init__(self, folder: Path, name: str, resumed: bool) -> None:
        try:
            wandb = importlib.import_module("wandb")
        except ImportError as error:
            raise ValueError(
                "log.wandb=true needs the package wandb: pip install wandb, or set log.wandb=false"
            ) from error
        project, page = os.environ.get("WANDB_PROJECT") or "llama31", _page(folder, name, resumed)
        try:
            self._run: Any = wandb.init(project=project, name=name, id=page, resume="allow", dir=str(folder))
        except Exception as error:  # no login, no network, a page of another shape: none of them ends a run
            raise Unavailable(f"{type(error).__name__}: {error}") from error

    def write(self, line: Line) -> None:
        """Add one line of the record."""
        self._run.log(_scalars(line), step=line["step"])

    def close(self) -> None:
        """Flush and release."""
        self._run.finish()


def _page(folder: Path, name: str, resumed: bool) -> str:
    """Id of the run's page, without the characters that W&B refuses; kept in `folder` for when the run goes on."""
    kept = folder / "wandb_id"
    if resumed and kept.exists():
        return kept.read_text().strip()
    page = f"{re.sub(r'[^A-Za-z0-9_-]', '-', name)[:100]}-{secrets.token_hex(4)}"
    files.write_whole(kept, page + "\n")
    return page


class Progress:
    """A bar over tokens with ETA; where there is no terminal, one line every `interval_s` seconds."""

    def __init__(
        self,
        total_tokens: int,
        resumed_tokens: int = 0,
        *,
        stream: TextIO | None = None,
        interval_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream or sys.stderr
        self._total, self._start = total_tokens, resumed_tokens
        self._interval_s, self._clock = interval_s, clock
        self._began_s, self._shown_s = clock(), -math.inf
        self._bar: Any = None
        if self._stream.isatty():
            from tqdm import tqdm  # only a terminal needs it

            self._bar = tqdm(
                total=total_tokens,
                initial=resumed_tokens,
                unit="tok",
                unit_scale=True,
                file=self._stream,
                dynamic_ncols=True,
            )

    def write(self, line: Line) -> None:
        """Show one line of the record: training moves the bar, everything else is said above it."""
        if line["kind"] in ("start", "ranks"):
            return
        if line["kind"] != "train":
            self._say(_sentence(line))
        elif self._bar is not None:
            self._bar.set_postfix_str(_postfix(line), refresh=False)
            self._bar.update(line["tokens"] - self._bar.n)
        elif self._clock() - self._shown_s >= self._interval_s or line["tokens"] >= self._total:
            self._shown_s = self._clock()
            share = line["tokens"] / self._total
            self._say(f"step {line['step']}  {share:.0%}  {_postfix(line)}  ETA {self._eta(line['tokens'])}")

    def close(self) -> None:
        """Leave the bar where it stands."""
        if self._bar is not None:
            self._bar.close()

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def _eta(self, tokens: int) -> str:
        done, elapsed_s = tokens - self._start, self._clock() - self._began_s
        left_s = round((self._total - tokens) * elapsed_s / done) if done > 0 else 0
        return f"{left_s // 3600:d}:{left_s // 60 % 60:02d}:{left_s % 60:02d}"


def _postfix(line: Line) -> str:
    parts = [f"loss {line['loss']:.4f}"] if "loss" in line else []
    parts += [f"lr {line['lr']:.2e}"] if "lr" in line else []
    parts += [f"{line['tokens_per_s']:,.0f} tok/s"] if "tokens_per_s" in line else []
    return "  ".join(parts)


def _sentence(line: Line) -> str:
    if "reason" in line:
        return f"{line.get('event', line['kind'])} at step {line['step']}: {line['reason']}"
    shown = {key: value for key, value in line.items() if key not in ("kind", "step", "tokens", "time_s")}
    parts = [
        f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value}" for key, value in _flat(shown).items()
    ]
    return f"{line['kind']} at step {line['step']}: " + ", ".join(parts)


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(
            {f"{key}[{inner}]": x for inner, x in value.items()} if isinstance(value, Mapping) else {key: value}
        )
    return flat
