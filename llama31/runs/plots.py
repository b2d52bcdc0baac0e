"""Pictures of a run's record and of tables: the one owner of matplotlib, beside the report."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama31.runs import files, metrics
from llama31.runs.views import Line

CURVE = "loss.png"
FORMATS = (".png", ".svg")


def check(picture: str | None) -> None:
    """Whether a picture asked for can be written there, before work begins. ValueError says what to give."""
    if picture is None:
        return
    path = Path(picture)
    if path.suffix not in FORMATS or not path.absolute().parent.is_dir() or path.is_dir():
        reason = f"give a file in a folder that is there, with a name in {' or '.join(FORMATS)}"
        raise ValueError(f"picture={picture}: {reason}")


def show_loss_curve(run_folder: str | Path, vocab_size: int | None) -> None:
    """`draw_loss_curve`, told on the console; a curve that cannot be drawn ends no run."""
    try:
        print(f"loss curve: {draw_loss_curve(run_folder, vocab_size)}", flush=True)
    except (OSError, ValueError) as error:
        print(f"the loss curve of {run_folder} was not drawn ({error}); nothing else is missing", flush=True)


def draw_loss_curve(run_folder: str | Path, vocab_size: int | None = None) -> Path:
    """Draw loss and learning rate over tokens to `loss.png` in the run folder, from its record.

    `vocab_size` adds the line at ln V, where a model that has learnt nothing stands. Raises ValueError when no training
    line is there.
    """
    folder = Path(run_folder)
    lines = metrics.read(folder)
    train = _numbers([line for line in lines if line["kind"] == "train"], "loss")
    if not train:
        raise ValueError(f"{folder} has no training step with a finite loss: nothing to draw before the first step")
    pyplot, ticker = _matplotlib()
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
    below.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    for axes in (above, below):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return _saved(figure, folder / CURVE)


Points = list[tuple[int, float]]


def _matplotlib() -> tuple[Any, Any]:
    """Its `pyplot` and `ticker`: half a second that only those pay who draw."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    return pyplot, ticker


def _saved(figure: Any, path: str | Path) -> Path:
    with files.whole(Path(path)) as draft:
        figure.savefig(draft, dpi=150, format=Path(path).suffix[1:] or "png")
    _matplotlib()[0].close(figure)
    return Path(path)


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
    axes.set_ylabel("loss (nats)")
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


def draw_bars(path: str | Path, title: str, panels: Mapping[str, Mapping[str, float]], unit: str) -> Path:
    """Draw one panel of horizontal bars per entry of `panels`, in the order given, and return the PNG file.

    A panel maps the names of its bars to their values in `unit`; its own name stands above it.
    """
    pyplot, _ = _matplotlib()
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
    return _saved(figure, path)


def draw_calibration(path: str | Path, title: str, calibration: Mapping[str, Any], unit: str = "pairs") -> Path:
    """Draw accuracy by kind of pair or step, and against sureness (`judging/calibration.py`); return the PNG file."""
    told = {"pairs": ("ranked", "difference of rewards")}.get(unit, ("judged", "reward, or of minus the reward"))
    pyplot, _ = _matplotlib()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    figure.suptitle(title, fontweight="bold")
    names = [f"{name} ({one['pairs']:,})" for name, one in calibration.items()]
    accuracies, errors = ([one[key] for one in calibration.values()] for key in ("accuracy", "accuracy_ci95"))
    left.barh(names, accuracies, xerr=errors, color="tab:blue", ecolor="tab:gray")
    left.axvline(0.5, color="tab:gray", linestyle="--", linewidth=1)
    left.invert_yaxis()
    left.set_xlim(0, 1)
    left.set_xlabel(f"share of {unit} that are {told[0]} right")
    right.plot([0.5, 1], [0.5, 1], color="tab:gray", linestyle="--", linewidth=1, label="as sure as it is right")
    for name, one in calibration.items():
        points = [(each["sureness"], each["accuracy"]) for each in one["bins"]]
        label = f"{name}: error {one['calibration_error']:.3f}"
        right.plot(*zip(*points), "o-", linewidth=2 if name == "all" else 1, markersize=4, label=label)
    right.set_xlabel(f"sureness: sigmoid of the {told[1]}")
    right.set_ylabel(f"share of those {unit} that are {told[0]} right")
    right.set_ylim(0, 1.02)
    right.legend(frameon=False, fontsize="small")
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return _saved(figure, path)


