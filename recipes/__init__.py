"""One verb per file: what runs, in what order. `python -m recipes.VERB --help` lists its keys."""

from __future__ import annotations

import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from llama31 import config
from llama31.command import entry, inputs
from llama31.runs import files

ROOT = Path(__file__).resolve().parent.parent


def start[T](main: Callable[[T], object], schema: type[T], config_name: str, argv: Sequence[str] | None = None) -> None:
    """Load the config from the command line, or from `argv`, look for what it reads, and run `main` with it.

    What our own code refuses (ValueError, RunError) ends the process with its message alone; anything else keeps its
    traceback. Ranks other than the first say who they are.
    """
    run = entry.load(schema, config_name, argv)
    begun = False
    try:
        inputs.check(run)
        begun = True
        main(run)
    except KeyboardInterrupt:
        sys.exit(130)  # as shells say it: whoever pressed Ctrl-C knows why
    except (ValueError, config.RunError) as error:
        if not _is_ours(error):
            raise
        rank = os.environ.get("RANK", "0")
        if rank == "0" and not (begun and isinstance(run, config.Training)):  # a run that has begun tells it by itself
            _tell_launcher(getattr(run, "folder", None), str(error))
        sys.exit(f"python -m recipes.{config_name}{'' if rank == '0' else f' (rank {rank})'}: {error}")


def _tell_launcher(folder: str | None, cause: str) -> None:
    """Leave word for `slurm/launch.sh`, which has made the folder, that another attempt would fail likewise."""
    if folder is not None and Path(folder).is_dir() and "SLURM_JOB_ID" in os.environ:
        files.write_whole(Path(folder) / "outcome.json", json.dumps({"outcome": "failed", "cause": cause}))


def _is_ours(error: BaseException) -> bool:
    """Whether the error was raised by a line of this repository, so that its message was written for the user.

    Of one that a process of a pool raised its cause holds the lines as text.
    """
    elsewhere = re.findall(r'^  File "(.*)", line', str(error.__cause__ or ""), re.MULTILINE)
    origin = Path([*(one.filename for one in traceback.extract_tb(error.__traceback__)), *elsewhere][-1]).resolve()
    return any(origin.is_relative_to(ROOT / name) for name in ("llama31", "recipes", "benchmarks"))
