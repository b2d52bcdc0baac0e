"""Steps of the engine, whose losses, norms and gradients one device computes as the other does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from llama31 import config
from llama31.engine import state
from llama31.engine.objectives import MicroBatch
from llama31.engine.pipeline import Engine
from llama31.model import llama, precision
from llama31.parallel import mesh
from tests.parallel import worker
from tests.parallel.cases import CASES

Facts = dict[str, Any]

ROWS, LENGTH, VOCAB = 2, 2048, 1024
RATES = [5e-5, 5e-5, 2e-5]  # at a width of 512; small, so that later steps are still close where the first one is
KEPT = 512  # numbers of each gradient that are compared
# Heads of width 128, four query heads to a KV head. The wide one is an 8B's attention: 8 KV heads.
SHAPES = {
    "narrow": {"hidden_size": 512, "heads": 4, "kv_heads": 1},
    "wide": {"hidden_size": 4096, "heads": 32, "kv_heads": 8},
}
DOCUMENTS = ([1, 127, 129, 1, 300, 511, 640], [])  # of a row; a last one takes what is left


def shape(name: str) -> config.Model:
    return config.Model(name=name, layers=2, ffn_hidden_size=1024, vocab_size=VOCAB, max_positions=8192, **SHAPES[name])


def micro_batches(device: torch.device) -> list[MicroBatch]:
    """Rows of one document, and of several that cross the tiles of kernels; labels across a boundary do not count."""
    tokens = np.random.default_rng(11).integers(0, VOCAB, (ROWS, LENGTH + 1))
    result = []
    for row, lengths in zip(tokens, DOCUMENTS, strict=True):
        documents = np.repeat(np.arange(len(lengths) + 1), [*lengths, LENGTH - sum(lengths)])
        mask = np.ones(LENGTH, np.float32)
        mask[:-1] = documents[1:] == documents[:-1]
        result.append(MicroBatch.from_numpy(row[None, :-1], row[None, 1:], mask[None], documents[None], device))
    return result


def gradients(engine: Engine) -> dict[str, list[float]]:
    """Of each parameter some numbers of its first gradient, as Adam's first moment after one update has it."""
    result = {}
    for shard in state.optimizer(engine):
        if shard.name.startswith("exp_avg."):
            flat = torch.cat([block.resolve().flatten() for block in shard.blocks])
            chosen = torch.linspace(0, flat.numel() - 1, min(KEPT, flat.numel()), dtype=torch.float64).long()
            result[shard.name.removeprefix("exp_avg.")] = (flat[chosen.to(flat.device)] * 10).tolist()
    return result


def steps(name: str, numbers: config.Precision, device: torch.device, rates: list[float]) -> Facts:
    """Losses, norms, the loss of the same batch evaluated after the steps, and the gradients of the first."""
    parallel, built = config.Parallel(), shape(name)
    grid = mesh.create(parallel)
    chunks = llama.build(built, numbers, parallel, grid, seed=3)
    engine = Engine(chunks, built, config.Optimizer(), numbers, parallel, grid)
    batch, facts = micro_batches(device), Facts(losses=[], norms=[])
    for lr in rates:
        result = engine.accumulate(batch)
        engine.apply(lr * 512 / built.hidden_size)
        facts["losses"].append(result.loss)
        facts["norms"].append(result.grad_norm)
        facts.setdefault("gradients", gradients(engine))
    facts["evaluated"] = [engine.forward.mean_loss(batch)[0]]
    return facts


def cases(device: torch.device, extras: tuple[str, ...]) -> Iterator[tuple[str, Callable[[], Facts]]]:
    """Rows of 2,048 tokens in every precision that this device has; with extras the parity cases, and wide models."""
    gpu = device.type == "cuda"
    for case in CASES:
        if case.processes == 1 and "parity" in extras:
            yield f"parity {case.name}", lambda c=case: worker.run(c)
    formats = {"fp32": config.Precision(params="fp32")}
    if gpu:
        formats["bf16"] = config.Precision()
        able = torch.cuda.get_device_capability(device)
        for recipe, needed in precision.FP8_CAPABILITY.items() if precision.have_transformer_engine() else ():
            if able >= needed:
                formats[f"fp8 {recipe}"] = config.Precision(fp8=recipe)
                formats[f"twin {recipe}"] = config.Precision(fp8=recipe, fp8_emulate=True)
    for name in SHAPES if "wide" in extras else ["narrow"]:
        for record, numbers in formats.items():
            yield (
                f"steps {name} {record}",
                lambda n=name, p=numbers: steps(n, p, device, RATES if extras else RATES[:1]),
            )
