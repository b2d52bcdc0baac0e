"""Checkpoints on disk: complete or absent, whatever kills the process that writes them.

    <run>/checkpoints/step-00000100/
        weights/          model parameters by global name (see shards.py)
        optimizer/        FP32 masters and Adam moments by global name; absent after a conversion
        random.bin        torch's random state on rank 0
        checkpoint.json   written last: what was saved, and the size of every file
    <run>/tokenizer/      tokenizer in Hugging Face format, named by checkpoint.json

A save fills a hidden folder beside the target and renames it when all is on the disk. A folder counts as a checkpoint
when every file named in checkpoint.json has its size, so a copy that was cut off is noticed too.
"""

from __future__ import annotations

import glob
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from llama31 import config, shards
from llama31.shards import Shard, on_all_ranks

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
MANIFEST = "checkpoint.json"
STEP = re.compile(r"step-(\d{8,})")
NOT_SHAPE = ("name", "init_std", "max_positions")  # keys of the model that no tensor depends on


class CheckpointError(config.RunError):
    """A checkpoint could not be written; what was there before is untouched."""


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

    def shape(self) -> config.Model:
        """The model as the schema's dataclass."""
        return config.Model(**self.model)


def name_of(step: int) -> str:
    """Folder name of the checkpoint of a step."""
    return f"step-{step:08d}"


def save(
    folder: Path | str,
    meta: Meta,
    weights: Sequence[Shard],
    optimizer: Sequence[Shard] | None = None,
    group: dist.ProcessGroup | None = None,
) -> Path:
    """Write the checkpoint of `meta.step` below `folder` (the run's `checkpoints`) and return its path.

    Every rank of `group` calls this. Raises CheckpointError on every rank if any could not write; the half-written
    folder is removed and older checkpoints stay.
    """
    return write(Path(folder) / name_of(meta.step), meta, weights, optimizer, group)


def write(
    final: Path,
    meta: Meta,
    weights: Sequence[Shard],
    optimizer: Sequence[Shard] | None = None,
    group: dist.ProcessGroup | None = None,
) -> Path:
    """`save` to a folder of any name, replacing what stands there."""
    with publish(final, group, leftovers="step-*") as temporary:
        shards.save(weights, temporary / "weights", group)
        if optimizer is not None:
            shards.save(optimizer, temporary / "optimizer", group)
        on_all_ranks(group, lambda: _write_manifest(temporary, meta) if rank_of(group) == 0 else None)
    return final


def load_weights(folder: Path | str, weights: Iterable[Shard], group: dist.ProcessGroup | None = None) -> None:
    """Fill the blocks of `weights`, on any layout. ValueError where a tensor is missing or of another shape."""
    shards.load(weights, Path(folder) / "weights", group)


def load_optimizer(folder: Path | str, optimizer: Iterable[Shard], group: dist.ProcessGroup | None = None) -> None:
    """Fill masters and moments, on any layout, one at a time from a generator (`shards.load`).

    ValueError if the checkpoint holds weights alone.
    """
    if not (Path(folder) / "optimizer").is_dir():
        raise ValueError(f"{folder} holds weights but no optimizer: start from it with init_from= instead of resume=")
    shards.load(optimizer, Path(folder) / "optimizer", group)


def load_random(folder: Path | str) -> None:
    """Set torch's random state to that of rank 0 at the save."""
    torch.set_rng_state(torch.frombuffer(bytearray((Path(folder) / "random.bin").read_bytes()), dtype=torch.uint8))


def read_meta(folder: Path | str) -> Meta:
    """What the checkpoint says about itself. ValueError if it is incomplete or of another format."""
    if problem := _problem(Path(folder)):
        raise ValueError(f"{folder} is not a complete checkpoint: {problem}. Use an older one")
    return Meta(**json.loads((Path(folder) / MANIFEST).read_text())["meta"])


def check_model(meta: Meta, model: config.Model) -> None:
    """ValueError that names every key in which the checkpoint's model differs from the run's."""
    wanted = asdict(model)
    differing = [
        f"model.{key} is {wanted[key]}, the checkpoint has {meta.model.get(key)}"
        for key in wanted
        if key not in NOT_SHAPE and wanted[key] != meta.model.get(key)
    ]
    if differing:
        shape = meta.model.get("name", "?")
        raise ValueError(f"checkpoint of another shape: {'; '.join(differing)}. Run with model={shape} or its values")


def newest(folder: Path | str) -> Path | None:
    """The newest complete checkpoint below `folder` (the run's `checkpoints`); warns about those it passes over."""
    for path in _candidates(Path(folder)):
        problem = _problem(path)
        if problem is None:
            return path
        log.warning("ignoring checkpoint %s: %s", path, problem)
    return None


def resolve(path: Path | str) -> Path:
    """A complete checkpoint: `path` itself, or the newest of the run folder `path`. ValueError says what was found."""
    path = Path(path)
    if (path / MANIFEST).exists():
        if problem := _problem(path):
            raise ValueError(f"{path} is not a complete checkpoint: {problem}. Use an older one")
        return path
    for folder in (path / "checkpoints", path):
        if folder.is_dir() and (found := newest(folder)):
            return found
    if not path.is_dir():
        what = "is no folder" if path.exists() else "does not exist"
        raise ValueError(f"{path} {what}: give a checkpoint folder (.../step-00000100) or a run folder")
    there = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
    raise ValueError(f"{path} holds no complete checkpoint, but {there}: give a checkpoint or a run folder")


