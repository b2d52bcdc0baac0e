"""Which charts tell about a run, and which compare several."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from llama31.report.accounts import LOST, Account
from llama31.report.charts import COLOURS, Bar, Chart, Flag, Point, Series, timeline
from llama31.report.record import RecordedRun, number
from llama31.report.text import count, duration, fixed, percent, short, whole
from llama31.runs.views import Line

PLACES = 2000  # of a smoothed series, which is wider than a pixel between them
SMOOTH = 0.02  # share of the steps that one smoothed value is the mean of
STACKS = 160  # columns of the phases' chart
ROWS = 24  # attempts that get a row of their own in the timeline
SAY: dict[str, Callable[[float | None], str]] = {"fixed": fixed, "count": count, "share": percent, "whole": whole}
PHASES = {"data_s": "waiting for data", "forward_backward_s": "forward and backward", "optimizer_s": "optimizer"}
SIGNS = {"finished": "●", "stopped": "■", "failed": "▲", "died": "✕", "running": "▶"}


def of_run(account: Account, colour: int = 0) -> list[Chart]:
    """The charts of one run, in the order of the page; `colour` is the run's own."""
    run = account.run
    return [
        *_losses(run, colour),
        _smooth_chart(
            "Gradient norm",
            run,
            "grad_norm",
            colour,
            log=True,
            marks=_nonfinite(run, "grad_norm"),
            marks_name="not finite",
        ),
        Chart("Learning rate", [_raw(run, "lr", "learning rate", colour)], zero=True),
        _stages(run, colour),
        *_documents(run, colour),
        _smooth_chart("Tokens per second", run, "tokens_per_s", colour, unit="count", zero=True),
        _utilisation(run, colour),
        _phases(run),
        _checkpoints(run, colour),
        *_ranks(run, colour),
    ]


def points(lines: Iterable[Line], name: str) -> list[Point]:
    """A value over tokens; where it is not finite the line is interrupted."""
    return [Point(line["tokens"], number(line[name])) for line in lines if line.get(name) is not None]


