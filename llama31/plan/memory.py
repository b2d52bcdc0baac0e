"""Bytes that a rank needs for a step, by cause and pipeline stage, from the config alone. Arithmetic, no torch.

`predict` counts live tensors when they are most: what is always there, and the worst of the moments that each stage
goes through. Formats are those of `precision.params`, kernels those of a GPU with Transformer Engine, or with
`on_gpu=False` the plain ones of a CPU, which keep the same and need more in between. Tested against what tensors are
seen to live, and against a measured H100.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from llama31.config import Model, Parallel, Precision
from llama31.plan import passes, shapes
from llama31.plan.schedule import Stage
from llama31.plan.shapes import BYTES

SUM_BYTES = 4  # of an FP32 number per token, or per token and head
BATCH_BYTES = 24  # of a place of a row: token and label int64, weight FP32 as it came and scaled
LOGITS = {"cpu": 2**21, "cuda": 2**28}  # that exist at once; the CPU's is measured, the GPU's not yet
EARLIER_COPIES = 5  # of K and V of whole rows under context parallelism: gathered, taken, and their gradients thrice
# ZeRO-2 and 3 reduce in a buffer of DeepSpeed's default size (`reduce_bucket_size`), ZeRO-3 keeps gathered weights up
# to `max_live_parameters` and gathers the next ahead (`prefetch_bucket_size`).
DEEPSPEED_BUCKET, LIVE_PARAMETERS, PREFETCHED = 500_000_000, 1_000_000_000, 50_000_000
# Gaps between blocks of torch's allocator and workspaces of cuBLAS and cuDNN: an allowance of ours, nobody measured it
# here. What lives outside of the allocator is no part of `cluster.memory_gb` (conf/cluster/h100.yaml).
RESERVE_BYTES = 2e9


@dataclass(frozen=True)
class StageMemory:
    """Bytes of a rank of one pipeline stage when they are most, by cause."""

    stage: int
    weights: float
    gradients: float  # FP32
    states: float  # masters, moments and their average, as ZeRO shares them out
    activations: float  # kept for backward passes that are still to come
    head: float  # logits of a chunk, states and their gradient, where they count at that moment
    buffers: float  # of the layer that is computed, of messages, of FP8 copies, of batches
    reserve: float = RESERVE_BYTES

    @property
    def allocated(self) -> float:
        """Live tensors: what torch.cuda.max_memory_allocated() says."""
        return self.total - self.reserve

    @property
    def total(self) -> float:
        return sum(self.causes().values())

    def summary(self) -> str:
        """The stage, what it needs, and its causes, the largest first."""
        ordered = sorted(self.causes().items(), key=lambda cause: -cause[1])
        causes = ", ".join(f"{name} {count / 1e9:.1f}" for name, count in ordered if count >= 5e7)
        return f"a rank of pipeline stage {self.stage} (from 0) needs {self.total / 1e9:.1f} GB ({causes})"

    def causes(self) -> dict[str, float]:
        """All but the stage, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "stage"}


@dataclass(frozen=True)
class Capacity:
    """What a device has for tensors, and what of a run beside its layout takes of it."""

    gb: float  # `cluster.memory_gb`
    average: bool = False  # of the masters is kept: `optimizer.ema_decay`
    responses: bool = False  # losses of tokens are not summed as they are made: DPO


@dataclass(frozen=True)
class Workload:
    """What a step computes on: micro-batches of rows of one length, on so many replicas."""

    sequence_length: int
    micro_batches: int  # of a step and replica
    replicas: int  # data-parallel ones; ZeRO shares out over these times cp
    average: bool = False
    responses: bool = False
    on_gpu: bool = True


