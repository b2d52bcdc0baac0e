"""Dialogs and preferences as token ids on disk: encoded once, by one process, and mapped by all.

    <data.folder>/<source>-<key>/
        tokens.bin int32, parts.bin int8     all sequences, one after the other
        sequences.npy int64                  where each begins, and the end
        examples.npy int64                   the first sequence of each example, and the end
        pairs.npy int64 [p, 4]               example, better answer, worse answer, strength (preferences.py)
        labels.npy float32, prefixes.npy int64   of steps alone, by sequence (stepwise.py)
        heldout.npy bool                     by example
        told.json                            written last: counts, fingerprints

`key` is that of files, tokenizer and settings: other ones make another folder.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from llama31.tokens import chat
from llama31.tokens.records import SUFFIXES, each, not_read

VERSION = 3
STEPS = "steps"  # the kind of a source whose sequences are steps, each with a label
Sequence_ = tuple[NDArray[np.int32], NDArray[np.int8]]  # token ids and the part of each


@dataclass(frozen=True)
class Example:
    """What a record becomes: a dialog, or a prompt and its answers, the best first, with the pairs to be compared.

    Or steps, with the label and the prefix of each (`stepwise.sequences`).
    """

    sequences: list[Sequence_]
    pairs: list[tuple[int, int, int]] = field(default_factory=list)  # better, worse, strength
    labels: list[float] = field(default_factory=list)
    prefixes: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Store:
    """An encoded source. Lists of beginnings have one more entry, the end."""

    tokens: NDArray[np.int32]
    parts: NDArray[np.int8]
    sequences: NDArray[np.int64]
    examples: NDArray[np.int64]
    pairs: NDArray[np.int64]  # [p, 4]
    heldout: NDArray[np.bool_]
    header: dict[str, Any]
    labels: NDArray[np.float32]  # by sequence, of steps; elsewhere there are none
    prefixes: NDArray[np.int64]

    @property
    def fingerprint(self) -> str:
        """Equal as long as the ids, their parts and what is held out are."""
        return str(self.header["fingerprint"])

    def sequence(self, number: int) -> Sequence_:
        """Token ids and parts of a sequence."""
        begin, end = self.sequences[number], self.sequences[number + 1]
        return self.tokens[begin:end], self.parts[begin:end]

    def example(self, number: int) -> list[Sequence_]:
        """The sequences of an example."""
        return [self.sequence(int(i)) for i in range(self.examples[number], self.examples[number + 1])]

    def sizes(self) -> NDArray[np.int64]:
        """Tokens of each sequence."""
        return np.diff(self.sequences)


def files(given: str) -> list[Path]:
    """Files that a source's input means: comma-separated files, globs, or folders, of which those that hold records."""
    paths: list[Path] = []
    for part in filter(None, (text.strip() for text in given.split(","))):
        path = Path(part).expanduser()
        if path.is_dir():
            paths += [inner for inner in sorted(path.iterdir()) if inner.name.endswith(SUFFIXES) and inner.is_file()]
        else:
            paths += [Path(name) for name in sorted(glob.glob(str(path)))]
    return paths


def absent(given: str) -> list[str]:
    """The parts of a source's input, which commas separate, in which there is no file of records; all where none is."""
    parts = [text.strip() for text in given.split(",") if text.strip()]
    return [part for part in parts or [given] if not any(path.is_file() for path in files(part))]


def unread(given: str, read: Sequence[Path]) -> list[Path]:
    """What folders of a source's input hold beside the files of it that are `read`."""
    folders = [Path(text.strip()).expanduser() for text in given.split(",") if text.strip()]
    return [inner for folder in folders if folder.is_dir() for inner in sorted(folder.iterdir()) if inner not in read]


def records[T](
    paths: Sequence[Path], key: str, read: Callable[[dict[str, Any]], T], left_out: Counter[str] | None = None
) -> Iterator[tuple[str, bytes, T]]:
    """Of every record its file and line, the line itself, and what `read` makes of it.

    Raises ValueError for a line that is none, and where `read` does, with the key of the config, file and line. What
    the format cannot say (`chat.OutsideFormat`) is counted in `left_out` by its reason, where that is given.
    """
    for path in paths:
        for place, line in each(path, key):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise ValueError("no JSON object")
                parsed = read(record)
            except (ValueError, RecursionError) as error:
                if isinstance(error, chat.OutsideFormat) and left_out is not None:
                    left_out[error.reason] += 1
                    continue
                raise ValueError(f"{key}: {place}: {error}") from error
            yield place, line, parsed


