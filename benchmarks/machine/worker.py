"""One of the processes that measure a machine together: `python -m benchmarks.machine.worker REQUEST`.

What it measures is what a step of this repository's engine consists of, each part by itself, through the code that
training runs. Every process does the same at the same moment, so that what they share (memory, power, cores) is shared
as in a step. The first one prints the `Readings` as a line of JSON.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.machine.readings import MARK, Readings, StepCase
from llama31 import config
from llama31.engine.objectives import MicroBatch
from llama31.engine.pipeline import Engine
from llama31.model import fused, head, kernels, llama, precision
from llama31.model.sequences import SequenceTable
from llama31.parallel import mesh

AT_LEAST_S = 0.004  # of a repetition: what is shorter is done several times
REPEATS = 5
COLD_BYTES = (
    2**26
)  # of weights and kept inputs that products take in turn: in a step they come from memory, not from a cache
HEAD_DIM = {"cpu": 64, "cuda": 128}
SIZES = {  # hidden sizes and tokens of products; lengths of attention; numbers of a copy, of an update; vocabulary
    "cpu": ((128, 256, 512), (128, 512), (64, 256, 1024), 2**22, 2**21, 2048),
    "cuda": ((1024, 2048, 4096), (2048, 8192), (1024, 4096, 16384), 2**28, 2**27, 32768),
    "trial": ((64, 128), (16, 32), (16, 64), 2**12, 2**12, 256),  # shows that it works, and says nothing
}
MESSAGE_BYTES = {"cpu": (2**10, 2**16, 2**18, 2**20, 2**22), "cuda": (2**10, 2**18, 2**22, 2**26, 2**28)}
FEWEST_STEPS, MOST_STEPS, STEPS_S = 3, 12, 0.6  # of a case and round, and seconds for them, after two to warm up


class Meter:
    """Seconds of actions on a device: the median of some repetitions, on the slowest process.

    A step is long, and has its share of whatever disturbs a machine; the fastest of many short measurements has none.
    """

    def __init__(self, grid: mesh.Grid) -> None:
        self.device, self.world = grid.device, grid.world

    def wait(self) -> None:
        """Until the device has done all."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def __call__(self, action: Callable[[], object]) -> float:
        """Seconds of one call. Collective over all processes, which do the same."""
        for _ in range(2):
            action()
        self.wait()
        begin = time.perf_counter()
        action()
        self.wait()
        count = _slowest(AT_LEAST_S / max(time.perf_counter() - begin, 1e-7), self.device)
        each = [self._once(action, max(1, round(count))) for _ in range(REPEATS)]
        return _slowest(statistics.median(each), self.device)

    def _once(self, action: Callable[[], object], count: int) -> float:
        dist.barrier()
        self.wait()
        begin = time.perf_counter()
        for _ in range(count):
            action()
        self.wait()
        return (time.perf_counter() - begin) / count


def read(asked: dict[str, Any], grid: mesh.Grid) -> Readings:
    """One round of all measurements, then the cases asked for."""
    kind = grid.device.type
    meter, dtype = Meter(grid), torch.float32 if asked["params"] == "fp32" else torch.bfloat16
    found = Readings(grid.world, asked["params"], _name(grid.device), kind == "cuda", _memory(grid.device), _versions())
    hiddens, tokens, lengths, copied, updated, vocabulary = SIZES[asked.get("sizes", kind)]
    with torch.no_grad():
        found.products = list(_products(meter, dtype, hiddens, tokens))
        if dtype == torch.float32:
            found.wide = list(_products(meter, torch.bfloat16, hiddens[1:2], tokens[:1]))
        found.accumulated = list(_accumulated(meter, hiddens))
        source = torch.zeros(copied, device=grid.device)
        target = torch.empty_like(source)
        found.copies = [[4.0 * copied, meter(partial(target.copy_, source))]]
        del source, target
        found.attention = [_attention(meter, dtype, length) for length in lengths]
    found.elementwise = [_elementwise(meter, dtype, h, t) for h in hiddens[1:] for t in tokens]
    found.losses = [_loss(meter, dtype, grid, tokens[-1], vocabulary, hiddens[1])]
    found.optimizer = [_update(meter, updated)]
    if grid.world > 1:
        found.messages = list(_messages(meter, MESSAGE_BYTES[kind][: 2 if asked.get("sizes") else None]))
    return found


def _products(
    meter: Meter, dtype: torch.dtype, hiddens: tuple[int, ...], tokens: tuple[int, ...]
) -> Iterator[list[float]]:
    """A linear layer's three products, for the four shapes of a layer with hidden size h."""
    for h in hiddens:
        for t in tokens:
            for out, into in ((2 * h, h), (h, h), (6 * h, h), (h, 3 * h)):
                x, g = (torch.randn(t, width, dtype=dtype, device=meter.device) for width in (into, out))
                weights, inputs = (
                    _cold(torch.randn(1, into, dtype=dtype, device=meter.device).expand(out, -1)),
                    _cold(x),
                )

                yield [t, out, into, meter(partial(_product, x, map(Tensor.t, weights)))]
                yield [t, into, out, meter(partial(_product, g, weights))]
                yield [out, into, t, meter(partial(_product, g.t(), inputs))]


