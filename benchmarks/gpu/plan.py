"""What is measured, in which order, on which rows; and what a step computes, counted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llama31 import config

RECIPES = ("delayed", "tensorwise", "blockwise")
SHORTEST = 32  # tokens of a document with a long tail of longer ones
DIALOGS = 30  # in a row of dialogs


@dataclass(frozen=True)
class GpuCase:
    """One process: who trains (or which kernels are measured), and how its rows differ from the keys."""

    trainer: str  # ours, megatron, transformers; ceilings, micro
    fp8: str = "none"
    longer: int = 1  # rows so many times as long, and so many times fewer
    documents: str = "one"  # of a row: see `documents`
    recompute: str = "none"
    layers_part: int = 1  # one layer of so many: rows of 32,768 leave no room for all
    topic: str = ""  # of micro

    @property
    def name(self) -> str:
        """How tables and the key `only` call it: the trainer, then what is not as the keys say."""
        parts = [self.trainer, self.topic, "" if self.documents == "one" else self.documents]
        parts += [f"{self.longer}x" if self.longer > 1 else "", "" if self.fp8 == "none" else f"fp8-{self.fp8}"]
        parts += ["" if self.recompute == "none" else f"recompute-{self.recompute}"]
        return "-".join(filter(None, parts))

    def of(self, trainer: str) -> GpuCase:
        """The same of another trainer."""
        return GpuCase(trainer, self.fp8, self.longer, self.documents, self.recompute, self.layers_part)


def _around(case: GpuCase) -> list[GpuCase]:
    """Ours, the peer, ours: what drifts meanwhile shows in the two."""
    return [case, case.of("megatron"), case]


OURS = GpuCase("ours")
DOUBLE, EIGHT = GpuCase("ours", longer=2), GpuCase("ours", documents="eight")
TAIL = GpuCase("ours", longer=8, documents="tail", layers_part=2)
DIALOG_ROWS = GpuCase("ours", documents="dialogs")
SAVING = GpuCase("ours", recompute="swiglu")
FP8 = [GpuCase("ours", fp8=recipe) for recipe in RECIPES]
# The most telling first: what no longer fits the budget is dropped from the end.
PARTS: dict[str, list[GpuCase]] = {
    "first": [
        *_around(OURS), *_around(FP8[0]), GpuCase("transformers"), SAVING, FP8[1], FP8[1].of("megatron"),
    ],
    "rest": [
        GpuCase("ceilings"), *_around(DOUBLE), *_around(EIGHT), DIALOG_ROWS, OURS, DIALOG_ROWS, *_around(TAIL),
        FP8[2], FP8[2].of("megatron"),
    ],
    "micro": [GpuCase("micro", topic=topic) for topic in ("loss", "attention", "norm")],
}  # fmt: skip
BUDGET_S = {"first": 240, "rest": 480, "micro": 240}
NAMES = list(dict.fromkeys(case.name for cases in PARTS.values() for case in cases))


@dataclass(frozen=True)
class GpuWork:
    """The slice and its steps, as a case has them."""

    model: config.Model
    sequence_length: int
    rows: int  # per step
    micro_batch: int
    steps: int
    warmup_steps: int
    bf16: bool | None

    def for_case(self, case: GpuCase) -> GpuWork:
        """Longer rows, fewer of them, at least one micro-batch; fewer layers."""
        model = config.Model(**{**vars(self.model), "layers": max(1, self.model.layers // case.layers_part)})
        rows = max(self.micro_batch, self.rows // case.longer)
        length = self.sequence_length * case.longer
        return GpuWork(model, length, rows, self.micro_batch, self.steps, self.warmup_steps, self.bf16)

    @property
    def tokens(self) -> int:
        """Of one step."""
        return self.rows * self.sequence_length


def documents(kind: str, length: int, seed: int) -> list[int]:
    """Lengths of the documents that fill a row: one, eight, short dialogs, or log-uniform ones with a long tail."""
    random = np.random.default_rng(seed)
    if kind == "eight":
        cuts = np.sort(random.choice(np.arange(1, length), min(7, length - 1), replace=False))
        return np.diff([0, *cuts, length]).tolist()  # type: ignore[no-any-return]
    if kind == "one":
        return [length]
    lengths: list[int] = []
    while (left := length - sum(lengths)) > 0:
        if kind == "dialogs":
            drawn = random.lognormal(np.log(length / DIALOGS) - 0.125, 0.5)
        else:
            drawn = np.exp(random.uniform(np.log(min(SHORTEST, length)), np.log(length)))
        lengths.append(min(left, max(1, int(drawn))))
    return lengths


def linears(model: config.Model) -> dict[str, tuple[int, int, int]]:
    """Of each kind of product: how many of them, outputs and inputs of its weight."""
    width, heads = model.head_dim, model.heads + 2 * model.kv_heads
    return {
        "qkv": (model.layers, heads * width, model.hidden_size),
        "proj": (model.layers, model.hidden_size, model.heads * width),
        "fc1": (model.layers, 2 * model.ffn_hidden_size, model.hidden_size),
        "fc2": (model.layers, model.hidden_size, model.ffn_hidden_size),
        "head": (1, model.vocab_size, model.hidden_size),
    }


def products(model: config.Model, tokens: int) -> dict[str, list[tuple[int, int, int]]]:
    """Of each kind of product (m, n, k) of its forward pass, of its input's and of its weight's gradient."""
    return {
        name: [(tokens, out, into), (tokens, into, out), (out, into, tokens)]
        for name, (_, out, into) in linears(model).items()
    }


def parameters(model: config.Model) -> int:
    """With both embeddings; norms left out."""
    tied = 1 if model.tied_embeddings else 2
    blocks = sum(number * out * into for name, (number, out, into) in linears(model).items() if name != "head")
    return blocks + tied * model.vocab_size * model.hidden_size


def flops_per_token(model: config.Model, length: int) -> int:
    """Forward and backward passes of a row of one document: products, and the half of attention that is causal."""
    weights = sum(number * out * into for number, out, into in linears(model).values())
    return 6 * weights + 6 * model.layers * model.heads * model.head_dim * length
