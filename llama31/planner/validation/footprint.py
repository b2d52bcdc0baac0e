"""Bytes of a rank by cause under any of the known stacks, from the job alone. Arithmetic, no torch.

`plan.memory` counts the tensors of this repository's own runs; here published runs of others are predicted, of which
only the rules of their stacks are known: what a parameter takes, what a layer keeps, how many layers are in flight.
"""

from __future__ import annotations

from llama31.planner.workloads import StepJob, layer_parameters, split, widths

GIB = 2**30
STATES = 12  # per parameter: FP32 master and two moments, shared out over dp x cp
MEGATRON_GRADIENTS = 2  # per parameter: published runs accumulate and reduce in BF16
LOGIT_BYTES = {"megatron": 10, "torchtitan": 12}  # BF16, FP32 and its gradient; torchtitan's also in BF16
EAGER_LOGITS = 2  # bytes more per logit where nothing is fused
OUTSIDE = 0.4e9 + 0.5e9  # CUDA's context and the first communicator
COMMUNICATOR = 0.5e9  # of each further axis that has ranks to talk to
RESERVED = {"megatron": 1.02, "torchtitan": 1.05}  # by the allocator, of what is live: 1.01 to 1.07 are seen


def causes(job: StepJob) -> dict[str, float]:
    """Bytes by cause on the first pipeline stage or the last, whichever needs more."""
    return max((_stage(job, first) for first in {True, job.pp > 1}), key=lambda one: sum(one.values()))


def _stage(job: StepJob, first: bool) -> dict[str, float]:
    model = job.model
    middle, last = split(model, job.pp, job.vpp)
    layers = last if not first or job.pp == 1 else middle
    table = model.vocab_size * model.hidden_size / job.tp
    parameters = layers * layer_parameters(model, job.tp) + table * (
        2 if job.pp == 1 and not model.tied_embeddings else 1
    )
    result = _torchtitan(job, parameters) if job.stack == "torchtitan" else _states(job, parameters)
    result["activations"] = job.tokens * _kept(job) * _in_flight(job, first)
    result["layer"] = job.tokens * _live(job)
    if not first or job.pp == 1:
        result["head"] = job.tokens * model.vocab_size / job.tp * (LOGIT_BYTES[job.stack] + EAGER_LOGITS * job.eager)
    live = sum(result.values())
    result["reserve"] = (RESERVED[job.stack] - 1) * live
    axes = sum(size > 1 for size in (job.tp, job.pp, job.cp, job.dp))
    result["outside"] = OUTSIDE + COMMUNICATOR * max(0, axes - 1) if job.stack == "megatron" else 0.0
    return result


def _states(job: StepJob, parameters: float) -> dict[str, float]:
    """Megatron's distributed optimizer. FP8 weights are kept as they are and transposed, in the place of BF16."""
    if job.fsdp:
        shared = (2 + MEGATRON_GRADIENTS + STATES) * parameters / job.shards
        return {"states": shared, "gathered": 2 * 2 * layer_parameters(job.model, job.tp)}
    return {
        "weights": 2 * parameters,
        "gradients": MEGATRON_GRADIENTS * parameters,
        "states": STATES * parameters / job.shards,
    }


def _torchtitan(job: StepJob, parameters: float) -> dict[str, float]:
    """FSDP2: FP32 weights, gradients and moments in shards; a pipeline keeps weights and gradients whole meanwhile."""
    result = {"states": 16 * parameters / job.shards}
    if job.pp > 1:
        result |= {"weights": 2 * parameters, "gradients": 4 * parameters}
    else:
        result["gathered"] = (
            2 * 2 * (layer_parameters(job.model, job.tp) + job.model.vocab_size * job.model.hidden_size / job.tp)
        )
    return result


def _in_flight(job: StepJob, first: bool) -> float:
    """Layers of a stage whose activations are kept, counted with their micro-batches, when they are most."""
    middle, last = split(job.model, job.pp, job.vpp)
    layers = middle if first else last
    if job.pp == 1:
        return last
    if job.vpp == 1:
        return layers * min(job.pp if first else 1, job.micro_batches)
    ahead = (job.pp - 1) * (1 if first else -1)  # of the passes of a stage in the middle
    passes = min((job.vpp - 1) * job.pp + 1 + job.pp - 1 + ahead, job.micro_batches * job.vpp)
    return layers / job.vpp * passes


def _whole(job: StepJob) -> float:
    """Bytes per token of a layer that computes nothing again, with sequence parallelism."""
    queries, keys, ffn = widths(job.model, job.tp)
    hidden = job.model.hidden_size / job.tp
    read = 1 if job.fp8 and job.stack == "megatron" else 2  # of what only a product reads
    attention = 2 * (2 * queries + keys) + read * queries * (job.fp8 and job.stack == "megatron")
    return 4 * hidden + 2 * read * hidden + attention + (4 + read) * ffn


def _kept(job: StepJob) -> float:
    """Bytes per token and layer with what is computed again left out."""
    queries, keys, ffn = widths(job.model, job.tp)
    hidden = job.model.hidden_size / job.tp
    if "full" in job.recompute:
        return 2 * hidden
    result = _whole(job)
    read = 1 if job.fp8 and job.stack == "megatron" else 2
    if "mlp" in job.recompute:
        result -= (4 + read) * ffn
    if "attention" in job.recompute:
        result -= 2 * queries * (read == 1)
    if "half" in job.recompute:  # every second product's output, and attention's
        result = 2 * (hidden + queries + keys) + 2 * ffn + 2 * 2 * hidden
    return result


def _live(job: StepJob) -> float:
    """Bytes per token that the layer at work has beside what all keep: gradients, and what it computes again."""
    ffn = widths(job.model, job.tp)[2]
    gathered = 2 * job.model.hidden_size * (job.tp > 1)
    again = _whole(job) - _kept(job) if job.recompute else 0.0
    return (4 if job.recompute else 2) * gathered + 4 * ffn + again + 2 * job.model.hidden_size / job.tp
