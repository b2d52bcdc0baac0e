"""What a checkpoint costs: how long training stands still for it, and how fast it is written and read.

`checkpoint_speed` measures in a process of its own (`python -m benchmarks.checkpoints FOLDER PARAMS`), on one model
in one run: saves in the way of training and saves in the background by turns: what slows the machine slows both.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama31 import config

if TYPE_CHECKING:
    from llama31.checkpoint.publish import Meta
    from llama31.checkpoint.saver import Saver
    from llama31.engine.pipeline import Engine

Train = Callable[[Callable[[], float]], float]  # one step, given what waits before the update: seconds waited
ROOT = Path(__file__).resolve().parent.parent
ROUNDS = 5
ROWS, LENGTH = 1, 64
MODEL = config.Model(  # 100 million parameters
    name="bench", layers=12, hidden_size=768, ffn_hidden_size=2048, heads=12, kv_heads=4, vocab_size=16384
)
Seconds = dict[str, list[float]]


def checkpoint_speed(params: str, timeout_s: float) -> dict[str, str]:
    """Rows for `timing.figures_table`, of a model in `params` ("bf16" or "fp32"): medians, ranges where they matter."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.checkpoints", folder, params],
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
    if done.returncode:
        raise RuntimeError(f"benchmarks.checkpoints failed:\n{done.stderr[-4000:]}")
    said = json.loads(done.stdout.splitlines()[-1])
    return rows(said["seconds"], said["bytes"])


def rows(seconds: Seconds, size_bytes: int) -> dict[str, str]:
    """The measured seconds as figures by name."""
    median = {name: statistics.median(values) for name, values in seconds.items()}

    def speed(name: str) -> str:
        return f"{size_bytes / median[name] / 1e6:,.0f} MB/s"

    def against(ours: str, theirs: str) -> str:
        return f"{speed(ours)}; {speed(theirs)}; ours / theirs {median[theirs] / median[ours]:.2f}"

    def stall(name: str) -> str:
        share = median[name] / median["synchronous"]
        low, high = min(seconds[name]) * 1e3, max(seconds[name]) * 1e3
        return f"{share:.1%} of a synchronous save ({median[name] * 1e3:,.0f} ms; {low:,.0f} to {high:,.0f})"

    slower = median["step while writing"] / median["step"] - 1
    return {
        f"checkpoint of {size_bytes / 1e6:,.0f} MB, synchronous save: training stands still": (
            f"{median['synchronous']:.2f} s"
        ),
        "asynchronous save, copied beside the next step: training stands still": stall("overlapped stall"),
        "asynchronous save, copied at once: training stands still": stall("asynchronous stall"),
        "asynchronous save: from the call to the published checkpoint": f"{median['write']:.2f} s",
        "a training step while a checkpoint is written": f"{slower:+.1%} ({median['step']:.2f} s without)",
        "save with checksums; torch.save of the same bytes, both to the disk (fsync)": against(
            "synchronous", "torch.save"
        ),
        "load into the optimizer; torch.load of the same bytes, both from the page cache": against(
            "load", "torch.load"
        ),
        "verification of all checksums, from the page cache": speed("verify"),
    }


