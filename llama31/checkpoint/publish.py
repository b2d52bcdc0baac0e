"""Checkpoints on disk: complete or absent, whatever kills the process that writes them.

    <run>/checkpoints/step-00000100/      of attempt 0; step-00000100-a0003 of attempt 3 (runs/attempts.py)
        weights/          model parameters by global name (see shards.py)
        optimizer/        FP32 masters and Adam moments by global name; absent after a conversion
        random.bin        torch's random state on rank 0
        files.json        size and checksum of every file
        checkpoint.json   written last: what was saved, and checksums of the few files that do not belong to a rank
    <run>/tokenizer/      tokenizer in Hugging Face format, named by checkpoint.json

A save fills a hidden folder beside the target and renames it when all is on the disk. A folder counts as a checkpoint
when every file that it names has its size, so a copy that was cut off is noticed too; `verify` also finds a flipped
bit. What is asked often (`read_meta`) looks at checkpoint.json and the few files alone. Checkpoints of an attempt
beyond the step that a newer attempt went on from are not of this run's history: `listing` passes over them.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from llama31 import config
from llama31.checkpoint import checksum, manifest, shards
from llama31.checkpoint.manifest import Manifest
from llama31.checkpoint.shards import Shard
from llama31.parallel.collectives import Ranks, on_all_ranks, on_first_rank, rank_of

log = logging.getLogger(__name__)

MANIFEST = manifest.NAME
STEP = re.compile(r"step-(\d{8,})(?:-a(\d{4,}))?")
NOT_SHAPE = ("name", "init_std", "max_positions", "head")  # keys on which no tensor depends below the head

Fence = Callable[[], int | None]  # the number of a newer attempt; None while we are the newest


class CheckpointError(config.RunError):
    """A checkpoint could not be written; what was there before is untouched."""


class Superseded(CheckpointError):
    """A newer attempt of this run has begun: this one must neither publish, nor delete, nor load."""


@dataclass(frozen=True)
class Meta:
    """What a checkpoint says about itself, beside its tensors. Everything has to be JSON."""

    model: dict[str, Any]
    step: int = 0
    tokens: int = 0
    run: str = ""
    precision: str = "bf16"
    data_fingerprint: str = ""
    tokenizer: dict[str, Any] = field(default_factory=dict)  # kind, path, fingerprint, folder (relative to the run)
    schedule: dict[str, Any] = field(default_factory=dict)
    decisions: list[Any] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    attempt: int = 0
    validation_loss: float | None = None  # the last that was measured, for retention

    def shape(self) -> config.Model:
        """The model as the schema's dataclass."""
        return config.Model(**self.model)


def name_of(step: int, attempt: int = 0) -> str:
    """Folder name of the checkpoint of a step."""
    return f"step-{step:08d}" + (f"-a{attempt:04d}" if attempt else "")


def numbers_of(name: str) -> tuple[int, int] | None:
    """Step and attempt in the name of a checkpoint's folder; None for other names."""
    match = STEP.fullmatch(name)
    return (int(match[1]), int(match[2] or 0)) if match else None


def refuse_if_superseded(fence: Fence | None, what: str) -> None:
    """Raise Superseded if a newer attempt has begun."""
    if fence is not None and (newer := fence()) is not None:
        raise Superseded(
            f"{what}: attempt {newer} of this run has begun, so this older one stops; nothing was published or "
            "deleted, and the newer one goes on"
        )


def save(
    folder: Path | str,
    meta: Meta,
    weights: Sequence[Shard],
    optimizer: Sequence[Shard] | None = None,
    group: Ranks = None,
    random: torch.Tensor | None = None,
    fence: Fence | None = None,
) -> Path:
    """Write the checkpoint of `meta.step` below `folder` (the run's `checkpoints`) and return its path.

    Every rank of `group` calls this. `random` is the state to save where it is not that of this moment; `fence` is
    asked on rank 0 before anything is published or deleted. Raises CheckpointError on every rank if any could not
    write, Superseded if there is a newer attempt; the half-written folder is removed and older checkpoints stay.
    """
    return write(
        Path(folder) / name_of(meta.step, meta.attempt), meta, weights, optimizer, group, random=random, fence=fence
    )


