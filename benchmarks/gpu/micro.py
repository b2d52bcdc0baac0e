"""Kernels by themselves, in microseconds: what the defaults of head and loss, attention and norm are chosen by."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from benchmarks.gpu.ceilings import attempt, seconds
from benchmarks.gpu.plan import GpuWork, documents

CHUNKS = (26, 27, 28, 29)  # log2 of the logits of a chunk of the head
BLOCKS, WARPS = (4096, 8192, 16384, 32768), (8, 16, 32)  # of the loss kernel
LENGTHS, KINDS = (1, 2, 8), ("one", "eight", "dialogs", "tail")
Rows = list[dict[str, Any]]


def _device() -> Any:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _timed(run: Callable[[], Any], **of: Any) -> dict[str, Any]:
    """A row: what it is of, and microseconds or why there are none."""
    return of | attempt(lambda: {"us": seconds(run, _device().type == "cuda") * 1e6})


def _format(device: Any) -> Any:
    import torch

    return torch.bfloat16 if device.type == "cuda" else torch.float32


def loss(work: GpuWork) -> Rows:
    """Head and loss with gradients by size of chunk; on a GPU the loss kernel by block and warps."""
    import torch

    from llama31 import config
    from llama31.model import head
    from llama31.parallel import mesh

    device, m = _device(), work.model
    group, tokens = mesh.create(config.Parallel()).tp_group, work.micro_batch * work.sequence_length
    states = torch.randn(tokens, m.hidden_size, device=device, dtype=_format(device), requires_grad=True)
    weight = torch.nn.Parameter(torch.randn(m.vocab_size, m.hidden_size, device=device, dtype=_format(device)) * 0.02)
    weight.main_grad = torch.zeros_like(weight, dtype=torch.float32)  # type: ignore[attr-defined]
    labels = torch.randint(m.vocab_size, (tokens,), device=device)
    weights = torch.full((tokens,), 1 / tokens, device=device)

    def run() -> None:
        head.weighted_loss(states, weight, labels, weights, group)[0].backward()

    result = []
    for exponent in CHUNKS:
        with mock.patch.dict(head.CHUNK_ELEMENTS, {device.type: 2**exponent}):
            result.append(_timed(run, what="head and loss", chunk_elements=2**exponent, tokens=tokens))
    return result + (_loss_kernel(m.vocab_size, min(tokens, 2048)) if device.type == "cuda" else [])


def _loss_kernel(vocabulary: int, tokens: int) -> Rows:
    import torch

    from llama31.model import loss_kernel

    logits = torch.randn(tokens, vocabulary, device="cuda", dtype=torch.bfloat16)
    labels, weights = torch.randint(vocabulary, (tokens,), device="cuda"), torch.ones(tokens, device="cuda")
    result = []
    for block in BLOCKS:
        for warps in WARPS:
            with mock.patch.multiple(loss_kernel, BLOCK=block, WARPS=warps):
                run = lambda: loss_kernel.cross_entropy_(logits, labels, weights, vocabulary)  # noqa: E731
                result.append(_timed(run, what="loss kernel", block=block, warps=warps, tokens=tokens))
    return result


def attention(work: GpuWork) -> Rows:
    """Attention of a row by length, documents and kernel, and how far apart two kernels are."""
    import torch

    device, m = _device(), work.model
    result: Rows = []
    for times in LENGTHS:
        length = times * work.sequence_length
        shapes = [(length, 1, heads, m.head_dim) for heads in (m.heads, m.kv_heads, m.kv_heads)]
        parts = [torch.randn(shape, device=device, dtype=_format(device), requires_grad=True) for shape in shapes]
        for kind in KINDS:
            lengths, outs = documents(kind, length, seed=0), []
            for kernel, forced in _kernels(device):
                of = {"what": "attention", "length": length, "kind": kind, "documents": len(lengths), "kernel": kernel}
                with forced:
                    rows, out = _attention(parts, lengths, of)
                result += rows
                outs.append(out)
            if len(outs) == 2 and None not in outs:
                apart = ((outs[0] - outs[1]).norm() / outs[0].norm()).item()
                result.append({"what": "attention", "length": length, "kind": kind, "kernels_apart": apart})
    return result


def _kernels(device: Any) -> Iterator[tuple[str, contextlib.AbstractContextManager[Any]]]:
    """The variable-length kernels by name, and how each is forced."""
    from llama31.model import kernels

    if device.type == "cpu":
        yield "cpu", contextlib.nullcontext()
        return
    for name in ("cudnn", "torch") if kernels._cudnn() is not None else ("torch",):
        yield name, mock.patch.object(kernels, "chosen", lambda query, sequences, name=name: name)


def _attention(parts: list[Any], lengths: list[int], of: dict[str, Any]) -> tuple[Rows, Any]:
    import torch

    from llama31.model.attention import attend
    from llama31.model.sequences import SequenceTable

    ends: list[int] = torch.tensor(lengths).cumsum(0).tolist()
    documents = torch.tensor([(0, end - size, end) for end, size in zip(ends, lengths, strict=True)], dtype=torch.int32)
    query, key, value = parts
    table = SequenceTable(documents, 1, [(0, ends[-1])], query.device)
    forward = lambda: attend(query, key, value, table)  # noqa: E731
    rows = [_timed(forward, **of, direction="forward")]
    if "failed" in rows[0]:
        return rows, None
    out = forward()
    grad = torch.randn_like(out)
    backward = lambda: torch.autograd.grad(out, parts, grad, retain_graph=True)  # noqa: E731
    return [*rows, _timed(backward, **of, direction="backward")], out.detach().float()


def norm(work: GpuWork) -> Rows:
    """RMSNorm of torch (which the model uses on a GPU) and of Transformer Engine; SwiGLU as the model has it."""
    import torch

    from llama31.model import fused, precision

    device, m = _device(), work.model
    tokens = work.micro_batch * work.sequence_length
    x = torch.randn(tokens, m.hidden_size, device=device, dtype=_format(device), requires_grad=True)
    weight = torch.ones(m.hidden_size, device=device, dtype=_format(device), requires_grad=True)
    wide = torch.randn(tokens, 2 * m.ffn_hidden_size, device=device, dtype=_format(device), requires_grad=True)
    result = _both("rms_norm", "ours", lambda: fused.rms_norm(x, weight, m.norm_eps)[0], (x, weight))
    result += _both("swiglu", "ours", lambda: fused.swiglu(wide), (wide,))
    if device.type == "cuda" and precision.have_transformer_engine():
        import transformer_engine.pytorch as engine

        module = engine.RMSNorm(m.hidden_size, eps=m.norm_eps, params_dtype=_format(device), device="cuda")
        result += _both("rms_norm", "transformer engine", lambda: module(x), (x, module.weight))
    return result


def _both(what: str, kernel: str, forward: Callable[[], Any], inputs: tuple[Any, ...]) -> Rows:
    import torch

    rows = [_timed(forward, what=what, kernel=kernel, direction="forward")]
    if "failed" in rows[0]:
        return rows
    out = forward()
    grad = torch.randn_like(out)
    backward = lambda: torch.autograd.grad(out, inputs, grad, retain_graph=True)  # noqa: E731
    return [*rows, _timed(backward, what=what, kernel=kernel, direction="backward")]


TOPICS: dict[str, Callable[[GpuWork], Rows]] = {"loss": loss, "attention": attention, "norm": norm}
