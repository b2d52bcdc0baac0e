"""Attention and context parallelism on long rows: memory and speed, each case in processes of its own.

`python -m benchmarks.long_rows '{...}'` measures one case and prints lines of JSON; `tables` starts it. The peer is
transformers' attention function for SDPA, given the mask that transformers needs for packed documents: a matrix. Its
memory counts, the time to build it does not, for a model builds it once for all layers.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.peers import LEARNING_RATE, anonymous_bytes
from benchmarks.timing import TimedRun, run_worker
from llama31 import config

HEADS, KV_HEADS, WIDTH = 4, 2, 64
ATTENTIONS = {
    "ours": "ours, documents of mixed lengths",
    "transformers": "transformers' SDPA, the same documents as a 4-D mask",
    "ours-one": "ours, one document",
}
LAYOUTS = {
    "1": "1 process",
    "2": "2 processes, CP 2",
    "2-waiting": "2 processes, CP 2, waiting for K and V first",
}
PASS_TOKENS = 16384  # a run does as many passes as make up these tokens, at least one
SHORTEST = 32


def document_ends(length: int) -> list[int]:
    """Where the documents of a row end: log-uniform lengths from 32 tokens to half the row, the same every time."""
    random, ends = np.random.default_rng(length), [0]
    while ends[-1] < length:
        drawn = np.exp(random.uniform(np.log(SHORTEST), np.log(max(length // 2, SHORTEST + 1))))
        ends.append(min(length, ends[-1] + int(drawn)))
    return ends[1:]


# --- in the measured process ---

Pass = Callable[[], Any]  # forward; what it returns is summed and differentiated


def _ours(length: int, ends: Sequence[int], params: str) -> Pass:
    import torch

    from llama31.model import precision
    from llama31.model.attention import attend
    from llama31.model.sequences import SequenceTable

    documents = torch.tensor([(0, begin, end) for begin, end in zip([0, *ends[:-1]], ends, strict=True)])
    query, key, value = (
        torch.randn(length, 1, heads, WIDTH, dtype=precision.DTYPES[params], requires_grad=True)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    )
    return lambda: attend(query, key, value, SequenceTable(documents, 1, [(0, length)], query.device))


def _transformers(length: int, ends: Sequence[int], params: str) -> Pass:
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    from llama31.model import precision

    query, key, value = (
        torch.randn(1, heads, length, WIDTH, dtype=precision.DTYPES[params], requires_grad=True)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    )
    mask = torch.zeros(1, 1, length, length, dtype=torch.bool)
    for begin, end in zip([0, *ends[:-1]], ends, strict=True):
        mask[..., begin:end, begin:end] = torch.ones(end - begin, end - begin, dtype=torch.bool).tril_()
    module = torch.nn.Module()
    module.num_key_value_groups = HEADS // KV_HEADS  # type: ignore[assignment]
    return lambda: sdpa_attention_forward(module, query, key, value, mask, scaling=WIDTH**-0.5)[0]


def measure_attention(path: str, length: int, params: str) -> dict[str, Any]:
    """Forward and backward passes of one row in this process."""
    import torch

    torch.set_num_threads(1)
    make = _transformers if path == "transformers" else _ours
    make(256, [100, 256], params)().sum().backward()  # imports what is imported late
    print(json.dumps({"ready": anonymous_bytes("self")}), flush=True)
    run = make(length, [length] if path == "ours-one" else document_ends(length), params)
    passes = max(1, PASS_TOKENS // length)
    cpu_0, wall_0 = time.process_time(), time.perf_counter()
    for _ in range(passes):
        run().sum().backward()
    return {
        "tokens": passes * length,
        "cpu_s": time.process_time() - cpu_0,
        "wall_s": time.perf_counter() - wall_0,
    }


def measure_steps(
    layout: str, shape: config.Model, length: int, steps: int, warmup_steps: int, params: str
) -> dict[str, Any]:
    """Optimizer steps of one row each on all processes; CPU seconds are those of all of them."""
    import torch
    import torch.distributed as dist

    from llama31.engine.objectives import MicroBatch
    from llama31.engine.pipeline import Engine
    from llama31.model import attention, llama
    from llama31.parallel import mesh

    torch.set_num_threads(1)
    if layout.endswith("waiting"):
        start = attention.start_gather

        def waiting(key: torch.Tensor, value: torch.Tensor, group: Any) -> Callable[[], torch.Tensor]:
            rows = start(key, value, group)()
            return lambda: rows

        attention.start_gather = waiting
    parallel, numbers = config.Parallel(cp=int(layout[0])), config.Precision(params)
    grid = mesh.create(parallel)
    engine = Engine(
        llama.build(shape, numbers, parallel, grid, seed=0), shape, config.Optimizer(), numbers, parallel, grid
    )
    print(json.dumps({"ready": 0}), flush=True)
    ends = document_ends(length)
    documents = np.repeat(np.arange(len(ends)), np.diff([0, *ends]))[None]
    random, began = np.random.default_rng(0), (0.0, 0.0)
    for step in range(warmup_steps + steps):
        if step == warmup_steps:
            dist.barrier()
            began = time.process_time(), time.perf_counter()
        stream, ones = random.integers(0, shape.vocab_size, (1, length + 1)), np.ones((1, length), np.float32)
        engine.accumulate([MicroBatch.from_numpy(stream[:, :-1], stream[:, 1:], ones, documents, grid.device)])
        engine.apply(LEARNING_RATE)
    spent = torch.tensor([time.process_time() - began[0], (time.perf_counter() - began[1]) / grid.world])
    dist.all_reduce(spent)
    mesh.close()
    return {"tokens": steps * length, "cpu_s": float(spent[0]), "wall_s": float(spent[1])}


def main() -> None:
    """Measure the case that the first argument describes as JSON."""
    asked = json.loads(sys.argv[1])
    if "path" in asked:
        result = measure_attention(**asked)
    else:
        result = measure_steps(**{**asked, "shape": config.Model(**asked["shape"])})
    print(json.dumps(result), flush=True)


# --- what starts it ---


def tables(run: config.Benchmark, params: str) -> list[str]:
    """Both tables, computed in `params` ("bf16" or "fp32"), every case as often as asked, in turn."""
    attention = {f"{path}-{length}": (path, length) for length in run.attention_lengths for path in ATTENTIONS}
    runs: dict[str, list[TimedRun]] = {name: [] for name in (*attention, *LAYOUTS)}
    for repeat in range(run.repeats):
        for name in runs:
            if name in attention:
                path, length = attention[name]
                asked: dict[str, Any] = {"path": path, "length": length, "params": params}
                arguments = ["-m", "benchmarks.long_rows", json.dumps(asked)]
            else:
                asked = {"layout": name, "shape": dataclasses.asdict(run.model), "length": run.cp_length}
                asked |= {"steps": run.steps, "warmup_steps": run.warmup_steps, "params": params}
                launch = ["-m", "torch.distributed.run", f"--nproc-per-node={name[0]}", "--standalone"]
                arguments = [*launch, "-m", "benchmarks.long_rows", json.dumps(asked)]
            done = run_worker(name, arguments, run.timeout_s)
            runs[name].append(done)
            speed = f"{done.tokens_per_cpu_s:,.0f} tokens per CPU-second, {done.peak_bytes / 1e6:,.0f} MB"
            print(f"{repeat + 1}/{run.repeats} {name}: {speed}", file=sys.stderr, flush=True)
    return [attention_table(runs, run.attention_lengths, params), cp_table({name: runs[name] for name in LAYOUTS})]


def _median(runs: Sequence[TimedRun], figure: Callable[[TimedRun], float]) -> float:
    return statistics.median(figure(run) for run in runs)


def attention_table(runs: Mapping[str, Sequence[TimedRun]], lengths: Sequence[int], params: str) -> str:
    """Medians by length and path; the ratio is ours to transformers' on the same documents, in medians."""
    lines = [
        f"| tokens | attention in {params.upper()}, forward and backward "
        "| tokens per CPU-second | ours / this | peak MB | KB per token |",
        "|---|---|---|---|---|---|",
    ]
    for length in lengths:
        for path, described in ATTENTIONS.items():
            speed, ours = (_median(runs[f"{p}-{length}"], lambda r: r.tokens_per_cpu_s) for p in (path, "ours"))
            peak = _median(runs[f"{path}-{length}"], lambda r: r.peak_bytes)
            ratio = f"{ours / speed:.2f}" if path == "transformers" else ""
            figures = f"{speed:,.0f} | {ratio} | {peak / 1e6:,.0f} | {peak / length / 1e3:,.1f}"
            lines.append(f"| {length:,} | {described} | {figures} |")
    return "\n".join(lines)


def cp_table(runs: Mapping[str, Sequence[TimedRun]]) -> str:
    """Medians by layout, and each as a share of one process (of one process' speed per process)."""
    lines = [
        "| training steps | tokens per wall second | per process, against 1 | tokens per CPU-second | against 1 |",
        "|---|---|---|---|---|",
    ]
    wall_1, cpu_1 = (_median(runs["1"], figure) for figure in (_per_wall_s, lambda r: r.tokens_per_cpu_s))
    for layout, done in runs.items():
        wall, cpu = (_median(done, figure) for figure in (_per_wall_s, lambda r: r.tokens_per_cpu_s))
        shares = wall / wall_1 / int(layout[0]), cpu / cpu_1
        lines.append(f"| {LAYOUTS[layout]} | {wall:,.0f} | {shares[0]:.2f} | {cpu:,.0f} | {shares[1]:.2f} |")
    return "\n".join(lines)


def _per_wall_s(run: TimedRun) -> float:
    return run.tokens / run.wall_s


if __name__ == "__main__":
    main()