def draw_intervals(
    path: str | Path, title: str, panels: Mapping[str, Mapping[str, tuple[float, float | None]]], unit: str
) -> Path:
    """Draw one panel of points with their intervals per entry of `panels`, and return the PNG file.

    A panel maps names to (value, half width, None where there is none); a line stands at 0.
    """
    pyplot, _ = _matplotlib()
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    height = down * (1.3 + 0.4 * max(len(points) for points in panels.values()))
    figure, axes = pyplot.subplots(down, across, figsize=(4.5 * across, height), layout="constrained", squeeze=False)
    figure.suptitle(title, fontweight="bold")
    for panel in axes.flat[len(panels) :]:
        panel.set_axis_off()
    for panel, (name, points) in zip(axes.flat, panels.items()):
        values, halves = zip(*points.values(), strict=True)
        panel.errorbar(
            values, list(points), xerr=[half or 0.0 for half in halves], fmt="o", capsize=4, color="tab:blue"
        )
        panel.axvline(0, color="tab:gray", linestyle="--", linewidth=1)
        panel.set_ylim(len(points) - 0.5, -0.5)
        panel.locator_params(axis="x", nbins=4)
        panel.set_title(name, loc="left", fontsize="medium")
        panel.set_xlabel(unit)
        panel.spines[["top", "right"]].set_visible(False)
    return _saved(figure, path)


def draw_histograms(path: str | Path, title: str, samples: Mapping[str, Sequence[float]], unit: str) -> Path:
    """Draw the distributions of `samples`, by name, over each other, with their means, and return the PNG file."""
    pyplot, _ = _matplotlib()
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    values = [value for sample in samples.values() for value in sample]
    low, high = min(values), max(values)
    edges = [low + (high - low or 1.0) * i / 40 for i in range(41)]
    for (name, sample), colour in zip(samples.items(), ("tab:gray", "tab:blue", "tab:orange", "tab:green")):
        if sample:
            mean = sum(sample) / len(sample)
            axes.hist(sample, edges, color=colour, alpha=0.55, label=f"{name}: mean {mean:.3f}, {len(sample):,}")
            axes.axvline(mean, color=colour, linewidth=1.5)
    axes.set_title(title, loc="left", fontweight="bold")
    axes.set_xlabel(unit)
    axes.set_ylabel("prompts")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return _saved(figure, path)


def draw_recall(path: str | Path, needle: Mapping[str, Any]) -> Path:
    """Draw the heat map depth x length of a needle in a haystack (`needle.evaluate`) and return the PNG file."""
    inserted, asked, total = needle["inserted"], needle["asked"], needle["total"]
    needles = "one needle" if inserted == 1 else f"{inserted} needles, {asked} asked for"
    title = f"{needles} ({needle['kind']}): recall {total['score']:.1%}"
    columns = "context (tokens)", [f"{length:,}" for length in needle["lengths"]]
    rows = "depth of the needle", [f"{depth:.0%}" for depth in needle["depths"]]
    return draw_heat_map(path, title, columns, rows, needle["recall"])


def draw_heat_map(
    path: str | Path,
    title: str,
    columns: tuple[str, Sequence[str]],
    rows: tuple[str, Sequence[str]],
    shares: Sequence[Sequence[float]],
) -> Path:
    """Draw a table of shares in [0, 1], from red to green with each number in its cell, and return the PNG file.

    `columns` and `rows` are (axis label, names); `shares` has a list per row, the first on top.
    """
    pyplot, ticker = _matplotlib()
    size = (2.5 + 0.75 * len(columns[1]), 1.8 + 0.42 * len(rows[1]))
    figure, axes = pyplot.subplots(figsize=(max(size[0], 5), size[1]), layout="constrained")
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
    for y, line in enumerate(shares):
        for x, share in enumerate(line):
            ink = "black" if 0.15 < share < 0.85 else "white"  # the ends of the scale are dark
            axes.text(x, y, f"{100 * share:.0f}", ha="center", va="center", fontsize="small", color=ink)
    axes.set_xticks(range(len(columns[1])), columns[1])
    axes.set_yticks(range(len(rows[1])), rows[1])
    axes.set_xlabel(columns[0])
    axes.set_ylabel(rows[0])
    axes.set_title(title, loc="left", fontweight="bold")
    figure.colorbar(image, ax=axes, format=ticker.PercentFormatter(1.0))
    return _saved(figure, path)


