"""The page of one round of post-training: does its model win, obey and refuse as it should, and since which round?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llama31.report.charts import Chart, Point, Series, draw
from llama31.report.style import CSS, SCRIPT
from llama31.report.tables import Cell, table
from llama31.report.text import NONE, escape, fixed, percent, short

Told = Mapping[str, Any]


def html(told: Told, earlier: Sequence[Told] = ()) -> str:
    """The whole page on what `judge.judge` found; `earlier` rounds, oldest first, give the curves."""
    title = str(told["title"])
    body = "".join(
        [
            f'<div class="head"><h1>{escape(title)}</h1></div>',
            f'<p class="sub">{told["prompts"]:,} prompts, judged by the reward model {escape(told["reward_model"])}; '
            "intervals are 95 %, 1.96 sqrt(S (1 - S) / N).</p>",
            _verdict(told),
            _tiles(told),
            _curves([*earlier, told]),
            _obeyed(told),
            _heldout(told),
            _examples(told.get("examples") or ()),
        ]
    )
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(short(title, 120))}</title><style>{CSS}</style></head><body><main>{body}"
        f"<footer>Written by python -m recipes.judge.</footer></main><script>{SCRIPT}</script></body></html>\n"
    )


def _verdict(told: Told) -> str:
    found = told.get("win_rate")
    if found is None:
        return '<div class="verdict fine">The first: there is no model before to compare it with.</div>'
    low, high = found["score"] - found["ci95"], found["score"] + found["ci95"]
    if low > 0.5:
        return '<div class="verdict fine"><b class="well">Better than the model before</b>, beyond chance.</div>'
    if high < 0.5:
        return '<div class="verdict look"><b>Worse than the model before</b>, beyond chance.</div>'
    return '<div class="verdict look"><b>As good as the model before</b>, as far as so many prompts can tell.</div>'


def _score(found: Told | None) -> str:
    return NONE if found is None else percent(found["score"])


def _interval(found: Told | None) -> str:
    return "not measured" if found is None else f"± {percent(found['ci95'])}, {found['count']:,} outcomes"


def _tiles(told: Told) -> str:
    answers = told["answers"]
    shown = {
        "Win rate": told.get("win_rate"),
        "Prompts obeyed": answers["obeyed"].get("prompts"),
        "Instructions obeyed": answers["obeyed"].get("instructions"),
        "Harmful refused": answers["refused"].get("harmful"),
        "Borderline refused": answers["refused"].get("borderline"),
    }
    cells = (
        f'<div class="tile"><span>{escape(name)}</span><b>{_score(found)}</b><small>{_interval(found)}</small></div>'
        for name, found in shown.items()
    )
    return f'<div class="tiles">{"".join(cells)}</div>'


def _curves(rounds: Sequence[Told]) -> str:
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
            Series(name, [Point(i + 1, _at(told, path)) for i, told in enumerate(rounds)], colour)
            for colour, (name, path) in enumerate(lines.items())
        ]
        rules = [(0.5, "as good as before")] if title.startswith("Win") else []
        charts.append(draw(Chart(title, series, unit="share", x_name="round", zero=True, rules=rules)))
    return f'<h2>Over the rounds</h2><div class="grid">{"".join(charts)}</div>'


def _at(told: Told, path: Sequence[str]) -> float | None:
    found: Any = told
    for name in path:
        found = (found or {}).get(name)
    return None if found is None else float(found["score"])


def _obeyed(told: Told) -> str:
    rows = []
    before = told.get("previous") or {"obeyed": {}, "refused": {}}
    for part, heading in (("obeyed", "obeyed: "), ("refused", "refused: ")):
        for name, found in told["answers"][part].items():
            other = before[part].get(name)
            rows.append(
                [
                    Cell(f"{heading}{name.strip()}"),
                    Cell(_score(found), right=True),
                    Cell(f"± {percent(found['ci95'])}", right=True),
                    Cell(f"{found['count']:,}", right=True),
                    Cell(_score(other), right=True),
                ]
            )
    for name, found in told["answers"].get("lengths", {}).items():
        shown = percent if name == "unfinished" else "{:,.4g}".format
        other = before.get("lengths", {}).get(name)
        rows.append([Cell(name), Cell(shown(found), right=True), *[Cell("", right=True)] * 2])
        rows[-1].append(Cell(NONE if other is None else shown(other), right=True))
    if not rows:
        return ""
    head = ["share of answers", "this model", "95 %", "outcomes", "the model before"]
    lost = "a prompt that one model alone answered is lost by the other" if told.get("unanswered") == "lose" else ""
    note = f"<span class=note>{lost}</span>" if lost else ""
    return f"<h2>Instructions, refusals, lengths{note}</h2>{table(head, rows)}"


def _heldout(told: Told) -> str:
    runs = told.get("heldout") or {}
    names = list(dict.fromkeys(name for figures in runs.values() for name in figures))
    if not names:
        return ""
    rows = [
        [Cell(run), *(Cell(fixed(figures[name]) if name in figures else NONE, right=True) for name in names)]
        for run, figures in runs.items()
    ]
    return f"<h2>Held-out figures of this round's training</h2>{table(['run', *names], rows)}"


def _examples(found: Sequence[Told]) -> str:
    if not found:
        return ""
    rows = [
        [
            Cell(short(one["prompt"], 600)),
            Cell(short(one["answer"], 900)),
            Cell(fixed(one["reward"], 2), right=True),
            Cell(short(one["previous"], 900)),
            Cell(fixed(one["previous_reward"], 2), right=True),
        ]
        for one in found
    ]
    head = ["prompt", "this model", "reward", "the model before", "reward"]
    note = "<span class=note>what gained most first, what lost most last</span>"
    return f"<h2>Answers{note}</h2>{table(head, rows)}"
