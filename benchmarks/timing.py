"""What the benchmark measures, each in processes of its own, as rows of a Markdown table.

Tokens per CPU-second, because the wall clock of a shared machine says more about its neighbours. Memory is anonymous
memory above the level after the imports, sampled from outside so that measuring costs the measured process nothing.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.peers import Case, Work, anonymous_bytes, request
from llama31.runs import metrics

ROOT = Path(__file__).resolve().parent.parent
SAMPLE_S = 0.005
STATE = {
    "fp32": "FP32 throughout",
    "mixed": "FP32 masters, moments, accumulation; BF16 compute",
    "bf16": "all BF16",
}


@dataclass(frozen=True)
class TimedRun:
    """One run of one case."""

    tokens: int
    cpu_s: float
    wall_s: float
    peak_bytes: int
    extra: Mapping[str, float] = field(default_factory=dict)

    @property
    def tokens_per_cpu_s(self) -> float:
        return self.tokens / self.cpu_s


def run_case(work: Work, case: Case, timeout_s: float) -> TimedRun:
    """Measure one case in a fresh process. Raises RuntimeError with its output when it fails or takes too long."""
    return run_worker(str(case), ["-m", "benchmarks.peers", request(work, case)], timeout_s)


def run_worker(name: str, arguments: Sequence[str], timeout_s: float) -> TimedRun:
    """Run Python with these arguments, which says `ready` and then its TimedRun as lines of JSON.

    Raises RuntimeError with its output when it fails or takes too long. Memory is that of the process itself, without
    any that it starts.
    """
    with tempfile.TemporaryFile("w+") as errors:
        child = _start(*arguments, stdout=subprocess.PIPE, stderr=errors)
        limit = threading.Timer(timeout_s, child.kill)
        limit.start()
        try:
            said, peak_bytes = _watch(child)
        finally:
            limit.cancel()
            child.kill()
        if child.wait() or "tokens" not in said:
            errors.seek(0)
            raise RuntimeError(f"{name} failed within {timeout_s} s:\n{errors.read()[-4000:]}")
    extra = {key: said[key] for key in said.keys() - {"ready", "tokens", "cpu_s", "wall_s"}}
    return TimedRun(said["tokens"], said["cpu_s"], said["wall_s"], max(0, peak_bytes - said["ready"]), extra)


def _watch(child: subprocess.Popen[str]) -> tuple[dict[str, Any], int]:
    """All that a worker said as JSON, and the peak of its anonymous memory after it said `ready`."""
    said: dict[str, Any] = {}

    def listen() -> None:
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith("{") and line.rstrip().endswith("}") and '"' in line:
                said.update(json.loads(line))

    listener = threading.Thread(target=listen)
    listener.start()
    peak_bytes = 0
    while listener.is_alive():
        if "ready" in said:
            peak_bytes = max(peak_bytes, _anonymous_bytes(child.pid))
        listener.join(SAMPLE_S)
    return said, peak_bytes


def _anonymous_bytes(pid: int) -> int:
    try:
        return anonymous_bytes(pid)
    except (FileNotFoundError, ProcessLookupError):
        return 0  # it has just ended


def _start(*arguments: str, **streams: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", *arguments], env=environment, text=True, cwd=ROOT, **streams
    )


# --- training ---


def training_table(runs: Mapping[str, Sequence[TimedRun]]) -> str:
    """Medians per case, and the ratio of ours to each peer that computes in the same precision."""
    lines = [
        "| case | state | tokens per CPU-second: median (range) | ours / this | peak memory above imports, MB |",
        "|---|---|---|---|---|",
    ]
    for name, done in runs.items():
        speeds = [run.tokens_per_cpu_s for run in done]
        ours = runs.get(_counterpart(name), ())
        ratio = f"{_speed(ours) / _speed(done):.2f}" if ours and not name.startswith("ours") else ""
        peak_mb = statistics.median(run.peak_bytes for run in done) / 1e6
        spread = f"{statistics.median(speeds):,.0f} ({min(speeds):,.0f} to {max(speeds):,.0f})"
        lines.append(f"| {name} | {STATE[Case.parse(name).precision]} | {spread} | {ratio} | {peak_mb:,.0f} |")
    shares = [run.extra["shim_share"] for done in runs.values() for run in done if "shim_share" in run.extra]
    if shares:
        lines += ["", f"Time inside the CPU shim, as a share of a step of ours: {statistics.median(shares):.3%}."]
    return "\n".join(lines)


def _counterpart(name: str) -> str:
    """Ours in the precision that a peer computes in: it has no variant that keeps all state in BF16."""
    return "ours-own-fp32" if Case.parse(name).precision == "fp32" else "ours-own-mixed"


def _speed(runs: Sequence[TimedRun]) -> float:
    return statistics.median(run.tokens_per_cpu_s for run in runs)


# --- what a user waits for, through the commands that a user types ---


def command(timeout_s: float, *arguments: str) -> tuple[float, str]:
    """CPU seconds of a command with all that it started, and its output. Raises RuntimeError with it on failure."""
    with tempfile.TemporaryFile("w+") as output:
        used = os.times()
        child = _start("-m", *arguments, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            code = child.wait(timeout_s)
        finally:
            child.kill()
        now = os.times()
        output.seek(0)
        printed = output.read()
        if code:
            raise RuntimeError(f"{' '.join(arguments)} exited with {code}:\n{printed[-4000:]}")
    return now.children_user + now.children_system - used.children_user - used.children_system, printed


def pack_speed(tokenizer: str | None, timeout_s: float) -> dict[str, str]:
    """Packing the Python sources of this environment with the Llama 3 tokenizer, one worker."""
    if tokenizer is None:
        package = find_spec("llama_models")
        if package is None or package.origin is None:
            raise ValueError("llama3_tokenizer=null: the package llama-models is not installed; give a tokenizer.model")
        tokenizer = str(Path(package.origin).parent / "llama3" / "tokenizer.model")
    with tempfile.TemporaryDirectory() as folder:
        source = [
            "data.sources.python.input='{stdlib},{site-packages}'",
            "data.sources.python.format=tree",
            "data.sources.python.suffixes=.py",
        ]
        given = [f"data.folder={folder}", *source, "tokenizer.kind=tiktoken", f"tokenizer.path={tokenizer}"]
        cpu_s, _ = command(timeout_s, "recipes.pack", *given, "data.workers=1")
        # 128,256 ids need four bytes each.
        tokens = sum(path.stat().st_size for path in Path(folder).rglob("*.bin")) // 4
    speed = f"{tokens / cpu_s / 1e6:.2f} Mtok per CPU-second ({tokens / 1e6:.1f} Mtok)"
    return {"recipes.pack, Llama 3 tokenizer, one worker": speed}


# Random weights in BF16, by the number of layers.
_MAKE_HF = """
import sys, torch, transformers
settings = transformers.LlamaConfig(vocab_size=8192, hidden_size=512, intermediate_size=4096, num_attention_heads=8,
    num_key_value_heads=4, num_hidden_layers=int(sys.argv[2]), dtype='bfloat16')
