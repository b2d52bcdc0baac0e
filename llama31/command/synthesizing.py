"""What the keys of `recipes.synthesize` must satisfy together, and whether its files are there."""

from __future__ import annotations

from pathlib import Path

from llama31.config import Issue, Synthesize


def problems(run: Synthesize) -> list[Issue]:
    """All that is wrong with the keys."""
    issues = []
    if run.shard is not None and run.shard >= run.shards:
        reason = f"there are {run.shards} shards"
        issues.append(Issue("shard", run.shard, reason, f"give at most {run.shards - 1}"))
    if not run.server.urls and run.part != "gather" and not run.dry_run:
        remedy = "give the address of one: 'server.urls=[http://node1:8000/v1]'"
        issues.append(Issue("server.urls", "[]", "answers come from a chat model behind a server", remedy))
    return issues


def missing(run: Synthesize) -> list[Issue]:
    """What it reads and is not there."""
    from llama31.dialogs import store  # numpy, which --help does not wait for

    issues = []
    folders = any(Path(part.strip()).is_dir() for part in run.input.split(","))
    if not folders and not any(path.is_file() for path in store.files(run.input)):
        remedy = "give JSON lines, Parquet, a folder of files or a glob"
        issues.append(Issue("input", run.input, "there is no such file", remedy))
    if run.prompts is not None and not Path(run.prompts).is_dir():
        remedy = "give a folder with files TASK/NAME.txt, or leave it out"
        issues.append(Issue("prompts", run.prompts, "there is no such folder", remedy))
    return issues