def _product(left: Tensor, turns: Iterator[Tensor]) -> Tensor:
    return torch.mm(left, next(turns))


def _cold(one: Tensor) -> Iterator[Tensor]:
    """Copies of a tensor in turn, for ever, so many that a cache has forgotten each when its turn comes."""
    count = max(1, COLD_BYTES // (one.numel() * one.element_size()))
    return itertools.cycle(list(one.repeat(count, 1, 1)))


def _accumulated(meter: Meter, hiddens: tuple[int, ...]) -> Iterator[list[float]]:
    for h in hiddens:
        total, one = (torch.zeros(6 * h * h, device=meter.device) for _ in range(2))
        yield [6.0 * h * h, meter(partial(total.add_, one))]


def _attention(meter: Meter, dtype: torch.dtype, length: int) -> list[float]:
    """Causal attention of one row by the kernels of a step, four heads, two of K and V."""
    width = HEAD_DIM[meter.device.type]
    q = torch.randn(length, 1, 4, width, dtype=dtype, device=meter.device)
    k, v = (torch.randn(length, 1, 2, width, dtype=dtype, device=meter.device) for _ in range(2))
    if kernels.packed(q):
        row = SequenceTable.of_rank(torch.tensor([[0, 0, length]]), 1, length, 1, 0, meter.device).own_keys
        fq, fk, fv = (x.flatten(0, 1) for x in (q, k, v))
        out, lse, kept = kernels.packed_forward(fq, fk, fv, row)
        ahead = meter(partial(kernels.packed_forward, fq, fk, fv, row))
        back = meter(partial(kernels.packed_backward, out, fq, fk, fv, out, lse, row, kept))
    else:
        q, k, v = (x.permute(1, 2, 0, 3) for x in (q, k, v))
        result, sums = kernels.forward(q, k, v, True)
        ahead = meter(partial(kernels.forward, q, k, v, True))
        back = meter(partial(kernels.backward, result, q, k, v, result, sums, True))
    return [length, length, 4 * width, ahead, back]


def _elementwise(meter: Meter, dtype: torch.dtype, h: int, t: int) -> list[float]:
    """A layer's norms, residual sums, rotary embedding and SwiGLU, forward and backward."""
    device, width, f = meter.device, HEAD_DIM[meter.device.type], 3 * h
    x = torch.randn(t, 1, h, dtype=dtype, device=device, requires_grad=True)
    gates = torch.randn(t, 1, 2 * f, dtype=dtype, device=device, requires_grad=True)
    weight = torch.ones(h, dtype=dtype, device=device, requires_grad=True)
    q = torch.randn(t, 1, h // width, width, dtype=dtype, device=device, requires_grad=True)
    k = torch.randn(t, 1, max(1, h // width // 2), width, dtype=dtype, device=device, requires_grad=True)
    rotary = fused.Rotary(torch.rand(t, 1, 1, width, device=device))
    ones = [torch.ones_like(one) for one in (x, x, q, k, gates[..., :f])]

    def passes() -> None:
        normed, states = fused.rms_norm(x, weight, 1e-5)
        again, rest = fused.rms_norm(states + normed, weight, 1e-5)
        outs = [again, rest, fused.rotate(q, rotary), fused.rotate(k, rotary), fused.swiglu(gates)]
        torch.autograd.grad(outs, [x, weight, q, k, gates], ones)

    return [t, h, f, meter(passes)]


def _loss(meter: Meter, dtype: torch.dtype, grid: mesh.Grid, t: int, v: int, h: int) -> list[float]:
    """The output layer and the loss, forward and backward, its gradient summed in place."""
    hidden = torch.randn(t, h, dtype=dtype, device=grid.device, requires_grad=True)
    # As small as in a model: logits far apart have probabilities that are denormal numbers, ten times as slow on Intel.
    weight = torch.normal(0.0, 0.02, (v, h), device=grid.device).to(dtype).requires_grad_()
    weight.main_grad = torch.zeros(v, h, device=grid.device)  # type: ignore[attr-defined]
    labels = torch.randint(0, v, (t,), device=grid.device)
    weights = torch.full((t,), 1 / t, device=grid.device)
    alone = grid.tp_group

    def passes() -> None:
        loss, _ = head.weighted_loss(hidden, weight, labels, weights, alone)
        loss.backward()

    return [t, v, h, meter(passes)]


def _update(meter: Meter, count: int) -> list[float]:
    """AdamW, the norm of the gradients, and clearing them, as ZeRO-1 does it."""
    master, gradient = torch.zeros(count, device=meter.device), torch.ones(count, device=meter.device)
    adam = torch.optim.AdamW([master], lr=1e-3, fused=True)
    master.grad = gradient

    def update() -> None:
        gradient.square().sum() if meter.device.type == "cuda" else torch.dot(gradient, gradient)
        adam.step()
        gradient.zero_()

    return [count, meter(update)]


def _messages(meter: Meter, sizes: tuple[int, ...]) -> Iterator[tuple[str, int, float, float]]:
    """Collectives over the first 2, 4, ... and over all processes. Bytes are those that a rank has to send."""
    world, rank = dist.get_world_size(), dist.get_rank()
    work = partial(torch.mm, *(torch.ones(256, 256, device=meter.device) for _ in range(2)))
    alone = meter(work)

    def amid_work(action: Callable[[], object]) -> float:
        """In a step processes come from a product to a message, not from one message to the next."""

        def both() -> None:
            work()
            action()

        return max(meter(both) - alone, 1e-7)

    members = sorted({*(2**n for n in range(1, world.bit_length()) if 2**n <= world), world})
    for count in members:
        groups = [dist.new_group(list(range(i, i + count))) for i in range(0, world - count + 1, count)]
        group = groups[rank // count] if rank // count < len(groups) else None
        for size in sizes:
            whole = torch.zeros(max(size // 4 // count, 1) * count, device=meter.device)
            part = whole[: whole.numel() // count].clone()
            sent = 4 * part.numel() * (count - 1)
            kinds: dict[str, Callable[[], object]] = {
                "all_gather": partial(dist.all_gather_into_tensor, whole, part, group=group),
                "reduce_scatter": partial(dist.reduce_scatter_tensor, part, whole, group=group),
                "all_reduce": partial(dist.all_reduce, whole, group=group),
            }
            for kind, action in kinds.items():
                yield (
                    kind,
                    count,
                    float(sent * (2 if kind == "all_reduce" else 1)),
                    amid_work(action if group else _nothing),
                )
        for group in groups:
            dist.destroy_process_group(group)
    for size in sizes:
        there = torch.zeros(size // 4, device=meter.device)
        yield "send", 2, float(4 * there.numel()), amid_work(partial(_to_and_fro, rank, there)) / 2


def _nothing() -> None:
    return None


def _to_and_fro(rank: int, there: Tensor) -> None:
    """A message from the first process to the second, and back; the others look on."""
    if rank == 0:
        dist.send(there, 1)
        dist.recv(there, 1)
    elif rank == 1:
        dist.recv(there, 0)
        dist.send(there, 0)


def step_seconds(case: StepCase, params: str) -> float:
    """The median of some steps of a case, by the engine that `recipes.pretrain` drives. Collective."""
    numbers, work = config.Precision(params=params), case.parallel
    grid = mesh.create(work)
    chunks = llama.build(case.model, numbers, work, grid, seed=1)
    engine = Engine(chunks, case.model, config.Optimizer(), numbers, work, grid)
    rows = np.random.default_rng(grid.dp_rank).integers(
        0, case.model.vocab_size, (work.micro_batch, case.sequence_length + 1)
    )
    ones, none = np.ones((work.micro_batch, case.sequence_length), np.float32), 0 * rows[:, 1:]
    batch = MicroBatch.from_numpy(rows[:, :-1], rows[:, 1:], ones, none, grid.device)

    def step() -> float:
        begin = time.perf_counter()
        engine.accumulate([batch] * case.micro_batches)
        engine.apply(1e-4)
        engine.settle()
        if grid.device.type == "cuda":
            torch.cuda.synchronize(grid.device)
        return time.perf_counter() - begin

    step()
    count = _slowest(STEPS_S / step(), grid.device, dist.ReduceOp.MIN)
    middle = statistics.median(step() for _ in range(min(max(int(count), FEWEST_STEPS), MOST_STEPS)))
    return _slowest(middle, grid.device)


def _slowest(seconds: float, device: torch.device, pick: Any = dist.ReduceOp.MAX) -> float:
    """The largest of all processes' numbers, or as `pick` says. Collective."""
    number = torch.tensor([seconds], dtype=torch.float64, device=device)
    dist.all_reduce(number, pick)
    return float(number)


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:
        return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "CPU")
    return platform.processor() or "CPU"


def _memory(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[1])
    with open("/proc/meminfo") as lines:
        return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal:"))


def _versions() -> str:
    parts = [f"torch {torch.__version__}", f"Python {platform.python_version()}"]
    return ", ".join([*parts, f"CUDA {torch.version.cuda}"] if torch.cuda.is_available() else parts)


def main(request: str) -> None:
    """Measure what is asked for, as JSON: params, rounds, cases, and where another than the device's, the sizes."""
    asked = json.loads(request)
    precision.check(config.Precision(params=asked["params"]), mesh.connect(600))
    cases = [StepCase.of(plain) for plain in asked["cases"]]
    rounds: list[Readings] = []
    for _ in range(asked["rounds"]):
        one = read(asked, mesh.create(config.Parallel()))
        one.steps = [(case.name, step_seconds(case, asked["params"])) for case in cases]
        rounds.append(one)
    if dist.get_rank() == 0:
        print(MARK + json.dumps(Readings.median(rounds).to_plain()), flush=True)
    mesh.close()


if __name__ == "__main__":
    main(sys.argv[1])
