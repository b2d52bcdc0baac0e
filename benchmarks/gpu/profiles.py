"""What a step spends its time on, by class of kernel: by torch's profiler on a GPU, by dispatched calls on a CPU."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from typing import Any

CLASSES = {
    "attention": r"flash|fmha|sdpa|attention|attn|cudnn_generated",  # before gemm: their kernels name its instructions
    "loss": r"^_row$|cross_entropy|softmax|nll_loss|_loss_",
    "fp8 cast": r"quant|fp8|amax|cast_transpose|cast_kernel|scaled_cast|float8",
    "swiglu": r"glu|gated|silu",
    "rope": r"rope|rotary",
    "gradient norm": r"lpnorm|l2norm|norm_kernel_cuda|normops|normtwo|foreach_norm|linalg_vector_norm",
    "optimizer": r"adam|multi_tensor|foreach",
    "norm": r"rms_?norm|layer_?norm|norm",
    "gemm": r"gemm|cutlass|nvjet|xmma|wgmma|cublas|(^|_)(mm|bmm|addmm|baddbmm|linear)($|_)|splitk",
    "communication": r"nccl|all_?reduce|all_?gather|reduce_scatter|c10d|broadcast",
    "copy": r"memcpy|memset|copy|to_copy|clone|fill|zero|cat($|_)|catarray|direct_copy",
    "embedding": r"embedding|index|gather|scatter",
}
TOP = 30  # kernels that are named


def classify(name: str) -> str:
    """The class of a kernel or of a dispatched operation, by its name."""
    lower = name.lower()
    return next((kind for kind, pattern in CLASSES.items() if re.search(pattern, lower)), "elementwise and other")


def summary(
    wall_ms: float, calls: Iterable[tuple[str, float]], gaps_ms: float, synchronisations: int
) -> dict[str, Any]:
    """Calls as (name, milliseconds), by class and by name."""
    classes: dict[str, list[float]] = {}
    names: dict[str, list[float]] = {}
    for name, ms in calls:
        for table, key in ((classes, classify(name)), (names, name[:120])):
            entry = table.setdefault(key, [0.0, 0])
            entry[0] += ms
            entry[1] += 1
    return {
        "wall_ms": wall_ms,
        "busy_ms": sum(ms for ms, _ in classes.values()),
        "gaps_ms": gaps_ms,
        "launches": int(sum(number for _, number in classes.values())),
        "synchronisations": synchronisations,
        "classes": {
            name: {"ms": ms, "launches": int(number)}
            for name, (ms, number) in sorted(classes.items(), key=lambda item: -item[1][0])
        },
        "top": [[name, *entry] for name, entry in sorted(names.items(), key=lambda item: -item[1][0])[:TOP]],
    }


def idle_ms(spans: list[tuple[float, float]]) -> float:
    """Between the first begin and the last end of (begin, end) in microseconds: the time in which none runs."""
    idle, until = 0.0, min((begin for begin, _ in spans), default=0.0)
    for begin, end in sorted(spans):
        idle += max(0.0, begin - until)
        until = max(until, end)
    return idle / 1e3


def profile(step: Callable[[], float], cuda: bool) -> dict[str, Any]:
    """One more step, looked into."""
    return _on_gpu(step) if cuda else _on_cpu(step)


def _on_gpu(step: Callable[[], float]) -> dict[str, Any]:
    import torch
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as recorder

    torch.cuda.synchronize()
    with recorder(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as record:
        begin = time.perf_counter()
        step()
        torch.cuda.synchronize()
        wall_ms = (time.perf_counter() - begin) * 1e3
    calls, spans, waits = [], [], 0
    for event in record.events() or []:
        if event.device_type == torch.autograd.DeviceType.CUDA:
            if getattr(event, "is_user_annotation", False):
                continue
            calls.append((event.name, event.time_range.elapsed_us() / 1e3))
            spans.append((event.time_range.start, event.time_range.end))
        elif re.fullmatch(r"cuda(Stream|Device|Event)Synchronize", event.name):
            waits += 1
    return summary(wall_ms, calls, idle_ms(spans), max(0, waits - 1))  # the last is ours


def _on_cpu(step: Callable[[], float]) -> dict[str, Any]:
    """Operations that reach a kernel, views apart: on a GPU each would be a launch or a few."""
    from torch.utils._python_dispatch import TorchDispatchMode

    calls: list[tuple[str, float]] = []

    class Counter(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            begin = time.perf_counter()
            out = func(*args, **(kwargs or {}))
            ms = (time.perf_counter() - begin) * 1e3
            returns = func._schema.returns
            view = any(r.alias_info is not None and not r.alias_info.is_write for r in returns)
            made = re.match(r"(empty|detach|_unsafe_view|item|_local_scalar)", func._opname)
            if not view and not made:
                calls.append((func._opname, ms))
            return out

    with Counter():
        begin = time.perf_counter()
        step()
        wall_ms = (time.perf_counter() - begin) * 1e3
    return summary(wall_ms, calls, max(0.0, wall_ms - sum(ms for _, ms in calls)), 0)
