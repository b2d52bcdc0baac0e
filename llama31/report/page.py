"""The page: a headline that answers at a glance, then charts, then tables. All that comes from files is escaped."""

from __future__ import annotations

from collections.abc import Sequence

from llama31.config import Model
from llama31.plan import shapes
from llama31.report import figures, tables
from llama31.report.accounts import DEFINITION, SLICES, TRAINING, Account, concerns
from llama31.report.charts import COLOURS, draw
from llama31.report.record import RecordedRun, flat, number
from llama31.report.style import document
from llama31.report.tables import Cell, table
from llama31.report.text import NONE, count, duration, escape, fixed, moment, percent, short


def html(accounts: Sequence[Account]) -> str:
    """The whole page on one or several runs."""
    title = " · ".join(account.run.label for account in accounts)
    several = len(accounts) > 1
    body = "".join(_run(account, index, several) for index, account in enumerate(accounts))
    head = _comparison(accounts) if several else ""
    now = moment(accounts[0].run.now_s)
    return document(
        short(title, 120), head + body, f"Written {now} UTC by python -m recipes.report. All times are UTC."
    )


# --- one run ---

_NO_STEP = '<div class="card wide"><p class="none">No training step yet.</p></div>'


def _run(account: Account, index: int, several: bool) -> str:
    run, level = account.run, "h2" if several else "h1"
    colour = index % COLOURS
    dot = f'<i class="dot k{colour}"></i>' if several else ""
    charts = "".join(draw(chart) for chart in figures.of_run(account, colour)) if run.train else _NO_STEP
    parts = [
        f'<div class="head"><{level}>{dot}{escape(run.label)}</{level}>{_pill(account.state)}</div>',
        f'<p class="sub">{_subtitle(account)}</p>',
        _verdict(account),
        _tiles(account),
        f'<h2>Training</h2><div class="grid">{charts}</div>',
        f'<h2>Time</h2><div class="grid">{_split(account)}{_timeline(account)}'
        f"{draw(figures.progress(account, colour))}</div>",
        *tables.of_run(account),
    ]
    return f'<section class="run" id="run-{index}">{"".join(parts)}</section>'


def _pill(state: str) -> str:
    return f'<span class="pill {escape(state)}">{figures.SIGNS.get(state, "◆")} {escape(state)}</span>'


def _subtitle(account: Account) -> str:
    run = account.run
    devices = number(run.attempts[-1].info.get("world_size"))
    words = [
        str(run.folder),
        _model(run),
        f"{devices:,.0f} process{'es' * (devices != 1)}" if devices else "",
        f"{moment(account.begin_s)} to {moment(account.end_s)}" if account.wall_s else "",
    ]
    return " · ".join(escape(short(word, 200)) for word in words if word)


def _model(run: RecordedRun) -> str:
    """Name and parameters of the model, as far as the config tells."""
    model = run.setting("model")
    if not isinstance(model, dict):
        return ""
    try:
        size = count(shapes.parameters(Model(**model)))
    except (TypeError, ValueError):  # the config of another version
        return str(model.get("name", ""))
    return f"{model.get('name', 'model')}, {size}"


def _verdict(account: Account) -> str:
    problems = concerns(account)
    if not problems:
        return '<div class="verdict fine"><b class="well">Nothing stands out.</b></div>'
    items = "".join(f"<li>{escape(text)}</li>" for text in problems)
    return f'<div class="verdict look"><b>Deserves a look</b><ul>{items}</ul></div>'


def _tiles(account: Account) -> str:
    run, last = account.run, account.run.last
    total = run.total_tokens
    losses = [line["loss"] for line in run.train if line.get("loss") is not None]
    held = run.of("validation")
    planned = sum(ending.outcome == "stopped" for ending in account.interruptions)
    tiles = [
        ("Step", f"{last['step']:,}", _silence(account)),
        (
            "Tokens",
            count(last["tokens"], 4),
            f"{percent(account.share)} of {count(total)}" if total else "schedule not known",
        ),
        _remaining(account),
        ("Training loss", _loss(losses[-1]) if losses else NONE, _mean(account)),
        (
            "Held-out loss",
            _loss(held[-1].get("loss")) if held else NONE,
            f"at step {held[-1]['step']:,}" if held else "not measured yet",
        ),
        ("Tokens/s", count(account.tokens_per_s), "median of the newest steps"),
        _utilisation(account),
        _checkpoint(account),
        ("Effective time", percent(account.effective), f"of {duration(account.wall_s)} since the first claim"),
        (
            "Interruptions",
            f"{len(account.interruptions):,}",
            f"{planned} planned, {len(account.interruptions) - planned} not; "
            f"{len(run.attempts)} attempt{'s' * (len(run.attempts) > 1)}",
        ),
    ]
    cells = (
        f'<div class="tile"><span>{escape(name)}</span><b>{escape(value)}</b><small>{escape(small)}</small></div>'
        for name, value, small in tiles
    )
    return f'<div class="tiles">{"".join(cells)}</div>'


def _silence(account: Account) -> str:
    if account.state == "running":
        return f"last sign of life {duration(account.silence_s)} ago"
    return f"{account.state} {moment(account.end_s)}"


