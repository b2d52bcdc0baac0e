"""One HTML page for one or several run folders: is the run well, and where did its time go? No torch.

`record` reads the folders, `accounts` adds up, `figures` chooses the charts that `charts` draws, `tables` and `page`
set the rest. The page needs no network and no other file, and a run may be reported on while it trains.

Imports: config, plan, runs.
Offers: `write`; rounds (the page of post-training's rounds).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llama31.report import page, record
from llama31.report.accounts import Account
from llama31.runs import files

NAME = "report.html"


def write(folders: Sequence[str | Path], output: str | Path | None = None, now_s: float | None = None) -> Path:
    """Write the report on run folders and return its file: `output`, or `report.html` in the first folder.

    The file appears whole or not at all. `now_s` is the present in Unix time, by which a silent run is judged. Raises
    ValueError (keys `runs`, `output`) for folders that hold no run and for a file that cannot be written.
    """
    runs = record.load(folders, now_s)
    text = page.html([Account(run) for run in runs])
    path = Path(output) if output is not None else runs[0].folder / NAME
    try:
        files.write_whole(path, text)
    except OSError as error:
        raise ValueError(f"output={path}: cannot be written ({error}); give another file") from error
    return path
