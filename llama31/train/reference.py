"""Log-probabilities of DPO's answers under the model that training begins with, computed once and kept.

They depend on the weights, the ids, what of them counts, and the number format, and on nothing else: their file bears a
fingerprint of all that, so another model, tokenizer or mask finds no file and computes again, and runs that differ in
beta or learning rate share one. The model is on the run's layout, alone in memory, before the one that is trained is
built. Under ZeRO 3 it is whole on each tensor-parallel group all the same.
"""

from __future__ import annotations

import gc
import hashlib
import json
import time
import zipfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from llama31 import config
from llama31.checkpoint import listing, manifest
from llama31.dialogs.feed import DialogFeed, Preferred
from llama31.engine import preference, scoring, state
from llama31.engine.pipeline import Forward
from llama31.model import llama
from llama31.parallel.collectives import on_first_rank
from llama31.parallel.mesh import Grid
from llama31.runs import files

VERSION = 1
Values = NDArray[np.float32]


@dataclass(frozen=True)
class Reference:
    """The model that DPO is held to: where its weights stand, and how they are computed with."""

    checkpoint: str  # `init_from`
    model: config.Model
    precision: config.Precision
    parallel: config.Parallel


def attach(feed: DialogFeed, reference: Reference, folder: str | Path, grid: Grid) -> None:
    """Give `feed` the log-probabilities of both answers of each example, from `folder` where they are. Collective.

    Raises ValueError (key `init_from`) where the model to begin with cannot be read.
    """
    source = on_first_rank(lambda: listing.resolve(reference.checkpoint))
    feed.reference_key = on_first_rank(lambda: fingerprint(feed, reference, source))  # reads the list of all files
    path = Path(folder) / f"reference-{feed.reference_key[:16]}.npz"
    known = on_first_rank(lambda: read(path, feed.reference_key))
    if known is None:
        begin = time.perf_counter()
        values = known = compute(feed, reference, grid, source)
        on_first_rank(lambda: write(path, feed.reference_key, values))
        if grid.rank == 0:
            print(f"reference: {len(known):,} examples in {time.perf_counter() - begin:.1f} s -> {path}", flush=True)
    elif grid.rank == 0:
        print(f"reference: {path}", flush=True)
    feed.reference = known


def fingerprint(feed: DialogFeed, reference: Reference, source: Path) -> str:
    """Of all that decides the numbers: weights by the checksums of their files, data, mask, rows, number format."""
    assert isinstance(feed.collator, Preferred), "the reference is DPO's"
    files = manifest.read(source).files
    weights = {
        name: [entry.size, entry.checksum or (source / name).stat().st_mtime_ns]
        for name, entry in sorted(files.items())
        if name.startswith("weights/")
    }
    decisive = {
        "version": VERSION,
        "weights": weights,
        "model": {key: value for key, value in vars(reference.model).items() if key not in ("name", "init_std")},
        "tokenizer": feed.tokenizer_fingerprint,
        "data": feed.fingerprints,
        "masked": feed.collator.masked,
        "strengths": sorted(feed.collator.strengths),
        "sequence_length": feed.schedule.sequence_length,
        "precision": asdict(reference.precision) if reference.precision.fp8 != "none" else reference.precision.params,
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def compute(feed: DialogFeed, reference: Reference, grid: Grid, source: Path) -> Values:
    """[examples, 2]: the better answer's, then the worse's; 0 of what is not learned. Collective."""
    parallel = replace(reference.parallel, tp_overlap=False)  # responses are of all lengths
    chunks = llama.build(reference.model, reference.precision, parallel, grid)
    state.load_weights(source, chunks, reference.model, grid)
    forward, length = Forward(chunks, grid), feed.schedule.sequence_length
    size = reference.parallel.micro_batch
    dealt, sums = feed.everything(length), torch.zeros(feed.examples, 2, device=grid.device)
    asked = scoring.numbers(forward, dealt, lambda rows: feed.alone(rows, length), preference.log_probabilities, size)
    for places, _, values_of in asked:
        sums[[int(number) for place in places for number in dealt[place]]] = values_of.view(-1, 2)
    dist.all_reduce(sums, group=grid.dp_group)  # each example has one owner among replicas
    values = sums.cpu().numpy()
    del forward, chunks, asked
    gc.collect()
    return values


def write(path: Path, key: str, values: Values) -> None:
    """Keep the values, whole or not at all."""
    with files.whole(path) as draft, draft.open("wb") as file:
        np.savez(file, values=values, key=np.array(key), checksum=np.array(_checksum(values)))


def read(path: Path, key: str) -> Values | None:
    """The values that were kept under `key`; None where there are none, or they are damaged."""
    if not path.is_file():
        return None
    try:
        with np.load(path) as kept:
            arrays: dict[str, Any] = {name: kept[name] for name in ("values", "key", "checksum")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        print(f"reference: {path} cannot be read ({error}), and is made again", flush=True)
        return None
    values: Values = arrays["values"]
    if str(arrays["key"]) != key or str(arrays["checksum"]) != _checksum(values):
        print(f"reference: {path} is not what it was written as, and is made again", flush=True)
        return None
    return values


def _checksum(values: Values) -> str:
    return hashlib.sha256(repr(values.shape).encode() + np.ascontiguousarray(values).tobytes()).hexdigest()
