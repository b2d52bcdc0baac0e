"""The page of one round of post-training: does its model win, obey and refuse as it should, and since which round?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llama31.report.charts import Chart, Point, Series, draw
from llama31.report.style import document
from llama31.report.tables import Cell, table
from llama31.report.text import NONE, escape, fixed, percent, short

Record = Mapping[str, Any]


def html(judgement: Record, earlier: Sequence[Record] = ()) -> str:
    """The whole page on what `judge.judge` found; `earlier` rounds, oldest first, give the curves."""
    title = str(judgement["title"])
    body = "".join(
        [
            f'<div class="head"><h1>{escape(title)}</h1></div>',
            f'<p class="sub">{judgement["prompts"]:,} prompts, judged by the reward model '
            f"{escape(judgement['reward_model'])}; intervals are 95 %, 1.96 sqrt(S (1 - S) / N).</p>",
            _verdict(judgement),
            _tiles(judgement),
            _curves([*earlier, judgement]),
            _rewards(judgement.get("rewards")),
            _obeyed(judgement),
            _heldout(judgement),
            _examples(judgement.get("examples") or ()),
        ]
    )
    return document(short(title, 120), body, "Written by python -m recipes.judge.")


def _verdict(judgement: Record) -> str:
    win_rate = judgement.get("win_rate")
    if win_rate is None:
        return '<div class="verdict fine">The first: there is no model before to compare it with.</div>'
    low, high = win_rate["score"] - win_rate["ci95"], win_rate["score"] + win_rate["ci95"]
    if low > 0.5:
        return '<div class="verdict fine"><b class="well">Better than the model before</b>, beyond chance.</div>'
    if high < 0.5:
        return '<div class="verdict look"><b>Worse than the model before</b>, beyond chance.</div>'
    return '<div class="verdict look"><b>As good as the model before</b>, as far as so many prompts can tell.</div>'


def _score(proportion: Record | None) -> str:
    return NONE if proportion is None else percent(proportion["score"])


def _interval(proportion: Record | None) -> str:
    return (
        "not measured" if proportion is None else f"± {percent(proportion['ci95'])}, {proportion['count']:,} outcomes"
    )


def _tiles(judgement: Record) -> str:
    answers = judgement["answers"]
    shown = {
        "Win rate": judgement.get("win_rate"),
        "Prompts obeyed": answers["obeyed"].get("prompts"),
        "Instructions obeyed": answers["obeyed"].get("instructions"),
        "Harmful refused": answers["refused"].get("harmful"),
        "Borderline refused": answers["refused"].get("borderline"),
    }
    cells = (
        f'<div class="tile"><span>{escape(name)}</span><b>{_score(proportion)}</b>'
        f"<small>{_interval(proportion)}</small></div>"
        for name, proportion in shown.items()
    )
    return f'<div class="tiles">{"".join(cells)}</div>'


def _curves(rounds: Sequence[Record]) -> str:
    """Scores over rounds; where there is one round alone there is nothing to draw."""
    if len(rounds) < 2:
        return ""
    paths: dict[str, dict[str, Sequence[str]]] = {
        "Win rate against the round before": {"win rate": ("win_rate",)},
        "Instructions": {
            "prompts obeyed": ("answers", "obeyed", "prompts"),
            "instructions obeyed": ("answers", "obeyed", "instructions"),
        },
        "Refusals": {
            "harmful": ("answers", "refused", "harmful"),
            "borderline": ("answers", "refused", "borderline"),
        },
    }
    charts = []
    for title, lines in paths.items():
        series = [
            Series(name, [Point(i + 1, _at(judgement, path)) for i, judgement in enumerate(rounds)], colour)
            for colour, (name, path) in enumerate(lines.items())
        ]
        rules = [(0.5, "as good as before")] if title.startswith("Win") else []
        charts.append(draw(Chart(title, series, unit="share", x_name="round", zero=True, rules=rules)))
    return f'<h2>Over the rounds</h2><div class="grid">{"".join(charts)}</div>'


def _at(judgement: Record, path: Sequence[str]) -> float | None:
    node: Any = judgement
    for name in path:
        node = (node or {}).get(name)
    return None if node is None else float(node["score"])


def _rewards(rewards: Record | None) -> str:
    """How rewards of both models are distributed: densities, quantiles, and what chance makes of the difference."""
    if not rewards:
        return ""
    names, edges = {"mine": "this model", "previous": "the model before"}, rewards["edges"]
    series = []
    for colour, (key, name) in enumerate(names.items()):
        heights = [*rewards[key]["density"], 0.0]  # the last step ends at the axis
        series.append(Series(name, [Point(x, y) for x, y in zip(edges, heights)], colour, "step"))
    note = f"{rewards['prompts']:,} prompts that both answered"
    chart = Chart("Rewards", series, note=note, x_unit="fixed", x_name="reward", zero=True)
    rows = [
        [Cell(name), *(Cell(fixed(value), right=True) for value in (rewards[key]["mean"], *rewards[key]["quantiles"]))]
        for key, name in names.items()
    ]
    head = ["rewards", "mean", *(f"{share:.0%}" for share in rewards["shares"])]
    said = escape(rewards["said"])
    return f'<h2>Rewards<span class=note>{said}</span></h2><div class="grid">{draw(chart)}</div>{table(head, rows)}'


def _obeyed(judgement: Record) -> str:
    rows = []
    before = judgement.get("previous") or {"obeyed": {}, "refused": {}}
    for part, heading in (("obeyed", "obeyed: "), ("refused", "refused: ")):
        for name, proportion in judgement["answers"][part].items():
            other = before[part].get(name)
            rows.append(
                [
                    Cell(f"{heading}{name.strip()}"),
                    Cell(_score(proportion), right=True),
                    Cell(f"± {percent(proportion['ci95'])}", right=True),
                    Cell(f"{proportion['count']:,}", right=True),
                    Cell(_score(other), right=True),
                ]
            )
    for name, proportion in judgement["answers"].get("lengths", {}).items():
        shown = percent if name == "unfinished" else "{:,.4g}".format
        other = before.get("lengths", {}).get(name)
        rows.append([Cell(name), Cell(shown(proportion), right=True), *[Cell("", right=True)] * 2])
        rows[-1].append(Cell(NONE if other is None else shown(other), right=True))
    if not rows:
        return ""
    head = ["share of answers", "this model", "95 %", "outcomes", "the model before"]
    lost = (
        "a prompt that one model alone answered is lost by the other" if judgement.get("unanswered") == "lose" else ""
    )
    note = f"<span class=note>{lost}</span>" if lost else ""
    return f"<h2>Instructions, refusals, lengths{note}</h2>{table(head, rows)}"


def _heldout(judgement: Record) -> str:
    runs = judgement.get("heldout") or {}
    names = list(dict.fromkeys(name for figures in runs.values() for name in figures))
    if not names:
        return ""
    rows = [
        [Cell(run), *(Cell(fixed(figures[name]) if name in figures else NONE, right=True) for name in names)]
        for run, figures in runs.items()
    ]
    return f"<h2>Held-out figures of this round's training</h2>{table(['run', *names], rows)}"


def _examples(examples: Sequence[Record]) -> str:
    if not examples:
        return ""
    rows = [
        [
            Cell(short(one["prompt"], 600)),
            Cell(short(one["answer"], 900)),
            Cell(fixed(one["reward"], 2), right=True),
            Cell(short(one["previous"], 900)),
            Cell(fixed(one["previous_reward"], 2), right=True),
        ]
        for one in examples
    ]
    head = ["prompt", "this model", "reward", "the model before", "reward"]
    note = "<span class=note>what gained most first, what lost most last</span>"
    return f"<h2>Answers{note}</h2>{table(head, rows)}"
