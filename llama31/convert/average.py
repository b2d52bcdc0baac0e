"""The average of checkpoints, or of Hugging Face folders: for the end of annealing, and for models after post-training.

Sources are mapped files and the target is written tensor by tensor, so memory is that of one tensor, whatever the model
and however many are averaged. Sums are kept in FP64 and divided once: the result is the exact average, rounded to the
number format of the output, and the average of equal weights is those weights.
"""

from __future__ import annotations

import filecmp
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from llama31 import config
from llama31.checkpoint import listing, publish
from llama31.checkpoint.shards import Block, Reader, Shard, check_space
from llama31.convert import hf
from llama31.convert.checkpoints import DTYPES, Conversion, Progress
from llama31.convert.hf import Shape

log = logging.getLogger(__name__)

CHUNK = 1 << 19  # numbers that are added up at a time: 4 MB in FP64
FOLDERS = {"weights": ("weights", ""), "masters": ("optimizer", "fp32."), "ema": ("optimizer", "ema.")}


class Input(Protocol):
    """One of the models that are averaged."""

    path: Path
    model: config.Model
    tokenizer: str  # fingerprint; empty where it is not known

    def shapes(self) -> dict[str, Shape]: ...

    def dtype(self, name: str) -> torch.dtype: ...

    def read(self, name: str, first: int, rows: int) -> Tensor: ...


class CheckpointInput:
    """A checkpoint's weights, or its masters or their online average under the names of the weights."""

    def __init__(self, path: Path, tensors: str) -> None:
        self.path, self.meta = path, publish.read_meta(path)
        self.model = self.meta.shape()
        self.tokenizer = str(self.meta.tokenizer.get("fingerprint", ""))
        folder, self._prefix = FOLDERS[tensors]
        if not (path / folder).is_dir():
            raise ValueError(f"tensors={tensors}: {path} holds weights alone; give tensors=weights")
        self._reader = Reader(path / folder)
        entries = self._reader.names().items()
        self._known = {
            name.removeprefix(self._prefix): entry for name, entry in entries if name.startswith(self._prefix)
        }
        if not self._known:
            raise ValueError(f"tensors={tensors}: {path} holds none; give tensors=weights")

    def shapes(self) -> dict[str, Shape]:
        """Name -> shape."""
        return {name: shape for name, (shape, _) in self._known.items()}

    def dtype(self, name: str) -> torch.dtype:
        """Number format of a tensor."""
        return self._known[name][1]

    def read(self, name: str, first: int, rows: int) -> Tensor:
        """Rows of a tensor; read-only."""
        return self._reader.read(self._prefix + name, first, rows)


class HuggingFace:
    """A Hugging Face folder."""

    def __init__(self, path: Path) -> None:
        self.path, self.model = path, hf.read_model(path)
        if hf.is_quantised(path):
            raise ValueError(f"{path}: its weights are in FP8; average the BF16 weights, and export that with fp8=true")
        self._files = hf.SafetensorsFolder(path)
        self.tokenizer = hf.tokenizer_identity(path / "tokenizer.json")

    def shapes(self) -> dict[str, Shape]:
        """Name -> shape."""
        return self._files.shapes()

    def dtype(self, name: str) -> torch.dtype:
        """Number format of a tensor."""
        return self._files.dtype(name)

    def read(self, name: str, first: int, rows: int) -> Tensor:
        """Rows of a tensor; read-only."""
        return self._files.read(name)[first : first + rows]


def run(settings: config.Average, progress: Progress = lambda done, total: None) -> Conversion:
    """Average as `settings` say, and publish the result in one piece.

    Raises ValueError where the inputs do not go together, with all differences, and where something stands at the
    target; CheckpointError where the result could not be written.
    """
    written, start = 0, time.monotonic()

    def count(done: int, total: int) -> None:
        nonlocal written
        written += done
        progress(done, total)

    paths = _paths(settings)
    if all(_is_hf(path) for path in paths):
        if settings.tensors != "weights":
            raise ValueError(
                f"tensors={settings.tensors}: Hugging Face folders have weights alone; give tensors=weights"
            )
        target = _to_hf(settings, [HuggingFace(path) for path in paths], count)
    else:
        target = _to_checkpoint(settings, [CheckpointInput(path, settings.tensors) for path in paths], count)
    return Conversion(target, written, time.monotonic() - start)


def weights_of(settings: config.Average, count: int) -> list[float]:
    """Weight of each of `count` inputs, not normalised: 1, as given, or decay ^ age where the last has age 0.

    Raises ValueError where `weights` are not as many as the inputs.
    """
    if settings.decay is not None:
        return [settings.decay ** (count - 1 - i) for i in range(count)]
    if settings.weights and len(settings.weights) != count:
        raise ValueError(f"weights={settings.weights}: there are {count} inputs; give one weight for each")
    return list(settings.weights) or [1.0] * count


