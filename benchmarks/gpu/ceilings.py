"""What this card can do: products by shape, attention by length, a copy, an optimizer. Nothing of ours is in it.

The record (`kind: ceilings`) keeps its names: whoever plans a run on such cards reads it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.gpu.plan import GpuWork, linears, parameters, products

SQUARE = 8192  # on a GPU, of the product that nothing but the card limits
SECONDS = 0.15  # of repetitions, about
ADAM_BYTES = 28  # of each parameter: master and both moments read and written, gradient read
LENGTHS = (1, 2, 8)  # times the rows' length


def seconds(run: Callable[[], Any], cuda: bool) -> float:
    """Of one call, when all before it are done; repeated for SECONDS, after two for warming up."""
    import torch

    def sync() -> float:
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    run()
    begin = sync()
    run()
    once = max(sync() - begin, 1e-7)
    number = max(1, min(50, int(SECONDS / once))) if cuda else 1
    begin = sync()
    for _ in range(number):
        run()
    return (sync() - begin) / number


def attempt(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What it measures, or why it cannot."""
    try:
        return measure()
    except Exception as error:  # noqa: BLE001 - a card or a release without it: the record says so
        return {"failed": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"}


def product(fp8: bool, m: int, n: int, k: int, device: Any) -> dict[str, Any]:
    """TFLOP/s of [m, k] x [k, n] in BF16 (FP32 on a CPU), or in FP8 with one scale for each matrix."""
    import torch

    cuda = device.type == "cuda"
    kind = torch.bfloat16 if cuda else torch.float32
    a, b = (torch.randn(rows, k, device=device, dtype=kind) for rows in (m, n))
    run: Callable[[], Any] = lambda: a @ b.t()  # noqa: E731
    if fp8:
        one = torch.ones((), device=device)
        a8, b8 = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn)
        run = lambda: torch._scaled_mm(a8, b8.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)  # noqa: E731
    return {"tflops": 2 * m * n * k / seconds(run, cuda) / 1e12}


def attention(kernel: str, length: int, work: GpuWork, device: Any) -> dict[str, Any]:
    """TFLOP/s of causal attention of one row, forward and backward, all heads with keys of their own."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    cuda, m = device.type == "cuda", work.model
    shape = (1, m.heads, length, m.head_dim)
    kind = torch.bfloat16 if cuda else torch.float32
    q, k, v = (torch.randn(shape, device=device, dtype=kind, requires_grad=True) for _ in range(3))
    backend = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}[kernel]
    with sdpa_kernel(backend):
        forward: Callable[[], Any] = lambda: torch.nn.functional.scaled_dot_product_attention(  # noqa: E731
            q, k, v, is_causal=True
        )
        out = forward()
        grad = torch.randn_like(out)
        forward_s = seconds(forward, cuda)
        backward_s = seconds(lambda: torch.autograd.grad(out, (q, k, v), grad, retain_graph=True), cuda)
    flops = 2 * m.heads * m.head_dim * length * length  # two products, the causal half of each
    return {"forward_tflops": flops / forward_s / 1e12, "backward_tflops": 2.5 * flops / backward_s / 1e12}


def bandwidths(device: Any) -> dict[str, float]:
    """Bytes a second, read and written, of a copy and of torch's fused AdamW in FP32."""
    import torch

    cuda = device.type == "cuda"
    size = 2**30 if cuda else 2**22
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_s = seconds(lambda: target.copy_(source), cuda)
    weight = torch.nn.Parameter(torch.randn(size // 2 if cuda else size // 8, device=device))
    weight.grad = torch.randn_like(weight)
    adam = torch.optim.AdamW([weight], lr=1e-4, fused=True)
    adam_s = seconds(adam.step, cuda)
    return {
        "copy_bytes_per_s": 2 * size / copy_s,
        "adamw_bytes_per_s": ADAM_BYTES * weight.numel() / adam_s,
        "adamw_bytes_per_parameter": ADAM_BYTES,
    }


def measure(work: GpuWork) -> dict[str, Any]:
    """All ceilings of this process's device."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    square = SQUARE if device.type == "cuda" else 64
    shapes = {"square": [(square, square, square)], **products(work.model, work.micro_batch * work.sequence_length)}
    passes = ("forward", "input gradient", "weight gradient")
    record: dict[str, Any] = {"kind": "ceilings", "schema": 1, "products": [], "attention": []}
    for name, those in shapes.items():
        for of, (m, n, k) in zip(passes, those, strict=False):
            for fp8 in (False, True):
                if fp8 and name == "head":
                    continue  # which stays in BF16
                numbers = "fp8" if fp8 else "bf16" if device.type == "cuda" else "fp32"
                entry = {"name": name, "pass": of, "format": numbers, "m": m, "n": n, "k": k}
                record["products"].append(entry | attempt(partial(product, fp8, m, n, k, device)))
    for times in LENGTHS:
        for kernel in ("cudnn", "flash"):
            length = times * work.sequence_length
            entry = {"kernel": kernel, "length": length, "heads": work.model.heads, "width": work.model.head_dim}
            record["attention"].append(entry | attempt(partial(attention, kernel, length, work, device)))
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return record | bandwidths(device)


def least_ms(ceilings: dict[str, Any], work: GpuWork, fp8: bool = False) -> dict[str, float]:
    """Milliseconds that a step of `work` takes at the ceilings: products, attention by the faster kernel, optimizer."""
    format_ms = {"fp32" if work.bf16 is False else "bf16", "fp32"}
    times = work.rows // work.micro_batch
    product_ms = 0.0
    numbers = {name: number for name, (number, _, _) in linears(work.model).items()}
    for entry in ceilings["products"]:
        wanted = {"fp8"} if fp8 and entry["name"] != "head" else format_ms
        if entry["name"] in numbers and entry["format"] in wanted and "tflops" in entry:
            flops = 2 * entry["m"] * entry["n"] * entry["k"]
            product_ms += times * numbers[entry["name"]] * flops / entry["tflops"] / 1e9
    m, length = work.model, work.sequence_length
    flops = 2 * m.heads * m.head_dim * length * length
    found = [x for x in ceilings["attention"] if x["length"] == length and "forward_tflops" in x]
    attention_ms = min(
        (flops / x["forward_tflops"] + 2.5 * flops / x["backward_tflops"] for x in found), default=0.0
    ) * work.rows * m.layers / 1e9  # fmt: skip
    adam_ms = ceilings["adamw_bytes_per_parameter"] * parameters(m) / ceilings["adamw_bytes_per_s"] * 1e3
    return {"gemm": product_ms, "attention": attention_ms, "optimizer": adam_ms}
