"""Scores a Hugging Face folder on one layout after another; `main(FOLDER, HITS, OUTPUT)` is what each process runs."""

from __future__ import annotations

import json
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from llama31 import config
from llama31.config import Needle
from llama31.convert import pretrained
from llama31.data.batches import HeldoutText
from llama31.engine.pipeline import Forward
from llama31.engine.scoring import ScoreRequest, answers
from llama31.evaluate import haystack, needle, perplexity
from llama31.judging import divergence
from llama31.model import llama
from llama31.parallel import mesh
from tests.evaluate.test_evaluate import SHAPE as PLANTED_SHAPE
from tests.evaluate.test_evaluate import Planted
from tests.parallel.decoding import on_all_ranks_alike
from tests.processes import LIMIT_S

PROCESSES = 4
LAYOUTS: dict[str, dict[str, int]] = {
    "tp2-pp2": {"tp": 2, "pp": 2},
    "tp4-replicated-kv": {"tp": 4},
    "pp2-vpp2": {"pp": 2, "vpp": 2},
    "tp2-cp2": {"tp": 2, "cp": 2},
    "cp4": {"cp": 4},
    "cp2-pp2": {"cp": 2, "pp": 2},
    "dp4": {"dp": 4},
}
SEQUENCE_PARALLEL = ("tp2-pp2", "tp2-cp2")  # as in training, where the gate asks
SHAPE = config.Model(
    "scoring", layers=4, hidden_size=64, ffn_hidden_size=96, heads=4, kv_heads=2, vocab_size=320, init_std=0.15
)
LETTERS = haystack.alphabet(range(20, 120))
NEEDLE = Needle(kind="tokens", depths=[0.0, 0.6, 1.0], inserted=3, asked=2, trials=2)


@dataclass
class Built:
    """The folder's weights on a layout, and those of `other` beside it."""

    folder: str
    layout: dict[str, int] = field(default_factory=dict)
    sequence_parallel: bool = False

    def __post_init__(self) -> None:
        parallel = config.Parallel(
            sequence_parallel=self.sequence_parallel,
            micro_batch=2,
            **self.layout,  # type: ignore[arg-type]
        )
        self.grid = mesh.create(parallel, timeout_s=LIMIT_S)
        self.forward, self.other = (
            self.loaded(path, parallel) for path in (Path(self.folder), Path(self.folder).with_name("other"))
        )
        self.chunks = self.forward.chunks

    def loaded(self, folder: Path, parallel: config.Parallel) -> Forward:
        result = pretrained.find(str(folder))
        chunks = llama.build(result.shape, config.Precision(params="fp32"), parallel, self.grid)
        result.load(chunks, self.grid)
        return Forward(chunks, self.grid)

    def answered(self) -> list[Any]:
        """Losses and hits of requests of many lengths, of which greedy decoding gives none by chance."""
        random = np.random.default_rng(2)
        sizes = [(5, 2), (40, 9), (9, 8), (23, 1), (64, 3), (2, 1), (31, 30)]
        requests = [ScoreRequest(random.integers(0, SHAPE.vocab_size, size).tolist(), answer) for size, answer in sizes]
        return [[losses.tolist(), right.tolist()] for losses, right in answers(self.forward, requests, 2)]

    def recalled(self, hits: list[int] | None = None) -> list[float]:
        """Recall of prompts of which every other one asks for a given token, or else for what was hidden."""
        prompts = self.prompts()
        for prompt, hit in zip(prompts[::2], hits or [], strict=False):
            prompt.answer[:] = hit
        return needle.recall(self.forward, prompts, 2).tolist()

    def prompts(self) -> list[haystack.NeedlePrompt]:
        return haystack.token_prompts(NEEDLE, LETTERS, [30, 50])

    def perplexity(self) -> dict[str, Any]:
        assert PLANTED_SHAPE.vocab_size <= SHAPE.vocab_size
        losses = perplexity.token_losses(self.forward, cast(HeldoutText, Planted()), 2)
        return perplexity.perplexity(losses)

    def divergence(self) -> dict[str, Any]:
        return divergence.compare(self.forward, self.other, cast(HeldoutText, Planted()), 2)

    def everything(self, hits: list[int]) -> dict[str, Any]:
        found = {"answers": self.answered(), "recall": self.recalled(hits), "perplexity": self.perplexity()}
        return found | {"divergence": self.divergence()}


def main(folder: str, hits: str, output: str) -> None:
    torch.set_num_threads(1)
    mesh.connect(timeout_s=LIMIT_S)
    results: dict[str, Any] = {}
    for name, layout in LAYOUTS.items():
        try:
            results[name] = on_all_ranks_alike(
                Built(folder, layout, name in SEQUENCE_PARALLEL).everything(json.loads(hits))
            )
        except Exception:  # noqa: BLE001 - told by the test
            results[name] = {"error": traceback.format_exc()}
        mesh.release()
    if torch.distributed.get_rank() == 0:
        Path(output).write_text(json.dumps(results))
    mesh.close()
