"""Saves beside training, and goes back to that in the middle of it.

`torchrun ... -m tests.parallel.restoring FOLDER OUTPUT`
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist

from llama31.checkpoint import publish, shards
from llama31.checkpoint.saver import Saver, background_group
from llama31.checkpoint.shards import Shard
from llama31.engine import state
from llama31.engine.pipeline import Engine
from llama31.model import llama
from llama31.parallel import mesh
from llama31.parallel.collectives import gathered, on_all_ranks
from tests.parallel.cases import LEARNING_RATES, OPTIMIZER, Case, batches
from tests.parallel.worker import micro_batches
from tests.processes import LIMIT_S

CASES = [
    Case("dp2", 2, {"dp": 2}),
    Case("dp2-bf16", 2, {"dp": 2}, params="bf16"),
    Case("tp2-bf16", 2, {"tp": 2}, params="bf16"),
    Case("pp2-tied", 2, {"pp": 2}, tied=True),
    Case("dp2-zero2", 2, {"dp": 2, "zero": 2}),
    Case("dp2-zero2-bf16", 2, {"dp": 2, "zero": 2}, params="bf16"),
    Case("dp2-zero3", 2, {"dp": 2, "zero": 3}),
    Case("dp2-zero3-bf16", 2, {"dp": 2, "zero": 3}, params="bf16"),
    Case("tp2-fp8", 2, {"tp": 2}, fp8="delayed"),
    Case("pp2-fp8", 2, {"pp": 2}, fp8="delayed"),
    Case("dp2-full-fp8", 2, {"dp": 2, "zero": 2, "recompute": "full"}, fp8="delayed"),
    Case("cp2-fp8", 2, {"cp": 2}, fp8="delayed"),
]


def engine_of(case: Case) -> Engine:
    parallel, numbers = case.parallel(), case.numbers()
    grid = mesh.create(parallel)
    chunks = llama.build(case.model(), numbers, parallel, grid, seed=3)
    return Engine(chunks, case.model(), OPTIMIZER, numbers, parallel, grid)


def crossed(folder: Path) -> dict[str, object]:
    """FP8's state that each layout loads from what another one saved, and the first loss after: (of it, expected)."""
    cases = [case for case in CASES if case.fp8 == "delayed"]
    result: dict[str, object] = {}
    for case, saved in zip(cases, [*cases[1:], cases[0]]):
        path = next((folder / saved.name).glob("step-*"))
        engine, read = engine_of(case), shards.Reader(path / "optimizer")
        state.load_optimizer(path, engine, 2)
        named = engine.forward.fp8.named
        wrong = [name for name, one in named.items() if not torch.equal(one.packed(), read.read(f"fp8.{name}"))]
        loss = engine.accumulate(micro_batches(batches()[2], engine.grid, 1)).loss
        of_ranks = gathered(None, lambda wrong=wrong, named=named: (wrong, sorted(named)))
        held = sorted({name for _, names in of_ranks for name in names})
        known = sorted(name.removeprefix("fp8.") for name in read.names() if name.startswith("fp8."))
        wrong = [name for part, _ in of_ranks for name in part]
        result[case.name] = {"from": saved.name, "wrong": wrong, "complete": held == known, "layers": len(known)}
        result[case.name] |= {"scales": engine.forward.fp8.scales, "loss": loss}  # type: ignore[operator]
    return result


def run(case: Case, folder: Path) -> dict[str, list[list[float]]]:
    """Losses and norms of the steps after the save: as trained straight on, and again after going back."""
    engine = engine_of(case)
    grid = engine.grid
    saver = Saver(folder, background_group(60))
    steps = [(micro_batches(rows, grid, 1), lr) for rows, lr in zip(batches(), LEARNING_RATES, strict=True)]

    def train(first: int, last: int) -> list[list[float]]:
        record = []
        for mine, lr in steps[first:last]:
            result = engine.accumulate(mine)
            saver.staged()
            engine.apply(lr)
            record.append([result.loss, result.grad_norm])
        return record

    train(0, 2)
    meta = publish.Meta(model={}, step=2)
    updates = engine.reducer.steps_applied()
    saver.save(meta, state.weights(engine), state.optimizer(engine), overlap=True)
    straight = train(2, 4)
    saver.wait()
    path = saver.newest
    assert path is not None and not publish.verify(path)
    engine.accumulate(steps[0][0])  # gradients that nobody wants
    optimizer_bytes = state.load_optimizer(path, engine, updates)
    read = brought(case, engine, path, optimizer_bytes)
    evaluated = engine.forward.mean_loss(steps[2][0])[0]
    saver.close()
    trained = {"straight": straight, "again": train(2, 4), "evaluated": [[evaluated]], "updates": [[updates]]}
    return trained | {"read": read}  # type: ignore[dict-item]


def brought(case: Case, engine: Engine, path: Path, optimizer_bytes: int) -> dict[str, object]:
    """What a fresh model gets of the checkpoint, against the weights that followed from masters, and who read it."""
    grid, model = engine.grid, case.model()
    fresh = llama.build(model, case.numbers(), case.parallel(), grid)
    for chunk in fresh:
        for parameter in chunk.parameters():
            parameter.data.fill_(torch.nan)
    weights_bytes = state.load_weights(path, fresh, model, grid)
    engine.settle()
    differ = []
    for mine, other in zip(llama.shards(fresh, model, grid), engine.shards, strict=True):
        held = other.parameter.data
        if held.numel() and not torch.equal(mine.parameter.data[: mine.rows], held[: mine.rows]):  # ZeRO 3 keeps none
            differ.append(mine.name)

    def fails(wanted: list[Shard]) -> int:
        if grid.rank == 1:
            raise OSError("a disk of rank 1")
        return 0

    try:
        state.fill(fresh, model, grid, lambda wanted: on_all_ranks(None, lambda: fails(wanted)))
        said = "nothing"
    except OSError as error:
        said = str(error)
    held_bytes = sum(part.parameter.nbytes for part in llama.shards(fresh, model, grid))
    of_ranks = gathered(None, lambda: (weights_bytes, optimizer_bytes, held_bytes, differ, said))
    return dict(zip(("weights", "optimizer", "held", "differ", "said"), map(list, zip(*of_ranks, strict=True))))


def main(folder: str, output: str) -> None:
    torch.set_num_threads(1)
    mesh.connect(timeout_s=LIMIT_S)
    results: dict[str, object] = {}
    for case in CASES:
        try:
            results[case.name] = run(case, Path(folder) / case.name)
        except Exception:  # noqa: BLE001 - the test that asks for this case shows it
            results[case.name] = {"error": traceback.format_exc()}
    results["crossed"] = crossed(Path(folder))
    if dist.get_rank() == 0:
        Path(output).write_text(json.dumps(results))
    mesh.close()  # a process that leaves while gloo's threads run may abort


if __name__ == "__main__":
    main(*sys.argv[1:])
