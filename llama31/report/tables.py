"""The tables of a run: what happened to it, and what it ran with."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from llama31.report.accounts import Account, Cause, Ending, causes
from llama31.report.record import RecordedRun, flat, number, stalled
from llama31.report.text import NONE, duration, escape, facts, moment, plain, short
from llama31.runs import files
from llama31.runs.metrics import AttemptRecord

ROWS = 200  # of one table; the newest are shown
PER_ATTEMPT = ("attempt", "time_s", "from_step", "from_tokens", "weights_from", "slurm_job", "slurm_restart")
COMMON = ("kind", "step", "tokens", "time_s", "event")


class Cell(NamedTuple):
    """A cell of a table; `markup` is text that is HTML already."""

    text: str
    right: bool = False
    changed: bool = False
    markup: bool = False


def table(names: Sequence[str], rows: Iterable[Sequence[Cell]], wide: bool = False) -> str:
    """A table in a card, scrolling where it is long."""
    body = [list(row) for row in rows]
    right = [bool(body) and body[0][index].right for index in range(len(names))]
    head = "".join(f"<th{' class=n' * n}>{escape(name)}</th>" for name, n in zip(names, right))
    lines = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in body)
    return (
        f'<div class="card{" wide" * wide}"><div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div></div>"
    )


def bar(share: float, kind: str = "") -> str:
    """A bar of that length, 0 to 1; `kind` is its colour, none or `gone`."""
    return f'<div class="track"><div class="bar {kind}" style="width:{100 * min(1.0, share):.2f}%"></div></div>'


def _cell(cell: Cell) -> str:
    brief = len(cell.text) <= 24 or cell.markup
    kinds = " ".join(name for name, there in (("n", cell.right), ("changed", cell.changed), ("w", brief)) if there)
    attribute = f' class="{kinds}"' if kinds else ""
    return f"<td{attribute}>{cell.text if cell.markup else escape(cell.text)}</td>"


def of_run(account: Account) -> list[str]:
    """All tables of one run, as HTML; those with nothing to say are left out."""
    run = account.run
    return [
        _interruptions(account),
        _attempts(account),
        _events(run),
        _slow(run),
        _decisions(run),
        _stalled(run),
        _preflight(run),
        _environment(run),
        _config(run),
        _unread(run),
    ]


def _section(title: str, body: str, note: str = "") -> str:
    return f"<h2>{escape(title)}{f'<span class=note>{escape(note)}</span>' * bool(note)}</h2>{body}"


def _folded(title: str, body: str) -> str:
    return f'<div class="card"><details><summary>{escape(title)}</summary>{body}</details></div>'


def _newest(rows: Sequence[Any]) -> tuple[Sequence[Any], str]:
    """The newest rows, newest first, and a word about those left out."""
    note = f"the newest {ROWS} of {len(rows):,}" if len(rows) > ROWS else ""
    return list(reversed(rows[-ROWS:])), note


# --- what happened ---


def _interruptions(account: Account) -> str:
    interruptions = causes(account.interruptions)
    if not interruptions:
        return _section("Interruptions", '<div class="card"><p class="none">none</p></div>')
    names = ["outcome", "cause", "times", "lost steps", "lost work", "down time"]
    return _section("Interruptions by cause", table(names, map(_cause, interruptions[:ROWS])))


def _cause(cause: Cause) -> list[Cell]:
    return [
        _outcome(cause.outcome),
        Cell(short(cause.cause)),
        Cell(f"{len(cause.endings):,}", right=True),
        Cell(f"{sum(ending.lost_steps for ending in cause.endings):,}", right=True),
        Cell(duration(cause.lost_s), right=True),
        Cell(duration(cause.down_s), right=True),
    ]


def _outcome(outcome: str) -> Cell:
    return Cell(f'<b class="{escape(outcome)}">{escape(outcome)}</b>', markup=True)


def _attempts(account: Account) -> str:
    names = [
        "attempt", "began", "lasted", "from step", "to step", "ended", "cause", "lost steps", "lost work", "down after",
        "job", "weights from",
    ]  # fmt: skip
    infos = {attempt.number: attempt for attempt in account.run.attempts}
    endings, note = _newest(account.endings)
    rows = [_attempt(ending, infos[ending.attempt]) for ending in endings]
    return _section("Attempts", table(names, rows), note)


def _attempt(ending: Ending, attempt: AttemptRecord) -> list[Cell]:
    lasted = None if ending.end_s is None or ending.begin_s is None else ending.end_s - ending.begin_s
    first = attempt.info.get("from_step", attempt.lines[0]["step"] if attempt.lines else None)
    job, restart = attempt.info.get("slurm_job"), attempt.info.get("slurm_restart")
    return [
        Cell(str(ending.attempt), right=True),
        Cell(moment(ending.begin_s)),
        Cell(duration(lasted), right=True),
        Cell(NONE if first is None else plain(first), right=True),
        Cell(plain(ending.step), right=True),
        _outcome(ending.outcome),
        Cell(short(ending.cause, 160)),
        Cell(f"{ending.lost_steps:,}", right=True),
        Cell(duration(ending.lost_s), right=True),
        Cell(duration(ending.down_s), right=True),
        Cell("" if job is None else f"{job}{f', restart {restart}' if restart else ''}"),
        Cell(short(attempt.info.get("weights_from") or "", 80)),
    ]


def _events(run: RecordedRun) -> str:
    lines = [line for line in run.lines if line["kind"] in ("event", "rollback")]
    if not lines:
        return ""
    counts = Counter(_event(line) for line in lines)
    summary = ", ".join(f"{name} {times:,}" for name, times in counts.most_common(12))
    shown, note = _newest(lines)
    rows = [
        [
            Cell(f"{line['step']:,}", right=True),
            Cell(moment(number(line.get("time_s")))),
            Cell(_event(line)),
            Cell(facts(line, COMMON)),
        ]
        for line in shown
    ]
    note = f"{summary}{'; ' * bool(note)}{note}"
    return _section("Events", table(["step", "time", "event", "what is known"], rows), note)


def _event(line: dict[str, Any]) -> str:
    name = "rollback" if line["kind"] == "rollback" else line.get("event", "event")
    return short(name, 60).replace("_", " ")


def _slow(run: RecordedRun) -> str:
    seen: dict[tuple[str, str, str], list[tuple[float, int]]] = {}
    for line in run.of("ranks"):
        for slow in line.get("slow") or ():
            if isinstance(slow, dict):
                key = (plain(slow.get("rank")), plain(slow.get("host")), plain(slow.get("phase")))
                seen.setdefault(key, []).append((number(slow.get("factor")) or 0.0, line["step"]))
    if not seen:
        return ""
    rows = [
        [
            Cell(rank, right=True),
            Cell(host),
            Cell(phase.removesuffix("_s").replace("_", " ")),
            Cell(f"{len(factors):,}", right=True),
            Cell(f"{max(factor for factor, _ in factors):.2f}x", right=True),
            Cell(f"{factors[-1][1]:,}", right=True),
        ]
        for (rank, host, phase), factors in sorted(seen.items(), key=lambda item: -len(item[1]))
    ]
    names = ["rank", "host", "phase", "times", "worst, of the median", "last at step"]
    note = f"{len(run.of('ranks')):,} comparisons" + (f"; {ROWS} of {len(rows):,} shown" if len(rows) > ROWS else "")
    return _section("Slow ranks", table(names, rows[:ROWS]), note)


def _decisions(run: RecordedRun) -> str:
    if not run.decisions:
        return ""
    shown, note = _newest(list(enumerate(run.decisions)))
    rows = [[Cell(str(index), right=True), Cell(facts(decision))] for index, decision in shown]
    return _section("Decisions in force", table(["no.", "decision"], rows), note)


def _stalled(run: RecordedRun) -> str:
    folds = [
        _folded(f"attempt {attempt.number}, {name}", f"<pre>{escape(short(text, 20000))}</pre>")
        for attempt in run.attempts[-20:]
        for name, text in list(stalled(attempt).items())[:8]
    ]
    return _section("Stacks of ranks that stalled", "".join(folds)) if folds else ""


# --- what it ran with ---


def _preflight(run: RecordedRun) -> str:
    checks = [(attempt.number, files.read_object(attempt.folder / "preflight.json") or {}) for attempt in run.attempts]
    problems = [
        [Cell(str(number), right=True), Cell(plain(problem))]
        for number, check in checks
        for problem in check.get("problems") or ()
    ]
    newest = next(((number, check) for number, check in reversed(checks) if check.get("nodes")), None)
    if newest is None and not problems:
        return ""
    shown, note = _newest(problems)
    body = (
        table(["attempt", "problem"], shown) if problems else '<div class="card"><p class="none">no problems</p></div>'
    )
    if newest:
        body += _folded(f"Nodes as attempt {newest[0]} found them", _nodes(newest[1]["nodes"]))
    excluded = _excluded(run)
    return _section("Preflight", body + excluded, note)


def _nodes(nodes: Any) -> str:
    flat_nodes = [flat(node) for node in nodes if isinstance(node, dict)] if isinstance(nodes, list) else []
    names = list(dict.fromkeys(name for node in flat_nodes for name in node))
    rows = [[Cell(short(plain(node.get(name, "")), 80)) for name in names] for node in flat_nodes[:ROWS]]
    return table(names, rows)


def _excluded(run: RecordedRun) -> str:
    try:
        names = (run.folder / "exclude_nodes").read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return ""
    return f'<p class="sub">Excluded nodes: {escape(short(", ".join(names), 2000))}</p>' if names else ""


def _environment(run: RecordedRun) -> str:
    attempts = [attempt for attempt in run.attempts if attempt.info]
    if not attempts:
        return ""
    newest = _facts(attempts[-1])
    before = _facts(attempts[-2]) if len(attempts) > 1 else newest
    rows = [[Cell(name), Cell(short(text, 1000), changed=before.get(name) != text)] for name, text in newest.items()]
    note = "coloured: other than in the attempt before" if before != newest else ""
    body = table([f"attempt {attempts[-1].number}", ""], rows)
    changes = [row for earlier, later in itertools.pairwise(attempts) for row in _changes(earlier, later)]
    if changes:
        shown, _ = _newest(changes)
        body += f"<h2>Changes between attempts</h2>{table(['attempt', 'what', 'before', 'after'], shown)}"
    return _section("Environment", body, note)


def _facts(attempt: AttemptRecord) -> dict[str, str]:
    known = {name: value for name, value in attempt.info.items() if name not in PER_ATTEMPT}
    if isinstance(known.get("command"), list):
        known["command"] = " ".join(map(str, known["command"]))
    return {name: ", ".join(map(str, v)) if isinstance(v, list) else plain(v) for name, v in flat(known).items()}


def _changes(earlier: AttemptRecord, later: AttemptRecord) -> list[list[Cell]]:
    old, new = _facts(earlier), _facts(later)
    rows = []
    for name in dict.fromkeys([*old, *new]):
        before, after = old.get(name, NONE), new.get(name, NONE)
        if before == after:
            continue
        if name == "hosts":  # thousands of nodes: only those that went and came
            gone, come = (set(text.split(", ")) for text in (before, after))
            before, after = ", ".join(sorted(gone - come)) or NONE, ", ".join(sorted(come - gone)) or NONE
            name = "hosts: gone, new"
            if before == after:
                name, before, after = "hosts", "another order", "of the same nodes"
        rows.append(
            [Cell(str(later.number), right=True), Cell(name), Cell(short(before)), Cell(short(after), changed=True)]
        )
    return rows


def _config(run: RecordedRun) -> str:
    if not run.config_text:
        return _section("Config", '<div class="card"><p class="none">no config.yaml in the run folder</p></div>')
    return _section("Config", _folded("config.yaml of the newest attempt", f"<pre>{escape(run.config_text)}</pre>"))


def _unread(run: RecordedRun) -> str:
    if not run.unread:
        return ""
    rows = [[Cell(short(text))] for text in run.unread[:ROWS]]
    return _section("Files that could not be read", table(["file and reason"], rows))
