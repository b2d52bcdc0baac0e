"""Pack a source: text -> tokens on disk.

Processes tokenize work items of a few megabytes; this one writes their tokens in the order of the items, so the files
are the same whatever the number of processes. Everything is written beside the target and renamed at the end: a packed
folder is complete or absent. Tokens travel to the writer through pipes, at most 8 bytes per byte of text, which keeps
up with about a hundred cores; a corpus for more is packed as several sources at once.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import time
import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama31 import config
from llama31.tokens import packed, sources, tokenizers
from llama31.tokens.indexed import SUFFIXES, IndexedReader, IndexedWriter, dtype_for
from llama31.tokens.packed import Packed, Split
from llama31.tokens.records import first_few, not_read

_SNIPPET_CHARS = 1000  # shorter pieces of a document teach a tokenizer little
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True)
class _PackJob:
    """One work item and what decides its tokens; small, for it travels to a process."""

    item: sources.Item
    source: config.Source
    name: str
    kind: str
    path: str
    bos: bool
    eos: bool
    seed: int
    heldout_fraction: float


@dataclass(frozen=True)
class _Part:
    """Tokens of one item that belong to one split."""

    tokens: NDArray[Any]  # [sum of lengths]
    lengths: NDArray[np.int32]  # [documents]
    keys: NDArray[np.uint64]  # [documents], what placed them in this split


@dataclass(frozen=True)
class _Result:
    """Both splits of one item, and what they cost."""

    parts: dict[str, _Part]
    left: sources.LeftOut
    size: int
    cpu_s: float


def pack(data: config.Data, name: str, settings: config.Tokenizer, overwrite: bool = False) -> Packed:
    """Pack source `name` into its folder and return what `packed.json` says.

    A folder that was packed from the same input with the same settings is left as it is. Raises ValueError (keys
    `data.*`, `tokenizer.*`) where it was packed otherwise and `overwrite` is false, where the input is bad or empty,
    and where the disk is full; nothing half-written is left.
    """
    target = packed.folder_of(data, name)
    source = data.sources[name]
    work = sources.items(source, name)
    vocabulary = tokenizers.load(settings)
    description = _description(data, source, work, settings, vocabulary)
    with _named_unwritable(target, _place(data, name)):
        exists = target.exists()
    if exists and not overwrite:
        return _already_packed(data, name, description, vocabulary.eos_id)
    if left := sources.unread(source):
        print(not_read(f"data.sources.{name}.input={source.input}", left) + ", or set format")
    jobs = [
        _PackJob(item, source, name, settings.kind, settings.path, data.bos, data.eos, data.seed, data.heldout_fraction)
        for item in work
    ]
    with _staging(target, _place(data, name)) as folder:
        workers = min(data.workers or len(os.sched_getaffinity(0)), len(jobs))
        dtype = dtype_for(vocabulary.vocab_size)
        written = _write(_shown(_results(jobs, workers), jobs), folder, dtype)
        splits = _filled(written.splits, folder, dtype, written.smallest[1], jobs[0])
        _say(name, splits, written)
        content = {split: splits[split].sha256 for split in packed.SPLITS}
        decisive = json.dumps([content, description["tokenizer_fingerprint"], description["settings"]], sort_keys=True)
        fingerprint = hashlib.sha256(decisive.encode()).hexdigest()
        done = Packed(packed.VERSION, fingerprint, train=splits["train"], heldout=splits["heldout"], **description)
        _sync(done.write(folder))
    return done


def train_tokenizer(data: config.Data, settings: config.Tokenizer) -> None:
    """Make sure that the BPE of `settings` is there: train it on all sources, evenly, where it is not.

    Raises ValueError (key `tokenizer.vocab_size`) where one of another size is there already.
    """
    if tokenizers.tokenizer_file(settings).is_file():
        there = tokenizers.load(settings).vocab_size
        if settings.vocab_size not in (None, there):
            remedy = f"give tokenizer.vocab_size={there}, or another tokenizer.path to train a new one"
            raise ValueError(f"tokenizer.vocab_size={settings.vocab_size}: {settings.path} has {there} ids; {remedy}")
        return
    if settings.vocab_size is None:
        raise ValueError("tokenizer.vocab_size=null: say how many ids to train, the 256 special tokens included")
    with _staging(Path(settings.path), f"tokenizer.path={settings.path}") as folder:
        pieces = (piece for text in _sample(data, settings.train_bytes) for piece in trainable(text))
        tokenizers.train_bpe(pieces, settings.vocab_size, folder)


_WORD_CHARS = 1_000  # a word of more is cut where a BPE is trained: the trainer's time grows with the square


def trainable(text: str) -> Iterator[str]:
    """The text in pieces, cut within runs without white space (base64, minified code) of over `_WORD_CHARS`."""
    begin = 0
    for run in re.finditer(rf"\S{{{_WORD_CHARS + 1},}}|\s{{{_WORD_CHARS + 1},}}", text):
        for cut in range(run.start() + _WORD_CHARS, run.end(), _WORD_CHARS):
            yield text[begin:cut]
            begin = cut
    yield text[begin:]


# --- tokens of one item, in any process -------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def _vocabulary(kind: str, path: str) -> tokenizers.Tokenizer:
    return tokenizers.load(config.Tokenizer(kind=kind, path=path))


def heldout_key(text: str, seed: int) -> int:
    """A number in [0, 2^64) that depends on text and seed alone; below `heldout_fraction` x 2^64 a text is held out."""
    content = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8, key=seed.to_bytes(8, "little")).digest(), "little")


def _tokenize(job: _PackJob) -> _Result:
    vocabulary = _vocabulary(job.kind, job.path)
    begun_s = time.process_time()
    head = [vocabulary.bos_id] if job.bos else []
    tail = [vocabulary.eos_id] if job.eos else []
    ids: dict[str, list[int]] = {split: [] for split in packed.SPLITS}
    ends: dict[str, list[int]] = {split: [0] for split in packed.SPLITS}
    keys: dict[str, list[int]] = {split: [] for split in packed.SPLITS}
    left = sources.LeftOut()
    for text in sources.documents(job.item, job.source, job.name, left):
        key = heldout_key(text, job.seed)
        split = "heldout" if key < job.heldout_fraction * 2**64 else "train"
        ids[split] += head
        ids[split] += vocabulary.encode(text)
        ids[split] += tail
        ends[split].append(len(ids[split]))
        keys[split].append(key)
    dtype = dtype_for(vocabulary.vocab_size)
    parts = {
        split: _Part(
            np.array(ids[split], dtype), np.diff(ends[split]).astype(np.int32), np.array(keys[split], np.uint64)
        )
        for split in packed.SPLITS
    }
    return _Result(parts, left, job.item.size, time.process_time() - begun_s)


def _results(jobs: list[_PackJob], workers: int) -> Iterator[_Result]:
    """Results in the order of the jobs; a few more than `workers` are under way at a time, to bound the memory."""
    if workers == 1:
        yield from map(_tokenize, jobs)
        return
    # Spawned, not forked: the caller may hold threads (a progress bar, tokenizers' pool).
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    waiting: deque[Future[_Result]] = deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(_tokenize, job))
            if len(waiting) >= 3 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise ValueError(
            f"data.workers={workers}: a packing process was killed, by lack of memory perhaps; lower it"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


# --- files, in this process -------------------------------------------------------------------------------------------


@dataclass
class _Written:
    """What was written of a source: its splits, what was left out, and the work that it took."""

    splits: dict[str, Split] = field(default_factory=dict)
    left: sources.LeftOut = field(default_factory=sources.LeftOut)
    cpu_s: float = 0.0
    smallest: tuple[int, int] = (2**64, -1)  # key and index of the training document nearest to the held-out split


def _write(results: Iterator[_Result], folder: Path, dtype: np.dtype[Any]) -> _Written:
    """Write the tokens of all jobs, in their order, into `folder`; nothing is left of it where one fails."""
    writers = {split: IndexedWriter(folder / split, dtype) for split in packed.SPLITS}
    written = _Written()
    try:
        for result in results:
            keys = result.parts["train"].keys
            if keys.size:
                first = int(keys.argmin())
                written.smallest = min(written.smallest, (int(keys[first]), writers["train"].documents + first))
            for split, part in result.parts.items():
                writers[split].add(part.tokens, part.lengths)
            written.left.files += result.left.files
            written.left.blank += result.left.blank
            written.cpu_s += result.cpu_s
        written.splits = {split: Split(w.tokens, w.documents, w.close()) for split, w in writers.items()}
    except BaseException:
        for writer in writers.values():
            writer.abandon()
        raise
    return written


def _shown(results: Iterator[_Result], jobs: list[_PackJob]) -> Iterator[_Result]:
    """The same results behind a progress bar."""
    from tqdm import tqdm

    size = sum(job.item.size for job in jobs)
    with tqdm(total=size, desc=jobs[0].name, unit="B", unit_scale=True, disable=None) as bar:
        for result in results:
            yield result
            bar.update(result.size)


def _say(name: str, splits: dict[str, Split], written: _Written) -> None:
    tokens, cpu_s = sum(split.tokens for split in splits.values()), max(written.cpu_s, 1e-9)
    for sentence in _left_out(written.left):
        print(f"packed {name}: {sentence}")
    print(
        f"packed {name}: {splits['train'].tokens:,} tokens in {splits['train'].documents:,} documents, held out "
        f"{splits['heldout'].tokens:,} in {splits['heldout'].documents:,}; {tokens / cpu_s / 1e6:.2f} Mtok/s per core"
    )


def _left_out(left: sources.LeftOut) -> Iterator[str]:
    if left.files:
        yield f"{len(left.files):,} files left out that are no text in UTF-8: {first_few(left.files)}"
    if left.blank:
        yield f"{left.blank:,} documents left out that are blank"


def _filled(
    splits: dict[str, Split], folder: Path, dtype: np.dtype[Any], smallest: int, job: _PackJob
) -> dict[str, Split]:
    """Give a small source a held-out document; remove the files of a split that stays empty."""
    where = f"data.sources.{job.name}"
    documents = {split: counts.documents for split, counts in splits.items()}
    if not any(documents.values()):
        raise ValueError(f"{where}.input={job.source.input}: holds no documents; give text that is not blank")
    if not documents["train"]:
        raise ValueError(f"data.heldout_fraction={job.heldout_fraction}: nothing of {where} is left to train; lower it")
    if documents["heldout"] == 0 and job.heldout_fraction and documents["train"] > 1:
        return _move_to_heldout(folder, smallest, dtype)
    if documents["heldout"] == 0:
        if job.heldout_fraction:
            warnings.warn(f"{where} is a single document: it has no held-out split", stacklevel=2)
        for suffix in SUFFIXES:
            (folder / f"heldout{suffix}").unlink()
    return splits


def _move_to_heldout(folder: Path, index: int, dtype: np.dtype[Any]) -> dict[str, Split]:
    """Write `train` again without document `index`, which alone becomes `heldout`."""
    for suffix in SUFFIXES:
        (folder / f"train{suffix}").rename(folder / f"all{suffix}")
    reader = IndexedReader(folder / "all")
    writers = {split: IndexedWriter(folder / split, dtype) for split in packed.SPLITS}
    for i in range(len(reader)):
        document = reader.document(i)
        writers["heldout" if i == index else "train"].add(document, np.array([document.size], np.int32))
    for suffix in SUFFIXES:
        (folder / f"all{suffix}").unlink()
    return {split: Split(w.tokens, w.documents, w.close()) for split, w in writers.items()}


@contextlib.contextmanager
def _staging(target: Path, given: str) -> Iterator[Path]:
    """A folder beside `target` that becomes `target` when the block ends and vanishes when it fails.

    Raises ValueError (`given`, KEY=VALUE that led to `target`) where it cannot be written, for a full disk as well,
    or another process stages the same target.
    """
    staged = target.with_name(f".{target.name}.staged")
    with _named_unwritable(target, given):
        staged.mkdir(parents=True, exist_ok=True)  # one left by a killed process is taken over
        lock = os.open(staged, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{target} is being written by another process: wait for it to end") from error
        try:
            with _named_unwritable(target, given):
                for left in staged.iterdir():
                    left.unlink()
                yield staged
                _publish(staged, target)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
    finally:
        os.close(lock)


def _publish(staged: Path, target: Path) -> None:
    """Rename `staged` to `target`, replacing it; on disk when this returns."""
    _sync(staged)
    replaced = target.with_name(f".{target.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if target.exists():
        target.rename(replaced)
    staged.rename(target)
    _sync(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


@contextlib.contextmanager
def _named_unwritable(target: Path, given: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise ValueError(
                f"{given}: no space left to write {target} ({error.strerror}); nothing was left behind: free space "
                "there, or give a folder on a larger disk"
            ) from error
        ours = (target, target.with_name(f".{target.name}.staged"), target.with_name(f".{target.name}.replaced"))
        where = Path(os.fsdecode(error.filename)) if error.filename else None
        if where is None or not (where in target.parents or any(where.is_relative_to(path) for path in ours)):
            raise  # reading an input, perhaps
        raise ValueError(f"{given}: cannot be written ({error.strerror}); give a folder that can") from error


def _place(data: config.Data, name: str) -> str:
    """The key and value that decide where source `name` is packed."""
    there = data.sources[name].packed
    return f"data.sources.{name}.packed={there}" if there else f"data.folder={data.folder}"


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


# --- settings ---------------------------------------------------------------------------------------------------------


def _description(
    data: config.Data,
    source: config.Source,
    work: list[sources.Item],
    settings: config.Tokenizer,
    vocabulary: tokenizers.Tokenizer,
) -> dict[str, Any]:
    """The part of `packed.json` that is known before packing."""
    fields = ("input", "format", "text_key", "split", "suffixes")
    return {
        "tokenizer_kind": settings.kind,
        "tokenizer_fingerprint": vocabulary.fingerprint,
        "vocab_size": vocabulary.vocab_size,
        "settings": {
            "bos": data.bos,
            "eos": data.eos,
            "heldout_fraction": data.heldout_fraction,
            "seed": data.seed,
        },
        "input": {key: getattr(source, key) for key in fields}
        | {"files": len({path for item in work for path in item.paths}), "size": sum(item.size for item in work)},
    }


def _already_packed(data: config.Data, name: str, description: dict[str, Any], eos_id: int) -> Packed:
    there = packed.read(data, name)
    changed = [key for key, value in description.items() if getattr(there, key) != value and key != "tokenizer_kind"]
    if changed:
        before = {key: getattr(there, key) for key in changed}
        raise ValueError(
            f"data.sources.{name}: {packed.folder_of(data, name)} was packed from another input or with other settings "
            f"({before}); pack it again with overwrite=true, or give another data.folder"
        )
    if wrong := packed.wrong_end(data, name, there, IndexedReader(packed.folder_of(data, name) / "train"), eos_id):
        raise ValueError(f"{wrong}; pack it again with overwrite=true, or give another data.folder")
    print(f"packed {name}: already there, {there.train.tokens:,} tokens; overwrite=true packs it again")
    return there


def _sample(data: config.Data, train_bytes: int) -> Iterator[str]:
    """About `train_bytes` of text: from each work item its share, none of the held-out documents."""
    work = [(item, name) for name, source in data.sources.items() for item in sources.items(source, name)]
    share = min(1.0, train_bytes / max(1, sum(item.size for item, _ in work)))
    budget = 0.0
    for item, name in work:
        budget += share * item.size
        if budget <= 0:
            continue
        for text in sources.documents(item, data.sources[name], name):
            if heldout_key(text, data.seed) < data.heldout_fraction * 2**64:
                continue
            taken = text if share == 1 else text[: max(_SNIPPET_CHARS, int(budget))]
            yield taken
            budget -= len(taken.encode("utf-8", "surrogatepass"))
            if share < 1 and budget <= 0:
                break
