"""Kernels against the few lines that say what they mean, in FP64 on the same device: outputs and every gradient.

An error is relative: of a whole tensor, its norm over that of the twin's; `worst` is that of one position
(over the size of all, where its own is smaller), which a wrong document among two thousand positions cannot hide from.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from llama31 import config
from llama31.model import fused, head, kernels
from llama31.model.attention import attend
from llama31.model.sequences import SequenceTable, Span, chunks_of_rank
from llama31.parallel import mesh

Record = list[tuple[int, ...]]  # documents
Checks = list[tuple[str, float, float]]  # what was compared, its error, the largest right one

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Largest error of a tensor, and of one position. BF16 has steps of 2^-8, and flash kernels round probabilities to them.
BOUNDS = {"fp32": (1e-4, 1e-3), "bf16": (2e-2, 1e-1)}


def compared(result: Tensor, expected: Tensor, dtype: str, what: str) -> Checks:
    """Errors of a tensor whose first axis, or first two, are positions."""
    error = (result.double() - expected).flatten(1)
    each, sizes = error.norm(dim=1), expected.flatten(1).norm(dim=1)
    size = sizes.square().mean().sqrt().clamp(min=1e-30)
    whole, worst = each.square().mean().sqrt() / size, (each / sizes.clamp(min=size)).max()
    record = [(what, whole.item(), BOUNDS[dtype][0]), (f"{what} worst", worst.item(), BOUNDS[dtype][1])]
    return record if bool(torch.isfinite(result).all()) else [(f"{what} is not finite", math.inf, 0.0)]


# --- attention ---


def table(lengths: list[int], total: int, row: int = 0) -> list[tuple[int, ...]]:
    """Documents of these lengths, and one of what is left of the row."""
    ends = list(itertools.accumulate([*lengths, total - sum(lengths)]))
    return [(row, begin, end) for begin, end in itertools.pairwise([0, *ends])]


def answers(total: int) -> list[tuple[int, ...]]:
    """A prompt and three answers that see it but not each other, then a document without any."""
    first, second, third, last = total // 4 + 1, total // 4 + 2, total // 2 + 1, total - total // 8
    tree = [(0, first), (first, second), (second, third), (third, last)]
    return [(0, *tree[0], 0, 0), *((0, *span, 0, first) for span in tree[1:]), (0, last, total, 0, 0)]


def documents(total: int) -> dict[str, list[tuple[int, ...]]]:
    """Tables for rows of `total` tokens, a multiple of 64; kernels' tiles are of 64 to 256."""
    part = total // 16
    return {
        "one document": table([], total),
        "over tiles": table([1, part - 1, part, part + 1, 2 * part - 1, 2 * part + 1], total),
        "of one token": [*table([1] * 5 + [part + 3, 1, 1, part - 3, 1], total - 1), (0, total - 1, total)],
        "two rows": table([part + 5], total) + table([1, 7 * part + 3], total, row=1),
        "alike rows": table([part - 7], total) + table([part - 7], total, row=1),
        "prefixes": answers(total),
        "gaps": [(0, 0, part), (0, part + 9, 2 * part + 1), (0, 3 * part, total - 5)],
    }


