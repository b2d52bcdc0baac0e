"""All stages in processes of this machine, one after the other, each task once."""

from __future__ import annotations

import fcntl
import itertools
import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

from llama31 import config
from llama31.curate.running import tasks
from llama31.curate.running.progress import StageProgress
from llama31.curate.running.stages import CurationStage


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
            title, count = f"{number}/{len(chosen)} {stage.name}", workers(run, stage)
            with StageProgress(title, stage.tasks, Path(run.folder) / stage.name) as progress:
                if count > 1:
                    processes.run(run, stage, by_name, count, progress)
                for rank in range(stage.tasks) if count == 1 else ():
                    count_in(progress, tasks.execute(run, stage, rank, by_name))


def element(run: config.Curate, known: list[CurationStage], stage: CurationStage, ranks: Sequence[int]) -> None:
    """Tasks of a stage one after the other in this process, as an element of an array runs them."""
    by_name, folder = {one.name: one for one in known}, Path(run.folder) / stage.name
    for rank in ranks:
        title = f"{stage.name}, task {rank}"
        with StageProgress(title, 1, folder, f"{rank:05d}-*") as progress:
            count_in(progress, tasks.execute(run, stage, rank, by_name))


def count_in(progress: StageProgress, outcome: tasks.Outcome) -> None:
    """Count a task that ended."""
    progress.ended(outcome.was_done, outcome.documents, outcome.bytes)


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
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for one in done:
                    count_in(progress, one.result())
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
