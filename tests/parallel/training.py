"""Runs of `loop.fit` one after another in one set of processes: `torchrun ... -m tests.parallel.training PLAN OUT`.

PLAN is JSON: a list of runs, each {"name", "folder", "data", "overrides": {dotted key: value}}, with "moved" only
loaded and saved, with "planned" by rows of whole documents that one rank plans. OUT gets, for each, its checkpoint or
the error that ended it; and by rank the token files that were opened, and what was made of the rows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from llama31 import config
from llama31.data import whole
from llama31.engine import state
from llama31.engine.objectives import MicroBatch, Objective, next_token
from llama31.engine.reading import Reading
from llama31.evaluate import perplexity
from llama31.parallel import mesh
from llama31.parallel.replica import Replica
from llama31.train import checkpoints, feeds, loop, setup
from tests.processes import LIMIT_S


def tiny_run(folder: Path, data: Path) -> config.Pretrain:
    """A run of seconds: 12 steps of 8 rows of 32 tokens."""
    return config.Pretrain(
        name="test",
        folder=str(folder),
        model=config.Model(
            name="test", layers=2, hidden_size=32, ffn_hidden_size=64, heads=4, kv_heads=2, vocab_size=560
        ),
        precision=config.Precision(params="fp32"),
        schedule=config.Schedule(
            total_tokens=12 * 256, batch_tokens=256, sequence_length=32, peak_lr=5e-3, warmup_tokens=512
        ),
        data=config.Data(folder=str(data), sources={"a": config.Source(weight=2.0), "b": config.Source()}),
        tokenizer=config.Tokenizer(kind="bpe", path=str(data / "tokenizer")),
        validation=config.Validation(tokens=256),
        checkpoint=config.Checkpoint(keep_last=None),
        log=config.Log(progress=False),
    )


def changed(run: Any, overrides: dict[str, Any]) -> Any:
    """`run` with dotted keys replaced; `weights` are those of the two sources, `ramp` a list
    of triples, `only` the one source that is read."""
    for key, value in overrides.items():
        if key == "weights":
            sources = {name: config.Source(weight=weight) for name, weight in zip("ab", value, strict=True)}
            run = dataclasses.replace(run, data=dataclasses.replace(run.data, sources=sources))
            continue
        if key == "only":
            sources = {value: run.data.sources[value]}
            run = dataclasses.replace(run, data=dataclasses.replace(run.data, sources=sources))
            continue
        if key == "ramp":
            run = dataclasses.replace(
                run, schedule=dataclasses.replace(run.schedule, ramp=[config.Ramp(*r) for r in value])
            )
            continue
        head, _, rest = key.partition(".")
        inner = changed(getattr(run, head), {rest: value}) if rest else value
        run = dataclasses.replace(run, **{head: inner})
    return run


class Watched:
    """Packed files that this process opens, and a digest of the rows that its steps take."""

    def __init__(self) -> None:
        self._opened: set[str] = set()
        self._rows = hashlib.sha256()
        sys.addaudithook(self._hear)
        take = Reading.take

        def seen(feed: Reading) -> list[MicroBatch]:
            batches = take(feed)
            for batch in batches:
                for tensor in (batch.tokens, batch.labels, batch.weights, batch.documents):
                    self._rows.update(tensor.numpy().tobytes())
            return batches

        Reading.take = seen  # type: ignore[method-assign]

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | Path):
            path = Path(arguments[0])
            if path.parent.name in ("a", "b"):
                self._opened.add(f"{path.parent.name}/{path.name}")

    def summary(self) -> dict[str, list[Any]]:
        """Since the last time, by rank. Collective."""
        by_rank: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(by_rank, (sorted(self._opened), self._rows.hexdigest()))
        self._opened, self._rows = set(), hashlib.sha256()
        return dict(zip(("opened", "rows"), map(list, zip(*by_rank)), strict=True))


def fit(run: config.Pretrain, objective: Objective = next_token) -> Path | None:
    """What `recipes.pretrain` does, for any objective, in processes that go on."""
    with setup.placed(run) as place:
        text = feeds.TextFeed(run.data, run.schedule, place.replica, place.plans)
        return loop.fit(setup.setup(run, place, text), objective)


def _load_and_save(run: config.Pretrain) -> Path:
    """Load on one layout and save at once, so that what was loaded can be compared bit by bit."""
    with setup.placed(run) as place:
        state = setup.setup(run, place, feeds.TextFeed(run.data, run.schedule, place.replica, place.plans))
        checkpoints.save(state)
        state.saver.wait()
    assert state.saver.newest is not None
    return state.saver.newest


def _broken_validation(broken: bool) -> contextlib.AbstractContextManager[object]:
    """Held-out text that cannot be read any more when it is asked for."""
    error = ValueError("data.folder: the held-out text is gone")
    return mock.patch.object(perplexity, "heldout_means", side_effect=error) if broken else contextlib.nullcontext()


def _planned_by_one(planned: bool) -> contextlib.AbstractContextManager[object]:
    """Plans of rows in files, of however few documents."""
    return mock.patch.object(whole, "PLANNED_FROM", 0) if planned else contextlib.nullcontext()


def _by_groups_of_its_own() -> list[Any]:
    """What all ranks get of one rank's number along an axis, by the groups that stand in for NCCL's."""
    grid = mesh.create(config.Parallel(pp=dist.get_world_size()), LIMIT_S)
    shared = Replica.of(grid, LIMIT_S, own=True).shared(lambda: 100 + dist.get_rank())
    by_rank: list[Any] = [None] * grid.world
    dist.all_gather_object(by_rank, shared)
    return by_rank


def main(plan: str, output: str) -> None:
    torch.set_num_threads(1)
    mesh.connect(timeout_s=LIMIT_S)
    results: dict[str, Any] = {}
    watched = Watched()
    for step in json.loads(Path(plan).read_text()):
        run = changed(tiny_run(Path(step["folder"]), Path(step["data"])), step["overrides"])
        weights = mock.patch.object(state, "load_weights", side_effect=state.load_weights)
        try:
            with (
                _broken_validation(step.get("broken", False)),
                _planned_by_one(step.get("planned", False)),
                weights as read,
            ):
                path = _load_and_save(run) if step.get("moved") else fit(run)
            results[step["name"]] = {"checkpoint": str(path)}
        except (ValueError, config.RunError) as error:
            results[step["name"]] = {"error": str(error)}
        results[step["name"]] |= watched.summary() | {"weights_read": read.call_count}
    results["twins"] = _by_groups_of_its_own()
    if dist.get_rank() == 0:
        Path(output).write_text(json.dumps(results))
    mesh.close()  # a process that leaves while gloo's threads run may abort


if __name__ == "__main__":
    main(*sys.argv[1:])
