"""One start of the trainer, and the run folder: all that is needed to know what ran.

runs/<name>/
    config.yaml      the resolved config of the last attempt      checkpoints/     (checkpoint/)
    tokenizer/       in Hugging Face format, copied on export     decisions.jsonl  what was decided while running
    attempts/0000/   one folder for each start of the trainer:
        attempt.json     when, where, from which checkpoint, with what code
        metrics.jsonl    the record (runs/metrics.py)
        end.json         how it ended; absent where it died
    stop             asks the trainer to save and stop            outcome.json     the last end.json
    exclude_nodes    nodes that failed a check                    rows/            plans of rows (data/plans.py)
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

from llama31 import config
from llama31.data.mixture import Decision, to_record
from llama31.parallel.collectives import on_first_rank, rank_of
from llama31.resilience import resume
from llama31.runs import attempts, commit, files

PACKAGES = ("torch", "megatron-core", "deepspeed", "transformer-engine", "transformers", "numpy", "hydra-core")


class ComeBack(config.RunError):
    """This attempt cannot train here, and another one can elsewhere."""


class Attempt:
    """One start of the trainer, and its folder in the run. Made on every rank; the first one alone writes.

    A node that Slurm lost may still train while the job runs again elsewhere. The number, claimed by exclusive
    creation, says who is the newer; checkpoints and records bear it.
    """

    def __init__(self, run_folder: str | Path, take_over: bool = False) -> None:
        self.run_folder = Path(run_folder)
        self._main = rank_of(None) == 0
        self._take_over = take_over
        self.number = on_first_rank(self._claim)
        self.folder = attempts.path_of(self.run_folder, self.number)
        self._claimed_s = time.time()
        self.reached = (0, 0)  # steps done, tokens seen
        self._info: dict[str, Any] = {}  # attempt.json, on the first rank
        self.stopped = ""  # why, once training has been asked to stop and has saved

    def __enter__(self) -> Attempt:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._end("stopped" if self.stopped else "finished", self.stopped)
        elif self.newer() is not None:
            self._end("superseded", str(error))
        elif isinstance(error, ComeBack):
            self._end("stopped", str(error))
        elif isinstance(error, (ValueError, config.RunError)):
            self._end("failed", str(error))  # another attempt would fail likewise

    def _claim(self) -> int:
        twin = None if self._take_over else attempts.living(self.run_folder)
        if twin is not None:
            number, pid = twin
            raise config.RunError(
                f"folder={self.run_folder}: attempt {number} of this run is training on this machine (process {pid}), "
                f"and would end without saving; let it save and stop by `touch {self.run_folder}/stop`, give another "
                "name=, or take its place with take_over=true"
            )
        try:
            return attempts.claim(self.run_folder)
        except OSError as error:
            raise config.RunError(
                f"folder={self.run_folder}: cannot be written ({error}); give another folder= or name="
            ) from error

    def newer(self) -> int | None:
        """Number of an attempt that was claimed after this one."""
        return attempts.newer(self.run_folder, self.number)

    def record(
        self,
        config_yaml: str,
        start: resume.Start,
        decisions: Sequence[Decision],
        hosts: Sequence[str],
        environment: dict[str, Any],
    ) -> None:
        """Write what this attempt runs with, and where it begins."""
        if not self._main:
            return
        restart = os.environ.get("SLURM_RESTART_COUNT")
        info = {
            "attempt": self.number,
            "time_s": round(self._claimed_s, 3),
            "from_step": start.step,
            "from_tokens": start.tokens,
            "weights_from": str(start.weights) if start.weights else None,
            "command": sys.argv,
            "host": hosts[0],
            "hosts": list(dict.fromkeys(hosts)),
            "world_size": len(hosts),
            "slurm_job": os.environ.get("SLURM_JOB_ID"),
            "slurm_restart": int(restart) if restart else None,
            **environment,
        }
        self._info = info
        files.write_whole(self.folder / "attempt.json", json.dumps(info, indent=1))
        files.write_whole(self.run_folder / "config.yaml", config_yaml)
        record_decisions(self.run_folder, decisions)

    def went_back(self, step: int, tokens: int) -> None:
        """A rollback behind the beginning of this attempt: what older ones saved beyond `step` no longer counts."""
        if self._main and step < self._info["from_step"]:
            self._info |= {"from_step": step, "from_tokens": tokens}
            files.write_whole(self.folder / "attempt.json", json.dumps(self._info, indent=1))

    def _end(self, outcome: str, cause: str) -> None:
        """The attempt's last word: finished, stopped (it can go on), failed (it cannot) or superseded."""
        if not self._main:
            return
        step, tokens = self.reached
        end = {"outcome": outcome, "cause": cause, "attempt": self.number, "step": step, "tokens": tokens}
        text = json.dumps({**end, "time_s": round(time.time(), 3)})
        files.write_whole(self.folder / "end.json", text)
        if self.newer() is None:
            files.write_whole(self.run_folder / "outcome.json", text)


def record_decisions(run_folder: Path, decisions: Sequence[Decision]) -> None:
    """The decisions that hold, no others: an attempt that was never saved may have taken some that do not."""
    path = run_folder / "decisions.jsonl"
    text = "".join(json.dumps(to_record(decision)) + "\n" for decision in decisions)
    if text != (path.read_text() if path.exists() else ""):
        files.write_whole(path, text)


def exclude_nodes(run_folder: Path, hosts: Sequence[str]) -> None:
    """Name nodes that `slurm/launch.sh` avoids from the next attempt on."""
    path = run_folder / "exclude_nodes"
    known = path.read_text().split() if path.exists() else []
    files.write_whole(path, "".join(f"{host}\n" for host in dict.fromkeys([*known, *hosts])))


def environment() -> dict[str, Any]:
    """Versions and commit that this process runs with; equal on all nodes of a sound run."""
    return {
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES if _installed(name)},
        "commit": commit.commit(),
    }


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
