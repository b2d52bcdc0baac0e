"""What a layout will cost, and which is the fastest that fits: `python -m recipes.plan model=8b gpus=64`."""

from __future__ import annotations

from pathlib import Path

from llama31 import config
from recipes import start


def main(run: config.Plan) -> None:
    """Print the fastest layouts; or a whole run by its phases; or published runs beside what is predicted of them."""
    from llama31.planner import phases, proposals
    from llama31.runs import files, planned, plots

    plots.check(run.picture)
    check(run)
    if run.validate is not None:
        validate(run, Path(run.validate))
        return
    asked = proposals.request(run)
    if run.phases:
        print(phases.table(phases.parts(run.phases, asked, run.failures), run.device, run.published))
        return
    found = proposals.within(run, asked, proposals.proposals(asked, run.best))
    print(proposals.tables(run, asked, found))
    if run.write:
        path = Path(run.write)
        files.write_whole(path, proposals.to_yaml(asked, found[0], path.stem))
        print(f"\nwritten: {path}")
    if run.picture:
        reached = planned.reaches(asked, found[0])
        path = planned.draw(run.picture, run.device, asked, reached)
        print("\n" + "\n".join([*planned.said(reached), f"drawn to {path}"]))


def check(run: config.Plan) -> None:
    """ConfigError for keys that would go unheeded, and for a file that cannot or should not be written."""
    other = "validate" if run.validate is not None else "phases" if run.phases else ""
    issues = [
        config.Issue(name, value, f"{other} is given, which makes none of it", f"leave out {name} or {other}")
        for name, value in (("write", run.write), ("picture", run.picture), ("limits", limited(run.limits)))
        if other and value
    ]
    if run.output and run.validate is None:
        issues.append(config.Issue("output", run.output, "it is what validate writes", "give validate=FILE.csv too"))
    if run.write and not other:
        path = Path(run.write)
        if not path.parent.is_dir():
            issues.append(config.Issue("write", run.write, "its folder is not there", f"mkdir -p {path.parent}"))
        elif path.exists() and not path.read_text(encoding="utf-8").startswith("# torchrun"):
            issues.append(config.Issue("write", run.write, "another file is there", "give another name"))
    if issues:
        raise config.ConfigError(issues)


def limited(limits: config.Limits) -> str:
    """The limits that are set, by name."""
    return ", ".join(name for name, value in vars(limits).items() if value)


def validate(run: config.Plan, path: Path) -> None:
    """Predict the runs of a file, row by row, and say how far off that is."""
    from llama31.planner.validation import accuracy, fitting, published
    from llama31.runs import files

    rows = published.read(path, run.models, run.hardware)
    results = accuracy.results(rows, run.hardware)
    left_out = fitting.families_left_out(rows, run.hardware) if run.leave_out else []
    print(accuracy.tables(results, left_out))
    if run.output:
        files.write_whole(Path(run.output), accuracy.as_json(results))
        print(f"\nwritten: {run.output}")


if __name__ == "__main__":
    start(main, config.Plan, "plan")