def measure(folder: Path, params: str) -> dict[str, Any]:
    """Train, save and load in this process: seconds by what was done, and the bytes of a checkpoint."""
    import torch

    from llama31.checkpoint import publish
    from llama31.checkpoint.saver import Saver, background_group
    from llama31.engine import state

    torch.set_num_threads(1)
    train, engine = _trainer(params)
    seconds: Seconds = {}

    def timed(name: str, action: Callable[[], Any]) -> Any:
        os.sync()  # what others left to write is not ours
        begin = time.perf_counter()
        result = action()
        seconds.setdefault(name, []).append(time.perf_counter() - begin)
        return result

    keep = config.Checkpoint(keep_last=1)
    group = background_group()
    ahead = Saver(folder / "synchronous", group, asynchronous=False, keep=keep)
    behind = Saver(folder / "asynchronous", group, keep=keep)
    behind.reserve(state.weights(engine), state.optimizer(engine))
    train(lambda: 0.0)
    for step in range(1, ROUNDS + 1):
        meta = publish.Meta(model={}, step=step)
        timed("step", partial(train, lambda: 0.0))
        timed("synchronous", partial(ahead.save, meta, state.weights(engine), state.optimizer(engine)))
        peer = _peer(folder / "peer.pt", engine)
        timed("torch.save", peer.save)
        _in_background("overlapped stall", behind, meta, engine, train, seconds, overlap=True)
        timed("step", partial(train, lambda: 0.0))
        _in_background("asynchronous stall", behind, meta, engine, train, seconds, overlap=False)
        assert ahead.newest is not None, ahead.poll()
        timed("load", partial(_load, ahead.newest, engine))
        timed("torch.load", peer.load)
        assert timed("verify", partial(publish.verify, ahead.newest)) == []
    assert ahead.newest is not None
    size = sum(file.stat().st_size for file in ahead.newest.rglob("*") if file.is_file())
    return {"seconds": seconds, "bytes": size}


def _in_background(
    name: str, saver: Saver, meta: Meta, engine: Engine, train: Train, seconds: Seconds, overlap: bool
) -> None:
    """One save and the steps until it is published: the time that they stood still for it, and how long they took."""
    from llama31.engine import state

    begin = time.perf_counter()
    saver.save(meta, state.weights(engine), state.optimizer(engine), overlap=overlap)
    stall_s = time.perf_counter() - begin
    while not (published := saver.poll()):
        begin = time.perf_counter()
        waited_s = train(saver.staged)
        seconds.setdefault("step while writing", []).append(time.perf_counter() - begin - waited_s)
        stall_s += waited_s
    seconds.setdefault(name, []).append(stall_s)
    seconds.setdefault("write", []).append(published[0].write_s)


def _trainer(params: str) -> tuple[Train, Engine]:
    """One optimizer step as `loop.fit` does it, given what to call just before the update; and the engine."""
    import numpy as np

    from llama31.engine.objectives import MicroBatch
    from llama31.engine.pipeline import Engine
    from llama31.model import llama
    from llama31.parallel import mesh

    numbers, parallel = config.Precision(params=params), config.Parallel()
    mesh.connect(timeout_s=600)
    grid = mesh.create(parallel)
    chunks = llama.build(MODEL, numbers, parallel, grid, seed=0)
    engine = Engine(chunks, MODEL, config.Optimizer(), numbers, parallel, grid)
    words = np.random.default_rng(0).integers(0, MODEL.vocab_size, (ROWS, LENGTH + 1))
    mask, documents = np.ones((ROWS, LENGTH), np.float32), np.zeros((ROWS, LENGTH), np.int64)
    batch = [MicroBatch.from_numpy(words[:, :-1], words[:, 1:], mask, documents, grid.device)]

    def train(before_update: Callable[[], float]) -> float:
        engine.accumulate(batch)
        waited_s = before_update()
        engine.apply(1e-4)
        return waited_s

    return train, engine


def _load(path: Path, engine: Engine) -> None:
    """All that a resumed run reads."""
    from llama31.engine import state

    state.check_weights(path, engine.chunks, MODEL, engine.grid)
    state.load_optimizer(path, engine, 1)


@dataclass(frozen=True)
class _Peer:
    """What one writes by hand: torch.save of one dictionary, to the disk, and torch.load with the copy into place."""

    path: Path
    held: dict[str, Any]

    def save(self) -> None:
        import torch

        self.path.unlink(missing_ok=True)
        with self.path.open("wb") as file:
            torch.save(self.held, file)
            file.flush()
            os.fsync(file.fileno())

    def load(self) -> None:
        import torch

        for name, tensor in torch.load(self.path).items():
            self.held[name].copy_(tensor)


def _peer(path: Path, engine: Engine) -> _Peer:
    """The same tensors, each with a storage of its own as a plain trainer has them."""
    from llama31.engine import state

    shards = state.weights(engine) + state.optimizer(engine)
    return _Peer(path, {f"{s.name}/{i}": b.resolve().clone() for s in shards for i, b in enumerate(s.blocks)})


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), sys.argv[2])))
