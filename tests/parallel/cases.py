"""The table of layouts that must all compute the same thing, and the batches that they compute on."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from llama31 import config

STEPS = 4
ROWS, LENGTH, VOCAB = 8, 32, 61  # which no tensor parallelism divides: what pads it must not be seen
LEARNING_RATES = [1e-2, 1e-2, 5e-3, 5e-3]
BUCKET_BYTES = 20_000  # several buckets of ZeRO-1 a chunk, some of one matrix, some of two
OPTIMIZER = config.Optimizer(clip_norm=0.5)  # below the norms of the first steps, so that clipping takes part


@dataclass(frozen=True)
class Case:
    """A layout and what it trains."""

    name: str
    processes: int
    layout: dict[str, int | bool | list[str]] = field(default_factory=dict)
    params: str = "fp32"
    tied: bool = False
    kv_heads: int = 2
    rows_per_micro_batch: int = 1
    fp8: str = "none"  # rounded to, on any device

    def numbers(self) -> config.Precision:
        fp8 = self.fp8 != "none"  # then the first of two stages has none of it
        return config.Precision(self.params, self.fp8, fp8_emulate=fp8, fp8_first_layers_bf16=2 * fp8)

    def parallel(self) -> config.Parallel:
        given: dict[str, int | str | bool] = {"bucket_bytes": BUCKET_BYTES, **self.layout}
        return config.Parallel(micro_batch=self.rows_per_micro_batch, **given)  # type: ignore[arg-type]

    def model(self) -> config.Model:
        return model(self.tied, self.kv_heads)

    @property
    def reference(self) -> str:
        """Name of the one-process run that this case has to equal."""
        parts = ["one", "tied" * self.tied, "kv4" * (self.kv_heads == 4), "bf16" * (self.params == "bf16")]
        return "-".join(part for part in parts if part)


def model(tied: bool = False, kv_heads: int = 2) -> config.Model:
    """Four layers, so that two stages of two chunks have one each."""
    return config.Model(
        name="parity",
        layers=4,
        hidden_size=32,
        ffn_hidden_size=64,
        heads=4,
        kv_heads=kv_heads,
        vocab_size=VOCAB,
        tied_embeddings=tied,
        max_positions=8192,
    )


@dataclass(frozen=True)
class Rows:
    tokens: np.ndarray
    labels: np.ndarray
    loss_mask: np.ndarray
    documents: np.ndarray


def batches() -> list[Rows]:
    """Rows of documents of odd lengths, the label that crosses a boundary masked, some rows with one document."""
    random = np.random.default_rng(7)
    result = []
    for _ in range(STEPS):
        stream = random.integers(0, VOCAB, (ROWS, LENGTH + 1))
        starts = random.random((ROWS, LENGTH)) < 0.12
        starts[:2] = False
        documents = np.cumsum(starts, 1)
        mask = np.ones((ROWS, LENGTH), np.float32)
        mask[:, :-1] = documents[:, 1:] == documents[:, :-1]
        result.append(Rows(stream[:, :-1], stream[:, 1:], mask, documents))
    return result


# Messages of tensor and context parallelism take the time: where neither is the point, micro-batches have several rows.
CASES = [
    Case("one", 1),
    Case("one-wide-micro-batch", 1, rows_per_micro_batch=4),
    Case("one-tied", 1, tied=True),
    Case("one-kv4", 1, kv_heads=4),
    Case("one-bf16", 1, params="bf16"),
    Case("one-norms-swiglu", 1, {"recompute": ["norms", "swiglu"]}),
    Case("one-norms-mlp", 1, {"recompute": ["norms", "mlp"]}),
    Case("one-full", 1, {"recompute": ["full"]}),
    Case("tp2", 2, {"tp": 2}),
    Case("tp2-without-sp", 2, {"tp": 2, "sequence_parallel": False}),
    Case("pp2", 2, {"pp": 2}),
    Case("pp2-vpp2", 2, {"pp": 2, "vpp": 2}),
    Case("pp2-vpp2-group4", 2, {"pp": 2, "vpp": 2, "microbatch_group": 4}),
    Case("pp2-vpp2-overlap", 2, {"pp": 2, "vpp": 2, "overlap_p2p": True}),
    Case("pp2-vpp2-group4-overlap", 2, {"pp": 2, "vpp": 2, "microbatch_group": 4, "overlap_p2p": True}),
    Case("cp2", 2, {"cp": 2}),
    Case("cp2-wide-micro-batch", 2, {"cp": 2}, rows_per_micro_batch=2),
    Case("dp2", 2, {"dp": 2, "bucket_bytes": 1}),
    Case("dp2-one-bucket", 2, {"dp": 2, "bucket_bytes": 200_000_000}),
    Case("dp2-zero2", 2, {"dp": 2, "zero": 2}),
    Case("dp2-zero3", 2, {"dp": 2, "zero": 3}),
    Case("cp2-zero2", 2, {"cp": 2, "zero": 2}),
    Case("cp2-zero3", 2, {"cp": 2, "zero": 3}, rows_per_micro_batch=4),
    Case("pp2-zero2", 2, {"pp": 2, "zero": 2}),
    Case("tp2-tied", 2, {"tp": 2}, tied=True, rows_per_micro_batch=4),
    Case("pp2-tied", 2, {"pp": 2}, tied=True),
    Case("pp2-vpp2-tied", 2, {"pp": 2, "vpp": 2}, tied=True),
    Case("dp2-zero3-tied", 2, {"dp": 2, "zero": 3}, tied=True),
    Case("tp2-full", 2, {"tp": 2, "recompute": ["full"]}, rows_per_micro_batch=4),
    Case("tp2-norms-mlp", 2, {"tp": 2, "recompute": ["norms", "mlp"]}, rows_per_micro_batch=4),
    Case("dp2-zero3-norms-swiglu", 2, {"dp": 2, "zero": 3, "recompute": ["norms", "swiglu"]}),
    Case("dp2-zero3-mlp", 2, {"dp": 2, "zero": 3, "recompute": ["mlp"]}),
    Case("pp2-uneven", 2, {"pp": 2, "vpp": 3, "embedding_as_layer": True, "loss_as_layer": True}),
    Case(
        "pp2-uneven-overlap",
        2,
        {"pp": 2, "vpp": 3, "embedding_as_layer": True, "loss_as_layer": True, "overlap_p2p": True},
    ),
    Case("tp2-bf16", 2, {"tp": 2}, params="bf16", rows_per_micro_batch=4),
    Case("pp2-bf16", 2, {"pp": 2}, params="bf16"),
    Case("cp2-bf16", 2, {"cp": 2}, params="bf16", rows_per_micro_batch=4),
    Case("dp2-bf16", 2, {"dp": 2}, params="bf16"),
    Case("dp2-zero2-bf16", 2, {"dp": 2, "zero": 2}, params="bf16"),
    Case("dp2-zero3-bf16", 2, {"dp": 2, "zero": 3}, params="bf16"),
    Case("tp4-replicated-kv", 4, {"tp": 4}, rows_per_micro_batch=2),
    Case("cp4", 4, {"cp": 4}),
    Case("tp2-dp2-zero2", 4, {"tp": 2, "dp": 2, "zero": 2}),
    Case("tp2-dp2-zero3", 4, {"tp": 2, "dp": 2, "zero": 3}, rows_per_micro_batch=2),
    Case("dp2-pp2-vpp2-zero2", 4, {"dp": 2, "pp": 2, "vpp": 2, "zero": 2, "overlap_p2p": True}),
    Case("dp2-pp2-tied", 4, {"dp": 2, "pp": 2}, tied=True),
    Case("tp2-pp2-cp2", 8, {"tp": 2, "pp": 2, "cp": 2}, rows_per_micro_batch=2),
    Case("tp2-pp2-dp2", 8, {"tp": 2, "pp": 2, "dp": 2}),
    Case("tp2-pp2-vpp2-cp2", 8, {"tp": 2, "pp": 2, "vpp": 2, "cp": 2, "overlap_p2p": True}, rows_per_micro_batch=2),
    Case("tp2-pp2-vpp2-cp2-zero2", 8, {"tp": 2, "pp": 2, "vpp": 2, "cp": 2, "zero": 2}, rows_per_micro_batch=2),
    Case("tp2-pp2-dp2-bf16", 8, {"tp": 2, "pp": 2, "dp": 2}, params="bf16"),
]
