"""Objectives of post-training on one layout of eight processes after the other; `main(OUTPUT)` is what each runs.

All objectives of a layout share its groups, and no layout leaves any behind.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from llama31 import config
from llama31.data.batches import rank_rows
from llama31.dialogs import rows
from llama31.engine import preference, scoring
from llama31.engine.objectives import MicroBatch, Objective, next_token
from llama31.engine.pipeline import Engine
from llama31.model import llama
from llama31.parallel import mesh
from llama31.parallel.mesh import Grid
from tests.dialogs import pieces
from tests.processes import LIMIT_S

PROCESSES, ROWS, LENGTH, STEPS = 8, 8, 96, 2
FP32 = config.Precision(params="fp32")


@dataclass(frozen=True)
class Case:
    """A layout of eight processes; data parallelism takes what is left."""

    name: str
    layout: dict[str, Any] = field(default_factory=dict)
    tied: bool = False

    def parallel(self) -> config.Parallel:
        return config.Parallel(**{"micro_batch": 1, **self.layout})


LAYOUTS = [
    Case("dp8"),
    Case("tp2-dp4", {"tp": 2}),
    Case("tp2-dp4-without-sp", {"tp": 2, "sequence_parallel": False}),
    Case("pp2-dp4", {"pp": 2}),
    Case("pp2-vpp2-dp4", {"pp": 2, "vpp": 2}),
    Case("cp2-dp4", {"cp": 2}),
    Case("tp2-cp2-dp2", {"tp": 2, "cp": 2, "micro_batch": 2}),
    Case("tp2-pp2-dp2", {"tp": 2, "pp": 2, "micro_batch": 2}),
    Case("tp2-pp2-dp2-tied", {"tp": 2, "pp": 2, "micro_batch": 2}, tied=True),
    Case("pp2-cp2-dp2", {"pp": 2, "cp": 2}),
    Case("tp2-pp2-cp2", {"tp": 2, "pp": 2, "cp": 2, "micro_batch": 2}),
    Case("tp2-pp2-vpp2-cp2", {"tp": 2, "pp": 2, "vpp": 2, "cp": 2, "micro_batch": 2}),
    Case("tp2-pp2-cp2-zero2", {"tp": 2, "pp": 2, "cp": 2, "micro_batch": 2, "zero": 2}),
    Case("pp2-cp2-dp2-zero2", {"pp": 2, "cp": 2, "zero": 2}),
    Case("tp2-cp2-dp2-zero2", {"tp": 2, "cp": 2, "micro_batch": 2, "zero": 2}),
    Case("tp2-cp2-dp2-zero3", {"tp": 2, "cp": 2, "micro_batch": 2, "zero": 3}),
]


def shape(head: str, tied: bool) -> config.Model:
    return config.Model(
        name="aligning",
        layers=4,
        hidden_size=32,
        ffn_hidden_size=64,
        heads=4,
        kv_heads=2,
        vocab_size=320,
        max_positions=8192,
        tied_embeddings=tied,
        init_std=0.1,
        head=head,
    )


def known(given: list[rows.Piece]) -> list[rows.Piece]:
    """With log-probabilities of nobody: any numbers of their size will do."""
    numbers = -20 - 10 * np.random.default_rng(5).random((len(given), 2), np.float32)
    return [replace(piece, reference=pair) for piece, pair in zip(given, numbers, strict=True)]


OBJECTIVES: dict[str, tuple[Objective, list[rows.Piece]]] = {
    "sft": (next_token, pieces.supervised_pieces(14)),
    "dpo": (preference.DpoObjective(), known(pieces.dpo_pieces(0.2, count=7))),
    "dpo-normalised": (preference.DpoObjective(length_normalised=True), known(pieces.dpo_pieces(0.2, count=7))),
    "reward-tree": (preference.RewardObjective(), pieces.reward_pieces("tree", 3, 7)),
    "reward-steps": (preference.StepObjective(), pieces.step_pieces("tree", 7)),
    "reward-separate": (preference.RewardObjective(), pieces.reward_pieces("separate", 2, 7)),
}


def asked(case: Case) -> list[str]:
    """Objectives that a layout is held to: the variants of DPO and reward only where kinds of splitting meet."""
    every = case.name in ("tp2-cp2-dp2", "pp2-cp2-dp2", "tp2-pp2-cp2")
    return list(OBJECTIVES) if every else ["sft", "dpo", "reward-tree"]


def rows_of(name: str) -> list[list[rows.Piece]]:
    given = OBJECTIVES[name][1]
    per_row = 2 if len(given) > ROWS else 1
    return [*pieces.dealt(given, per_row), *[[]] * ROWS][:ROWS]


def numbers(name: str, engine: Engine, size: int) -> list[float]:
    """What each response's number is, asked for as references and rewards are: any rows, dealt to replicas."""
    ask = preference.rewards if name.startswith("reward") else preference.log_probabilities
    given = OBJECTIVES[name][1]
    firsts = np.cumsum([0, *(piece.responses for piece in given)])
    dealt = np.array_split(np.arange(len(given)), 5)

    def packed(chosen: Sequence[np.ndarray]) -> rows.PackedRows:
        return rows.pack([[given[i] for i in row] for row in chosen], 2 * LENGTH, compares=True)

    result = torch.zeros(int(firsts[-1]))
    for places, _, record in scoring.numbers(engine.forward, dealt, packed, ask, size):
        result[[int(n) for p in places for i in dealt[p] for n in range(firsts[i], firsts[i + 1])]] = record
    dist.all_reduce(result, group=engine.grid.dp_group)
    return result.tolist()


