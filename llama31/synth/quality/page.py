"""The report as one HTML page: what each step dropped, where the verdicts disagree, and dialogs to read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama31.curate.outcome.page import STYLE, clean
from llama31.report.charts import Chart, Point, Series, draw
from llama31.report.style import document
from llama31.report.tables import Cell, bar, table
from llama31.report.text import NONE, escape, fixed, percent, plain
from llama31.runs import files
from llama31.synth.quality.selection import BEST, NOT, UNKNOWN

NAME = "report.html"
Summary = dict[str, Any]
SHOWN = ("topic", "difficulty", "intentions", "points", "reward_rank", "worth", "cosine", "nearest", "contamination")
TITLES = {
    "reward": ("Rewards", "fixed", "reward"),
    "points": ("Share of the judge's points", "fixed", "share"),
    "difficulty": ("Difficulty", "count", "grade"),
    "intentions": ("Intentions of a dialog", "count", "tags"),
}


def write(folder: Path, summary: Summary) -> Path:
    """Write report.html, whole or not at all."""
    path = folder / NAME
    files.write_whole(path, html(summary))
    return path


def html(summary: Summary) -> str:
    """The page of what `filtering.select` returns."""
    title = f"Dialogs of {summary['name']}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="sub">{escape(summary["input"])}</p>',
        _verdict(summary),
        _tiles(summary),
        f"<h2>What is left behind each step</h2>{_funnel(summary)}",
        f"<h2>Why dialogs were dropped</h2>{_reasons(summary)}",
        f"<h2>Reward and judge{_note(summary['disagreement'])}</h2>{_disagreement(summary['disagreement'])}",
        f'<h2>Distributions</h2><div class="grid">{"".join(_charts(summary))}</div>',
        f"<h2>Topics</h2>{_topics(summary['topics'])}" if summary["topics"] else "",
        f"<h2>Benchmarks</h2>{_contamination(summary)}" if summary["contamination"] else "",
        f"<h2>What the judge was asked</h2>{_questions(summary)}" if summary["questions"] else "",
        "<h2>Dialogs</h2><p class='sub'>Drawn by a hash of what each says.</p>",
        f'<div class="card wide">{"".join(_samples(summary["samples"]))}</div>',
        f"<h2>Made with</h2>{_made_with(summary)}",
    ]
    return document(
        title, "".join(parts), "Written by python -m recipes.filter_data; the same in numbers: summary.json.", STYLE
    )


def _verdict(summary: Summary) -> str:
    missing = {name: one["missing"] for name, one in summary["questions"].items() if one["missing"]}
    mute = [name for name, one in summary["questions"].items() if one["asked"] and not one["answered"]]
    if mute and not missing:
        said = f"{', '.join(mute)}: the judge's answers have not the form that conf/prompts/quality asks for"
        return f'<div class="verdict look"><b>No answer could be read</b><ul><li>{escape(said)}</li></ul></div>'
    if not missing:
        return '<div class="verdict fine"><b class="well">Every question was asked.</b></div>'
    said = ", ".join(f"{name}: {number:,} dialogs" for name, number in missing.items())
    return (
        '<div class="verdict look"><b>Not asked, or refused by the servers</b>'
        f"<ul><li>{escape(said)}; the same command asks again</li></ul></div>"
    )


def _tiles(summary: Summary) -> str:
    records, kept = summary["records"], summary["kept"]
    dropped = {step["step"]: step["in"] - step["left"] for step in summary["steps"]}
    unread = sum(one["unread"] for one in summary["questions"].values())
    agreement, apologising = summary["disagreement"]["agreement"], summary["apologising"]
    tiles = [
        ("dialogs read", f"{records:,}", f"{dropped['reading']:,} of them unfit or repeated"),
        ("kept", f"{kept:,}", f"{_share(kept, records)} of all"),
        ("contaminated", f"{dropped['decontamination']:,}", "by prompts of benchmarks"),
        ("reward and judge agree", percent(agreement), f"over {summary['disagreement']['both']:,} dialogs with both"),
        ("say the same", f"{dropped['deduplication']:,}", f"in {summary.get('clusters', 0):,} clusters"),
        ("apologise", _share(apologising, kept), f"{apologising:,} of what is kept"),
    ]
    if summary["questions"]:
        tiles.append(("answers that do not parse", f"{unread:,}", "after being asked once more"))
    cells = (
        f'<div class="tile"><span>{name}</span><b>{value}</b><small>{escape(note)}</small></div>'
        for name, value, note in tiles
    )
    return f'<div class="tiles">{"".join(cells)}</div>'


def _share(part: int, of: int) -> str:
    return percent(part / of if of else None)


def _funnel(summary: Summary) -> str:
    records = summary["records"] or 1
    rows = [
        [
            Cell(step["step"]),
            Cell(bar(step["left"] / records), markup=True),
            Cell(f"{step['left']:,}", right=True),
            Cell(f"{step['in'] - step['left']:,}", right=True),
            Cell(_share(step["in"] - step["left"], step["in"]), right=True),
        ]
        for step in summary["steps"]
    ]
    return table(["step", "of all dialogs", "left", "dropped", "of those in"], rows, wide=True)


def _reasons(summary: Summary) -> str:
    found = [(number, step["step"], reason) for step in summary["steps"] for reason, number in step["reasons"].items()]
    if not found:
        return '<div class="card"><p class="none">Nothing was dropped.</p></div>'
    most = max(number for number, _, _ in found)
    rows = [
        [Cell(step), Cell(reason), Cell(bar(number / most, "gone"), markup=True), Cell(f"{number:,}", right=True)]
        for number, step, reason in sorted(found, key=lambda one: (-one[0], one[1:]))
    ]
    return table(["step", "reason", "", "dialogs"], rows, wide=True)


def _note(found: Summary) -> str:
    if found["kappa"] is None:
        return ""
    return f"<span class=note>Cohen's kappa {found['kappa']:.2f}: 0 is chance, 1 the same verdicts</span>"


def _disagreement(found: Summary) -> str:
    """Rows by reward, columns by judge; what is kept is the first row and the first column."""
    counts, names = found["counts"], (BEST, NOT, UNKNOWN)
    if not any(counts[BEST].values()) and not any(counts[one][BEST] for one in names):
        return '<div class="card"><p class="none">Neither a reward nor a judge has said anything.</p></div>'
    total = sum(sum(row.values()) for row in counts.values()) or 1
    rows = [
        [
            Cell(f"reward: {row}"),
            *(_counted(counts[row][column], total, BEST in (row, column)) for column in names),
            Cell(f"{sum(counts[row].values()):,}", right=True),
        ]
        for row in names
    ]
    last = [Cell(f"{sum(counts[row][column] for row in names):,}", right=True) for column in names]
    rows.append([Cell("all"), *last, Cell(f"{total:,}", right=True)])
    union = sum(counts[row][column] for row in names for column in names if BEST in (row, column))
    said = (
        f"<p class='sub'>Bold: the union, {union:,} dialogs, which is kept; both call {counts[BEST][BEST]:,} of them "
        f"best, the reward model alone {counts[BEST][NOT] + counts[BEST][UNKNOWN]:,}, "
        f"the judge alone {counts[NOT][BEST] + counts[UNKNOWN][BEST]:,}.</p>"
    )
    return said + table(["", *(f"judge: {name}" for name in names), "all"], rows, wide=True)


def _counted(number: int, total: int, kept: bool) -> Cell:
    text = f"{number:,} ({percent(number / total)})"
    return Cell(f"<b>{text}</b>" if kept else text, right=True, markup=True)


def _charts(summary: Summary) -> list[str]:
    charts = []
    for name, found in summary["histograms"].items():
        title, unit, axis = TITLES[name]
        least = summary["least_reward"] if name == "reward" else None
        charts.append(draw(_chart(title, found, ("all", "kept"), unit, axis, marks=[] if least is None else [least])))
    if "cosines" in summary:
        threshold = summary["keys"]["deduplication"]["threshold"]
        note = "largest cosine to a kept dialog of the cluster; the mark is the threshold"
        chart = _chart("Likeness", summary["cosines"], ("all",), "fixed", "cosine", [threshold], note)
        charts.append(draw(chart))
    return charts or ['<div class="card"><p class="none">Nothing was measured.</p></div>']


def _chart(
    title: str, found: Summary, names: Sequence[str], unit: str, axis: str, marks: Sequence[float], note: str = ""
) -> Chart:
    series = []
    for colour, name in enumerate(names):
        if "edges" in found:
            points = [Point(x, float(y)) for x, y in zip(found["edges"], [*found[name], 0])]
            series.append(Series(name, points, colour, "step", f"{sum(found[name]):,}"))
        else:
            points = [Point(x, float(y)) for x, y in zip(found["values"], found[name])]
            series.append(Series(name, points, colour, "line", f"{sum(found[name]):,}"))
    return Chart(
        title, series, note, unit="count", x_unit=unit, x_name=axis, zero=True, marks=marks, marks_name="threshold"
    )


def _topics(topics: Summary) -> str:
    most = max((sum(one[0] for one in fine.values()) for fine in topics.values()), default=1)
    rows = []
    for coarse, fine in topics.items():
        rows.append(_topic_row(coarse, "", [sum(one[i] for one in fine.values()) for i in (0, 1)], most))
        rows += [
            _topic_row("", name, counts, most) for name, counts in sorted(fine.items(), key=lambda one: -one[1][0])
        ]
    return table(["topic", "finer", "", "dialogs", "kept", "share kept"], rows, wide=True)


def _topic_row(coarse: str, fine: str, counts: Sequence[int], most: int) -> list[Cell]:
    every, kept = counts
    cells = [Cell(coarse), Cell(fine), Cell(bar(every / most), markup=True)]
    return [*cells, *(Cell(text, right=True) for text in (f"{every:,}", f"{kept:,}", _share(kept, every)))]


def _contamination(summary: Summary) -> str:
    rows = [
        [
            Cell(name),
            *(Cell(f"{found[key]:,}", right=True) for key in ("prompts", "short")),
            Cell(fixed(summary["keys"]["decontamination"]["sets"][name]["threshold"], 2), right=True),
            *(
                Cell(f"{found[key]:,} ({_share(found[key], found['prompts'])})", right=True)
                for key in ("contaminated", "contaminated_by_kept")
            ),
        ]
        for name, found in summary["contamination"].items()
    ]
    size = summary["keys"]["decontamination"]["ngram"]
    note = (
        f"<p class='sub'>A prompt is contaminated if the share T_D of its words lies in {size}-grams of all dialogs "
        "together; dialogs are dropped by what each has alone.</p>"
    )
    names = ["benchmark", "prompts", "too short", "T_D", "contaminated by all dialogs", "by what is kept"]
    return note + table(names, rows, wide=True)


def _questions(summary: Summary) -> str:
    rows = [
        [
            Cell(name),
            *(Cell(f"{one[key]:,}", right=True) for key in ("asked", "answered", "unread", "missing")),
            Cell(", ".join(f"{reason}: {number:,}" for reason, number in one["counts"].items()) or NONE),
        ]
        for name, one in summary["questions"].items()
    ]
    names = ["question", "dialogs", "answered", "not to be read", "not asked", "counted"]
    return f"<p class='sub'>{escape(', '.join(summary['models']))}</p>{table(names, rows, wide=True)}"


def _samples(samples: Summary) -> list[str]:
    return [
        f"<details><summary>{escape(kind)}</summary>{''.join(_sample(one, kind) for one in found)}</details>"
        for kind, found in sorted(samples.items(), key=lambda one: (one[0] != "kept", one[0]))
    ]


def _sample(one: Summary, kind: str) -> str:
    facts = [f"{name}: {plain(one['added'][name])}" for name in SHOWN if name in one["added"]]
    said = " · ".join([one["place"], one["id"], *facts])
    return (
        f'<div class="text {"kept" if kind == "kept" else "removed"}"><small>{escape(said)}</small>'
        f"<pre>{escape(clean(one['text']))}</pre></div>"
    )


def _made_with(summary: Summary) -> str:
    rows = [
        [Cell(f"{section}.{name}"), Cell(plain(value))]
        for section, values in summary["keys"].items()
        if isinstance(values, dict)
        for name, value in values.items()
    ]
    rows += [[Cell(name), Cell(plain(value))] for name, value in summary["keys"].items() if not isinstance(value, dict)]
    rows += [[Cell(f"prompt {name}"), Cell(value)] for name, value in summary["prompts"].items()]
    return f"<details><summary>{len(rows)} keys</summary>{table(['key', 'value'], rows, wide=True)}</details>"