def set_aside_after(folder: Path | str, step: int) -> list[Path]:
    """Rename checkpoints later than `step`: a run went back behind them, and `newest` must not return to them.

    On one rank. Returns their new names, `replaced-step-...`, which nothing reads or deletes.
    """
    aside = []
    for path in _candidates(Path(folder)):
        if int(path.name.removeprefix(".old-").removeprefix("step-")) > step:
            aside.append(path.rename(path.with_name(f"replaced-{path.name.lstrip('.')}-{secrets.token_hex(4)}")))
            log.warning("%s is set aside as %s: the run goes on from step %d", path, aside[-1].name, step)
    return aside


def prune(folder: Path | str, keep_last: int | None) -> list[Path]:
    """Delete complete checkpoints older than the newest `keep_last`; on one rank, after a save. Returns the deleted."""
    if keep_last is None:
        return []
    if keep_last < 1:
        raise ValueError(f"checkpoint.keep_last={keep_last}: keep at least 1, or null for all")
    complete = [path for path in _candidates(Path(folder)) if _problem(path) is None]
    for path in complete[keep_last:]:
        _remove(path)
    return complete[keep_last:]


def run_folder(checkpoint: Path) -> Path:
    """The run that a checkpoint belongs to."""
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent


def rank_of(group: dist.ProcessGroup | None) -> int:
    """Rank within the group; 0 without an initialised process group."""
    return dist.get_rank(group) if dist.is_initialized() else 0


@contextmanager
def publish(final: Path, group: dist.ProcessGroup | None = None, leftovers: str | None = None) -> Iterator[Path]:
    """A hidden folder beside `final` that takes its place when the block ends well, and vanishes when it does not.

    Every rank of `group` enters; the block may fail only on all ranks together. Disk errors become CheckpointError.
    What killed writers of `leftovers` (a glob; the name of `final` by default) left is removed first.
    """
    first = rank_of(group) == 0
    try:
        made = on_all_ranks(group, lambda: _make_temporary(final, leftovers) if first else None)
        temporary = next(path for path in made if path is not None)
        try:
            yield temporary
            on_all_ranks(group, lambda: _put_in_place(temporary, final) if first else None)
        except BaseException:
            if first:
                shutil.rmtree(temporary, ignore_errors=True)
            raise
    except OSError as error:
        free = shutil.disk_usage(next(p for p in final.absolute().parents if p.exists())).free
        raise CheckpointError(
            f"{final}: not written ({error}); {free / 1e9:.2f} GB are free there. "
            "Nothing half-written was left and older data is untouched: free space or choose another folder"
        ) from error


def _make_temporary(final: Path, leftovers: str | None) -> Path:
    final.parent.mkdir(parents=True, exist_ok=True)
    _clean(final.parent, leftovers or glob.escape(final.name))
    temporary = final.parent / f".tmp-{final.name}-{secrets.token_hex(4)}"
    temporary.mkdir()
    return temporary


def _put_in_place(temporary: Path, final: Path) -> None:
    """Rename, with everything on the disk first. An older `final` steps aside until its successor has the name."""
    for folder, _, files in os.walk(temporary):
        for path in [os.path.join(folder, name) for name in files] + [folder]:
            _fsync(path)
    aside = final.parent / f".old-{final.name}"
    if final.exists():
        shutil.rmtree(aside, ignore_errors=True)
        final.rename(aside)
    temporary.rename(final)
    _fsync(final.parent)
    if aside.exists():
        _remove(aside)


def _write_manifest(folder: Path, meta: Meta) -> None:
    (folder / "random.bin").write_bytes(torch.get_rng_state().numpy().tobytes())
    files = {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    manifest = {"format_version": FORMAT_VERSION, "meta": asdict(meta), "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))


def _problem(folder: Path) -> str | None:
    """Why `folder` is no complete checkpoint; None if it is one."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        return f"{MANIFEST} is missing or unreadable ({error})"
    if not isinstance(manifest, dict) or not {"meta", "files"} <= manifest.keys():
        return f"{MANIFEST} is no manifest"
    if (version := manifest.get("format_version")) != FORMAT_VERSION:
        return f"format version {version}, this code reads {FORMAT_VERSION}"
    for name, size in manifest["files"].items():
        path = folder / name
        if not path.exists():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} of {size} bytes"
    return None


def _candidates(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first: also one that a kill caught while its successor took the name."""
    if not folder.is_dir():
        return []
    found = {path.name: path for path in folder.iterdir() if STEP.fullmatch(path.name)}
    for path in folder.glob(".old-step-*"):
        found.setdefault(path.name.removeprefix(".old-"), path)
    return [found[name] for name in sorted(found, key=lambda name: int(name.removeprefix("step-")), reverse=True)]


def _clean(folder: Path, name: str) -> None:
    """Remove what killed saves of `name` (a glob) left, and give a folder caught mid-replacement its name back."""
    for path in folder.glob(f".tmp-{name}-*"):
        log.warning("removing %s, left by a save that was killed", path)
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(f".old-{name}"):
        final = folder / path.name.removeprefix(".old-")
        if final.exists():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.rename(final)


def _remove(path: Path) -> None:
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
