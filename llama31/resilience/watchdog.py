"""A rank without progress says where it stands and dies, so that a hung job becomes one that starts again.

A hang shows on all ranks: one is stuck, the others wait for it in a collective. So every rank has a watchdog thread
of its own, and each dumps the stacks of its threads to `stalled/rank-00003.txt` when its main thread has given no sign
for too long. After a grace for the others, the lowest rank that wrote anything reads all files and says who held up
whom; then all leave with `EXIT_CODE`. What a frozen process (SIGSTOP, a dead node) leaves behind is that it wrote
nothing.

A main thread that blocks inside C++ while it holds the interpreter lock stops this thread too. Behind it stands
faulthandler's own timer, a C thread that needs no lock: as long as the watchdog thread runs it puts that timer off,
and where it cannot, the timer dumps the stacks to standard error and ends the process. Setting the timer takes about
0.2 ms, which is why the thread does it and of the beats only the first that is judged. No torch here.
"""

from __future__ import annotations

import faulthandler
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from llama31.runs import files

EXIT_CODE = 75  # EX_TEMPFAIL: to try again may help
BLAME = "blame.json"
LOCAL_PHASES = ("data", "record")  # a rank can be in these for ever without waiting for another
# Files of which a frame on the main thread's stack means that it waits for other ranks.
WAITING = (f"torch{os.sep}distributed{os.sep}", "p2p_communication", f"engine{os.sep}stage1.py:_wait")


@dataclass(frozen=True)
class StalledRank:
    """What a stalled rank says of itself: the first line of its file."""

    rank: int
    host: str
    pid: int
    step: int  # optimizer steps done
    phase: str
    since_s: float  # seconds since its last sign
    waiting: bool  # its main thread is inside a collective
    where: str  # innermost Python frame of the main thread
    time_s: float


@dataclass(frozen=True)
class Suspect:
    """A rank that the others waited for."""

    rank: int
    host: str
    why: str


def blame(records: Sequence[StalledRank], hosts: Sequence[str]) -> list[Suspect]:
    """The ranks that held up the others, of those that told and those that did not; `hosts` by rank.

    Ranks that told nothing come first, for all others may be waiting for them. Then those behind: the smallest step;
    of these, ranks in a phase that waits for nobody; of these, ranks outside of any collective. Empty where all ranks
    look alike: then the stacks, or the flight recorder's files, have to be read.
    """
    spoken = {one.rank for one in records}
    silent = [rank for rank in range(len(hosts)) if rank not in spoken]
    if silent:
        why = "wrote nothing: its process is frozen or dead, or its node is"
        return [Suspect(rank, hosts[rank], why) for rank in silent]
    step = min(one.step for one in records)
    left = list(records)
    for behind in (lambda one: one.step == step, lambda one: one.phase in LOCAL_PHASES, lambda one: not one.waiting):
        left = [one for one in left if behind(one)] or left
    if len(left) == len(records):
        return []
    return [
        Suspect(one.rank, one.host, f"step {one.step}, {one.phase}, for {one.since_s:.0f} s, in {one.where}")
        for one in left
    ]


@dataclass(frozen=True)
class _Beat:
    time_s: float
    step: int
    phase: str
    limit_s: float