def smoothed(given: Sequence[Point], share: float = SMOOTH) -> list[Point]:
    """Mean over a centred window, at every place of a short series: a running mean would lag where the loss falls."""
    there = [(point.x, point.y) for point in given if point.y is not None]
    most, stride = max(1, round(share * len(there) / 2)), max(1, len(there) // PLACES)
    sums = [0.0, *itertools.accumulate(y for _, y in there)]
    smooth = []
    for index in sorted({*range(0, len(there), stride), *range(len(there))[-1:]}):
        half = min(most, index)  # a steep beginning keeps its height; the end keeps a window that is worth the name
        begin, end = index - half, min(len(there), index + half + 1)
        smooth.append(Point(there[index][0], (sums[end] - sums[begin]) / (end - begin)))
    return smooth


def _raw(
    run: RecordedRun, name: str, title: str, colour: int | str, style: str = "line", unit: str = "fixed"
) -> Series:
    values = points(run.train, name)
    last = next((point.y for point in reversed(values) if point.y is not None), None)
    return Series(title, values, colour, style, SAY[unit](last))


# --- loss ---


def _losses(run: RecordedRun, colour: int) -> list[Chart]:
    """The loss, and its second half: the fall at the beginning takes all the height of the first picture."""
    train = points(run.train, "loss")
    smooth, held = smoothed(train), _held_out(run, colour)
    charts = [_loss(run, _training(train, smooth, colour), held)]
    if len(train) < 20:
        return charts
    middle = (train[0].x + train[-1].x) / 2
    late = [replace(one, points=_from(middle, one.points)) for one in (*charts[0].series[:2], *held)]
    return [*charts, Chart("Loss, second half", late, top=_top(late))]


def _from(x: float, given: Sequence[Point]) -> list[Point]:
    return [point for point in given if point.x >= x]


def _loss(run: RecordedRun, lines: Sequence[Series], held: Sequence[Series]) -> Chart:
    top, rules = _top([*lines, *held]), []
    vocabulary = number(run.setting("model.vocab_size"))
    if vocabulary and vocabulary > 1 and top > 0.6 * math.log(vocabulary):
        rules = [(math.log(vocabulary), f"ln V = {math.log(vocabulary):.2f}: a model that has learnt nothing")]
    top = max([top, *(value for value, _ in rules)])
    higher = [point.x for point in lines[0].points if point.y is not None and point.y > top]
    return Chart(
        "Loss",
        [*lines, *held],
        note="nats per token" + (f"; {count(len(higher))} steps are higher than the picture" if higher else ""),
        log=_positive([*lines, *held]),
        top=top,
        rules=rules,
        marks=[*_nonfinite(run, "loss"), *higher],
        marks_name="not finite, or higher than the picture",
        wide=True,
    )


def _training(train: Sequence[Point], smooth: Sequence[Point], colour: int) -> list[Series]:
    value = fixed(smooth[-1].y) if smooth else ""
    return [Series("training", train, colour, "faint"), Series("training, smoothed", smooth, colour, "line", value)]


def _top(series: Sequence[Series]) -> float:
    """The height of a picture of losses: spikes of the training loss, which comes first, may reach beyond it."""
    held = [point.y for one in series[2:] for point in one.points if point.y is not None]
    return max([_high([point.y for point in series[0].points]), *held])


def _held_out(run: RecordedRun, colour: int) -> list[Series]:
    lines = run.of("validation")
    names = sorted({name for line in lines if isinstance(line.get("losses"), dict) for name in line["losses"]})
    series = []
    if len(names) != 1:
        series.append(_held_out_of("held out", [(line["tokens"], line.get("loss")) for line in lines], "ink"))
    for index, name in enumerate(names):
        values = [(line["tokens"], line["losses"].get(name)) for line in lines if isinstance(line.get("losses"), dict)]
        title = f"held out: {name}"
        series.append(_held_out_of(title, values, (colour + 1 + index % (COLOURS - 1)) % COLOURS))
    return series


def _held_out_of(title: str, values: Sequence[tuple[float, object]], colour: int | str) -> Series:
    there = [Point(tokens, number(value)) for tokens, value in values if value is not None]
    return Series(title, there, colour, "line", fixed(there[-1].y) if there else "")


def _high(values: Sequence[float | None]) -> float:
    """What all but a few spikes stay below."""
    finite = sorted(value for value in values if value is not None)
    if not finite:
        return 0.0
    usual = finite[math.ceil(0.99 * (len(finite) - 1))]
    room = usual + max(0.5 * abs(usual), 3 * (usual - finite[len(finite) // 2]))
    return finite[-1] if finite[-1] <= room else usual * 1.1


def _nonfinite(run: RecordedRun, name: str) -> list[float]:
    return [line["tokens"] for line in run.train if line.get(name) is not None and number(line[name]) is None]


# --- speed ---


def _smooth_chart(
    title: str,
    run: RecordedRun,
    name: str,
    colour: int,
    *,
    unit: str = "fixed",
    log: bool = False,
    zero: bool = False,
    marks: Sequence[float] = (),
    marks_name: str = "",
) -> Chart:
    raw = points(run.train, name)
    lines = [Series("each step", raw, colour, "faint"), _smooth("smoothed", raw, colour, SAY[unit])]
    return Chart(title, lines, unit=unit, log=log, zero=zero, marks=marks, marks_name=marks_name)


def _utilisation(run: RecordedRun, colour: int) -> Chart:
    """MFU, or without a peak to compare with the rate that it would be the share of."""
    if any(number(line.get("mfu")) is not None for line in run.train):
        return _smooth_chart("Model FLOPs utilisation", run, "mfu", colour, unit="share", zero=True)
    return _smooth_chart("Model TFLOPs per second and device", run, "tflops", colour, zero=True)


def _stages(run: RecordedRun, colour: int) -> Chart:
    lines = [
        _raw(run, "batch_tokens", "tokens per batch", colour, "step", "whole"),
        _raw(run, "sequence_length", "tokens per sequence", (colour + 1) % COLOURS, "step", "whole"),
    ]
    return Chart("Batch and sequence length", lines, unit="count", log=True)


def _documents(run: RecordedRun, colour: int) -> list[Chart]:
    """How long the documents of the batches truly are, where the record says so."""
    lines = [line for line in run.train if isinstance(line.get("length_shares"), dict)]
    if not lines:
        return []
    names = {"document_tokens": "whole documents", "piece_tokens": "what rows hold of them", "sequence_length": "rows"}
    means = [
        _smooth(title, points(lines, name), (colour + index) % COLOURS, whole)
        for index, (name, title) in enumerate(names.items())
    ]
    edges = sorted({int(edge) for line in lines for edge in line["length_shares"] if str(edge).isdecimal()})
    shares = [
        _smooth(
            f"from {edge:,} tokens",
            [Point(line["tokens"], number(line["length_shares"].get(str(edge), 0))) for line in lines],
            (colour + index) % COLOURS,
            percent,
        )
        for index, edge in enumerate(edges)
    ]
    padding = _smooth("padding, of all places", points(lines, "padding_share"), "ink", percent)
    return [
        Chart("Length of documents", means, "tokens; mean over tokens", unit="count", log=True),
        Chart("Tokens by length of their document", [*shares, padding], unit="share", zero=True),
    ]


def _smooth(title: str, raw: Sequence[Point], colour: int | str, say: Callable[[float | None], str]) -> Series:
    smooth = smoothed(raw)
    return Series(title, smooth, colour, "line", say(smooth[-1].y) if smooth else "")


def _phases(run: RecordedRun) -> Chart:
    lines = [line for line in run.train if number(line.get("step_s"))]
    there = {name for names in {tuple(line) for line in lines} for name in names if _is_phase(name)}
    names = [*PHASES, *sorted(there - PHASES.keys())]
    size = max(1, math.ceil(len(lines) / STACKS))
    stacks: dict[str, list[Point]] = {name: [] for name in [*names, "other"]}
    for begin in range(0, len(lines), size):
        part, low = lines[begin : begin + size], 0.0
        for name, share in _shares(part, names).items():
            stacks[name].append(Point(part[-1]["tokens"], low + share, low))
            low += share
    whole = _shares(lines, names) if lines else {}
    series = [
        Series(
            PHASES.get(name, name.removesuffix("_s").replace("_", " ")), stacks[name], colour, "area", percent(share)
        )
        for colour, (name, share) in enumerate(whole.items())
        if share > 0
    ]
    note = "share of the time of a step; other: metrics, guard, validation, saving"
    return Chart("Time per phase", series, note, unit="share", zero=True)


def _is_phase(name: str) -> bool:
    return name.endswith("_s") and not name.endswith("_per_s") and name not in ("time_s", "step_s")


def _shares(lines: Sequence[Line], names: Sequence[str]) -> dict[str, float]:
    """Share of the steps' time by phase; phases that overlap are scaled to fill it."""
    seconds = {name: sum(number(line.get(name)) or 0.0 for line in lines) for name in names}
    total = sum(number(line["step_s"]) or 0.0 for line in lines)
    seconds["other"] = max(0.0, total - sum(seconds.values()))
    total = sum(seconds.values())
    return {name: value / total for name, value in seconds.items()}


def _checkpoints(run: RecordedRun, colour: int) -> Chart:
    lines = run.of("checkpoint")
    series = [
        Series("training stood still", points(lines, "stall_s"), colour, value=_median(lines, "stall_s")),
        Series("written beside it", points(lines, "write_s"), (colour + 1) % COLOURS, value=_median(lines, "write_s")),
    ]
    return Chart("Checkpoints", series, note="seconds; medians in the legend", unit="seconds", log=True)


def _median(lines: Sequence[Line], name: str) -> str:
    values = [value for line in lines if (value := number(line.get(name))) is not None]
    return duration(statistics.median(values)) if values else ""


def _ranks(run: RecordedRun, colour: int) -> list[Chart]:
    """One chart per phase that ranks compare, with the rank that was slowest most often."""
    lines = [line for line in run.of("ranks") if isinstance(line.get("phases"), dict)]
    names = list(dict.fromkeys(name for line in lines for name in line["phases"]))
    return [_spread(lines, name, colour) for name in names]


def _spread(lines: Sequence[Line], name: str, colour: int) -> Chart:
    band, median, slowest = [], [], Counter[str]()
    for line in lines:
        phase = line["phases"].get(name)
        if not isinstance(phase, Mapping):
            continue
        low, high = number(phase.get("min")), number(phase.get("max"))
        band.append(Point(line["tokens"], None if low is None else high, low or 0.0))
        median.append(Point(line["tokens"], number(phase.get("median"))))
        slowest[str(phase.get("slowest"))] += 1
    title = PHASES.get(name, name.removesuffix("_s").replace("_", " "))
    rank, times = slowest.most_common(1)[0] if slowest else ("", 0)
    note = f"slowest most often: rank {short(rank, 20)}, {times} of {sum(slowest.values())} times" if slowest else ""
    series = [Series("fastest to slowest", band, colour, "area"), Series("median", median, colour)]
    return Chart(f"Ranks: {title}", series, note, unit="seconds")


# --- wall time ---


def progress(account: Account, colour: int = 0) -> Chart:
    """Tokens over wall time: what stands, and what was undone."""
    kept: list[Point] = []
    lost: list[Point] = []
    for attempt in account.run.attempts:
        for line in attempt.lines:
            if line["kind"] in ("train", "start", "rollback") and (time_s := number(line.get("time_s"))) is not None:
                at, tokens = time_s - account.begin_s, line["tokens"]
                first = line["kind"] != "train"
                stands = id(line) in account.run.kept
                kept += [Point(at, None)] * first + [Point(at, tokens if stands else None)]
                lost += [Point(at, None)] * first + [Point(at, None if stands and not first else tokens)]
    if all(point.y is None for point, before in zip(lost[2:], lost[1:]) if before.y is not None):
        lost = []
    series = [Series("stands", kept, colour), Series("undone", lost, "lost")]
    return Chart(
        "Progress",
        series,
        "tokens over wall time",
        unit="count",
        x_unit="seconds",
        x_name="time",
        zero=True,
        wide=True,
    )


def attempts(account: Account) -> str:
    """The timeline of the attempts as SVG: a row each, or all in one where they are many."""
    numbers = [ending.attempt for ending in account.endings]
    one = len(numbers) > ROWS
    rows = {attempt: 0 if one else index for index, attempt in enumerate(numbers)}
    bars, flags = [], []
    for segment in account.segments:
        title = f"attempt {segment.attempt}, {segment.kind}: {duration(segment.end_s - segment.begin_s)}"
        bars.append(Bar(rows[segment.attempt], segment.kind, segment.begin_s, segment.end_s, title))
    for ending in account.endings:
        row = rows[ending.attempt]
        if ending.end_s is None:
            continue
        if ending.down_s:
            title = f"down after attempt {ending.attempt}: {duration(ending.down_s)}"
            bars.append(Bar(row, "down time", ending.end_s, ending.end_s + ending.down_s, title))
        if not one or ending.interrupts:
            text = f"{ending.outcome} at step {ending.step:,}{': ' * bool(ending.cause)}{ending.cause}"
            flags.append(Flag(row, ending.outcome, SIGNS.get(ending.outcome, "◆"), ending.end_s, text))
    names = ["all"] if one else [f"attempt {attempt}" for attempt in numbers]
    order = {LOST: 1, "down time": 2}
    bars.sort(key=lambda bar: order.get(bar.kind, 0))
    return timeline(bars, flags, names, account.begin_s, account.end_s, one)


# --- several runs ---


def of_runs(accounts: Sequence[Account]) -> list[Chart]:
    """Charts that lay the runs over each other, each in the colour of its place."""
    runs = [account.run for account in accounts]

    def over(name: str, say: Callable[[float | None], str]) -> list[Series]:
        return [_over(run, name, index, say) for index, run in enumerate(runs)]

    train, timed = over("loss", fixed), [_over_time(account, index) for index, account in enumerate(accounts)]
    held = [
        _held_out_of(run.label, [(line["tokens"], line.get("loss")) for line in run.of("validation")], index % COLOURS)
        for index, run in enumerate(runs)
    ]
    rates = [Series(run.label, points(run.train, "lr"), index % COLOURS) for index, run in enumerate(runs)]
    top, log = max(_high([point.y for point in series.points]) for series in train), _positive(train)
    passed = "smoothed; over the time of the steps that stand"
    charts = [
        Chart("Training loss", train, "smoothed", log=log, top=top, wide=True),
        Chart("Training loss over time", timed, passed, x_unit="seconds", x_name="time", log=log, top=top),
        Chart("Held-out loss", held, log=_positive(held)),
        Chart("Gradient norm", over("grad_norm", fixed), "smoothed", log=True),
        Chart("Learning rate", rates, zero=True),
        Chart("Tokens per second", over("tokens_per_s", count), "smoothed", unit="count", zero=True),
    ]
    if any(number(line.get("mfu")) is not None for run in runs for line in run.train[-1:]):
        charts.append(Chart("Model FLOPs utilisation", over("mfu", percent), "smoothed", unit="share", zero=True))
    return charts


def _positive(series: Iterable[Series]) -> bool:
    return all(point.y is None or point.y > 0 for one in series for point in one.points)


def _over(run: RecordedRun, name: str, index: int, say: Callable[[float | None], str]) -> Series:
    smooth = smoothed(points(run.train, name))
    return Series(run.label, smooth, index % COLOURS, "line", _last(smooth, say))


def _last(values: Sequence[Point], say: Callable[[float | None], str]) -> str:
    return say(values[-1].y) if values else ""


def _over_time(account: Account, index: int) -> Series:
    lines = [line for line in account.run.train if line.get("loss") is not None]
    times = itertools.accumulate(number(line.get("step_s")) or 0.0 for line in lines)
    smooth = smoothed([Point(time_s, number(line["loss"])) for time_s, line in zip(times, lines)])
    return Series(account.run.label, smooth, index % COLOURS, "line", _last(smooth, fixed))