def explicit(query: Tensor, key: Tensor, value: Tensor, record: list[tuple[int, ...]], spans: list[Span]) -> Tensor:
    """One softmax over a whole mask, in FP64."""
    rows, length = key.size(1), key.size(0)
    positions = torch.cat([torch.arange(begin, end) for begin, end in spans])
    allowed = torch.zeros(rows, length, length, dtype=torch.bool)
    for row, begin, end, *prefix in record:
        allowed[row, begin:end, begin:end] = torch.ones(end - begin, end - begin, dtype=torch.bool).tril()
        if prefix:
            allowed[row, begin:end, prefix[0] : prefix[1]] = True
    seen = allowed[:, positions].to(query.device)
    q, k, v = (x.double().permute(1, 2, 0, 3) for x in (query, key, value))
    k, v = (x.repeat_interleave(q.size(1) // k.size(1), 1) for x in (k, v))
    scores = (q @ k.transpose(-1, -2) / math.sqrt(q.size(-1))).masked_fill(~seen[:, None], -math.inf)
    return (scores.softmax(-1).nan_to_num(0.0) @ v).permute(2, 0, 1, 3)  # no key at all: zeros


def attention(
    device: torch.device,
    dtype: str,
    heads: tuple[int, int, int],
    length: int,
    record: list[tuple[int, ...]],
    cp: int = 1,
) -> Checks:
    """`attend` with (heads, KV heads, width); keys and values are views of one tensor, as they are in the model.

    With cp above 1 the queries are those of each rank in turn, who sees all keys. What stands at positions outside of
    documents nobody reads, so nothing is asked of it, and no gradient comes from there.
    """
    generator = torch.Generator().manual_seed(length + heads[0])
    rows = 1 + max(one[0] for one in record)

    def drawn(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(device, DTYPES[dtype])

    fused_kv = drawn(length, rows, heads[1], 2 * heads[2]).requires_grad_()
    read = torch.zeros(length, rows, 1, 1, dtype=torch.bool, device=device)
    for row, begin, end, *_ in record:
        read[begin:end, row] = True
    result: Checks = []
    for rank in range(cp):
        spans = chunks_of_rank(length, cp, rank)
        queries = sum(end - begin for begin, end in spans)
        query = drawn(queries, rows, heads[0], heads[2]).requires_grad_()
        mine = torch.cat([read[begin:end] for begin, end in spans])
        grad = drawn(queries, rows, heads[0], heads[2]) * mine
        parts = query, *fused_kv.split(heads[2], -1)
        sequences = SequenceTable(torch.tensor(record, dtype=torch.int32), rows, spans, device)
        out, expected = attend(*parts, sequences), explicit(*parts, record, spans)
        out, expected = out * mine, expected * mine
        ours = [out, *torch.autograd.grad(out, (query, fused_kv), grad)]
        twins = [expected, *torch.autograd.grad(expected, (query, fused_kv), grad.double())]
        pairs = [*zip(ours[:2], twins[:2]), *zip(*(x[2].split(heads[2], -1) for x in (ours, twins)))]
        for what, (one, twin) in zip(("out", "grad_query", "grad_key", "grad_value"), pairs, strict=True):
            result += compared(
                one.flatten(0, 1), twin.double().flatten(0, 1), dtype, what + f" of rank {rank}" * (cp > 1)
            )
    return result


@contextlib.contextmanager
def by_calls(kernel: str) -> Iterator[None]:
    """Within it all documents are done by one call or two of this variable-length kernel, whatever the table says."""
    before = kernels.packed, kernels.chosen
    kernels.packed, kernels.chosen = (lambda query: True), (lambda query, sequences: kernel)
    try:
        yield
    finally:
        kernels.packed, kernels.chosen = before


def by_kernel(
    kernel: str, device: torch.device, dtype: str, heads: tuple[int, int, int], length: int, record: Record, cp: int
) -> Checks:
    with by_calls(kernel):
        return attention(device, dtype, heads, length, record, cp)


# --- head and loss ---


def drawn_head(device: torch.device, dtype: str, tokens: int, hidden: int, vocab: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(tokens)
    states = torch.randn(tokens, hidden, generator=generator).to(device, DTYPES[dtype]).requires_grad_()
    weight = (torch.randn(vocab, hidden, generator=generator) * 2 / math.sqrt(hidden)).to(device, DTYPES[dtype])
    labels = torch.randint(vocab, (tokens,), generator=generator).to(device)
    kept = torch.rand(tokens, generator=generator) > 0.3
    weights = (torch.rand(tokens, generator=generator) * kept / tokens).to(device)
    return states, weight.requires_grad_(), labels, weights


def loss_and_gradients(device: torch.device, dtype: str, tokens: int, hidden: int, vocab: int) -> Checks:
    """`weighted_loss`, `token_losses` and `scores` against cross entropy of whole FP64 logits."""
    states, weight, labels, weights = drawn_head(device, dtype, tokens, hidden, vocab)
    group = mesh.create(config.Parallel()).tp_group
    logits = states.double() @ weight.double().t()
    each = F.cross_entropy(logits, labels, reduction="none")
    loss, losses = head.weighted_loss(states, weight, labels, weights, group)
    result = compared(losses.unsqueeze(1), each.detach().unsqueeze(1), dtype, "losses")
    inputs = (states, weight)
    factor = 3.0  # upstream, as an engine that scales its loss gives
    ours = torch.autograd.grad(loss * factor, inputs)
    twins = torch.autograd.grad((each * weights).sum() * factor, inputs, retain_graph=True)
    for what, one, twin in zip(("grad_hidden", "grad_weight"), ours, twins):
        result += compared(one, twin.double(), dtype, f"weighted {what}")
    some = torch.where(weights > 0, labels, -1)
    apart = head.token_losses(states, weight, some, group)
    upstream = torch.linspace(-1, 1, tokens, device=device)
    ours = torch.autograd.grad(apart, inputs, upstream)
    twins = torch.autograd.grad(each, inputs, upstream.double() * (weights > 0))
    for what, one, twin in zip(("grad_hidden", "grad_weight"), ours, twins):
        result += compared(one, twin.double(), dtype, f"of tokens {what}")
    record, likeliest = head.scores(states, weight, labels, weights > 0, group)
    for what, one in (("token_losses", apart), ("scores", record)):
        result += compared(one.unsqueeze(1), (each.detach() * (weights > 0)).unsqueeze(1), dtype, what)
    asked = weights > 0
    chosen = logits.gather(1, likeliest.clamp(min=0)[:, None])[:, 0]  # near-ties may go either way
    short = ((logits.max(1).values - chosen)[asked].max() / logits.abs().max()).item()
    wrong = float((likeliest[~asked] != -1).sum() + (likeliest[asked] < 0).sum())
    return [*result, ("likeliest token below the maximum", short, BOUNDS[dtype][0]), ("places of scores", wrong, 0.0)]


# --- norm and activation ---


def norm(device: torch.device, dtype: str, *shape: int) -> Checks:
    """With the gradient of who goes on with x itself, and without."""
    generator = torch.Generator().manual_seed(shape[0])
    x = torch.randn(shape, generator=generator).mul_(3).to(device, DTYPES[dtype]).requires_grad_()
    weight = (1 + torch.randn(shape[-1], generator=generator) / 4).to(device, DTYPES[dtype]).requires_grad_()
    grads = [torch.randn(shape, generator=generator).to(device, DTYPES[dtype]) for _ in range(2)]
    x64, weight64 = (t.detach().double().requires_grad_() for t in (x, weight))
    expected = [x64 * torch.rsqrt(x64.pow(2).mean(-1, keepdim=True) + 1e-5) * weight64, x64 * 1]
    out = fused.rms_norm(x, weight, 1e-5)
    result = compared(out[0].reshape(-1, shape[-1]), expected[0].reshape(-1, shape[-1]), dtype, "out")
    for used, of in ((1, ""), (2, " with residual")):
        ours = torch.autograd.grad(out[:used], (x, weight), grads[:used], retain_graph=True)
        upstream = [grad.double() for grad in grads[:used]]
        twins = torch.autograd.grad(expected[:used], (x64, weight64), upstream, retain_graph=True)
        for name, one, twin, rows in zip(("grad_x", "grad_weight"), ours, twins, (-1, 1)):
            result += compared(one.reshape(rows, shape[-1]), twin.reshape(rows, shape[-1]), dtype, name + of)
    return result


def activation(device: torch.device, dtype: str, *shape: int) -> Checks:
    generator = torch.Generator().manual_seed(shape[0])
    x = torch.randn(*shape[:-1], 2 * shape[-1], generator=generator).to(device, DTYPES[dtype]).requires_grad_()
    grad = torch.randn(shape, generator=generator).to(device, DTYPES[dtype])
    x64 = x.detach().double().requires_grad_()
    expected = F.silu(x64[..., : shape[-1]]) * x64[..., shape[-1] :]
    out = fused.swiglu(x)
    pairs = [(out, expected)]
    pairs += zip(torch.autograd.grad(out, x, grad), torch.autograd.grad(expected, x64, grad.double()))
    return [
        check
        for name, (one, twin) in zip(("out", "grad_x"), pairs)
        for check in compared(one.flatten(0, -2), twin.flatten(0, -2), dtype, name)
    ]


def rotary(device: torch.device, dtype: str, rows: int, *shape: int) -> Checks:
    """Queries [s, b, heads, d] as a view of a fused projection; `rows` 1: all rows have the same positions."""
    generator = torch.Generator().manual_seed(shape[0])
    fused_qkv = torch.randn(*shape[:3], 2 * shape[3], generator=generator).to(device, DTYPES[dtype]).requires_grad_()
    grad = torch.randn(shape, generator=generator).to(device, DTYPES[dtype])
    half = torch.randn(shape[0], rows, 1, shape[3] // 2, generator=generator).to(device) * 20
    x64 = fused_qkv.detach()[..., : shape[3]].double().requires_grad_()
    a, b = x64.chunk(2, -1)
    cosine, sine = half.double().cos(), half.double().sin()
    expected = torch.cat([a * cosine - b * sine, b * cosine + a * sine], -1)
    out = fused.rotate(fused_qkv[..., : shape[3]], fused.Rotary(torch.cat([half, half], -1)))
    (back,) = torch.autograd.grad(out, fused_qkv, grad)
    pairs = (out, expected), (back[..., : shape[3]], *torch.autograd.grad(expected, x64, grad.double()))
    return [
        check
        for name, (one, twin) in zip(("out", "grad_x"), pairs)
        for check in compared(one.flatten(0, 1), twin.flatten(0, 1), dtype, name)
    ]


def calls(device: torch.device) -> Iterator[tuple[str, Callable[[], Checks]]]:
    """Each variable-length kernel by itself; on a CPU the one that is written out."""
    gpu = device.type == "cuda"
    named = ["torch", *(["cudnn"] if kernels._cudnn() is not None else [])] if gpu else ["plain"]
    shapes = [((16, 2, 128), 2048), ((8, 1, 64), 1088)] if gpu else [((8, 1, 64), 192)]
    for kernel, (heads, length) in itertools.product(named, shapes):
        for (what, record), cp in itertools.product(documents(length).items(), (1, 2)):
            yield (
                f"calls {kernel} {heads[0]}x{heads[1]}x{heads[2]} {what} cp{cp}",
                lambda k=kernel, h=heads, n=length, t=record, c=cp: by_kernel(
                    k, device, "bf16" if gpu else "fp32", h, n, t, c
                ),
            )


def cases(device: torch.device) -> Iterator[tuple[str, Callable[[], Checks]]]:
    """Each with its name. On a CPU FP32 alone, and narrower: the same code would take minutes."""
    gpu = device.type == "cuda"
    yield from calls(device)
    for dtype in ("fp32", "bf16") if gpu else ("fp32",):
        shapes = [((4, 2, 8), 192), ((4, 1, 128), 2048 if gpu else 512)]
        for heads, length in [*shapes, *([((32, 8, 128), 2048), ((8, 1, 64), 1088)] if gpu else [])]:
            name = f"{dtype} {heads[0]}x{heads[1]}x{heads[2]}"
            for what, record in documents(length).items():
                yield (
                    f"attend {name} {what}",
                    lambda d=dtype, h=heads, n=length, t=record: attention(device, d, h, n, t),
                )
            record = documents(length)["over tiles"]
            yield f"attend {name} cp2", lambda d=dtype, h=heads, n=length, t=record: attention(device, d, h, n, t, cp=2)
        sizes = [(1, 64, 320), (333, 64, 1003)] + ([(2500, 512, 128256)] if gpu else [])
        for size in sizes:
            yield f"head {dtype} {'x'.join(map(str, size))}", lambda d=dtype, s=size: loss_and_gradients(device, d, *s)
        for shape in [(5, 40), (333, 1, 256)] + ([(2048, 2, 4096), (3, 1, 14336)] if gpu else []):
            name = f"{dtype} {'x'.join(map(str, shape))}"
            yield f"rms_norm {name}", lambda d=dtype, s=shape: norm(device, d, *s)
            yield f"swiglu {name}", lambda d=dtype, s=shape: activation(device, d, *s)
        for rows, shape in [(1, (65, 2, 3, 64)), (2, (65, 2, 3, 64)), (3, (333, 3, 8, 128))]:
            name = f"{dtype} {'x'.join(map(str, shape))} of {rows}"
            yield f"rotary {name}", lambda d=dtype, r=rows, s=shape: rotary(device, d, r, *s)
