"""Jobs of Slurm: which script runs a recipe, on how many nodes, after which other job.

Torch-free, so that a wrong layout is refused where the command is typed and not after hours in a queue.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama31 import config
from llama31.command import entry
from llama31.evaluate import probe
from llama31.plan import layout
from llama31.slurm import sbatch

# One script of slurm/ each, which bears the name of its recipe, and one root file of conf/.
SCHEMAS: dict[str, type] = {
    "pretrain": config.Pretrain,
    "long_context": config.Pretrain,
    "anneal": config.Pretrain,
    "probe": config.Probe,
    "sft": config.Sft,
    "reward": config.Reward,
    "dpo": config.Dpo,
    "sample": config.Sample,
    "score": config.Score,
    "judge": config.Judge,
    "average": config.Average,
    "evaluate": config.Evaluate,
    "convert": config.Convert,
}
# These submit arrays of their own by submit=true; as a stage of a chain or of a round each is one job.
CHAINED: dict[str, type] = {**SCHEMAS, "synthesize": config.Synthesize, "filter_data": config.FilterData}
SHORT = {"recipe": "submit.recipe", "dry_run": "submit.dry_run"}  # what stands first in every command line
SCRIPTS = sbatch.SCRIPTS
ANSWER_S = 120  # until a client of Slurm is given up


@dataclass(frozen=True)
class Step:
    """One job: its name, its recipe with the arguments after the script, and their config.

    `after` names the jobs of its chain that have to succeed before it. Its log goes to `logs`, or else to its run
    folder. `done` says whether what it is to leave is there; None where that is seen in what it leaves.
    """

    name: str
    recipe: str
    arguments: tuple[str, ...]
    run: Any
    after: tuple[str, ...] = ()
    logs: Path | None = None
    done: Callable[[], bool] | None = None

    @property
    def folder(self) -> Path | None:
        """The run folder, of recipes that keep one."""
        if isinstance(self.run, config.Probe):
            return probe.folder_of(self.run)
        return Path(self.run.folder) if hasattr(self.run, "folder") else None

    @property
    def log_folder(self) -> Path | None:
        """Where its log goes; none: where it is submitted."""
        return self.logs or (self.folder and self.folder / "logs")


@dataclass(frozen=True)
class Queued:
    """A job that has not ended, with the comment that it was submitted with."""

    number: str
    state: str
    comment: str = ""


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments that are `recipes.submit`'s own, and those of the recipe or the chain that it names.

    `--config-dir` is of both. Where nothing is named there is nobody else to take them, so all are its own.
    """
    own, others, folder = list[str](), list[str](), False
    chained = any(text.startswith("chain=") for text in argv)
    own_options = ("--help", "-h", *(["--cfg"] if chained else []))  # a chain has a config, a recipe alone its own
    for text in argv:
        name, equals, value = text.partition("=")
        if name in SHORT and equals:
            own.append(f"{SHORT[name]}={value}")
        elif name.startswith("submit.") or name in (*own_options, "chain"):
            own.append(text)
        else:
            others.append(text)
            own += [text] if folder or name == "--config-dir" else []
        folder = text == "--config-dir"
    named = chained or any(text.startswith("submit.recipe=") for text in own)
    return (own, others) if named else ([*own, *(text for text in others if text not in own)], [])


def single(recipe: str, arguments: Sequence[str], job: config.Job) -> Step:
    """The job of a recipe alone, with the arguments of its own command. Raises SystemExit as `entry.load` does."""
    schema, words = SCHEMAS[recipe], tuple(arguments)
    return Step(recipe, recipe, words, entry.load(schema, recipe, words, lambda run: world_size(run, job)))


def processes_per_node(run: Any, job: config.Job) -> int:
    """Processes on each node: the cluster's, or one per GPU; recipes without a layout are one process."""
    if not hasattr(run, "parallel"):
        return 1
    return run.cluster.processes_per_node or job.gpus_per_node or 1


def nodes(run: Any, job: config.Job) -> int:
    """Nodes of a recipe: as asked, or what its layout needs; one where it has none."""
    if not hasattr(run, "parallel"):
        return 1
    return job.nodes or -(-layout.world(run.parallel) // processes_per_node(run, job))


def world_size(run: Any, job: config.Job) -> int:
    """Processes of a recipe on all its nodes."""
    return nodes(run, job) * processes_per_node(run, job)


def facts(step: Step, job: config.Job) -> str:
    """What `slurm/launch.sh` has to know of a config, as shell variables."""
    known = {
        "NODES": nodes(step.run, job),
        "PROCESSES_PER_NODE": processes_per_node(step.run, job),
        "RUN_FOLDER": step.folder or "",
    }
    return "\n".join(f"{name}={shlex.quote(str(value))}" for name, value in known.items())


def command(
    step: Step, job: config.Job, after: str | None = None, comment: str | None = None, section: str = "submit"
) -> list[str]:
    """The command that submits `step`; `after` is the job that has to succeed before it, `comment` is for `queued`.

    Raises ValueError for `options` that sbatch would misread, in `section` of the config.
    """
    words = ["sbatch", "--parsable", f"--job-name={getattr(step.run, 'name', step.name.replace('/', '-'))}"]
    words.append(f"--nodes={nodes(step.run, job)}")
    if hasattr(step.run, "parallel"):
        words.append(f"--gpus-per-node={job.gpus_per_node}")
    given = {"partition": job.partition, "account": job.account, "time": job.time, "comment": comment}
    words += [f"--{name}={value}" for name, value in given.items() if value is not None]
    if step.log_folder is not None:
        words.append(f"--output={str(step.log_folder).replace('%', '%%')}/%j.out")
    if isinstance(step.run, config.Probe):
        words.append(f"--array={probe.array(probe.remaining(step.run))}")
    own, options = sbatch.dependency(shlex.split(job.options), after, f"{section}.options")
    words += [*own, *sbatch.export(options, os.environ, f"{section}.options"), *options]
    return [*words, str(SCRIPTS / f"{step.recipe}.sh"), *step.arguments]


def submit(step: Step, command: Sequence[str]) -> str:
    """Submit and return the job's number.

    Raises RunError with what sbatch said against it, or where a job to wait for is unknown or has failed.
    """
    options = command[: list(command).index(str(SCRIPTS / f"{step.recipe}.sh"))]
    sbatch.check_dependencies(options, ask)
    if step.log_folder is not None:  # a job whose log has no folder fails without a word
        step.log_folder.mkdir(parents=True, exist_ok=True)
    return ask(command).strip().split(";")[0]


def short(step: Step, job: config.Job) -> str | None:
    """What to tell of a time limit that leaves `step` hardly time between its first step and the signal to save."""
    return sbatch.short(SCRIPTS / f"{step.recipe}.sh", job.time, shlex.split(job.options), os.environ)


def queued() -> list[Queued]:
    """Every job that has not ended. Raises RunError where squeue is not there, or with what it said."""
    lines = ask(["squeue", "--noheader", "--format=%i %T %k"]).splitlines()
    return [Queued(*line.split(maxsplit=2)) for line in lines if line.strip()]


def ask(command: Sequence[str]) -> str:
    """What a client of Slurm printed. Raises RunError with what it said against it."""
    env = sbatch.environment(os.environ)
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=ANSWER_S, env=env)
    except FileNotFoundError as error:
        raise config.RunError(f"{command[0]} is not on this machine; dry_run=true shows the command") from error
    except subprocess.TimeoutExpired as error:
        raise config.RunError(f"{shlex.join(command)}: no answer within {ANSWER_S} s; look with squeue") from error
    if done.returncode:
        raise config.RunError(f"{shlex.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