def _remaining(account: Account) -> tuple[str, str, str]:
    if account.state != "running" or account.eta_s is None:
        return "Wall time", duration(account.wall_s), f"since {moment(account.begin_s)}"
    return "Time left", duration(account.eta_s), f"until {moment(account.run.now_s + account.eta_s)}, at this pace"


def _checkpoint(account: Account) -> tuple[str, str, str]:
    lines = account.run.of("checkpoint")
    if not lines:
        return "Newest checkpoint", NONE, "nothing is safe yet"
    steps = account.run.last["step"] - lines[-1]["step"]
    age = f"{steps:,} step{'s' * (steps != 1)} ago" if steps else "the newest step"
    return "Newest checkpoint", f"step {lines[-1]['step']:,}", f"{age}; {len(lines):,} in the record"


def _loss(value: object) -> str:
    loss = number(value)
    return str(value) if loss is None else fixed(loss)


def _mean(account: Account) -> str:
    mean = account.recent("loss")
    steps = min(100, len(account.run.train))
    return "no step yet" if mean is None else f"median of the last {steps}: {fixed(mean)}"


def _utilisation(account: Account) -> tuple[str, str, str]:
    mfu, tflops = account.recent("mfu"), account.recent("tflops")
    if mfu is not None:
        return "MFU", percent(mfu), f"{fixed(tflops, 1)} TFLOPs per second and device"
    return "TFLOPs per device", fixed(tflops, 2), "no peak known, so no MFU"


# --- time ---


def _split(account: Account) -> str:
    wall = account.wall_s
    shares = {name: account.seconds[name] / wall if wall > 0 else 0.0 for name in SLICES}
    bar = "".join(
        f'<div class="{_class(name)}" style="width:{100 * share:.3f}%" title="{name}: {percent(share, 2)}"></div>'
        for name, share in shares.items()
        if share > 0
    )
    chips = "".join(
        f'<span class="chip"><i class="swatch {_class(name)}"></i>{name if name != TRAINING else "effective training"} '
        f"<output>{percent(share, 2)}</output> {duration(account.seconds[name])}</span>"
        for name, share in shares.items()
    )
    return (
        f'<div class="card wide"><b>Effective training time {percent(account.effective, 2)}</b>'
        f'<div class="split">{bar}</div><div class="legend">{chips}</div><p class="sub">{escape(DEFINITION)}</p></div>'
    )


def _class(name: str) -> str:
    return f"b-{name.replace(' ', '-')}"


def _timeline(account: Account) -> str:
    if not account.segments:
        return ""
    names = [name for name in SLICES if name != "checkpoint stalls"]
    chips = "".join(
        f'<span class="chip"><i class="swatch {_class(name)}"></i>{name}</span>' for name in names
    ) + "".join(f'<span class="chip"><b class="{name}">{sign}</b>{name}</span>' for name, sign in figures.SIGNS.items())
    picture = figures.attempts(account)
    head = f'<figcaption><b>Attempts</b></figcaption><div class="legend">{chips}</div>'
    return f'<figure class="card wide">{head}{picture}</figure>'


# --- several runs ---


def _comparison(accounts: Sequence[Account]) -> str:
    names = [
        "run", "state", "model", "step", "tokens", "done", "loss", "held out", "tokens/s", "MFU",
        "effective", "interruptions", "wall time",
    ]  # fmt: skip
    rows = [_compared(account, index) for index, account in enumerate(accounts)]
    charts = "".join(draw(chart) for chart in figures.of_runs(accounts))
    return (
        f'<h1>{len(accounts)} runs</h1><p class="sub">Loss, tokens/s and MFU are medians of the newest steps.</p>'
        f'{table(names, rows)}<h2>Side by side</h2><div class="grid">{charts}</div>{_differences(accounts)}'
    )


def _compared(account: Account, index: int) -> list[Cell]:
    run, held = account.run, account.run.of("validation")
    link = f'<a href="#run-{index}" title="{escape(run.label)}">{escape(short(run.label, 32))}</a>'
    return [
        Cell(f'<i class="dot k{index % COLOURS}"></i>{link}', markup=True),
        Cell(_pill(account.state), markup=True),
        Cell(_model(run)),
        Cell(f"{run.last['step']:,}", right=True),
        Cell(count(run.last["tokens"]), right=True),
        Cell(percent(account.share), right=True),
        Cell(fixed(account.recent("loss")), right=True),
        Cell(_loss(held[-1].get("loss")) if held else NONE, right=True),
        Cell(count(account.tokens_per_s), right=True),
        Cell(percent(account.recent("mfu")), right=True),
        Cell(percent(account.effective), right=True),
        Cell(f"{len(account.interruptions)}", right=True),
        Cell(duration(account.wall_s), right=True),
    ]


def _differences(accounts: Sequence[Account]) -> str:
    """Keys of the configs in which the runs differ; where a run calls itself and stands is no difference."""
    configs = [flat(account.run.config) for account in accounts]
    names = dict.fromkeys(name for config in configs for name in config if name not in ("name", "folder"))
    rows = [
        [Cell(name), *(Cell(short(str(config.get(name, NONE)), 120)) for config in configs)]
        for name in names
        if len({str(config.get(name, NONE)) for config in configs}) > 1
    ]
    head = ["key", *(short(account.run.label, 40) for account in accounts)]
    shown = table(head, rows) if rows else '<div class="card"><p class="none">none</p></div>'
    return f"<h2>Differences of the configs</h2>{shown}"