def write(
    final: Path,
    meta: Meta,
    weights: Sequence[Shard],
    optimizer: Sequence[Shard] | None = None,
    group: Ranks = None,
    random: torch.Tensor | None = None,
    fence: Fence | None = None,
) -> Path:
    """`save` to a folder of any name, replacing what stands there."""
    state = (torch.get_rng_state() if random is None else random).numpy().tobytes()
    with publish(final, group, attempt=meta.attempt, fence=fence, synced=True) as temporary:
        files = {f"weights/{n}": entry for n, entry in shards.save(weights, temporary / "weights", group).items()}
        if optimizer is not None:
            saved = shards.save(optimizer, temporary / "optimizer", group)
            files |= {f"optimizer/{name}": entry for name, entry in saved.items()}
        on_all_ranks(group, lambda: _finish(temporary, meta, files, state) if rank_of(group) == 0 else None)
    return final


def _finish(folder: Path, meta: Meta, files: dict[str, checksum.Entry], random: bytes) -> None:
    (folder / "random.bin").write_bytes(random)
    _fsync(folder / "random.bin")
    manifest.write(folder, Manifest(asdict(meta), {**files, "random.bin": checksum.of_bytes(random)}))


def load_weights(folder: Path | str, weights: Iterable[Shard], group: Ranks = None) -> int:
    """Fill the blocks of `weights`, on any layout; returns the bytes that this rank read.

    ValueError where a tensor is missing or of another shape.
    """
    return shards.load(weights, Path(folder) / "weights", group)


def check_weights(folder: Path | str, shapes: Mapping[str, tuple[int, ...]], group: Ranks = None) -> None:
    """ValueError on every rank where a tensor is missing from the weights, or of another shape; reads none of them."""
    on_all_ranks(group, lambda: shards.Reader(Path(folder) / "weights").check(shapes))


def load_optimizer(folder: Path | str, optimizer: Iterable[Shard], group: Ranks = None) -> int:
    """Fill masters and moments, on any layout, one at a time from a generator (`shards.load`).

    Returns the bytes that this rank read. ValueError if the checkpoint holds weights alone.
    """
    if not (Path(folder) / "optimizer").is_dir():
        raise ValueError(f"{folder} holds weights but no optimizer: start from it with init_from= instead of resume=")
    return shards.load(optimizer, Path(folder) / "optimizer", group)


def load_random(folder: Path | str) -> None:
    """Set torch's random state to that of rank 0 at the save."""
    torch.set_rng_state(torch.frombuffer(bytearray((Path(folder) / "random.bin").read_bytes()), dtype=torch.uint8))


def read_meta(folder: Path | str) -> Meta:
    """What the checkpoint says about itself. ValueError if it is of another format, or incomplete at a glance.

    That is in checkpoint.json and the few files that do not belong to a rank; `verify` looks at all.
    """
    if said := manifest.glance(Path(folder)):
        raise ValueError(_incomplete(Path(folder), said))
    return Meta(**manifest.read_meta(Path(folder)))


def verify(folder: Path | str, group: Ranks = None, checksums: bool = True) -> list[str]:
    """Everything that is wrong with the files of a checkpoint, each named; nothing if all checksums are right.

    Collective: the ranks of `group` share out the reading and agree on the list. Without `checksums`, and in format 1,
    sizes alone are compared.
    """
    return manifest.damage(Path(folder), group, checksums)


def refuse_damaged(folder: Path | str, group: Ranks = None, checksums: bool = True) -> None:
    """ValueError on every rank of `group` that names every file of a checkpoint that is not as it was written.

    Without `checksums` sizes alone are compared.
    """
    if problems := verify(folder, group, checksums):
        raise ValueError(f"{folder} is damaged: {some(problems)}. Use an older one, or fetch it again")


def check_model(meta: Meta, model: config.Model) -> None:
    """ValueError that names every key in which the checkpoint's model differs from the run's."""
    wanted, keys = asdict(model), differing(asdict(model), meta.model)
    if keys:
        differences = "; ".join(
            f"model.{key} is {wanted[key]}, the checkpoint has {meta.model.get(key)}" for key in keys
        )
        remedy = " ".join(f"model.{key}={meta.model[key]}" for key in keys if key in meta.model)
        raise ValueError(
            f"checkpoint of another shape: {differences}. Run with {remedy or 'a checkpoint of this model'}"
        )


def differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Keys of two models in which what they compute differs; fractions are compared in FP32, in which they are used.

    Tools that keep numbers in FP32 (GGUF) write 1e-5 as 9.999999747378752e-06.
    """

    def same(key: str) -> bool:
        one, other = ours[key], theirs.get(key)
        return one == other or (isinstance(one, float) and isinstance(other, float) and _fp32(one) == _fp32(other))

    return [key for key in ours if key not in NOT_SHAPE and not same(key)]


def _fp32(number: float) -> bytes:
    return struct.pack("f", number)


@contextmanager
def publish(
    final: Path,
    group: Ranks = None,
    attempt: int | None = None,
    fence: Fence | None = None,
    synced: bool = False,
) -> Iterator[Path]:
    """A hidden folder beside `final` that takes its place when the block ends well, and vanishes when it does not.

    Every rank of `group` enters; the block may fail only on all ranks together. Disk errors become CheckpointError,
    and Superseded where a newer attempt is the reason. What killed writers left is removed first: all checkpoints up
    to `attempt`, or without one only what has the name of `final`. With `synced`, who wrote a file has brought it to
    the disk; without, all files are brought there at the end.
    """
    first = rank_of(group) == 0
    try:
        temporary = on_first_rank(lambda: _make_temporary(final, attempt, fence), group)
        try:
            yield temporary
            on_all_ranks(group, lambda: _put_in_place(temporary, final, fence, synced) if first else None)
        except BaseException:
            if first:
                shutil.rmtree(temporary, ignore_errors=True)
            raise
    except OSError as error:
        # A newer attempt sweeps away what older ones were writing.
        on_all_ranks(group, lambda: refuse_if_superseded(fence, str(final)) if first else None)
        free = shutil.disk_usage(next(p for p in final.absolute().parents if p.exists())).free
        raise CheckpointError(
            f"{final}: not written ({error}); {free / 1e9:.2f} GB are free there. "
            "Nothing half-written was left and older data is untouched: free space or choose another folder"
        ) from error


def _make_temporary(final: Path, attempt: int | None, fence: Fence | None) -> Path:
    refuse_if_superseded(fence, str(final))
    final.parent.mkdir(parents=True, exist_ok=True)
    _clean(final, attempt)
    temporary = final.parent / f".tmp-{final.name}-{secrets.token_hex(4)}"
    temporary.mkdir()
    return temporary


def _put_in_place(temporary: Path, final: Path, fence: Fence | None, synced: bool) -> None:
    """Rename, with everything on the disk first. An older `final` steps aside until its successor has the name."""
    for folder, _, files in os.walk(temporary):
        for path in [*([] if synced else [os.path.join(folder, name) for name in files]), folder]:
            _fsync(path)
    refuse_if_superseded(fence, str(final))  # as late as can be
    aside = final.parent / f".old-{final.name}"
    if final.exists():
        shutil.rmtree(aside, ignore_errors=True)
        final.rename(aside)
    temporary.rename(final)
    _fsync(final.parent)
    if aside.exists():
        remove(aside)


def refuse_incomplete(folder: Path, check: Callable[[Path], str | None] = manifest.problem) -> None:
    """ValueError where files of a checkpoint are missing or cut off; by default every file is asked its size."""
    if problem := check(folder):
        raise ValueError(_incomplete(folder, problem))


def _incomplete(folder: Path, problem: str) -> str:
    return f"{folder} is not a complete checkpoint: {problem}. Use an older one"


def some(problems: list[str]) -> str:
    """The first of them, and how many more there are."""
    return "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")


def _clean(final: Path, attempt: int | None) -> None:
    """Remove what killed saves left, and give a folder caught mid-replacement its name back.

    Those of `final` itself; with an `attempt`, of all checkpoints beside it up to that attempt, none of newer ones.
    """

    def ours(name: str) -> bool:
        numbers = numbers_of(name)
        return name == final.name or (attempt is not None and numbers is not None and numbers[1] <= attempt)

    remove_unpublished(final.parent, ours)
    for path in final.parent.glob(".old-*"):
        name = path.name.removeprefix(".old-")
        if not ours(name):
            continue
        if path.with_name(name).exists():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.rename(path.with_name(name))


def remove_unpublished(folder: Path, ours: Callable[[str], bool]) -> list[Path]:
    """Remove the hidden folders of saves that were killed, of checkpoints whose name is `ours`; returns them."""
    left = [path for path in sorted(folder.glob(".tmp-*")) if ours(path.name.removeprefix(".tmp-").rpartition("-")[0])]
    for path in left:
        log.warning("removing %s, left by a save that was killed", path)
        shutil.rmtree(path, ignore_errors=True)
    return left


def remove(path: Path) -> None:
    """Delete a folder so that a kill half-way leaves no half checkpoint under its name."""
    if path.name.startswith("."):
        shutil.rmtree(path, ignore_errors=True)
        return
    hidden = path.parent / f".tmp-{path.name}-{secrets.token_hex(4)}"
    path.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _fsync(path: str | Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
