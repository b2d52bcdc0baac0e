"""Checkpoints while training goes on: copy to host memory, write in the background.

The copy goes into memory that is allocated once and kept. Writing, checksums, publishing and retention happen in one
thread of each rank, which talk to each other over a gloo group of their own, so that their collectives never meet
those of training. Even the copy can overlap with the next forward and backward pass, which only read what is saved:
then the one moment at which training may have to wait is just before the update (`staged`).

Torch's `async_save` stages and writes one state dict. A checkpoint here is two, with a manifest and a rename around
them, and its stager copies whole storages, of which a ZeRO fragment is a small part; so the thread is ours, and what
it runs is `publish.save`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import torch
import torch.distributed as dist

from llama31 import config
from llama31.checkpoint import publish, retention
from llama31.checkpoint.publish import CheckpointError, Fence, Meta
from llama31.checkpoint.shards import ALIGNMENT, Block, Shard
from llama31.parallel.collectives import Ranks, Tree, on_all_ranks, rank_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Published:
    """A checkpoint that stands on the disk under its name."""

    path: Path
    step: int
    tokens: int
    stall_s: float  # for which training stood still
    write_s: float  # from the call of `save` to the publishing


def background_group(timeout_s: float = 3600.0) -> Tree | None:
    """All ranks over gloo groups of their own, for `Saver`; None without processes. Collective, once per run.

    The time limit has to cover the writing of the slowest rank, for which the others wait in it.
    """
    return Tree(timeout_s) if dist.is_initialized() else None


@dataclass
class _Save:
    """One save, from the call to the publishing."""

    meta: Meta
    weights: Sequence[Shard]
    optimizer: Sequence[Shard] | None
    random: torch.Tensor
    began_s: float
    copied: torch.cuda.Event | None = None  # after which the device memory is as it is to be saved
    staged: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None
    stall_s: float = 0.0
    path: Path | None = None
    write_s: float = 0.0
    error: Exception | None = None


class Saver:
    """Saves the checkpoints of a run, in the background or not, behind one interface.

    Every rank makes the same calls. A save that fails leaves nothing half-written and no older checkpoint touched. It
    is logged, and training goes on: a disk may be full for a while. CheckpointError (Superseded where a newer attempt
    has begun) is raised by `save` after more than `tolerated` failures in a row, and by `wait` after any, where all
    ranks know the same; any other error (a peer that died) comes as it is and is not tolerated. `poll` looks at this
    rank's thread, whose end the ranks see at different steps.
    """

    def __init__(
        self,
        folder: Path | str,
        group: Ranks = None,
        *,
        asynchronous: bool = True,
        keep: config.Checkpoint | None = None,
        loaded: Path | None = None,
        fence: Fence | None = None,
        tolerated: int = 2,
    ) -> None:
        """`folder`: the run's `checkpoints`; `group`: `background_group()`, used by nobody else.

        `keep` says what stays after each save (all by default), `loaded` is the checkpoint that the run went on from.
        """
        self.folder, self.group, self.asynchronous = Path(folder), group, asynchronous
        self.keep, self.loaded, self.fence, self.tolerated = keep, loaded, fence, tolerated
        self.newest: Path | None = None  # published by this saver; known on every rank
        self._host = _Host()
        self._job: _Save | None = None
        self._published: list[Published] = []
        self._errors: list[Exception] = []

    def reserve(self, weights: Sequence[Shard], optimizer: Sequence[Shard] = ()) -> None:
        """Allocate the host memory now, so that the first save is as quick as the others."""
        if self.asynchronous:
            self._host.reserve([weights, optimizer])

    def save(
        self,
        meta: Meta,
        weights: Sequence[Shard],
        optimizer: Sequence[Shard] | None = None,
        *,
        overlap: bool = False,
    ) -> float:
        """Begin to save `meta.step`; return the seconds that the caller stood still.

        The save before this one is waited for. With `overlap` the copy to the host goes on after the return: then
        `staged` has to be called before anything changes what is saved (the optimizer's step, a rollback).
        """
        began_s = time.perf_counter()
        self._finish()
        if len(self._errors) > self.tolerated or (self._errors and not isinstance(self._errors[-1], CheckpointError)):
            raise self._errors[-1]
        job = self._job = _Save(meta, weights, optimizer, torch.get_rng_state(), time.perf_counter())
        if not self.asynchronous:
            self._run(job)
            job.stall_s = time.perf_counter() - began_s
            self._finish()
            return job.stall_s
        if torch.cuda.is_available():
            job.copied = torch.cuda.Event()
            job.copied.record()
        # A daemon: a rank that dies of something else must not wait for peers that are gone.
        job.thread = threading.Thread(target=self._run, args=(job,), name=f"save-{meta.step}", daemon=True)
        job.thread.start()
        if not overlap:
            job.staged.wait()
        job.stall_s = time.perf_counter() - began_s
        return job.stall_s

    def staged(self) -> float:
        """Wait until everything of the running save is in host memory; return the seconds waited, mostly none."""
        if self._job is None or self._job.staged.is_set():
            return 0.0
        began_s = time.perf_counter()
        self._job.staged.wait()
        waited_s = time.perf_counter() - began_s
        self._job.stall_s += waited_s
        return waited_s

    def poll(self) -> list[Published]:
        """What was published since the last call, on rank 0 (elsewhere nothing). Neither waits nor raises."""
        if self._job is not None and self._job.thread is not None and not self._job.thread.is_alive():
            self._finish()
        published, self._published = self._published, []
        return published

    def wait(self) -> list[Published]:
        """`poll`, when the running save has ended. Raises its CheckpointError, the same on all ranks."""
        self._finish()
        if self._errors:
            errors, self._errors = self._errors, []
            raise errors[-1]
        return self.poll()

    def close(self) -> list[Published]:
        """`wait`, and give the host memory and the groups of a tree back: afterwards nothing can be saved."""
        try:
            return self.wait()
        finally:
            self._host = _Host()
            if isinstance(self.group, Tree):
                self.group.close()

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close()
        except Exception:  # the error that ends the run is the one to show
            log.exception("the last save failed as well")

    def _finish(self) -> None:
        """Wait for the running save and note how it ended."""
        job, self._job = self._job, None
        if job is None:
            return
        if job.thread is not None:
            job.thread.join()
        if job.path is not None:
            self.newest, self._errors = job.path, []
            if rank_of(self.group) == 0:
                published = Published(job.path, job.meta.step, job.meta.tokens, job.stall_s, job.write_s)
                self._published.append(published)
        if job.error is not None:
            self._errors.append(job.error)
            if rank_of(self.group) == 0:
                log.error("%s", job.error)

    def _run(self, job: _Save) -> None:
        """The whole save; in the background where there is one."""
        try:
            if self.asynchronous:
                on_all_ranks(self.group, lambda: self._stage(job))
            job.path = publish.save(
                self.folder, job.meta, job.weights, job.optimizer, self.group, random=job.random, fence=self.fence
            )
            job.write_s = time.perf_counter() - job.began_s
            on_all_ranks(self.group, lambda: self._prune(job.meta.attempt) if rank_of(self.group) == 0 else None)
        except OSError as error:
            what = "saved, but what is not to be kept could not be deleted" if job.path else "not written"
            name = publish.name_of(job.meta.step, job.meta.attempt)
            job.error = CheckpointError(f"{self.folder / name}: {what} ({type(error).__name__}: {error})")
            job.error.__cause__ = error
        except Exception as error:  # noqa: BLE001 - raised by the next `save` or `wait`, as it is: a peer may have died
            job.error = error
        finally:
            job.staged.set()

    def _stage(self, job: _Save) -> None:
        try:
            if job.copied is not None:
                torch.cuda.set_device(job.copied.device)  # a new thread begins on the first GPU
            parts = [job.weights, job.optimizer or ()]
            job.weights, copied = self._host.copy(parts, job.copied)
            job.optimizer = None if job.optimizer is None else copied
        finally:
            job.staged.set()

    def _prune(self, attempt: int) -> None:
        if self.keep is not None:
            retention.prune(self.folder, self.keep, attempt, self.loaded, self.fence)


class _Host:
    """Host memory that holds one copy of what a rank saves."""

    def __init__(self) -> None:
        self.memory = torch.empty(0, dtype=torch.uint8)

    def reserve(self, parts: Sequence[Sequence[Shard]]) -> None:
        """Room for all blocks; touched, so that no later copy waits for pages."""
        blocks = [block for part in parts for shard in part for block in shard.blocks]
        known = {key: _padded(block) for block in blocks if (key := _key(block)) is not None}
        needed = sum(known.values()) + sum(_padded(block) for block in blocks if _key(block) is None)
        if needed > self.memory.numel():
            self.memory = torch.empty(0, dtype=torch.uint8)  # never the old and the new at once
            self.memory = torch.empty(needed, dtype=torch.uint8, pin_memory=torch.cuda.is_available()).zero_()

    def copy(self, parts: Sequence[Sequence[Shard]], ready: torch.cuda.Event | None) -> list[Sequence[Shard]]:
        """The same shards with their blocks in host memory. FP32 parameters are their own masters: copied once."""
        self.reserve(parts)
        stream = None
        if ready is not None:
            stream = torch.cuda.Stream()
            stream.wait_event(ready)
        known: dict[_Key, torch.Tensor] = {}
        position = 0

        def copied(block: Block) -> Block:
            nonlocal position
            key = _key(block)
            if key is not None and key in known:
                return Block(block.offset, known[key])
            source = block.resolve()
            room = self.memory[position : position + source.nbytes].view(source.dtype).view(source.shape)
            room.copy_(source, non_blocking=True)
            position += _padded(block)
            if key is not None:
                known[key] = room
            return Block(block.offset, room)

        with torch.no_grad(), torch.cuda.stream(stream):
            staged: list[Sequence[Shard]] = [
                [Shard(shard.name, shard.shape, [copied(block) for block in shard.blocks]) for shard in part]
                for part in parts
            ]
        if stream is not None:
            stream.synchronize()
        return staged


_Key = tuple[int, torch.dtype, tuple[int, ...]]


def _key(block: Block) -> _Key | None:
    """What tells two blocks of the same memory; None where only the block itself is sure to be it.

    Only what lives in the model keeps its address: a deferred block may be made where the last one was.
    """
    if not isinstance(block.tensor, torch.Tensor) or not block.tensor.is_contiguous() or block.tensor.numel() == 0:
        return None
    return block.tensor.data_ptr(), block.dtype, block.shape


def _padded(block: Block) -> int:
    size = torch.Size(block.shape).numel() * block.dtype.itemsize
    return -(-size // ALIGNMENT) * ALIGNMENT