@dataclass(frozen=True)
class Trace:
    """Points of a panel. `high` and `low` are the other end of a band or bar at y, or ends of intervals of points."""

    x: Sequence[float]
    y: Sequence[float]
    label: str
    kind: (
        str  # line, dashed, points, stars, band (between y and high), bars (the same, upright), stack (the same, solid)
    )
    colour: int = 0
    high: Sequence[float] | None = None
    low: Sequence[float] | None = None


@dataclass(frozen=True)
class Panel:
    """One diagram of a picture; `names` stand at x = 0, 1, ... instead of numbers."""

    title: str
    x_label: str
    y_label: str
    traces: Sequence[Trace]
    log_x: bool = False
    log_y: bool = False
    names: Sequence[str] | None = None
    columns: int = 1  # of the legend, which has room of its own on top where there are more


def draw_panels(path: str | Path, title: str, panels: Sequence[Panel]) -> Path:
    """Draw panels beside each other to a PNG or SVG file, by its suffix, and return it."""
    pyplot, _ = _matplotlib()
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(6.2 * len(panels), 4.8), layout="constrained", squeeze=False
    )
    figure.suptitle(title, fontweight="bold")
    for place, panel in zip(axes[0], panels, strict=True):
        _draw_panel(place, panel)
    return _saved(figure, path)


@dataclass(frozen=True)
class Box:
    """What a row of a chart is busy with from `begin` to `end`."""

    row: int
    begin: float
    end: float
    kind: str  # of Occupancy.kinds
    shade: float = 0.0  # 0 is the kind's colour, towards 1 it pales
    text: str = ""


@dataclass(frozen=True)
class Occupancy:
    """Boxes on rows over time, the first row on top; below, the `windows` of it larger, beside each other."""

    title: str
    x_label: str
    y_label: str
    rows: Sequence[str]
    boxes: Sequence[Box]
    kinds: Mapping[str, int]  # colours by name, in the order of the legend
    spans: Mapping[str, tuple[float, float]]  # named stretches of the first row, marked above it
    windows: Sequence[tuple[float, float]]