def prepare(
    folder: Path, name: str, given: str, settings: dict[str, Any], seed: int, heldout_fraction: float,
    encode: Callable[[dict[str, Any]], Example | str],
) -> Path:  # fmt: skip
    """The folder of source `name`, which is encoded where it is not there yet. On one process.

    `settings` are what decides the ids beside the files. `encode` raises ValueError for a record that is none, which
    is told with file and line, and gives the reason for one that is left out, which is counted (as are those that it
    raises as `chat.OutsideFormat`). What is held out depends on the record alone: a record that comes twice is held out
    twice, or not at all.
    """
    inputs = files(given)
    if not inputs:
        remedy = "give files of JSON lines, JSON arrays or Parquet, a folder of them or a glob"
        raise ValueError(f"data.sources.{name}.input={given}: no such file; {remedy}")
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in inputs]
    header = {"version": VERSION, "files": stats, "seed": seed, "heldout_fraction": heldout_fraction, **settings}
    key = hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()[:12]
    target = folder / f"{name}-{key}"
    if (target / "told.json").is_file():
        return target
    if left := unread(given, inputs):
        print(not_read(f"data.sources.{name}.input={given}", left), flush=True)
    draft = folder / f".{target.name}.{secrets.token_hex(4)}"
    draft.mkdir(parents=True)
    try:
        _write(draft, _encoded(inputs, name, seed, heldout_fraction, encode), header)
        _publish(draft, target, name)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def _publish(draft: Path, target: Path, name: str) -> None:
    """`draft` becomes `target`, unless another run was first: it maps the files there, which must not go away."""
    while True:
        try:
            draft.rename(target)  # refused where files are
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        if (target / "told.json").is_file():
            break
        stale = draft.with_name(f"{draft.name}.stale")
        with contextlib.suppress(FileNotFoundError):  # another run moved it first
            target.rename(stale)
        if not (stale / "told.json").is_file():  # else it was made right now, and may be read
            shutil.rmtree(stale, ignore_errors=True)
    mine, other = (json.loads((one / "told.json").read_text(encoding="utf-8")) for one in (draft, target))
    if mine["fingerprint"] != other["fingerprint"]:
        raise ValueError(
            f"data.sources.{name}: {target} holds other ids than its files gave just now; end the runs that read it, "
            "remove it, and it is made again"
        )


def _encoded(
    inputs: Sequence[Path], name: str, seed: int, fraction: float, encode: Callable[[dict[str, Any]], Example | str]
) -> Iterator[tuple[Example | str, bool]]:
    def read(record: dict[str, Any]) -> Example | str:
        try:
            return encode(record)
        except chat.OutsideFormat as error:
            return error.reason

    for _, line, example in records(inputs, f"data.sources.{name}", read):
        digest = hashlib.sha256(f"{seed}/".encode() + line.strip()).digest()
        yield example, int.from_bytes(digest[:8], "little") < fraction * 2**64


def _write(folder: Path, examples: Iterator[tuple[Example | str, bool]], header: dict[str, Any]) -> None:
    digest = hashlib.sha256()
    sequences, firsts, left_out = [0], [0], Counter[str]()
    pairs: list[tuple[int, ...]] = []
    heldout: list[bool] = []
    labels: list[float] = []
    prefixes: list[int] = []
    with (folder / "tokens.bin").open("wb") as tokens, (folder / "parts.bin").open("wb") as parts:
        for example, held in examples:
            if isinstance(example, str):
                left_out[example] += 1
                continue
            pairs += [(len(heldout), *pair) for pair in example.pairs]
            labels += example.labels
            prefixes += example.prefixes
            for ids, kinds in example.sequences:
                sequences.append(sequences[-1] + len(ids))
                _append(tokens, np.ascontiguousarray(ids, np.int32), digest)
                _append(parts, np.ascontiguousarray(kinds, np.int8), digest)
            firsts.append(len(sequences) - 1)
            heldout.append(held)
    arrays: dict[str, NDArray[Any]] = {
        "sequences": np.array(sequences, np.int64),
        "examples": np.array(firsts, np.int64),
        "pairs": np.array(pairs, np.int64).reshape(-1, 4),
        "heldout": np.array(heldout, np.bool_),
    }
    if header.get("kind") == STEPS:
        arrays |= {"labels": np.array(labels, np.float32), "prefixes": np.array(prefixes, np.int64)}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
        digest.update(array.tobytes())
    counts = {"tokens": sequences[-1], "examples": len(heldout), "left_out": left_out, "heldout": int(sum(heldout))}
    text = json.dumps({**header, **counts, "fingerprint": digest.hexdigest()}, indent=1)
    (folder / "told.json").write_text(text, encoding="utf-8")


def _append(file: BinaryIO, array: NDArray[Any], digest: Any) -> None:
    data = array.tobytes()
    file.write(data)
    digest.update(data)


def read(folder: Path) -> Store:
    """What `prepare` wrote, its tokens mapped. Raises ValueError where files are missing or cut off."""
    try:
        header = json.loads((folder / "told.json").read_text(encoding="utf-8"))
        names = ["sequences", "examples", "pairs", "heldout"]
        names += ["labels", "prefixes"] if header.get("kind") == STEPS else []
        arrays: dict[str, NDArray[Any]] = {"labels": np.zeros(0, np.float32), "prefixes": np.zeros(0, np.int64)}
        arrays |= {name: np.load(folder / f"{name}.npy") for name in names}
        tokens, parts = _mapped(folder / "tokens.bin", np.int32), _mapped(folder / "parts.bin", np.int8)
        if not len(tokens) == len(parts) == header["tokens"]:
            raise ValueError(f"{len(tokens)} tokens, {len(parts)} parts, told are {header['tokens']}")
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder} cannot be read ({error}); remove it, and it is made again") from error
    return Store(tokens, parts, **arrays, header=header)


def _mapped(path: Path, dtype: Any) -> NDArray[Any]:
    return np.memmap(path, dtype, "r") if os.path.getsize(path) else np.zeros(0, dtype)
