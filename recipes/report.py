"""One HTML page on one or several runs, also while they train: `python -m recipes.report 'runs=[runs/demo]'`."""

from __future__ import annotations

import gc

from llama31 import config
from recipes import start


def main(run: config.Report) -> None:
    """Write the report on the folders of `run`, and say where it is."""
    from llama31 import report

    gc.disable()  # a million lines of a record are no garbage, and looking through them takes longer than reading them
    path = report.write(run.runs, run.output)
    print(f"report: {path} ({path.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    start(main, config.Report, "report")