def workload(parallel: Parallel, stage: Stage, replicas: int, capacity: Capacity | None = None) -> Workload:
    """Of a stage of the schedule; batches that do not come out even are another rule's."""
    count = max(1, stage.rows // (parallel.micro_batch * replicas))
    average, responses = (capacity.average, capacity.responses) if capacity else (False, False)
    return Workload(stage.sequence_length, count, replicas, average, responses)


def predict(model: Model, parallel: Parallel, numbers: Precision, work: Workload) -> list[StageMemory]:
    """Of every pipeline stage."""
    return [of_stage(model, parallel, numbers, work, stage) for stage in range(parallel.pp)]


def worst(model: Model, parallel: Parallel, numbers: Precision, work: Workload) -> StageMemory:
    """The stage that needs most: one of the first two, or the last. What is in flight falls from stage to stage."""
    stages = sorted({0, min(1, parallel.pp - 1), parallel.pp - 1})
    return max((of_stage(model, parallel, numbers, work, stage) for stage in stages), key=lambda one: one.total)


def of_stage(model: Model, parallel: Parallel, numbers: Precision, work: Workload, stage: int) -> StageMemory:
    """Of one pipeline stage. The layout is taken to be possible."""
    always = _always(model, parallel, numbers, work, stage)
    tokens = parallel.micro_batch * work.sequence_length / parallel.cp
    flying = passes.layers_in_flight(model, parallel, work.micro_batches, stage)
    kept = tokens * sum(_kept(model, parallel, numbers).values())
    moments = []
    if passes.stage_layers(model, parallel, stage):
        moments.append((flying.backward * kept, 0.0, tokens * _layer_work(model, parallel, numbers, work)))
    if stage == parallel.pp - 1:
        moments.append((flying.loss * kept, _head(model, parallel, numbers, work, tokens), 0.0))
    if parallel.pp > 1:
        always["buffers"] += tokens * _messages(model, parallel, numbers, work, stage)
    activations, head, buffers = max(moments, key=sum, default=(0.0, 0.0, 0.0))  # a stage may hold the embedding alone
    always["buffers"] += buffers
    step = StageMemory(stage, activations=activations, head=head, **always)
    return max(step, _begin(model, parallel, numbers, stage, step), key=lambda one: one.total)


# --- what is always there ---


def parameters(model: Model, parallel: Parallel, stage: int) -> int:
    """Parameters that a rank of a stage holds before ZeRO shares them out; norms are whole on every rank of tp."""
    matrices = shapes.attention_parameters(model) + shapes.mlp_parameters(model)
    layer = matrices // parallel.tp + 2 * model.hidden_size
    rows = shapes.padded(model.vocab_size, parallel.tp) // parallel.tp
    first, last = stage == 0, stage == parallel.pp - 1
    ends = rows * model.hidden_size * first
    if last and model.head == "reward":
        ends += model.hidden_size
    elif last and not (model.tied_embeddings and first):
        ends += rows * model.hidden_size
    return passes.stage_layers(model, parallel, stage) * layer + ends + model.hidden_size * last


def _largest(model: Model, parallel: Parallel, stage: int) -> int:
    """Parameters of the largest matrix that a rank of a stage reads at once."""
    rows = shapes.padded(model.vocab_size, parallel.tp) if stage in (0, parallel.pp - 1) else 0
    return max(rows, 2 * model.ffn_hidden_size) * model.hidden_size // parallel.tp


def _always(model: Model, parallel: Parallel, numbers: Precision, work: Workload, stage: int) -> dict[str, float]:
    """Weights, gradients, states and buffers from step to step."""
    count, size, shards = parameters(model, parallel, stage), BYTES[numbers.params], work.replicas * parallel.cp
    own = count / shards
    masters = 0 if numbers.params == "fp32" and parallel.zero == 1 else 4  # FP32 weights are their own masters
    rows = work.micro_batches * parallel.micro_batch
    angles = work.sequence_length / parallel.cp * model.head_dim * (4 if work.on_gpu else 4 + size) * parallel.vpp
    result = {
        "weights": size * count,
        "gradients": 4 * count,
        "states": own * (masters + 8 + 4 * work.average),
        "buffers": rows * work.sequence_length * BATCH_BYTES + angles,
    }
    if parallel.zero > 1:
        result["gradients"] = 4 * own
        result["buffers"] += DEEPSPEED_BUCKET * (size if parallel.zero == 2 else 4)
        largest = _largest(model, parallel, stage)
        result["buffers"] += size * largest * (largest > DEEPSPEED_BUCKET)  # a gradient that no bucket holds
    if parallel.zero == 3:
        result["weights"] = size * own
        result["buffers"] += size * min(count, LIVE_PARAMETERS + PREFETCHED + largest)
    elif _in_fp8(numbers):  # each weight's cast and its transpose
        attention = shapes.attention_parameters(model) if numbers.fp8_linears == "all" else 0
        linear = (attention + shapes.mlp_parameters(model)) / parallel.tp
        result["buffers"] += 2 * linear * passes.stage_layers(model, parallel, stage)
    return {name: float(value) for name, value in result.items()}


def _begin(model: Model, parallel: Parallel, numbers: Precision, stage: int, step: StageMemory) -> StageMemory:
    """Before the first step: weights are made whole, also where ZeRO-3 then takes them apart; ZeRO-2 copies them."""
    whole = BYTES[numbers.params] * parameters(model, parallel, stage)
    return replace(step, weights=whole * (parallel.zero == 2) + whole, gradients=0, activations=0, head=0, buffers=0)


# --- what is kept for the backward pass ---


def layer_bytes(
    model: Model, parallel: Parallel, params: str = "bf16", recompute: Sequence[str] = ()
) -> dict[str, float]:
    """Bytes per layer and token with `recompute`, a value of `parallel.recompute`; with fused rotary embedding.

    residual: the layer's input and the sum after attention; norms: their outputs, which products read, and scales;
    attention: Q, K, V, output and the sums of its softmax; mlp: what fc1 and the activation give.
    """
    size, tp = BYTES[params], parallel.tp
    sharded = tp if parallel.sequence_parallel else 1
    hidden = model.hidden_size * size / sharded
    if "full" in recompute:
        return {"residual": hidden, "norms": 0.0, "attention": 0.0, "mlp": 0.0}
    heads, kv_heads = model.heads / tp, max(model.kv_heads / tp, 1)
    ffn = model.ffn_hidden_size * size / tp
    return {
        "residual": 2 * hidden,
        "norms": 2 * SUM_BYTES / sharded + (0 if "norms" in recompute else 2 * hidden),
        "attention": 2 * (heads + kv_heads) * model.head_dim * size + heads * SUM_BYTES,
        "mlp": 0.0 if "mlp" in recompute else ffn * (2 if "swiglu" in recompute else 3),
    }


def recomputed_bytes(model: Model, parallel: Parallel, params: str = "bf16") -> float:
    """Bytes per layer and token that `parallel.recompute` saves."""
    whole, rest = (layer_bytes(model, parallel, params, parts) for parts in ((), parallel.recompute))
    return sum(whole.values()) - sum(rest.values())


def _in_fp8(numbers: Precision) -> bool:
    return numbers.fp8 != "none" and not numbers.fp8_emulate


def _kept(model: Model, parallel: Parallel, numbers: Precision) -> dict[str, float]:
    """Bytes per layer and token. In FP8 a product keeps what it read in one byte, beside what attention keeps of it.

    Layers at the ends that stay in BF16 are counted as the others.
    """
    recompute = parallel.recompute
    kept = layer_bytes(model, parallel, numbers.params, recompute)
    if not _in_fp8(numbers) or "full" in recompute:
        return kept
    sharded = parallel.tp if parallel.sequence_parallel else 1
    whole, again = numbers.fp8_linears == "all", "mlp" in recompute
    if "norms" not in recompute:
        kept["norms"] -= (whole + (not again)) * model.hidden_size / sharded
    if "swiglu" not in recompute and not again:
        kept["mlp"] -= model.ffn_hidden_size / parallel.tp
    kept["attention"] += whole * model.heads * model.head_dim / parallel.tp
    return kept


def sent_bytes(model: Model, parallel: Parallel, params: str = "bf16") -> float:
    """Bytes per token of what a chunk sends to the next stage: states [s / cp, b, h], sharded as the residual is."""
    return model.hidden_size * BYTES[params] / (parallel.tp if parallel.sequence_parallel else 1)


def overlap_bytes(model: Model, parallel: Parallel, micro_batches: int, params: str = "bf16", stage: int = 0) -> float:
    """Bytes per token that `parallel.overlap_p2p` adds on a stage: at most, since the last chunk sends nothing.

    Every output lives until its backward pass, instead of the one that is being sent, and one more is received ahead.
    """
    return passes.in_flight(parallel, micro_batches, stage) * sent_bytes(model, parallel, params)


# --- what comes and goes ---


def _messages(model: Model, parallel: Parallel, numbers: Precision, work: Workload, stage: int) -> float:
    """Bytes per token of states and gradients between stages: a gradient on its way back; where chunks are interleaved
    also the output of the last pass and what was received ahead, both ways, and twice that while they overlap.
    """
    one = sent_bytes(model, parallel, numbers.params)
    if parallel.vpp == 1:
        return one * (stage > 0)
    if not parallel.overlap_p2p:
        return 4 * one
    return 4 * one + overlap_bytes(model, parallel, work.micro_batches, numbers.params, stage)


def _layer_work(model: Model, parallel: Parallel, numbers: Precision, work: Workload) -> float:
    """Bytes per token of a layer's backward pass, when they are most, beyond what all layers keep.

    Three moments in the MLP: the gradients of fc2, of the activation and of fc1; and attention's under context
    parallelism. What was kept and has been used by then is taken off, what is computed again comes on top.
    """
    size, tp, recompute = BYTES[numbers.params], parallel.tp, parallel.recompute
    sharded = tp if parallel.sequence_parallel else 1
    hidden, ffn = model.hidden_size * size / sharded, model.ffn_hidden_size * size / tp
    gathered = model.hidden_size * size if sharded > 1 else 0.0
    kept, whole = _kept(model, parallel, numbers), layer_bytes(model, parallel, numbers.params)
    twice = "mlp" in recompute or "full" in recompute
    again = hidden * ("norms" in recompute)
    if twice:  # and its output
        again += hidden + (sum(whole.values()) - sum(kept.values()) if "full" in recompute else whole["mlp"])
    active = 0.0 if "swiglu" in recompute else ffn
    fc2 = gathered * work.on_gpu + ffn + (ffn - active)
    activation = (3 if work.on_gpu else 5) * ffn - active
    fc1 = (gathered or hidden) + gathered * work.on_gpu - active
    moments = [fc2, activation, fc1]
    if parallel.cp > 1:
        heads, kv_heads = model.heads / tp * model.head_dim * size, max(model.kv_heads / tp, 1) * model.head_dim * size
        earlier = EARLIER_COPIES * 2 * kv_heads * parallel.cp
        moments.append(2 * heads + 2 * kv_heads + earlier - (whole["mlp"] if twice else kept["mlp"]))
    plain = 0.0 if work.on_gpu else gathered  # Megatron's own layers keep the buffer in which they gather
    return hidden + again + plain + max(moments)


def _head(model: Model, parallel: Parallel, numbers: Precision, work: Workload, tokens: float) -> float:
    """Bytes of the last norm and the head as a micro-batch of `tokens` a rank has its loss.

    Its states come whole onto every rank of tp, and their gradient is made with the loss.
    """
    size, tp = BYTES[numbers.params], parallel.tp
    sharded = tp if parallel.sequence_parallel else 1
    states = model.hidden_size * size
    of_token = 2 * states / sharded + SUM_BYTES / sharded + (states if sharded > 1 else 0)
    if model.head == "reward":
        return tokens * (of_token + 4 * model.hidden_size)
    of_token += states * (1 + (parallel.micro_batch > 1) + work.responses)
    rows = shapes.padded(model.vocab_size, tp) // tp
    count = min(tokens, max(64, LOGITS["cuda" if work.on_gpu else "cpu"] // rows))
    plain = 4 * (3 if tp > 1 else 2) + (size if size < 4 else 0)  # FP32, shifted, and their exponentials
    return tokens * of_token + count * rows * (size if work.on_gpu else plain)
