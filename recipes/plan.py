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
