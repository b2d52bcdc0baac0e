"""The record of a run, and its views.

`metrics.jsonl` in the run folder is the record: one JSON object per line, each with `kind`, `step` and `tokens`,
written by rank 0 alone. TensorBoard, Weights & Biases, the progress bar and the loss curve are views of it, and nothing
reads a log to learn a number. A resumed run continues its record: what the abandoned attempt wrote after the checkpoint
moves to `metrics.replaced.jsonl`, so a step stands in the curve once. No torch here: sizes measured on a GPU are passed
in.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from llama31 import config, shapes
from llama31.views import Line, Progress, TensorBoard, View, Wandb

RECORD = "metrics.jsonl"
REPLACED = "metrics.replaced.jsonl"
CURVE = "loss.png"
KINDS = ("train", "validation", "checkpoint", "event")

# Dense BF16 TFLOPs from NVIDIA's data sheets; the first name that the device's name contains counts.
PEAK_TFLOPS = (
    ("GB200", 2500.0),
    ("B200", 2250.0),
    ("GH200", 989.4),
    ("H200 NVL", 835.0),
    ("H200", 989.4),
    ("H100 PCIe", 756.0),
    ("H100 NVL", 835.0),
    ("H100", 989.4),
    ("H800", 989.4),
    ("H20", 148.0),
    ("A100", 312.0),
    ("A800", 312.0),
    ("L40S", 362.0),
)


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
        for view in self._views:
            view.write(line)

    def close(self) -> None:
        """Close every view, the record last."""
        for view in reversed(self._views):
            view.close()

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
    resumed_step: int = 0,
    resumed_tokens: int = 0,
    main: bool = True,
) -> Metrics:
    """The metrics of one run, to be closed by the caller.

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
        views.append(Wandb(folder, name))
    if log.progress:
        views.append(Progress(total_tokens, resumed_tokens))
    return Metrics([_Record(folder, resumed_step), *views])


# --- the record ---


def read(path: str | Path) -> list[Line]:
    """All lines of a record, given as file or run folder.

    A last line without its newline is what a killed process left, and is left out. Any other line that is not a JSON
    object with a kind raises ValueError with its number: the record is damaged, and a curve drawn from the rest would
    lie.
    """
    path = Path(path)
    path = path / RECORD if path.is_dir() else path
    text = path.read_text(encoding="utf-8", errors="replace")
    whole, _, _torn = text.rpartition("\n")
    return [_parse(line, path, number) for number, line in enumerate(whole.split("\n"), start=1) if line]


def _parse(text: str, path: Path, number: int) -> Line:
    try:
        line = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{number} is not JSON ({error}); remove that line to read the rest") from error
    if not isinstance(line, dict) or "kind" not in line:
        raise ValueError(f"{path}:{number} has no kind; remove that line to read the rest")
    return line


class _Record:
    """`metrics.jsonl`, flushed line by line so that a killed run has lost nothing that it measured."""

    def __init__(self, folder: Path, resumed_step: int) -> None:
        path = folder / RECORD
        if path.exists():
            _forget_after(path, resumed_step)
        self._file: TextIO = path.open("a", encoding="utf-8")

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
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _forget_after(path: Path, step: int) -> None:
    """Move lines of later steps to the file beside the record, and drop a torn last line, atomically."""
    lines = read(path)
    kept = [line for line in lines if line.get("step", 0) <= step]
    text = "".join(_dump(line) + "\n" for line in kept)
    if text == path.read_text(encoding="utf-8", errors="replace"):
        return
    if len(kept) < len(lines):
        with path.with_name(REPLACED).open("a", encoding="utf-8") as replaced:
            replaced.writelines(_dump(line) + "\n" for line in lines if line.get("step", 0) > step)
    draft = path.with_suffix(".tmp")
    with draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


# --- what is measured ---