transformers.LlamaForCausalLM(settings).to(torch.bfloat16).save_pretrained(sys.argv[1])
"""


def convert_speed(timeout_s: float) -> dict[str, str]:
    """Conversion both ways as the recipe itself says it: from the first tensor to the last byte on the disk."""
    figures = {}
    with tempfile.TemporaryDirectory() as top:
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _MAKE_HF, f"{top}/hf", "36"],
            check=True,
            capture_output=True,
            timeout=timeout_s,
        )
        for direction, folder in (("from_hf", "hf"), ("to_hf", "back")):
            given = [f"direction={direction}", f"hf={top}/{folder}", f"checkpoint={top}/checkpoint"]
            _, printed = command(timeout_s, "recipes.convert", *given)
            said = re.search(r": ([\d.]+ GB in [\d.]+ s) \(([\d.]+) MB/s\)", printed)
            assert said is not None, printed
            figures[f"recipes.convert {direction}"] = f"{said[2]} MB/s ({said[1]})"
    return figures


def start_time(timeout_s: float) -> dict[str, str]:
    """From typing `python -m recipes.pretrain` to the record of the first step, one process, the demo's model."""
    with tempfile.TemporaryDirectory() as top:
        given = ["data=demo", "tokenizer=demo", f"data.folder={top}/data", f"tokenizer.path={top}/tokenizer"]
        command(timeout_s, "recipes.pack", *given, "tokenizer.train_bytes=2000000")
        run = ["--config-name", "demo", f"folder={top}/run", "stop_after_steps=1", "schedule.batch_tokens=1024"]
        began_s = time.time()
        command(timeout_s, "recipes.pretrain", *run, *given[2:])
        first = next(line for line in metrics.read(f"{top}/run") if line["kind"] == "train")
    waited = f"{first['time_s'] - began_s:.1f} s, of which the step {first.get('step_s', 0):.1f} s"
    return {"python -m recipes.pretrain to its first step": waited}


def figures_table(figures: Mapping[str, str]) -> str:
    """Name and figure, one row each."""
    return "\n".join(
        ["| what | measured |", "|---|---|", *(f"| {name} | {figure} |" for name, figure in figures.items())]
    )
