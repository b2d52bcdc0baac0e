"""From readings to the constants of the planner: a device, and a stack. Arithmetic, no torch.

Each group of constants comes from its own measurements by least squares of relative errors, none below zero. What the
host needs comes from steps of models so small that they do little else. No step of a model that is to be predicted is
looked at.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.machine import cases
from benchmarks.machine.readings import Readings, StepCase
from llama31.config import Device, Stack
from llama31.plan import utilisation
from llama31.planner import products, speed
from llama31.planner.workloads import StepJob

GIB = 2**30
COLUMNS, GATED = 37, 10  # reads and writes of a layer per token: hidden sizes, columns of SwiGLU (planner/speed.py)
GRADIENT_BYTES = 4  # this repository accumulates and sends in FP32


@dataclass(frozen=True)
class Machine:
    """What was measured, as the planner takes it."""

    readings: Readings
    device: Device
    stack: Stack


def fitted(readings: Readings, small: Sequence[StepCase]) -> Machine:
    """Constants out of readings; `small` are those of `cases.tiny`. ValueError where a part is missing."""
    empty = [name for name in ("products", "attention", "elementwise", "copies") if not getattr(readings, name)]
    if empty:
        raise ValueError(f"nothing was measured of {', '.join(empty)}; calibrate again")
    device, stack = _device(readings), _blank()
    stack = _products(readings, device, stack)
    stack = _bytes(readings, device, _attention(readings, device, stack))
    device, stack = _messages(readings, device, stack)
    return Machine(readings, device, _host(readings, device, stack, small))


def job(case: StepCase, readings: Readings) -> StepJob:
    """A case at work on the processes that were measured."""
    work = case.parallel
    dp = readings.processes // (work.tp * work.pp * work.cp)
    return StepJob(
        model=case.model,
        device="",
        stack="",
        gpus=readings.processes,
        fp8=False,
        sequence_length=case.sequence_length,
        micro_batch=work.micro_batch,
        micro_batches=case.micro_batches,
        tp=work.tp,
        pp=work.pp,
        cp=work.cp,
        vpp=work.vpp,
        dp=dp,
        number_bytes=_bytes_of(readings),
        fsdp=work.zero == 3,
        reduce_each=work.zero == 2,
    )


def _bytes_of(readings: Readings) -> int:
    return 4 if readings.params == "fp32" else 2


def _rate(rows: Sequence[Sequence[float]]) -> float:
    """FLOP/s of the fastest product."""
    return max(2 * m * n * k / s for m, n, k, s in rows)


def _device(readings: Readings) -> Device:
    """Peaks are the fastest that was seen, or of a GPU that is known the data sheet's."""
    fastest = _rate(readings.products) / 1e12
    wide = readings.params == "fp32"
    sheet = utilisation.peak_tflops(readings.device) if readings.gpu else None
    size, seconds = readings.copies[0]
    return Device(
        bf16_tflops=sheet or fastest,
        fp32_tflops=fastest if wide else 0.0,
        copy_tb_s=2 * size / seconds / 1e12,
        memory_gib=readings.memory_bytes / GIB / (1 if readings.gpu else readings.processes),
        nvlink_gb_s=1000.0,
        network_gb_s=1000.0,
        per_node=max(readings.processes, 1),
        launches_ahead=readings.gpu,
        multiprocessors=132 if readings.gpu else 0,
    )


def _blank() -> Stack:
    """A stack whose messages are all waited for, before anything is known of it."""
    alone = dict.fromkeys(("tp_exposed", "tp_exposed_async", "cp_exposed", "p2p_exposed", "dp_exposed"), 1.0)
    rates = dict.fromkeys(("products_bf16", "products_fp8", "attention_forward", "attention_backward"), 1.0)
    none = dict.fromkeys(("lead_bf16", "lead_fp8", "attention_half_forward", "attention_half_backward"), 0.0)
    return Stack(
        **rates, **none, **alone, copy=1.0, copy_eager=1.0, host_us=0.0, jitter=0.0, fixed_s=0.0,
        p2p_exposed_whole=1.0, gradient_bytes=GRADIENT_BYTES,
    )  # fmt: skip


