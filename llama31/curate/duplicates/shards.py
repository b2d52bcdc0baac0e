"""Files between the stages of deduplication: whole or absent, one of each task, those of two runs told apart.

A stage names a document by its task and its place in that task's stream, as datatrove does: four bytes in place of a
URL. So the stage that drops documents must see what the first one saw. datatrove trusts that it does; here each task
of a first stage leaves an `SeenDocuments` of its documents, and the last stage compares.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import xxhash
from datatrove.data import Document
from datatrove.io import DataFolder

Records = npt.NDArray[Any]
NAME = re.compile(r"(\d{5})-of-(\d{5})")
SEEN = ".seen.json"


def encoded(text: str) -> bytes:
    """UTF-8, halves of surrogate pairs too, which a document may hold in memory."""
    return text.encode("utf-8", "surrogatepass")


def identity(document: Document, data: bytes | None = None) -> int:
    """64 bits of a document's id and text: what decides where nothing else does, on any number of tasks.

    `data` is the text in UTF-8, where that is at hand.
    """
    data = encoded(document.text) if data is None else data
    return xxhash.xxh64_intdigest(data, xxhash.xxh64_intdigest(encoded(str(document.id))))


def language(document: Document) -> str:
    """A document's language, "" where it is unknown."""
    return str(document.metadata.get("language") or "")


@contextmanager
def whole(folder: DataFolder, name: str) -> Iterator[IO[bytes]]:
    """A file to write that appears under its name once it is complete; a rest of an earlier try is written over."""
    partial = f"partial/{name.replace('/', '-')}"
    with folder.open(partial, "wb") as file:
        yield file
    if "/" in name:
        folder.makedirs(name.rpartition("/")[0], exist_ok=True)
    folder.mv(partial, name)


def write(folder: DataFolder, name: str, records: Records) -> None:
    """An array as a file of its bytes alone."""
    with whole(folder, name) as file:
        file.write(np.ascontiguousarray(records).view(np.uint8).data)


def read(folder: DataFolder, name: str, dtype: np.dtype[Any], start: int = 0, count: int = -1) -> Records:
    """Records of a file, from one of them on; fewer than `count` where it ends."""
    with folder.open(name, "rb") as file:
        file.seek(start * dtype.itemsize)
        data = file.read(count * dtype.itemsize if count >= 0 else -1)
    return np.frombuffer(data, dtype)


def name_of(rank: int, tasks: int, suffix: str) -> str:
    """The name of a task's file; the number of tasks in it tells runs apart."""
    return f"{rank:05d}-of-{tasks:05d}{suffix}"


def complete(folder: DataFolder, suffix: str) -> list[str]:
    """The files of all tasks, by rank.

    Raises ValueError where one lacks, as after a task that failed, or where files of two runs lie together.
    """
    names = [name for name in folder.list_files(glob_pattern=f"*-of-*{suffix}") if NAME.match(name)]
    tasks = sorted({int(NAME.match(name)[2]) for name in names})  # type: ignore[index]
    if len(tasks) > 1:
        raise ValueError(f"{folder.path} has files of runs with {tasks} tasks; empty it and run the stage before again")
    wanted = [name_of(rank, tasks[0], suffix) for rank in range(tasks[0])] if tasks else []
    lacking = sorted(set(wanted) - set(names))
    if lacking or not wanted:
        raise ValueError(
            f"{folder.path} has no {', '.join(lacking[:5]) or '*' + suffix}: the stage before has not ended; run it"
        )
    return wanted


@dataclass
class SeenDocuments:
    """How many documents a task saw, of each language, and a digest of which ones in which order."""

    documents: dict[str, int] = field(default_factory=dict)
    digest: xxhash.xxh64 = field(default_factory=xxhash.xxh64)

    @property
    def total(self) -> int:
        """Documents so far; the place of the next one."""
        return sum(self.documents.values())

    def add(self, document: Document, identity: int) -> None:
        """Count a document in."""
        name = language(document)
        self.documents[name] = self.documents.get(name, 0) + 1
        self.digest.update(identity.to_bytes(8, "little"))

    def add_all(self, documents: list[Document], data: list[bytes]) -> list[int]:
        """Count several in, whose texts in UTF-8 are given; their identities."""
        identities = [identity(document, text) for document, text in zip(documents, data)]
        for document, number in zip(documents, identities):
            self.add(document, number)
        return identities

    def save(self, folder: DataFolder, rank: int, tasks: int, **parameters: Any) -> None:
        """The last file that a task of a first stage writes; with what later stages must know of it."""
        content = {"documents": dict(sorted(self.documents.items())), "digest": self.digest.hexdigest(), **parameters}
        with whole(folder, name_of(rank, tasks, SEEN)) as file:
            file.write(json.dumps(content, ensure_ascii=True).encode())

    def check(self, folder: DataFolder, rank: int, tasks: int) -> None:
        """Raise ValueError where a first stage with as many tasks saw other documents."""
        then = load_seen(folder, rank, tasks)
        if (then["documents"], then["digest"]) != (self.documents, self.digest.hexdigest()):
            raise ValueError(
                f"task {rank} of {tasks} read {self.total} documents, which are not the "
                f"{sum(then['documents'].values())} of {folder.path}; "
                "give this stage the input and the tasks of the first one, and run it again"
            )


def load_seen(folder: DataFolder, rank: int, tasks: int) -> dict[str, Any]:
    """What a task of a first stage saved; ValueError where that stage had another number of tasks."""
    if (there := len(complete(folder, SEEN))) != tasks:
        raise ValueError(f"tasks={tasks}, but {folder.path} was written by {there}; run this stage with tasks={there}")
    with folder.open(name_of(rank, tasks, SEEN), "rb") as file:
        return json.loads(file.read())


def write_sections(folder: DataFolder, name: str, tasks: int, sources: npt.NDArray[np.int64], records: Records) -> None:
    """Records by the task that they are for: where each section starts, in records, then all of them in their order."""
    order = np.argsort(sources, kind="stable")
    starts = np.searchsorted(sources[order], np.arange(tasks + 1)).astype("<i8")
    with whole(folder, name) as file:
        file.write(starts.tobytes())
        file.write(np.ascontiguousarray(records[order]).view(np.uint8).data)


def read_section(folder: DataFolder, name: str, tasks: int, rank: int, dtype: np.dtype[Any]) -> Records:
    """What a file has for one task."""
    with folder.open(name, "rb") as file:
        file.seek(8 * rank)
        start, end = np.frombuffer(file.read(16), "<i8").tolist()
        file.seek(8 * (tasks + 1) + start * dtype.itemsize)
        return np.frombuffer(file.read((end - start) * dtype.itemsize), dtype)