def micro_batches(name: str, grid: Grid, size: int) -> list[MicroBatch]:
    """This replica's rows; some hold two pieces, one none."""
    objective, dealt = OBJECTIVES[name][0], rows_of(name)
    result = []
    for indices in rank_rows(ROWS, size, grid.dp, grid.dp_rank):
        packed = rows.pack([dealt[row] for row in indices], LENGTH, compares=objective is not next_token)
        result.append(MicroBatch.from_packed(packed, grid.device))
    return result


def run(case: Case, name: str, grid: Grid) -> dict[str, Any]:
    """Losses, gradient norms and measures of the steps, and what each response's number is in the end."""
    parallel = case.parallel()
    built = shape("reward" if name.startswith("reward") else "tokens", case.tied)
    chunks = llama.build(built, FP32, parallel, grid, seed=3)
    engine = Engine(chunks, built, config.Optimizer(), FP32, parallel, grid)
    mine = micro_batches(name, grid, parallel.micro_batch)
    record: dict[str, list[float]] = {}
    for _ in range(STEPS):
        result = engine.accumulate(mine, OBJECTIVES[name][0])
        engine.apply(1e-3)
        step = {"loss": result.loss, "norm": result.grad_norm, "units": result.tokens, **result.measures}
        for key, value in step.items():
            record.setdefault(key, []).append(value)
    if name != "sft":
        record["numbers"] = numbers(name, engine, parallel.micro_batch)
    return record


def main(output: str) -> None:
    torch.set_num_threads(1)
    mesh.connect(timeout_s=LIMIT_S)
    results: dict[str, Any] = {}
    for case in LAYOUTS:
        begin = time.perf_counter()
        grid = mesh.create(case.parallel())
        for name in asked(case):
            try:
                results[f"{case.name}/{name}"] = run(case, name, grid)
            except Exception:  # noqa: BLE001 - the test that asks for this case shows it
                results[f"{case.name}/{name}"] = {"error": traceback.format_exc()}
        mesh.release()
        if dist.get_rank() == 0:
            print(f"{case.name}: {time.perf_counter() - begin:.1f} s", flush=True)
    if dist.get_rank() == 0:
        results["threads"] = len(list(Path("/proc/self/task").iterdir()))
        Path(output).write_text(json.dumps(results))
    mesh.close()  # a process that leaves while gloo's threads run may abort


def alone(name: str, tied: bool) -> dict[str, Any]:
    """The same in this process."""
    case = Case("alone", tied=tied)
    return run(case, name, mesh.create(case.parallel()))
