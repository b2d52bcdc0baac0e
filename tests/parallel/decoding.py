"""Decodes and evaluates on one layout after the other; `main(OUTPUT)` is what each process runs."""

from __future__ import annotations

import json
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from llama31 import config
from llama31.evaluate.generate import generate
from llama31.model import llama
from llama31.model.sequences import take_chunks
from llama31.parallel import mesh
from tests.evaluate.test_evaluate import planted_losses
from tests.processes import LIMIT_S

PROCESSES = 4
PROMPTS = [[5, 6, 7], [300], list(range(20, 61)), [1, 2, 3, 4, 5, 6, 7, 8], [9, 9, 9]]
NEW_TOKENS = 10
ROW, PIECES = 64, [(0, 9), (9, 10), (10, 45), (45, 64)]  # documents that cross the chunks of every rank


@dataclass(frozen=True)
class Case:
    """A layout of all processes (data parallelism takes what is left), and a model."""

    name: str
    layout: dict[str, int]
    tied: bool = False
    kv_heads: int = 2
    temperature: float = 0.0
    params: str = "fp32"

    def shape(self) -> config.Model:
        return config.Model(
            name="decoding",
            layers=4,
            hidden_size=64,
            ffn_hidden_size=96,
            heads=4,
            kv_heads=self.kv_heads,
            vocab_size=320,
            max_positions=8192,
            tied_embeddings=self.tied,
            init_std=0.15,
        )

    def parallel(self, layout: dict[str, int]) -> config.Parallel:
        return config.Parallel(sequence_parallel=False, micro_batch=2, **layout)  # type: ignore[arg-type]


DECODING = [
    Case("tp2", {"tp": 2}),
    Case("pp2", {"pp": 2}),
    Case("tp2-pp2", {"tp": 2, "pp": 2}),
    Case("dp4", {"dp": 4}),
    Case("tp4-replicated-kv", {"tp": 4}),
    Case("tp2-pp2-one-kv-head", {"tp": 2, "pp": 2}, kv_heads=1),
    Case("tp2-pp2-tied", {"tp": 2, "pp": 2}, tied=True),
    Case("pp4-sampled", {"pp": 4}, temperature=1.0),
    Case("tp2-pp2-sampled", {"tp": 2, "pp": 2}, temperature=1.0),
    Case("tp2-pp2-bf16", {"tp": 2, "pp": 2}, params="bf16"),
]
EVALUATION = [
    Case("evaluate-dp4", {"dp": 4}),
    Case("evaluate-pp2", {"pp": 2}),
    Case("evaluate-vpp2", {"pp": 2, "vpp": 2}),
    Case("evaluate-tp2-cp2", {"tp": 2, "cp": 2}),
]
ISOLATION = [Case("documents-cp2", {"cp": 2}), Case("documents-cp4", {"cp": 4})]


@dataclass
class Built:
    """A model on a layout; the weights are the same on each."""

    case: Case
    layout: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parallel = self.case.parallel(self.layout)
        self.grid = mesh.create(parallel, timeout_s=LIMIT_S)
        numbers = config.Precision(params=self.case.params)
        self.chunks = llama.build(self.case.shape(), numbers, parallel, self.grid, seed=11)

    def decoded(self) -> list[list[int]]:
        return generate(self.chunks, self.grid, PROMPTS, NEW_TOKENS, {7}, self.case.temperature, 0.95, seed=5)

    def evaluated(self) -> dict[str, list[float]]:
        return {name: list(result) for name, result in planted_losses(self.chunks, self.grid, 2).items()}

    @torch.no_grad()
    def packed_logits(self) -> list[list[float]]:
        """Logits of a row of documents, the ranks' chunks put in order."""
        tokens = torch.randint(320, (1, ROW), generator=torch.Generator().manual_seed(3))
        documents = torch.tensor([(0, *piece) for piece in PIECES])
        cp, rank = self.grid.cp, self.grid.cp_rank
        local = self.chunks[0](take_chunks(tokens, cp, rank, 1), None, documents)[0]
        parts = [torch.empty_like(local) for _ in range(cp)]
        dist.all_gather(parts, local.contiguous(), group=self.grid.cp_group)
        whole = torch.empty(ROW, 320)
        for r, part in enumerate(parts):
            whole[take_chunks(torch.arange(ROW), cp, r, 0)] = part
        return whole.tolist()


def on_all_ranks_alike(value: Any) -> Any:
    """`value`, once every rank is seen to have the same."""
    result = [None] * dist.get_world_size()
    dist.all_gather_object(result, value)
    assert all(other == result[0] for other in result), result
    return value


def run(case: Case) -> Any:
    built = Built(case, case.layout)
    if case in DECODING:
        return on_all_ranks_alike(built.decoded())
    return on_all_ranks_alike(built.evaluated()) if case in EVALUATION else built.packed_logits()


def main(output: str) -> None:
    torch.set_num_threads(1)
    mesh.connect(timeout_s=LIMIT_S)
    results: dict[str, Any] = {}
    for case in [*DECODING, *EVALUATION, *ISOLATION]:
        try:
            results[case.name] = run(case)
        except Exception:  # noqa: BLE001 - told by the test
            results[case.name] = {"error": traceback.format_exc()}
        mesh.release()
    if dist.get_rank() == 0:
        Path(output).write_text(json.dumps(results))
    mesh.close()  # a process that leaves while gloo's threads run may abort
