"""Line charts and timelines as inline SVG: text stays text, colours follow the page's light or dark theme.

Drawn here and not by matplotlib, whose pictures know one theme, repeat ids within a page and take a second to import.
A series of any length becomes at most four points per column of pixels (first, lowest, highest, last), which draws the
same picture as all of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from llama31.report.text import count, duration, escape, fixed, percent, short

COLOURS = 8
LEFT, RIGHT, ABOVE, BELOW = 58, 12, 10, 32  # margins of the plot, in units of the picture
WIDTH, HEIGHT = 560, 230
WIDE, HIGH = 1140, 300  # of a picture that takes both columns
COLUMN = 1.5  # units that one bucket of points covers

UNITS: dict[str, Callable[[float | None], str]] = {
    "count": count,
    "fixed": fixed,
    "seconds": duration,
    "share": percent,
}


class Point(NamedTuple):
    """A value, or from `low` to `y` where an area is drawn; None interrupts the line."""

    x: float
    y: float | None
    low: float = 0.0


@dataclass(frozen=True)
class Series:
    """A named line. `colour` is a number of the palette or a name of the style sheet."""

    name: str
    points: Sequence[Point]
    colour: int | str = 0
    style: str = "line"  # line, faint, step, dots, area
    value: str = ""  # said beside the name


@dataclass(frozen=True)
class Chart:
    """One picture: `unit` and `x_unit` are keys of `UNITS`, `top` cuts off what is higher, `marks` point at x."""

    title: str
    series: Sequence[Series]
    note: str = ""
    unit: str = "fixed"
    x_unit: str = "count"
    x_name: str = "tokens"
    log: bool = False
    zero: bool = False
    top: float | None = None
    rules: Sequence[tuple[float, str]] = ()
    marks: Sequence[float] = field(default=())
    marks_name: str = ""
    wide: bool = False


# --- from numbers to places ---


class Scale:
    """Maps values between `low` and `high` to places between `begin` and `end`."""

    def __init__(self, low: float, high: float, begin: float, end: float, log: bool = False) -> None:
        self.low, self.high, self.begin, self.end, self.log = low, high, begin, end, log
        self._low, self._high = (math.log10(low), math.log10(high)) if log else (low, high)

    def __call__(self, value: float) -> float:
        """The place of a value, which may lie outside."""
        if self.log:
            value = math.log10(max(value, self.low * 1e-3))
        return self.begin + (value - self._low) / (self._high - self._low) * (self.end - self.begin)

    def ticks(self, most: int, seconds: bool = False) -> list[float]:
        """Round values between the ends, about `most` of them; round as a clock is for `seconds`."""
        if self.log:
            return self._log_ticks(most)
        step = _clock_step(self.high - self.low, most) if seconds else _step(self.high - self.low, most)
        first = math.ceil(self.low / step - 1e-9)
        return [index * step for index in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def _log_ticks(self, most: int) -> list[float]:
        decades = range(math.floor(self._low), math.ceil(self._high) + 1)
        for factors in ((1, 1.5, 2, 3, 4, 6), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
            ticks = [10.0**decade * factor for decade in decades for factor in factors]
            ticks = [value for value in ticks if self.low <= value <= self.high]
            if len(ticks) <= most + 1:
                return ticks
        return ticks[:: math.ceil(len(ticks) / most)]


def _step(extent: float, most: int) -> float:
    rough = extent / most
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)


def _clock_step(extent: float, most: int) -> float:
    if extent / most < 1:
        return _step(extent, most)
    steps = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200)
    days = (86400.0 * days for days in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10000))
    return next((float(step) for step in itertools.chain(steps, days) if step >= extent / most), extent)


def thinned(points: Iterable[Point], columns: int, begin: float, end: float) -> list[Point]:
    """At most four points per column of `columns` between x = `begin` and `end`: first, lowest, highest, last.

    Areas keep the point with the highest top and the one with the lowest bottom. The order is kept.
    """
    points = list(points)
    if len(points) <= 2 * columns or end <= begin:
        return points
    result: list[Point] = []
    for _, group in itertools.groupby(points, lambda point: int((point.x - begin) / (end - begin) * columns)):
        bucket = list(group)
        finite = [index for index, point in enumerate(bucket) if point.y is not None]
        if finite:
            heights = [point.y if point.y is not None else 0.0 for point in bucket]
            lowest = min(finite, key=lambda index: min(heights[index], bucket[index].low or heights[index]))
            highest = max(finite, key=heights.__getitem__)
            kept = sorted({0, lowest, highest, len(bucket) - 1})
        else:
            kept = [0]
        result += [bucket[index] for index in kept]
    return result


# --- a chart ---


def draw(chart: Chart) -> str:
    """The chart as an HTML figure with title, legend and picture; a word where there is nothing to draw."""
    drawn = [series for series in chart.series if any(point.y is not None for point in series.points)]
    head = f"<figcaption><b>{escape(chart.title)}</b>{_note(chart)}</figcaption>"
    wide = " wide" if chart.wide else ""
    if not drawn:
        return f'<figure class="card{wide}">{head}<p class="none">not recorded</p></figure>'
    x, y = _scales(chart, drawn)
    data = f'data-x="{x.low!r} {x.high!r} {x.begin} {x.end} {chart.x_unit}" '
    data += f'data-y="{y.low!r} {y.high!r} {y.begin} {y.end} {chart.unit} {int(y.log)}"'
    width, height = (WIDE, HIGH) if chart.wide else (WIDTH, HEIGHT)
    body = "".join([*_axes(chart, x, y), *_rules(chart, x, y), *_marks(chart, x, y.begin), *_lines(drawn, x, y)])
    label = escape(f"{chart.title}: {', '.join(short(series.name, 40) for series in drawn)}")
    picture = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}" {data}>{body}</svg>'
    return f'<figure class="card{wide}">{head}{_legend(drawn)}{picture}</figure>'


def _note(chart: Chart) -> str:
    return f'<span class="note">{escape(chart.note)}</span>' if chart.note else ""


def _legend(drawn: Sequence[Series]) -> str:
    chips = (
        f'<span class="chip"><i class="k{series.colour} {series.style}"></i>'
        f'<span class="name" title="{escape(series.name)}">{escape(short(series.name, 80))}</span>'
        f'<output data-v="{escape(series.value)}">{escape(series.value)}</output></span>'
        for series in drawn
    )
    return f'<div class="legend">{"".join(chips)}</div>'


def _scales(chart: Chart, drawn: Sequence[Series]) -> tuple[Scale, Scale]:
    xs = [point.x for series in drawn for point in (series.points[0], series.points[-1])]
    low, high = min(xs), max(xs)
    if high <= low:
        low, high = low - max(1.0, abs(low)) * 0.5, high + max(1.0, abs(high)) * 0.5
    width = WIDE if chart.wide else WIDTH
    x = Scale(low, high, LEFT, width - RIGHT)
    bottom, top = _heights(chart, drawn)
    return x, Scale(bottom, top, (HIGH if chart.wide else HEIGHT) - BELOW, ABOVE, chart.log)


def _heights(chart: Chart, drawn: Sequence[Series]) -> tuple[float, float]:
    """The lowest and highest value that the picture shows."""
    ys = [point.y for series in drawn for point in series.points if point.y is not None]
    ys += [point.low for series in drawn if series.style == "area" for point in series.points if point.y is not None]
    ys += [value for value, _ in chart.rules]
    if chart.log:
        ys = [y for y in ys if y > 0] or [1.0]
    low, high = min(ys), max(ys)
    if chart.top is not None:
        high = max(min(high, chart.top), low)
    if chart.log:
        return low / 1.3, high * 1.3
    low = min(0.0, low) if chart.zero else low
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return low if chart.zero and low == 0 else low - room, high + (0.0 if chart.unit == "share" and high == 1 else room)


def _axes(chart: Chart, x: Scale, y: Scale) -> Iterator[str]:
    for value in y.ticks(5, chart.unit == "seconds"):
        at = y(value)
        yield f'<path class="grid" d="M{x.begin} {at:.1f}H{x.end}"/>'
        text = _tick(chart.unit, value)
        yield f'<text class="tick" x="{LEFT - 6}" y="{at + 3.5:.1f}" text-anchor="end">{text}</text>'
    base = y.begin
    yield f'<path class="axis" d="M{x.begin} {base}H{x.end}"/>'
    for value in x.ticks(9 if chart.wide else 5, chart.x_unit == "seconds"):
        at = x(value)
        yield f'<path class="axis" d="M{at:.1f} {base}v4"/>'
        text = _tick(chart.x_unit, value)
        yield f'<text class="tick" x="{at:.1f}" y="{base + 16}" text-anchor="middle">{text}</text>'
    yield f'<text class="tick" x="{LEFT - 14}" y="{base + 16}" text-anchor="end">{escape(chart.x_name)}</text>'


def _tick(unit: str, value: float) -> str:
    if value == 0:
        return "0"
    if unit == "fixed":
        return f"{value:.4g}" if 1e-3 <= abs(value) < 1e5 else f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")
    if unit == "share":
        return f"{100 * value:.3g}%"
    return _clock(value) if unit == "seconds" else UNITS[unit](value)


def _clock(seconds: float) -> str:
    for unit_s, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit_s:
            return f"{seconds / unit_s:.4g} {name}"
    return f"{seconds:.4g} s" if seconds >= 0.1 else f"{1000 * seconds:.4g} ms"


def _rules(chart: Chart, x: Scale, y: Scale) -> Iterator[str]:
    for value, name in chart.rules:
        at = y(value)
        yield f'<path class="rule" d="M{x.begin} {at:.1f}H{x.end}"/>'
        yield f'<text class="tick" x="{x.end - 4}" y="{at - 4:.1f}" text-anchor="end">{escape(short(name, 60))}</text>'


def _marks(chart: Chart, x: Scale, base: float) -> Iterator[str]:
    """Small triangles on the axis, one per column at most."""
    places = sorted({round(x(value) / 3) * 3 for value in chart.marks if x.low <= value <= x.high})
    for at in places:
        yield f'<path class="mark" d="M{at} {base}l-4 7h8z"><title>{escape(chart.marks_name)}</title></path>'


def _lines(drawn: Sequence[Series], x: Scale, y: Scale) -> Iterator[str]:
    low, high = ABOVE - 2, y.begin
    for index, series in enumerate(drawn):
        columns = int((x.end - x.begin) / COLUMN)
        points = thinned(series.points, columns, x.low, x.high)
        places = [None if p.y is None else (x(p.x), min(max(y(p.y), low), high)) for p in points]
        if series.style == "area":
            lows = [min(max(y(point.low), low), high) for point in points]
            yield f'<path class="area k{series.colour}" d="{_area(places, lows)}"/>'
            continue
        kind = f'class="{series.style} k{series.colour}" data-i="{index}"'
        if series.style != "dots":
            yield f'<path {kind} d="{_path(places, series.style == "step")}"/>'
        if series.style == "dots" or len(points) <= 12:
            dots = "".join(f"M{place[0]:.1f} {place[1]:.1f}h0" for place in places if place)
            yield f'<path class="points k{series.colour}" d="{dots}"{f" data-i={index}" * (series.style == "dots")}/>'


Places = Sequence[tuple[float, float] | None]


def _path(places: Places, steps: bool) -> str:
    words, pen = [], "M"
    for place in places:
        if place is None:
            pen = "M"
        elif steps and pen == "L":
            words.append(f"H{place[0]:.1f}V{place[1]:.1f}")
        else:
            words.append(f"{pen}{place[0]:.1f} {place[1]:.1f}")
            pen = "L"
    return "".join(words)


def _area(places: Places, lows: Sequence[float]) -> str:
    both = [(place, low) for place, low in zip(places, lows) if place is not None]
    if len(both) == 1:  # one point has no extent of its own
        (at, top), low = both[0]
        return f"M{at - 8:.1f} {top:.1f}H{at + 8:.1f}V{low:.1f}H{at - 8:.1f}Z"
    there = "L".join(f"{at:.1f} {top:.1f}" for (at, top), _ in both)
    back = "L".join(f"{at:.1f} {low:.1f}" for (at, _), low in reversed(both))
    return f"M{there}L{back}Z"


# --- a timeline ---


class Bar(NamedTuple):
    """A stretch of a timeline; `kind` is its colour in the style sheet."""

    row: int
    kind: str
    begin: float
    end: float
    title: str


class Flag(NamedTuple):
    """A moment of a timeline, with a sign that says what it is and a text beside it."""

    row: int
    kind: str
    sign: str
    at: float
    text: str


def timeline(
    bars: Sequence[Bar], flags: Sequence[Flag], names: Sequence[str], begin: float, end: float, crowded: bool
) -> str:
    """Rows of bars over seconds since `begin`, as one wide picture.

    Flags are signs with a text where there is room, or strokes above the bars where `crowded`.
    """
    row_height, inset = (46, 12) if crowded else (22, 3)
    height = ABOVE + row_height * len(names) + BELOW
    x = Scale(0.0, max(end - begin, 1e-3), LEFT, WIDE - RIGHT)
    words: list[str] = []
    for value in x.ticks(9, seconds=True):
        at = x(value)
        words.append(f'<path class="grid" d="M{at:.1f} {ABOVE}V{height - BELOW}"/>')
        text = _tick("seconds", value)
        words.append(f'<text class="tick" x="{at:.1f}" y="{height - 14}" text-anchor="middle">{text}</text>')
    for row, name in enumerate(names):
        at = ABOVE + row_height * (row + 0.5) + 3.5
        words.append(f'<text class="tick" x="{LEFT - 6}" y="{at:.1f}" text-anchor="end">{escape(name)}</text>')
    for bar in bars:
        from_x, to_x = x(bar.begin - begin), x(bar.end - begin)
        words.append(
            f'<rect class="b-{escape(bar.kind.replace(" ", "-"))}" x="{from_x:.1f}" '
            f'y="{ABOVE + row_height * bar.row + inset}" width="{max(to_x - from_x, 0.6):.1f}" '
            f'height="{row_height - inset - 3}"><title>{escape(bar.title)}</title></rect>'
        )
    if crowded:
        return _timeline(height, [*words, *(_stroke(flag, x(flag.at - begin), row_height) for flag in flags)])
    for flag in flags:
        own = [bar for bar in bars if bar.row == flag.row]
        first, last = (x(edge(own) - begin) for edge in (_first, _last)) if own else (x(flag.at - begin),) * 2
        words.append(_flag(flag, x(flag.at - begin), row_height, (first, last)))
    return _timeline(height, words)


def _first(bars: Sequence[Bar]) -> float:
    return min(bar.begin for bar in bars)


def _last(bars: Sequence[Bar]) -> float:
    return max(bar.end for bar in bars)


def _timeline(height: int, words: Iterable[str]) -> str:
    return f'<svg viewBox="0 0 {WIDE} {height}" role="img" aria-label="timeline of the attempts">{"".join(words)}</svg>'


def _stroke(flag: Flag, at: float, row_height: int) -> str:
    y = ABOVE + row_height * flag.row
    title = f"<title>{escape(flag.text)}</title>"
    return f'<rect class="s-{escape(flag.kind)}" x="{at - 0.6:.1f}" y="{y}" width="1.2" height="9">{title}</rect>'


def _flag(flag: Flag, at: float, row_height: int, taken: tuple[float, float]) -> str:
    """The sign of a flag, and its text where the row has room for it beside what is `taken`."""
    y, said = ABOVE + row_height * (flag.row + 0.5) + 4.5, short(flag.text, 90)
    text, room = "", 6.2 * len(said) + 12
    if taken[1] + room < WIDE:
        text = f'<text class="tick" x="{max(taken[1], at) + 11:.1f}" y="{y - 1:.1f}">{escape(said)}</text>'
    elif taken[0] - room > LEFT:
        text = f'<text class="tick" x="{taken[0] - 8:.1f}" y="{y - 1:.1f}" text-anchor="end">{escape(said)}</text>'
    sign = f'<text class="sign s-{escape(flag.kind)}" x="{at:.1f}" y="{y:.1f}" text-anchor="middle">{flag.sign}</text>'
    return f"<g>{text}{sign}<title>{escape(flag.text)}</title></g>"
