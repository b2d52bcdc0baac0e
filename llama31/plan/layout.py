"""Which layouts of processes are possible for a model and a schedule, and which possible one is nearest.

Every rule here stands for a failure that comes late and unexplained without it: an assertion inside Megatron-Core, a
deadlock in DeepSpeed, or a wrong split. `problems` names them all; `nearest` searches the space around a layout.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

from llama31.config import Issue, Model, Parallel, Precision
from llama31.plan import fp8, memory
from llama31.plan.memory import Capacity, StageMemory
from llama31.plan.schedule import Stage

NODE = 8  # processes of a common node: beyond it the launcher is Slurm's business
INSIDE = {"full": ("norms", "swiglu", "mlp"), "mlp": ("swiglu",)}  # what computing a part again computes again anyway
RECOMPUTE = (["norms"], ["swiglu"], ["norms", "swiglu"], ["mlp"], ["norms", "mlp"], ["full"])  # the cheapest first
SEARCHED = 5_000  # candidates that `nearest` looks at in full: a fraction of a second


def size(parallel: Parallel) -> int:
    """Processes of one replica of the model: tp x cp x pp."""
    return parallel.tp * parallel.cp * parallel.pp


def world(parallel: Parallel) -> int:
    """Processes that the layout asks for; with `dp: null`, those of one replica."""
    return size(parallel) * (parallel.dp or 1)


def dp(parallel: Parallel, world_size: int) -> int:
    """Data-parallel replicas among `world_size` processes. Raises ValueError where it does not multiply out."""
    issue = _world_problem(parallel, world_size)
    if issue:
        raise ValueError(str(issue))
    return world_size // size(parallel)


def micro_batches(parallel: Parallel, batch_tokens: int, sequence_length: int, world_size: int) -> int:
    """Micro-batches per optimizer step and replica (the report's M). Raises ValueError on a remainder."""
    per_micro_batch = sequence_length * parallel.micro_batch * dp(parallel, world_size)
    if batch_tokens % per_micro_batch:
        raise ValueError(
            f"batch_tokens={batch_tokens}: not a multiple of sequence_length x micro_batch x dp = {per_micro_batch}; "
            f"give {_near_multiple(batch_tokens, per_micro_batch)}"
        )
    return batch_tokens // per_micro_batch


def bubble(parallel: Parallel, micro_batches: int) -> float:
    """Idle time of the pipeline as a share of the busy time: (PP - 1) / (V x M) (report, section 3.3.2)."""
    return (parallel.pp - 1) / (parallel.vpp * micro_batches)


def problems(
    model: Model | None,
    parallel: Parallel,
    stages: Sequence[Stage],
    world_size: int,
    numbers: Precision | None = None,
    capacity: Capacity | None = None,
) -> list[Issue]:
    """What is impossible about a layout, with `numbers` in their format, on devices of that capacity.

    `model` is None where a checkpoint brings it, `stages` may be empty. What does not fit is told where nothing else is
    wrong: what a layout that cannot be would need says nothing.
    """
    issues = [] if model is None else _model_problems(model, parallel)
    if parallel.vpp > 1 and parallel.pp == 1:
        issues.append(
            _issue("vpp", parallel.vpp, "chunks are interleaved over stages, and there is one", "give pp > 1")
        )
    if parallel.zero == 3 and parallel.pp > 1:
        reason = "ZeRO-3 deadlocks with pipelines: DeepSpeed's parameter coordinator broadcasts on the world group"
        issues.append(_issue("zero", 3, reason, "give parallel.zero=1 or 2, or parallel.pp=1"))
    if parallel.zero == 2 and parallel.pp > 1 and model is not None and model.tied_embeddings:
        reason = "ZeRO-2 reduces after each micro-batch, before the tied embedding's gradients of both ends are summed"
        issues.append(_issue("zero", 2, reason, "give parallel.zero=1, or parallel.pp=1"))
    issues += [*_recompute_problems(parallel), *_overlap_problems(parallel, stages)]
    mismatch = _world_problem(parallel, world_size)
    if mismatch:
        issues.append(mismatch)
    for stage in stages:
        issues += _sequence_problems(parallel, stage)
        if not mismatch:
            issues += _batch_problems(parallel, stage, world_size)
    if numbers is not None:
        issues += fp8.problems(model, parallel, numbers, stages, 1 if mismatch else world_size // size(parallel))
    if not issues and model is not None and numbers is not None and capacity is not None:
        issues += _memory_problems(model, parallel, stages, world_size // size(parallel), numbers, capacity)
    return list(dict.fromkeys(issues))


def _issue(key: str, value: object, problem: str, remedy: str) -> Issue:
    return Issue(f"parallel.{key}", value, problem, remedy)


def _tp_fits(model: Model, tp: int) -> bool:
    # above kv_heads, Megatron replicates each KV head over tp / kv_heads processes
    groups = model.kv_heads % tp == 0 or tp % model.kv_heads == 0
    return groups and not any(number % tp for number in (model.heads, model.ffn_hidden_size))


def _split_layers(model: Model, parallel: Parallel) -> int:
    return model.layers + parallel.embedding_as_layer + parallel.loss_as_layer


def _model_problems(model: Model, parallel: Parallel) -> list[Issue]:
    issues = []
    if not _tp_fits(model, parallel.tp):
        widths = f"heads={model.heads}, kv_heads={model.kv_heads}, ffn={model.ffn_hidden_size}"
        possible = ", ".join(str(tp) for tp in _divisors(model.heads) if _tp_fits(model, tp))
        issues.append(_issue("tp", parallel.tp, f"does not divide this model ({widths})", f"give one of {possible}"))
    layers, chunks = _split_layers(model, parallel), parallel.pp * parallel.vpp
    if layers % chunks:
        extra = " (embedding and loss counted as you asked)" if layers > model.layers else ""
        reason = f"{layers} layers{extra} do not split into pp x vpp = {chunks} equal chunks"
        remedy = f"give pp x vpp that divides {layers}, or parallel.embedding_as_layer, parallel.loss_as_layer"
        issues.append(_issue("pp", parallel.pp, reason, remedy))
    return issues


def _recompute_problems(parallel: Parallel) -> Iterator[Issue]:
    for whole, parts in INSIDE.items():
        both = [part for part in parts if part in parallel.recompute]
        if whole in parallel.recompute and both:
            remedy = f"leave {' and '.join(both)} out, or {whole}"
            given = f"[{','.join(parallel.recompute)}]"
            yield _issue("recompute", given, f"{whole} computes {' and '.join(both)} again anyway", remedy)


def _overlap_problems(parallel: Parallel, stages: Sequence[Stage]) -> Iterator[Issue]:
    if parallel.overlap_p2p and parallel.vpp == 1:
        reason = "Megatron-Core overlaps in its interleaved schedule alone"
        yield _issue("overlap_p2p", True, reason, "give parallel.vpp > 1, or leave it out")
    if not parallel.tp_overlap:
        return
    if parallel.tp == 1 or not parallel.sequence_parallel:
        reason = "what would overlap are the messages of sequence parallelism over tp"
        remedy = "give parallel.tp > 1 with parallel.sequence_parallel=true, or leave it out"
        yield _issue("tp_overlap", True, reason, remedy)
    lengths = sorted({stage.sequence_length for stage in stages})
    if len(lengths) > 1:
        reason = f"its buffers are made for rows of one length, and the schedule has {', '.join(map(str, lengths))}"
        yield _issue("tp_overlap", True, reason, "train each length as a run of its own, or leave it out")


def _world_problem(parallel: Parallel, world_size: int) -> Issue | None:
    one = size(parallel)
    if parallel.dp is not None and parallel.dp * one != world_size:
        reason = f"tp x cp x pp x dp = {parallel.dp * one}, but {world_size} process(es) were started"
        return _issue("dp", parallel.dp, reason, f"start torchrun with {parallel.dp * one} processes, or drop dp")
    if world_size % one:
        reason = f"tp x cp x pp = {one} does not divide the {world_size} process(es) that were started"
        command = f": torchrun --nproc-per-node {one} -m recipes...." if one <= NODE else " processes"
        remedy = f"start a multiple of {one}{command}"
        widest = max(("tp", "cp", "pp"), key=lambda axis: getattr(parallel, axis))
        return _issue(widest, getattr(parallel, widest), reason, remedy)
    return None


def _sequence_problems(parallel: Parallel, stage: Stage) -> list[Issue]:
    length, issues = stage.sequence_length, []
    shards = parallel.tp if parallel.sequence_parallel else 1
    if length % (parallel.cp * shards):
        reason = f"a sequence of {length} tokens does not split over cp x tp = {parallel.cp * shards}"
        remedy = f"give a multiple as sequence_length, for example {_near_multiple(length, parallel.cp * shards)}"
        axis = "cp" if parallel.cp > 1 else "tp"
        issues.append(_issue(axis, getattr(parallel, axis), reason, remedy))
    if parallel.cp > 1 and length % (2 * parallel.cp):
        reason = f"a sequence of {length} tokens does not split into 2 x cp = {2 * parallel.cp} chunks"
        remedy = f"give a multiple as sequence_length, for example {_near_multiple(length, 2 * parallel.cp)}"
        issues.append(_issue("cp", parallel.cp, reason, remedy))
    return issues


def _batch_problems(parallel: Parallel, stage: Stage, world_size: int) -> list[Issue]:
    replicas = world_size // size(parallel)
    rows, per_step = stage.rows, parallel.micro_batch * replicas
    if rows % per_step:
        reason = (
            f"{rows} sequences per step ({stage.batch_tokens} tokens of {stage.sequence_length}) do not split into "
            f"micro_batch x dp = {per_step}"
        )
        near = _near_multiple(stage.batch_tokens, per_step * stage.sequence_length)
        return [_issue("micro_batch", parallel.micro_batch, reason, f"give a batch of {near} tokens, or change dp")]
    return _interleaving_problems(parallel, rows // per_step, stage) if parallel.vpp > 1 else []


def _interleaving_problems(parallel: Parallel, count: int, stage: Stage) -> list[Issue]:
    """Megatron-Core's rules for N micro-batches in a group, of M per step (schedules.py of 0.16)."""
    group = parallel.microbatch_group or parallel.pp
    where = f"at {stage.batch_tokens} tokens per step"
    if group < parallel.pp:
        return [_issue("microbatch_group", group, f"N is below pp={parallel.pp}", f"give at least {parallel.pp}")]
    if group > count:
        reason = f"N={group} is above the M={count} micro-batches per replica {where}"
        return [_issue("microbatch_group", group, reason, "give a larger batch, fewer replicas, or parallel.vpp=1")]
    if 0 < count % group < parallel.pp:
        reason = f"M={count} micro-batches {where} leave a last group of {count % group}, below pp={parallel.pp}"
        legal = [n for n in range(parallel.pp, count + 1) if not 0 < count % n < parallel.pp]
        choice = min(legal, key=lambda n: abs(n - group))
        return [_issue("microbatch_group", group, reason, f"give parallel.microbatch_group={choice}")]
    return []


def worst(
    model: Model,
    parallel: Parallel,
    stages: Sequence[Stage],
    replicas: int,
    numbers: Precision,
    capacity: Capacity | None = None,
) -> tuple[StageMemory, Stage]:
    """What a rank needs at the most of all stages of a schedule, which are at least one; and at which."""
    needs = [
        (memory.worst(model, parallel, numbers, memory.workload(parallel, stage, replicas, capacity)), stage)
        for stage in stages
    ]
    return max(needs, key=lambda need: need[0].total)


def _memory_problems(
    model: Model, parallel: Parallel, stages: Sequence[Stage], replicas: int, numbers: Precision, capacity: Capacity
) -> Iterator[Issue]:
    if not stages:
        return
    need, stage = worst(model, parallel, stages, replicas, numbers, capacity)
    if need.total <= capacity.gb * 1e9:
        return
    remedy = "give more of parallel.tp, parallel.pp or processes"
    for parts in _more_recompute(model, parallel, numbers):
        other = dataclasses.replace(parallel, recompute=parts)
        less, _ = worst(model, other, stages, replicas, numbers, capacity)
        if less.total <= capacity.gb * 1e9:
            remedy = f"give parallel.recompute=[{','.join(parts)}] ({less.total / 1e9:.1f} GB)"
            break
    where = f"rows of {stage.sequence_length} tokens, {stage.batch_tokens} a step"
    yield Issue("cluster.memory_gb", f"{capacity.gb:g}", f"{need.summary()} at {where}", remedy)


def _more_recompute(model: Model | None, parallel: Parallel, numbers: Precision | None) -> list[list[str]]:
    """What more could be computed again, the cheapest first; delayed FP8 cannot round again what was kept."""
    if model is None or numbers is None:
        return []
    saved = memory.recomputed_bytes(model, parallel, numbers.params)
    more = [
        parts
        for parts in RECOMPUTE
        if memory.recomputed_bytes(model, dataclasses.replace(parallel, recompute=parts), numbers.params) > saved
    ]
    return [parts for parts in more if numbers.fp8 != "delayed" or not {"norms", "swiglu"} & set(parts)]


def nearest(
    model: Model | None,
    parallel: Parallel,
    stages: Sequence[Stage],
    world_size: int,
    numbers: Precision | None = None,
    capacity: Capacity | None = None,
) -> Parallel | None:
    """The possible layout of `world_size` processes that changes the fewest keys, and those the least; None: none.

    Where memory counts, it may compute more again, or share out more (`zero`).
    """
    candidates = [(_distance(parallel, other), other) for other in _candidates(model, parallel, stages, world_size)]
    candidates.sort(key=lambda pair: pair[0])
    changed: list[tuple[float, dict[str, Any]]] = [(0.0, {})]
    if capacity is not None:
        options = enumerate(_more_recompute(model, parallel, numbers), start=1)
        changed += [(1 + number / 100, {"recompute": parts}) for number, parts in options]
        changed += [(1 + math.log2(zero / parallel.zero), {"zero": zero}) for zero in range(parallel.zero + 1, 4)]
    ways = heapq.merge(*(_changed(candidates, *change) for change in changed), key=lambda pair: pair[0])
    tried = (other for _, other in itertools.islice(ways, SEARCHED))
    return next((other for other in tried if not problems(model, other, stages, world_size, numbers, capacity)), None)


Distance = tuple[float, int, int]


def _changed(
    candidates: Sequence[tuple[Distance, Parallel]], cost: float, change: dict[str, Any]
) -> Iterator[tuple[Distance, Parallel]]:
    """The same with more changes, each that much farther away."""
    for (far, *ties), other in candidates:
        if all(getattr(other, name) < value for name, value in change.items() if name == "zero"):
            yield (far + cost, *ties), dataclasses.replace(other, **change)  # type: ignore[misc]


def _candidates(
    model: Model | None, parallel: Parallel, stages: Sequence[Stage], world_size: int
) -> Iterator[Parallel]:
    """Layouts worth a full look: those that multiply out, and split the model, the sequences and the batches."""
    axes = _divisors(world_size)
    tps = [tp for tp in axes if model is None or _tp_fits(model, tp)]
    cps = [cp for cp in axes if cp == 1 or not any(stage.sequence_length % (2 * cp) for stage in stages)]
    given = (parallel.embedding_as_layer, parallel.loss_as_layer)
    pairs = sorted({given, (False, False), (True, True)})
    for tp, cp, pp, ends in itertools.product(tps, cps, axes, pairs):
        replicas, rest = divmod(world_size, tp * cp * pp)
        if rest or (pp == 1 and ends != given):
            continue
        chunks = _chunkings(model, sum(ends), pp, parallel.vpp)
        sizes = [n for n in _divisors(parallel.micro_batch) if not any(s.rows % (n * replicas) for s in stages)]
        tied = model is not None and model.tied_embeddings
        zero = parallel.zero if pp == 1 else min(parallel.zero, 1 if tied else 2)
        dp = None if parallel.dp is None else replicas
        for vpp, size in itertools.product(chunks, sizes):
            for group in {parallel.microbatch_group, None} if vpp > 1 else {parallel.microbatch_group}:
                other = dataclasses.replace(
                    parallel, tp=tp, cp=cp, pp=pp, dp=dp, vpp=vpp, microbatch_group=group, micro_batch=size, zero=zero,
                    embedding_as_layer=ends[0], loss_as_layer=ends[1],
                )  # fmt: skip
                yield _without_overlaps(other, stages)


def _without_overlaps(parallel: Parallel, stages: Sequence[Stage]) -> Parallel:
    """The same, apart from overlaps and recomputation that `problems` has something against."""
    wrong = {issue.key for issue in (*_recompute_problems(parallel), *_overlap_problems(parallel, stages))}
    outermost = next((whole for whole in INSIDE if whole in parallel.recompute), "")
    return dataclasses.replace(
        parallel,
        recompute=[part for part in parallel.recompute if part not in INSIDE.get(outermost, ())],
        overlap_p2p=parallel.overlap_p2p and "parallel.overlap_p2p" not in wrong,
        tp_overlap=parallel.tp_overlap and "parallel.tp_overlap" not in wrong,
    )


def _chunkings(model: Model | None, extra: int, pp: int, vpp: int) -> list[int]:
    """Values of vpp under which the layers split evenly over `pp` stages: none, 1, and the ones around `vpp`."""
    layers = 0 if model is None else model.layers + extra
    if layers % pp:
        return []
    possible = _divisors(layers // pp) if pp > 1 and layers else [1]
    return sorted({1, *sorted(possible, key=lambda n: abs(n - vpp))[:3]})


def changes(parallel: Parallel, other: Parallel) -> dict[str, object]:
    """The keys, and their new values, that lead from one layout to the other."""
    fields = [field.name for field in dataclasses.fields(parallel)]
    return {name: getattr(other, name) for name in fields if getattr(other, name) != getattr(parallel, name)}


def _distance(parallel: Parallel, other: Parallel) -> Distance:
    """One for each changed key, and one for each doubling or halving; dp follows from the others and costs nothing.

    Tensor parallelism that would leave a common node works and wastes: as far away as four keys.
    """
    cost = 4.0 if other.tp > NODE >= parallel.tp else 0.0
    for name, new in vars(other).items():
        old = getattr(parallel, name)
        if new != old and name != "dp":
            scales = new is not None and type(new) is int and old
            cost += 1 + (abs(math.log2(new / old)) if scales else 0)
    # ties: the layout that communicates least
    return cost, other.tp * other.cp, other.pp


def _divisors(number: int) -> list[int]:
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def _near_multiple(number: int, factor: int) -> int:
    return max(factor, round(number / factor) * factor)
