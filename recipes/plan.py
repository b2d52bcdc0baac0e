"""What a layout will cost, and how far that holds: `python -m recipes.plan validate=runs.csv output=errors.json`."""

from __future__ import annotations

from llama31 import config
from recipes import start


def main(run: config.Plan) -> None:
    """Predict the runs of `validate`, print them beside what was published, and write them where `output` says."""
    from pathlib import Path

    from llama31.planner import accuracy, fitting, published
    from llama31.runs import files

    if run.validate is None:
        raise config.ConfigError([config.Issue("validate", None, "nothing is asked", "give validate=FILE.csv")])
    rows = published.read(Path(run.validate), run.models, run.hardware)
    results = accuracy.results(rows, run.hardware)
    left_out = fitting.families_left_out(rows, run.hardware) if run.leave_out else []
    print(accuracy.tables(results, left_out))
    if run.output:
        files.write_whole(Path(run.output), accuracy.as_json(results))
        print(f"\nwritten: {run.output}")


if __name__ == "__main__":
    start(main, config.Plan, "plan")
