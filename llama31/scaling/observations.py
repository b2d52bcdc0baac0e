"""What finished runs measured: lines of a CSV file, or run folders. All that is wrong is named at once, and where."""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llama31 import config
from llama31.plan import schedule, shapes
from llama31.report import record
from llama31.report.record import RecordedRun


@dataclass(frozen=True)
class Trained:
    """A run that was trained to its end: FLOPs, parameters, tokens and held-out loss in nats; `where` it was read."""

    where: str
    flops: float
    parameters: float
    tokens: float
    loss: float


@dataclass(frozen=True)
class Row:
    """A line of a CSV file: numbers by column, None where an optional one is empty."""

    where: str
    values: dict[str, float | None]

    def number(self, column: str) -> float:
        """Of a column that is never empty."""
        value = self.values[column]
        assert value is not None
        return value


def table(key: str, path: str, required: Sequence[str], optional: Callable[[str], bool]) -> list[Row]:
    """Rows of a CSV file with its `required` columns and those that are `optional`, of which cells may be empty.

    Raises ValueError, which begins with `key`, for columns that are missing or there twice, and with line and column
    for every cell that is no finite number above 0 (share.NAME: from 0 on). Other columns are left alone.
    """
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            lines = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{key}={path}: cannot be read ({error}); give a CSV file in UTF-8 with a header") from error
    header = [cell.strip() for cell in lines[0][1]] if lines else []
    taken = [name for name in header if name in required or optional(name)]
    wrong = [f"has no column {name}" for name in required if name not in header]
    wrong += [f"has the column {name} twice" for name in sorted(set(taken)) if taken.count(name) > 1]
    if wrong:
        raise ValueError(f"{key}={path}: {', '.join(wrong)}; the header, its first line, has to name each once")
    rows, problems = [], []
    for number, cells in lines[1:]:
        where, values = f"{path}:{number}", dict[str, float | None]()
        if len(cells) != len(header):
            problems.append(f"{where}: {len(cells)} cells under {len(header)} columns; give one for each")
            continue
        for name, cell in zip(header, cells, strict=True):
            if name in taken:
                values[name] = _number(cell, name.startswith("share."))
                if values[name] is None and (cell.strip() or name in required):
                    least = "from 0 on" if name.startswith("share.") else "above 0"
                    reason = f"{cell.strip() or 'nothing'!r} is no finite number {least}"
                    problems.append(f"{where}, column {name}: {reason}; correct it, or take the line out")
        rows.append(Row(where, values))
    if problems:
        raise ValueError(f"{key}={path}: cannot be used\n" + "\n".join(f"  {one}" for one in problems))
    return rows


def _number(cell: str, zero: bool) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) and (value > 0 or (zero and value == 0)) else None


def trained(given: config.Fit) -> list[Trained]:
    """Runs of `given.input` and `given.runs`. Raises ValueError with all that cannot be read, or is not finished."""
    if given.input is None and not given.runs:
        raise ValueError("fit.input=null: there is nothing to fit; give a CSV file, or fit.runs='[FOLDER,...]'")
    found = []
    if given.input is not None:
        names = ("flops", "parameters", "tokens", "loss")
        for row in table("fit.input", given.input, names, lambda name: False):
            found.append(Trained(row.where, *(row.number(name) for name in names)))
    return found + [_trained(run, given.count) for run in finished("fit.runs", given.runs)]


def finished(key: str, folders: Sequence[str]) -> list[RecordedRun]:
    """Run folders that trained to the end of their schedule and measured held-out loss there.

    Raises ValueError with every one that did not.
    """
    if not folders:
        return []
    try:
        runs = record.load(folders)
    except ValueError as error:
        raise ValueError(f"{key}: {error}".replace(f"{key}: runs=", f"{key}=")) from error
    wrong = []
    for run in runs:
        validations, total = run.of("validation"), run.total_tokens
        if total is None or run.setting("model.layers") is None:
            wrong.append(f"{key}={run.folder}: config.yaml does not say what was trained; give the folder of a run")
        elif run.last["tokens"] < total:
            reason = f"it has seen {run.last['tokens']:,} of {total:,.0f} tokens"
            wrong.append(f"{key}={run.folder}: {reason}; let it finish, or leave it out: its rate has not come down")
        elif not validations or validations[-1]["tokens"] < total or record.number(validations[-1]["loss"]) is None:
            reason = "no finite held-out loss stands at its end"
            wrong.append(
                f"{key}={run.folder}: {reason}; train with held-out text (data.heldout_fraction), or leave it out"
            )
    if wrong:
        raise ValueError("\n".join(wrong))
    return runs


def flops(run: RecordedRun) -> float:
    """FLOPs that the schedule of a run took, as `plan/shapes.py` counts them."""
    model, planned = model_of(run), schedule.of_record(run.setting("schedule"))
    per_token = (
        (s.steps or 0) * s.batch_tokens * shapes.flops_per_token(model, s.sequence_length)
        for s in schedule.stages(planned)
    )
    return sum(per_token)


def model_of(run: RecordedRun) -> config.Model:
    """The model of a run, from its config."""
    known = {field.name for field in dataclasses.fields(config.Model)}
    return config.Model(**{name: value for name, value in run.setting("model").items() if name in known})


def _trained(run: RecordedRun, count: str) -> Trained:
    model, last = model_of(run), run.of("validation")[-1]
    parameters = shapes.parameters(model) if count == "all" else shapes.non_embedding(model)
    return Trained(str(run.folder), flops(run), parameters, last["tokens"], float(last["loss"]))


def budgets(runs: Sequence[Trained], same: float) -> list[tuple[float, list[Trained]]]:
    """Runs by budget: those whose FLOPs lie within a share `same` of the one before, with their geometric mean."""
    groups: list[list[Trained]] = []
    for run in sorted(runs, key=lambda one: one.flops):
        if groups and run.flops <= groups[-1][0].flops * (1 + same):
            groups[-1].append(run)
        else:
            groups.append([run])
    return [(math.exp(sum(math.log(run.flops) for run in group) / len(group)), group) for group in groups]