class Watchdog:
    """Watches the main thread of one rank, from `start` to `close`.

    `folder` is the attempt's folder `stalled`, `hosts` the host of every rank, `timeout_s` the seconds without a beat
    (None: never judged), `armed_from` the number of steps done from which beats count: the first step compiles, warms
    up and connects. `grace_s` is how long others may take to notice. `clock`, `pause` and `leave` are for tests.
    """

    def __init__(
        self,
        folder: str | Path,
        rank: int,
        hosts: Sequence[str],
        timeout_s: float | None,
        *,
        armed_from: int = 1,
        grace_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
        leave: Callable[[int], Any] = os._exit,
    ) -> None:
        self.folder, self.rank, self.hosts = Path(folder), rank, list(hosts)
        self.timeout_s = math.inf if timeout_s is None else timeout_s
        self.grace_s = min(max(0.1 * self.timeout_s, 2.0), 60.0) if grace_s is None else grace_s
        self._poll_s = min(self.timeout_s / 20, 5.0)
        self._armed, self._armed_from = False, armed_from
        self._clock, self._pause, self._leave = clock, pause, leave
        self._beat = _Beat(clock(), 0, "start", math.inf)
        self._main = threading.get_ident()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self._backstop = False
        self._setting = threading.Lock()  # a beat and its backstop belong together

    @property
    def path(self) -> Path:
        """The file of this rank."""
        return self._path_of(self.rank)

    def _path_of(self, rank: int) -> Path:
        return self.folder / f"rank-{rank:05d}.txt"

    def beat(self, step: int, phase: str, limit_s: float | None = None) -> None:
        """A sign of life at the start of a phase; about a microsecond.

        `step` counts the optimizer steps done. `limit_s` replaces `timeout_s` until the next beat where a phase may
        take longer (a save, a validation); `math.inf` pauses the watch.
        """
        self._armed = self._armed or step >= self._armed_from
        limit_s = (self.timeout_s if limit_s is None else limit_s) if self._armed else math.inf
        begins = math.isfinite(limit_s) and math.isinf(self._beat.limit_s)
        beat = _Beat(self._clock(), step, phase, limit_s)
        if not begins:
            self._beat = beat
            return
        with self._setting:  # the thread's next look may be seconds away, and this one may take the lock before it
            self._beat = beat
            self._put_off_backstop(limit_s)

    def start(self) -> Watchdog:
        """Watch the calling thread from now on; without a time-out there is nothing to do."""
        self._main = threading.get_ident()
        if math.isfinite(self.timeout_s):
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def close(self) -> None:
        """Stop watching."""
        self._done.set()
        if self._thread is not None:
            self._thread.join()
        self._cancel_backstop()

    def __enter__(self) -> Watchdog:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _watch(self) -> None:
        while not self._done.wait(self._poll_s):
            self.look()

    def look(self) -> None:
        """Judge the last beat once: leave the process where it is too old, else put off the backstop."""
        with self._setting:
            beat = self._beat
            since_s = self._clock() - beat.time_s
            if since_s <= beat.limit_s:
                return self._put_off_backstop(beat.limit_s - since_s)
        self._cancel_backstop()  # this thread runs, and needs the grace
        self._dump(beat, since_s)
        self._pause(self.grace_s)
        if self._beat is not beat:
            self._say(f"rank {self.rank} went on after {since_s:.0f} s without progress in {beat.phase}")
            return self.path.unlink(missing_ok=True)
        if not self._blame():
            self._pause(self.grace_s)  # a job ends with its first process: leave the last word to the rank that blames
        self._leave(EXIT_CODE)

    def _put_off_backstop(self, left_s: float) -> None:
        """Set faulthandler's timer to after this thread would have acted, and before the others leave."""
        if not math.isfinite(left_s) or self._thread is None:
            return self._cancel_backstop()
        self._backstop = True
        faulthandler.dump_traceback_later(left_s + 2 * self._poll_s + self.grace_s / 2, exit=True, file=2)

    def _cancel_backstop(self) -> None:
        if self._backstop:
            faulthandler.cancel_dump_traceback_later()
            self._backstop = False

    def _dump(self, beat: _Beat, since_s: float) -> None:
        """Who and where on the first line as JSON, then the stacks of all threads; whole or not at all."""
        waiting, where = _standing(self._main)
        host, now = self.hosts[self.rank], round(time.time(), 3)
        record = StalledRank(
            self.rank, host, os.getpid(), beat.step, beat.phase, round(since_s, 1), waiting, where, now
        )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with files.whole(self.path) as draft, draft.open("w", encoding="utf-8") as file:
                file.write(json.dumps(asdict(record)) + "\n\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError as error:
            self._say(f"{self.path} cannot be written ({error}); the stacks of rank {self.rank} follow")
            faulthandler.dump_traceback(2, all_threads=True)
        self._dump_flight()

    def _dump_flight(self) -> None:
        """The collectives that NCCL last saw, where there is NCCL, for torch's `torchfrtrace`."""
        record = getattr(sys.modules.get("torch._C._distributed_c10d"), "_dump_nccl_trace", None)
        if record is None:
            return
        try:
            self.path.with_suffix(".flight").write_bytes(record())
        except (OSError, RuntimeError) as error:
            self._say(f"rank {self.rank}: no flight record ({error})")

    def _blame(self) -> bool:
        """Say who held up whom, if this is the lowest rank that wrote; false where another has to."""
        # Asked one by one, not listed: thousands of ranks ask at once, and the first answer is nearly always yes.
        if next((rank for rank in range(len(self.hosts)) if self._path_of(rank).exists()), None) != self.rank:
            return False
        records = read(self.folder)
        suspects = blame(records, self.hosts)
        try:
            with (self.folder / BLAME).open("x", encoding="utf-8") as file:
                json.dump({"told": len(records), "suspects": [asdict(one) for one in suspects]}, file)
        except OSError as error:  # another rank was first, or the disk is full: what follows still helps
            self._say(f"{self.folder / BLAME}: {error}")
        shown = [f"rank {one.rank} on {one.host} {one.why}" for one in suspects[:16]]
        shown += [f"and {len(suspects) - 16} more"] if len(suspects) > 16 else []
        reason = "; ".join(shown) or "all ranks look alike: read their stacks"
        self._say(f"no progress for {self.timeout_s:.0f} s, stacks in {self.folder}. {reason}")
        return True

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def read(folder: str | Path) -> list[StalledRank]:
    """What the ranks of an attempt wrote to its folder `stalled`, by rank; empty where nothing stalled.

    Raises ValueError for a file that is none of ours.
    """
    records = []
    for path in sorted(Path(folder).glob("rank-*.txt")):
        with path.open(encoding="utf-8", errors="replace") as file:
            first = file.readline()
        try:
            records.append(StalledRank(**json.loads(first)))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} does not begin with what a stalled rank writes ({error}); remove it") from error
    return records


def _standing(thread: int) -> tuple[bool, str]:
    """Whether a thread is inside a collective, and its innermost frame."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return False, "a thread that has ended"
    where = f"{frame.f_code.co_name} ({frame.f_code.co_filename}:{frame.f_lineno})"
    waiting = False
    while frame is not None and not waiting:
        waiting = any(part in f"{frame.f_code.co_filename}:{frame.f_code.co_name}" for part in WAITING)
        frame = frame.f_back
    return waiting, where