def least(
    terms: Sequence[Sequence[float]], seconds: Sequence[float], shares: Sequence[float] | None = None
) -> list[float]:
    """Factors of the terms, none below zero, that come nearest to `seconds`, or shares of them, in relative errors."""
    rows = np.array(terms, dtype=float) / np.array(seconds, dtype=float)[:, None]
    wanted = np.ones(len(rows)) if shares is None else np.array(shares)
    used = list(range(rows.shape[1]))
    while used:
        factors = np.linalg.lstsq(rows[:, used], wanted, rcond=None)[0]
        if (factors >= 0).all():
            whole = np.zeros(rows.shape[1])
            whole[used] = factors
            return [float(factor) for factor in whole]
        used.pop(int(np.argmin(factors * np.abs(rows[:, used]).mean(0))))
    return [0.0] * rows.shape[1]


def sized(terms: Sequence[tuple[float, float]], seconds: Sequence[float], size: int = 0) -> tuple[float, float]:
    """The same of two terms. The one at `size` is the work itself, which is never nothing, whatever noise says."""
    factors = least(terms, seconds)
    if not factors[size]:
        factors = [0.0, 0.0]
        factors[size] = least([(row[size],) for row in terms], seconds)[0]
    return factors[0], factors[1]


def _products(readings: Readings, device: Device, stack: Stack) -> Stack:
    def share(rows: Sequence[Sequence[float]], peak: float) -> tuple[float, float]:
        filled = [products.filled(m, n, device.multiprocessors) for m, n, *_ in rows]
        terms = [(2 * m * n * k / f, 2 * m * n / f) for (m, n, k, _), f in zip(rows, filled)]
        each, lead = sized(terms, [row[-1] for row in rows])
        return 1 / each / 1e12 / peak, lead / each

    rate, lead = share(readings.products, device.fp32_tflops or device.bf16_tflops)
    if readings.params == "bf16":
        return replace(stack, products_bf16=rate, lead_bf16=lead, products_fp8=rate, lead_fp8=lead)
    slow, _ = share(readings.wide, device.bf16_tflops) if readings.wide else (rate, 0.0)
    return replace(stack, products_fp32=rate, lead_fp32=lead, products_bf16=slow, products_fp8=slow)


def _attention(readings: Readings, device: Device, stack: Stack) -> Stack:
    """rate / (1 + half / length), forward and backward."""
    values: dict[str, float] = {"attention_peak": device.fp32_tflops or device.bf16_tflops}
    for name, column, factor in (("forward", 3, 1.0), ("backward", 4, 2.5)):
        flops = [2.0 * factor * length * tokens * width for length, tokens, width, *_ in readings.attention]
        terms = [(count, count / row[0]) for count, row in zip(flops, readings.attention)]
        each, short = sized(terms, [row[column] for row in readings.attention])
        values |= {f"attention_{name}": 1 / each / 1e12, f"attention_half_{name}": short / each}
    return replace(stack, **values)


def _bytes(readings: Readings, device: Device, stack: Stack) -> Stack:
    """What moves numbers: elementwise operations, sums of gradients, the loss, the update."""
    number = _bytes_of(readings)
    moved = [(1.0, number * t * (COLUMNS * h + GATED * f)) for t, h, f, _ in readings.elementwise]
    each = sized(moved, [row[-1] for row in readings.elementwise], 1)[1]  # what each call costs is the host's
    copy = device.copy_tb_s * 1e12
    summed = statistics.median(s / count for count, s in readings.accumulated)
    stack = replace(
        stack,
        copy=1 / each / copy,
        copy_eager=1 / each / copy,
        accumulate=summed / each / (2 * GRADIENT_BYTES),
        optimizer_bytes=readings.optimizer[0][-1] / readings.optimizer[0][0] * copy,
    )
    tokens, vocabulary, hidden, seconds = readings.losses[0]
    rate = products.Rate(
        (stack.products_fp32 * device.fp32_tflops or stack.products_bf16 * device.bf16_tflops) * 1e12,
        stack.lead_fp32 if number == 4 else stack.lead_bf16,
        device.multiprocessors,
    )
    linear = (vocabulary, hidden)
    alone = seconds - products.forward(tokens, linear, rate) - products.backward(tokens, linear, rate)
    return replace(stack, loss_bytes=max(0.0, alone) / each / tokens / vocabulary)