def averaged(inputs: Sequence[Input], weights: Sequence[float], name: str, dtype: torch.dtype) -> Tensor:
    """The weighted average of one tensor, summed in FP64 in the order of the inputs and rounded to `dtype` once."""
    shape, total = inputs[0].shapes()[name], sum(weights)
    result = torch.empty(shape, dtype=dtype)
    height = max(1, CHUNK * shape[0] // max(1, result.numel()))
    for first in range(0, shape[0], height):
        part = result[first : first + height]
        added = torch.zeros(part.shape, dtype=torch.float64)
        for each, weight in zip(inputs, weights, strict=True):
            added.add_(each.read(name, first, len(part)), alpha=weight)
        part.copy_(added.div_(total))
    return result


# --- what is averaged -------------------------------------------------------------------------------------------------


def _is_hf(path: Path) -> bool:
    return (path / "config.json").is_file() and not (path / publish.MANIFEST).is_file()


def _paths(settings: config.Average) -> list[Path]:
    """The inputs, oldest first where a run is given. ValueError unless there are two at least, of one kind."""
    if settings.run is not None:
        paths = _last(Path(settings.run), settings.last)
    else:
        paths = [path if _is_hf(path) else listing.resolve(path) for path in map(Path, settings.inputs)]
    kinds = {_is_hf(path) for path in paths}
    if len(kinds) > 1:
        named = ", ".join(str(path) for path in paths if _is_hf(path))
        raise ValueError(
            f"inputs: {named} are Hugging Face folders, the others checkpoints; convert some of them first"
        )
    twice = sorted({str(path) for path in paths if paths.count(path) > 1})
    if twice:
        raise ValueError(f"inputs: {', '.join(twice)} is given twice; weigh it with weights= instead")
    if len(paths) < 2 and settings.tensors != "ema":
        raise ValueError(f"inputs: {paths[0]} alone is its own average; give two or more, or run= and last=")
    return paths


def _last(folder: Path, last: int | None) -> list[Path]:
    """The newest `last` complete checkpoints of a run, oldest first; of several of one step, the newest attempt's."""
    by_step: dict[int, Path] = {}
    for path in listing.candidates(folder / "checkpoints"):  # newest first, without abandoned branches
        try:
            publish.refuse_incomplete(path)
            by_step.setdefault(publish.read_meta(path).step, path)
        except ValueError as error:
            log.warning("leaving out %s: %s", path, error)
    steps = sorted(by_step)
    if not steps or len(steps) < (last or 1):
        there = f"steps {', '.join(map(str, steps))}" if steps else "none"
        raise ValueError(
            f"last={last}: run={folder} holds {len(steps)} complete checkpoints ({there}); give fewer, or keep more "
            "of them with checkpoint.keep_last"
        )
    return [by_step[step] for step in steps[-(last or len(steps)) :]]


def _check(inputs: Sequence[Input]) -> None:
    """ValueError that names all in which the inputs differ from the last of them."""
    last, problems = inputs[-1], []
    for each in inputs[:-1]:
        ours, theirs = asdict(each.model), asdict(last.model)
        keys = publish.differing(ours, theirs)
        problems += [f"{each.path} has {key}={ours[key]}, {last.path} {theirs[key]}" for key in keys]
        if not keys:
            problems += _tensor_problems(each, last)
        if each.tokenizer and last.tokenizer and each.tokenizer != last.tokenizer:
            problems.append(f"{each.path} has another tokenizer than {last.path}")
    if problems:
        shown = "; ".join(problems[:12]) + (f"; and {len(problems) - 12} more" if len(problems) > 12 else "")
        raise ValueError(f"inputs: {shown}. Average models of one shape and tokenizer")


def _tensor_problems(each: Input, last: Input) -> Iterator[str]:
    ours, theirs = each.shapes(), last.shapes()
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            shapes = [list(known[name]) if name in known else "none" for known in (ours, theirs)]
            yield f"{name}: {each.path} has {shapes[0]}, {last.path} {shapes[1]}"


def _provenance(inputs: Sequence[Input], settings: config.Average, weights: Sequence[float]) -> dict[str, Any]:
    """What was averaged, for those who find the result."""
    shares = [weight / sum(weights) for weight in weights]
    described = []
    for each, share in zip(inputs, shares):
        meta = each.meta if isinstance(each, CheckpointInput) else None
        where = {"run": meta.run, "step": meta.step, "tokens": meta.tokens} if meta else {}
        described.append({"path": str(each.path), **where, "weight": share})
    kind = "exponential" if settings.decay is not None else "weighted" if settings.weights else "uniform"
    return {"kind": kind, "tensors": settings.tensors, "inputs": described}


# --- where it goes ----------------------------------------------------------------------------------------------------


def _to_checkpoint(settings: config.Average, inputs: Sequence[CheckpointInput], progress: Progress) -> Path:
    weights = weights_of(settings, len(inputs))
    _check(inputs)
    newest = max(reversed(inputs), key=lambda each: each.meta.tokens)
    if settings.decay is not None and [each.meta.tokens for each in inputs] != sorted(
        each.meta.tokens for each in inputs
    ):
        raise ValueError("inputs: an exponential average needs them from the oldest to the newest; put them in order")
    target = _target(settings, newest, inputs)
    precision = settings.dtype or newest.meta.precision
    dtype = DTYPES[precision]
    shapes = newest.shapes()
    total = sum(torch.Size(shape).numel() for shape in shapes.values()) * dtype.itemsize

    def made(name: str) -> Tensor:
        tensor = averaged(inputs, weights, name, dtype)
        progress(tensor.nbytes, total)
        return tensor

    shards = [
        Shard(name, shape, [Block((0,) * len(shape), partial(made, name), shape, dtype)])
        for name, shape in shapes.items()
    ]
    extra = {**newest.meta.extra, "average": _provenance(inputs, settings, weights)}
    meta = replace(newest.meta, run=listing.run_folder(target).name, precision=precision, extra=extra)
    with _tokenizer_beside(target, newest, settings.overwrite):
        return publish.write(target, meta, shards)


def _target(settings: config.Average, newest: CheckpointInput, inputs: Sequence[CheckpointInput]) -> Path:
    """The checkpoint folder that `target` means: itself, or the newest's step in a run folder. ValueError if taken."""
    given = Path(settings.target)
    named = publish.STEP.fullmatch(given.name)
    target = given if named else given / "checkpoints" / publish.name_of(newest.meta.step)
    if target.absolute().parent in {each.path.absolute().parent for each in inputs}:
        raise ValueError(
            f"target={given}: that run would go on from the average, which has no optimizer; give a folder of its own, "
            f"for example {listing.run_folder(newest.path)}-average"
        )
    if target.exists() and not settings.overwrite:
        raise ValueError(f"target={target} is already there: choose another folder, or overwrite=true to replace it")
    return target


@contextmanager
def _tokenizer_beside(target: Path, newest: CheckpointInput, overwrite: bool) -> Iterator[None]:
    """The newest's tokenizer beside the target: prepared before the weights are written, and published after them.

    ValueError where another one stands there.
    """
    name = newest.meta.tokenizer.get("folder", "tokenizer")
    source, final = (listing.run_folder(path) / name for path in (newest.path, target))
    files = [path.name for path in source.iterdir()] if source.is_dir() else []
    if not files or (final.is_dir() and filecmp.cmpfiles(source, final, files, shallow=False)[0] == files):
        yield
        return
    if final.exists() and not overwrite:
        raise ValueError(f"target={target}: {final} holds another tokenizer; choose another folder, or overwrite=true")
    with publish.publish(final) as temporary:
        shutil.copytree(source, temporary, dirs_exist_ok=True)
        yield


def _to_hf(settings: config.Average, inputs: Sequence[HuggingFace], progress: Progress) -> Path:
    """The result is the last folder with other weights: its config, generation config and tokenizer."""
    weights, last, target = weights_of(settings, len(inputs)), inputs[-1], Path(settings.target)
    _check(inputs)
    taken = target.exists() and not (target.is_dir() and not any(target.iterdir()))
    if taken and not (settings.overwrite and (target / "config.json").is_file()):
        raise ValueError(f"target={target} is already there: choose another, or overwrite=true to replace a model")
    if target.absolute() in {each.path.absolute() for each in inputs}:
        raise ValueError(f"target={target} is one of the inputs; give a folder of its own")
    shapes, dtype = last.shapes(), _hf_dtype(settings, last)
    with publish.publish(target) as temporary:
        writer = hf.SafetensorsWriter(temporary, shapes, dtype, settings.max_shard_bytes)
        check_space(temporary, writer.total_bytes)
        try:
            for name in shapes:
                writer.write(name, averaged(inputs, weights, name, dtype))
                progress(torch.Size(shapes[name]).numel() * dtype.itemsize, writer.total_bytes)
            writer.finish()
        finally:
            writer.close()
        stated = hf.FORMATS[dtype][1]
        raw = hf.read_json(last.path / "config.json")
        raw.setdefault("transformers_version", hf.VERSION)
        names = {"dtype": stated, "torch_dtype": stated}
        hf.write_json(temporary / "config.json", raw | {key: names[key] for key in names if key in raw})
        if (last.path / "generation_config.json").is_file():
            shutil.copyfile(last.path / "generation_config.json", temporary / "generation_config.json")
        hf.copy_tokenizer(last.path, temporary)
        hf.write_json(temporary / "average.json", _provenance(inputs, settings, weights))
    return target


def _hf_dtype(settings: config.Average, last: HuggingFace) -> torch.dtype:
    if settings.dtype is not None:
        return DTYPES[settings.dtype]
    dtypes = {last.dtype(name) for name in last.shapes()}
    if len(dtypes) > 1 or not dtypes <= hf.FORMATS.keys():
        named = ", ".join(sorted(str(dtype) for dtype in dtypes))
        raise ValueError(f"dtype=null: {last.path} holds {named}; give dtype=bf16 or fp32")
    return dtypes.pop()