class Phases:
    """Seconds per phase of a step.

    `with phases("data"): ...` adds to that phase; `pop()` returns `{"data_s": ..., "step_s": ...}` since the last call
    and starts anew. `step_s` is wall time, so what no phase claims is visible as the difference.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._began_s = clock()
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began_s = self._clock()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + self._clock() - began_s

    def pop(self) -> dict[str, float]:
        """Seconds by phase, keys ending in `_s`, and the wall time `step_s`."""
        now_s = self._clock()
        seconds = {f"{name}_s": value for name, value in self._seconds.items()} | {"step_s": now_s - self._began_s}
        self._began_s, self._seconds = now_s, {}
        return seconds


def peak_tflops(device_name: str | None) -> float | None:
    """Dense BF16 TFLOPs of a device by the name that CUDA reports; None where unknown (a CPU): then there is no MFU."""
    if device_name is None:
        return None
    return next((tflops for name, tflops in PEAK_TFLOPS if name.lower() in device_name.lower()), None)


def tflops(model: config.Model, sequence_length: int, tokens_per_s: float, devices: int) -> float:
    """Model TFLOPs per second and device: what the mathematics needs, without what recomputation adds."""
    return shapes.flops_per_token(model, sequence_length) * tokens_per_s / devices / 1e12


def mfu(
    model: config.Model, sequence_length: int, tokens_per_s: float, devices: int, peak_tflops: float | None
) -> float | None:
    """Model FLOPs utilisation between 0 and 1 (report, Table 4); None without a peak to compare with."""
    return tflops(model, sequence_length, tokens_per_s, devices) / peak_tflops if peak_tflops else None


def peak_memory_bytes(cuda_peak_bytes: int | None = None) -> int:
    """Peak memory: of the device where its number is given, else the resident set of this process."""
    if cuda_peak_bytes is not None:
        return cuda_peak_bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


# --- the curve ---


def draw_loss_curve(run_folder: str | Path, vocab_size: int | None = None) -> Path:
    """Draw loss and learning rate over tokens to `loss.png` in the run folder, from its record.

    `vocab_size` adds the line at ln V, where a model that has learnt nothing stands. Raises ValueError when no training
    line is there.
    """
    folder = Path(run_folder)
    lines = read(folder)
    train = _numbers([line for line in lines if line["kind"] == "train"], "loss")
    if not train:
        raise ValueError(
            f"{folder / RECORD} has no training step with a finite loss: nothing to draw before the first step"
        )
    import matplotlib  # half a second that only the end of a run pays

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(
        2, 1, sharex=True, figsize=(9, 6), height_ratios=(4, 1), layout="constrained"
    )
    _draw_losses(above, train, _numbers([line for line in lines if line["kind"] == "validation"], "loss"), vocab_size)
    above.set_title(folder.resolve().name, loc="left", fontweight="bold")
    below.plot(*_columns(_numbers([line for line in lines if line["kind"] == "train"], "lr")), color="tab:gray")
    below.set_ylabel("learning rate")
    below.set_xlabel("tokens")
    below.set_ylim(bottom=0)
    below.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    below.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
    for axes in (above, below):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    draft = folder / f".{CURVE}"
    figure.savefig(draft, dpi=150, format="png")
    pyplot.close(figure)
    return draft.replace(folder / CURVE)


Points = list[tuple[int, float]]


def _draw_losses(axes: Any, train: Points, validation: Points, vocab_size: int | None) -> None:
    axes.plot(*_columns(train), color="tab:blue", alpha=0.3, linewidth=1, label="training")
    smooth = _smoothed(train)
    axes.plot(*_columns(smooth), color="tab:blue", linewidth=2, label=f"training, smoothed: {smooth[-1][1]:.3f}")
    if validation:
        label = f"held out: {validation[-1][1]:.3f}"
        axes.plot(*_columns(validation), "o-", color="tab:orange", markersize=5, linewidth=1, label=label)
    if vocab_size:
        level = math.log(vocab_size)
        axes.axhline(level, color="tab:gray", linestyle="--", linewidth=1, label=f"ln(vocabulary): {level:.3f}")
    axes.set_ylabel("loss (nats per token)")
    axes.legend(frameon=False)


def _numbers(lines: list[Line], name: str) -> Points:
    """(tokens, value) of the lines where `name` is a finite number."""
    return [(line["tokens"], line[name]) for line in lines if isinstance(line.get(name), int | float)]


def _columns(points: Points) -> tuple[list[int], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _smoothed(points: Points, span: float = 0.03) -> Points:
    """Mean over a centred window of `span` of the points: a running mean would lag where the loss falls."""
    half = max(1, round(span * len(points) / 2))
    sums = [0.0, *itertools.accumulate(y for _, y in points)]
    smooth: Points = []
    for i, (x, _) in enumerate(points):
        low, high = max(0, i - half), min(len(points), i + half + 1)
        smooth.append((x, (sums[high] - sums[low]) / (high - low)))
    return smooth


# --- bars ---


def draw_bars(path: str | Path, title: str, panels: Mapping[str, Mapping[str, float]], unit: str) -> Path:
    """Draw one panel of horizontal bars per entry of `panels`, in the order given, and return the PNG file.

    A panel maps the names of its bars to their values in `unit`; its own name stands above it.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    path = Path(path)
    height = 1.2 + 0.36 * max(len(bars) for bars in panels.values())
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(6 * len(panels), height), layout="constrained", squeeze=False
    )
    figure.suptitle(title, fontweight="bold")
    for panel, (name, bars) in zip(axes[0], panels.items(), strict=True):
        drawn = panel.barh(list(bars), list(bars.values()), color="tab:blue")
        panel.bar_label(drawn, fmt="%.2f", padding=3)
        panel.invert_yaxis()
        panel.margins(x=0.15)
        panel.set_title(name, loc="left", fontsize="medium")
        panel.set_xlabel(unit)
        panel.spines[["top", "right"]].set_visible(False)
    draft = path.with_name(f".{path.name}.tmp")
    figure.savefig(draft, dpi=150, format="png")
    pyplot.close(figure)
    return draft.replace(path)