def _messages(readings: Readings, device: Device, stack: Stack) -> tuple[Device, Stack]:
    """Of all processes together: an all-gather's start and rate, a reduce-scatter beside it, and a message of two."""
    if not readings.messages:
        return device, stack

    def of(kind: str, ranks: int) -> list[float]:
        rows = [(size, s) for name, count, size, s in readings.messages if (name, count) == (kind, ranks)]
        return least([(1.0, size) for size, _ in rows], [s for _, s in rows])

    whole = max(count for kind, count, *_ in readings.messages if kind == "all_gather")
    (start, each), (other, back), (_, along) = (
        of(kind, count) for kind, count in (("all_gather", whole), ("reduce_scatter", whole), ("send", 2))
    )
    rate = 1e-9 / each if each else device.nvlink_gb_s
    device = replace(
        device,
        nvlink_gb_s=rate,
        network_gb_s=rate,
        message_us=1e6 * statistics.mean((start, other)),
        p2p_gb_s=1e-9 / along if along else 0.0,
    )
    return device, replace(stack, scatter=back / each if each and back else 1.0)


def _host(readings: Readings, device: Device, stack: Stack, given: Sequence[StepCase]) -> Stack:
    """What steps of tiny models take beyond their parts: by layer and micro-batch, by micro-batch, and by step.

    First on the plain layout; then what tensor and context parallelism, ZeRO-2 and ZeRO-3 take on top of that.
    """
    seconds = dict(readings.steps)

    def beyond(layout: str, known: Stack, terms: Callable[[StepCase], tuple[float, ...]]) -> list[float] | None:
        rows = [case for case in given if case.layout == layout and case.name in seconds]
        if not rows:
            return None
        whole = [seconds[case.name] for case in rows]
        parts = [speed.total(speed.step(job(case, readings), device, known)) for case in rows]
        left = [max(0.0, s - part) / s for s, part in zip(whole, parts)]
        return least([terms(case) for case in rows], whole, left)

    plain = beyond(
        cases.PLAIN if readings.processes > 1 else next(iter(cases.ALONE)),
        stack,
        lambda case: (1.0, case.micro_batches, case.micro_batches * case.model.layers),
    )
    if plain is None:
        return stack
    fixed, each, layer = plain
    stack = replace(stack, fixed_s=fixed, micro_batch_us=1e6 * each, host_us=1e6 * layer / speed.KERNELS)
    stack = replace(stack, tp_kernels=0.0, cp_kernels=0.0)
    if layer:
        for layout, name in ((cases.TENSOR, "tp_kernels"), (cases.CONTEXT, "cp_kernels")):
            more = beyond(layout, stack, lambda case: (case.micro_batches * case.model.layers,))
            stack = replace(stack, **{name: more[0] / layer if more else 0.0})

    bare = replace(stack, reduce_us=0.0, gather_us=0.0)
    for layout, beside, us, times in (
        (cases.REDUCING, None, "reduce_us", "reduce_times"),
        (cases.GATHERING, speed.GATHERED_BESIDE, "gather_us", "gather_times"),
    ):

        def terms(case: StepCase, beside: int | None = beside, times: str = times) -> tuple[float, float]:
            once, twice = (
                speed.total(speed.step(job(case, readings), device, replace(bare, **{times: n}))) for n in (1.0, 2.0)
            )
            modules = 1 if beside is None else case.model.layers + beside
            return case.micro_batches * modules, twice - once

        more = beyond(layout, bare, terms)
        if more:
            stack = replace(stack, **{us: 1e6 * more[0], times: 1 + more[1]})
    return stack