def draw_chart(path: str | Path, title: str, chart: Occupancy, panels: Sequence[Panel]) -> Path:
    """Draw a chart of boxes over panels beside each other to a PNG or SVG file, by its suffix, and return it."""
    pyplot, _ = _matplotlib()
    height, down = 1.5 + min(0.2 * len(chart.rows), 3.2), 2 if chart.windows else 1
    figure = pyplot.figure(figsize=(6.2 * len(panels), down * height + 5.4), layout="constrained")
    figure.suptitle(title, fontweight="bold")
    above, *_, below = parts = figure.subfigures(down + 1, 1, height_ratios=[height] * down + [4.8])
    above.suptitle(chart.title, x=0.01, ha="left", fontsize="medium")
    end = max(box.end for box in chart.boxes)
    for part, windows in zip(parts, ([(0.0, end)], chart.windows)):
        places = part.subplots(1, max(1, len(windows)), sharey=True, squeeze=False)[0] if windows else []
        for place, window in zip(places, windows):
            _draw_boxes(place, chart, window, 18 * (3 * len(panels)) / len(windows))
            place.set_xlabel(chart.x_label)
            place.set_ylabel(chart.y_label)
    patches = [pyplot.Rectangle((0, 0), 1, 1, color=f"C{colour}") for colour in chart.kinds.values()]
    patches.append(pyplot.Rectangle((0, 0), 1, 1, facecolor=IDLE, edgecolor="lightgray"))
    parts[down - 1].legend(
        patches, [*chart.kinds, "idle"], loc="outside lower center", ncols=len(patches), frameon=False
    )
    for place, panel in zip(below.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw_panel(place, panel)
    return _saved(figure, path)


IDLE = "0.93"  # grey


def _draw_boxes(axes: Any, chart: Occupancy, window: tuple[float, float], digits: float) -> None:
    """What of a chart lies in a window that is as wide as so many digits; a text where its box has room for it."""
    from matplotlib.collections import PolyCollection

    shown = [box for box in chart.boxes if box.end > window[0] and box.begin < window[1]]
    ends = [(box.begin, box.end, box.row - 0.46, box.row + 0.46) for box in shown]
    corners = [[(begin, low), (end, low), (end, high), (begin, high)] for begin, end, low, high in ends]
    colours = [_paled(f"C{chart.kinds[box.kind]}", box.shade) for box in shown]
    room = (window[1] - window[0]) / digits
    seen = len(shown) < 2 * digits * len(chart.rows)
    lines = {"edgecolors": "white", "linewidths": 0.4} if seen else {"linewidths": 0, "rasterized": True}
    axes.add_collection(PolyCollection(corners, facecolors=colours, **lines))
    for box in shown:
        middle = (max(box.begin, window[0]) + min(box.end, window[1])) / 2
        if box.text and min(box.end, window[1]) - max(box.begin, window[0]) > room * len(box.text):
            axes.text(middle, box.row, box.text, ha="center", va="center", fontsize=6.5, color="black")
    for name, (begin, end) in chart.spans.items():
        begin, end = max(begin, window[0]), min(end, window[1])
        if end - begin > room * len(name):
            axes.annotate("", (begin, -0.8), (end, -0.8), arrowprops={"arrowstyle": "<->", "color": "tab:gray"})
            axes.text((begin + end) / 2, -1.0, name, ha="center", va="bottom", fontsize="small", color="dimgray")
    axes.set_xlim(window)
    axes.set_ylim(len(chart.rows) - 0.4, -2.2 if chart.spans else -0.6)
    axes.set_yticks(*_thinned(chart.rows))
    axes.axhspan(-0.5, len(chart.rows) - 0.5, color=IDLE, zorder=0)
    axes.spines[["top", "right"]].set_visible(False)


def _paled(colour: str, shade: float) -> tuple[float, ...]:
    from matplotlib import colors

    return tuple(part + (1 - part) * shade for part in colors.to_rgb(colour))


def _thinned(names: Sequence[str]) -> tuple[list[int], list[str]]:
    """Places and names of an axis, every second or so where they are many."""
    every = -(-len(names) // 17)
    return list(range(0, len(names), every)), list(names[::every])


def _draw_panel(axes: Any, panel: Panel) -> None:
    if panel.log_x:
        axes.set_xscale("log")
    if panel.log_y:
        axes.set_yscale("log")
    for trace in panel.traces:
        _draw_trace(axes, trace)
    if panel.names is not None:
        axes.set_xticks(*_thinned(panel.names), fontsize="small" if "\n" in panel.names[0] else None)
    axes.set_title(panel.title, loc="left", fontsize="medium")
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if panel.columns > 1:
        axes.set_ylim(0, 1.3 * axes.get_ylim()[1])
        axes.legend(frameon=False, fontsize="small", loc="upper center", ncols=panel.columns)
    else:
        axes.legend(frameon=False, fontsize="small")


def _draw_trace(axes: Any, trace: Trace) -> None:
    colour = f"C{trace.colour}" if trace.kind != "stars" else "black"
    label = trace.label or None
    if trace.kind in ("line", "dashed"):
        dashed = trace.kind == "dashed"
        axes.plot(trace.x, trace.y, "--" if dashed else "-", color="0.3" if dashed else colour, label=label)
    elif trace.kind == "band":
        axes.fill_between(trace.x, trace.y, trace.high, color=colour, alpha=0.2, linewidth=0, label=label)
    elif trace.kind == "bars":
        heights = [high - low for low, high in zip(trace.y, trace.high or [], strict=True)]
        axes.bar(trace.x, heights, bottom=trace.y, color=colour, alpha=0.3, width=0.5, label=label)
    elif trace.kind == "stack":
        heights = [high - low for low, high in zip(trace.y, trace.high or [], strict=True)]
        axes.bar(trace.x, heights, bottom=trace.y, color=colour, width=0.8, label=label)
    else:
        errors = None
        if trace.high is not None and trace.low is not None:
            errors = [
                [y - low for y, low in zip(trace.y, trace.low, strict=True)],
                [high - y for y, high in zip(trace.y, trace.high, strict=True)],
            ]
        marker, size = ("*", 10) if trace.kind == "stars" else ("o", 5)
        axes.errorbar(
            trace.x, trace.y, errors, fmt=marker, markersize=size, capsize=3, color=colour, label=label, zorder=3
        )
