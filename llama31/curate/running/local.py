"""All stages in processes of this machine, one after the other, each task once."""

from __future__ import annotations

import fcntl
import itertools
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

from llama31 import config
from llama31.curate.running import tasks
from llama31.curate.running.stages import CurationStage

SAID_S = 15.0  # between two lines of progress where nobody looks at a terminal


def workers(run: config.Curate, stage: CurationStage) -> int:
    """Processes of a stage: as asked, or one per core as far as the memory goes."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    fitting = max(1, int(0.9 * memory / (stage.memory_gb * 1e9)))
    return min(run.workers or min(len(os.sched_getaffinity(0)), fitting), stage.tasks)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """The folder for this process. Raises ValueError (key `folder`) where another has it on this machine."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"folder={folder}: another process curates there; wait for its end") from error
        yield
    finally:
        os.close(lock)


def execute(run: config.Curate, known: list[CurationStage], chosen: list[CurationStage]) -> None:
    """Run the chosen stages in their order.

    Raises RunError where a process was killed, and what a task raises; what is done by then stays done.
    """
    by_name = {stage.name: stage for stage in known}
    with _Processes(max(workers(run, stage) for stage in chosen)) as processes:
        for number, stage in enumerate(chosen, start=1):
            progress = StageProgress(f"{number}/{len(chosen)} {stage.name}", stage.tasks)
            count = workers(run, stage)
            if count == 1:
                for rank in range(stage.tasks):
                    progress.ended(tasks.execute(run, stage, rank, by_name))
            else:
                processes.run(run, stage, by_name, count, progress)
            progress.close()


class _Processes:
    """Processes that outlive a stage, for each takes seconds to import what tasks need."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> _Processes:
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)

    def run(
        self,
        run: config.Curate,
        stage: CurationStage,
        by_name: dict[str, CurationStage],
        count: int,
        progress: StageProgress,
    ) -> None:
        """All tasks of a stage, `count` at a time."""
        if self.pool is None:
            # Not forked: the caller may hold threads. What each imports runs nothing, `__main__` included.
            context = multiprocessing.get_context("spawn")
            self.pool = ProcessPoolExecutor(self.most, mp_context=context, initializer=_end_with_parent)
        ranks, waiting = iter(range(stage.tasks)), set[Future[tasks.Outcome]]()
        try:
            while True:
                for rank in itertools.islice(ranks, count - len(waiting)):
                    waiting.add(self.pool.submit(tasks.execute, run, stage, rank, by_name))
                if not waiting:
                    return
                done, waiting = wait(waiting, SAID_S, FIRST_COMPLETED)
                for one in done:
                    progress.ended(one.result())
                progress.say()
        except BrokenProcessPool as error:
            raise config.RunError(
                f"{stage.name}: a process was killed, for lack of memory perhaps; what is done stays: run the same "
                f"command again, with workers={max(1, count - 1)} where memory was the reason"
            ) from error


def _end_with_parent() -> None:
    """No process of a killed run goes on writing."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class StageProgress:
    """A line that says how far a stage is, and how long it will take."""

    def __init__(self, title: str, total: int) -> None:
        self.title, self.total, self.done, self.before, self.documents = title, total, 0, 0, 0
        self.begun = self.said = time.monotonic()
        self.terminal = sys.stderr.isatty()

    def ended(self, outcome: tasks.Outcome) -> None:
        """Count a task."""
        self.done += 1
        self.before += outcome.was_done
        self.documents += 0 if outcome.was_done else outcome.documents
        self.say()

    def text(self, now: float) -> str:
        """The line."""
        seconds, made = max(now - self.begun, 1e-9), self.done - self.before
        parts = [f"{self.title}: {self.done}/{self.total} tasks"]
        parts += [f"{self.before} done before"] if self.before else []
        if self.documents:
            parts += [f"{self.documents:,} documents", f"{self.documents / seconds:,.0f}/s"]
        if made and self.done < self.total:
            parts.append(f"{clock(seconds / made * (self.total - self.done))} left")
        elif self.done == self.total:
            parts.append(clock(seconds))
        return ", ".join(parts)

    def say(self) -> None:
        """Print it, on a terminal over the last one, elsewhere now and then."""
        now = time.monotonic()
        if self.terminal:
            print(f"\r{self.text(now)}\033[K", end="", file=sys.stderr, flush=True)
        elif now - self.said >= SAID_S and self.done < self.total:
            self.said = now
            print(self.text(now), file=sys.stderr, flush=True)

    def close(self) -> None:
        """The last word of a stage."""
        end = "\r" if self.terminal else ""
        print(f"{end}{self.text(time.monotonic())}", file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """Seconds as hours, minutes and seconds."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"
