"""Jobs of Slurm: which script runs a recipe, on how many nodes, after which other job, and at what price.

Torch-free, so that a wrong layout is refused where the command is typed and not after hours in a queue.
"""

from __future__ import annotations

import itertools
import math
import os
import re
import shlex
import string
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama31 import config
from llama31.command import entry
from llama31.evaluate import probe
from llama31.plan import layout, schedule, shapes
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
# What a part of a chain takes from those before it where it is not told: the newest `weights`, a run or an average, and
# the newest `gates`, which hold the scores of before the extension.
TAKES = {
    "long_context": {"init_from": "{weights}", "gates.baseline": "{gates}"},
    "anneal": {"init_from": "{weights}"},
    "probe": {"init_from": "{weights}"},
    "sft": {"init_from": "{weights}"},
    "reward": {"init_from": "{weights}"},
    "dpo": {"init_from": "{weights}"},
    "average": {"run": "{weights}", "target": "{weights}-average"},
    "evaluate": {"checkpoint": "{weights}"},
    "convert": {"checkpoint": "{weights}"},
}
SHORT = {"recipe": "submit.recipe", "dry_run": "submit.dry_run"}  # what stands first in every command line
SCRIPTS = sbatch.SCRIPTS
ANSWER_S = 120  # until a client of Slurm is given up
H100_TFLOPS = 989.0  # dense BF16, NVIDIA's figure; a bill needs a price where the cluster states none


@dataclass(frozen=True)
class Step:
    """One job of a chain: its part (RECIPE or RECIPE.LABEL), the arguments after its script, and their config.

    Its log goes to `logs`, or else to its run folder.
    """

    part: str
    arguments: list[str]
    run: Any
    logs: Path | None = None

    @property
    def recipe(self) -> str:
        return _recipe(self.part)

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

    def leaves(self, known: dict[str, str]) -> dict[str, str]:
        """What later parts can take, this one included: see `TAKES`."""
        if isinstance(self.run, config.Average):
            return {**known, "weights": self.run.target}
        if isinstance(self.run, config.Evaluate) and self.run.output is not None:
            return {"gates": self.run.output, **known}  # scores of before the first stage, none of after it
        if not isinstance(self.run, config.Training) or isinstance(self.run, config.Reward | config.Probe):
            return known  # neither a reward model nor a probe is anything to go on with
        gated = isinstance(self.run, config.Pretrain) and self.run.gates.every_tokens is not None
        gates = {"gates": f"{self.run.folder}/gates.json"} if gated else {}
        return {**known, "weights": self.run.folder, **gates}


@dataclass(frozen=True)
class Queued:
    """A job that has not ended, with the comment that it was submitted with."""

    number: str
    state: str
    comment: str = ""


def _recipe(part: str) -> str:
    return part.partition(".")[0]


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments that are `recipes.submit`'s own, and those for recipes.

    Where no recipe is named there is nobody else to take them, so all are its own.
    """
    own, others = [], []
    for text in argv:
        name, equals, value = text.partition("=")
        if name in SHORT and equals:
            own.append(f"{SHORT[name]}={value}")
        elif name.startswith("submit.") or name in ("--help", "-h"):
            own.append(text)
        else:
            others.append(text)
    named = any(text.startswith(("submit.recipe=", "submit.chain=")) for text in own)
    return (own, others) if named else ([*own, *others], [])


def steps(job: config.Job, arguments: Sequence[str]) -> list[Step]:
    """Compose and check every part of `job` for the processes that it will have.

    Of `arguments`, `RECIPE:KEY=VALUE` reaches all parts of that recipe, `RECIPE.LABEL:KEY=VALUE` that part, several
    before one colon are parted by commas; `--config-dir` reaches all, everything else the first. What a part is not
    told it takes from those before it (`TAKES`), as further arguments, so that a dry run shows them.
    Raises ValueError for a chain that cannot be, and SystemExit as `entry.load` does.
    """
    parts = job.chain or [job.recipe or ""]
    for part in parts:
        named = re.fullmatch(r"(\w+)(\.[\w-]+)?", part) is not None and _recipe(part) in SCHEMAS
        if not named or parts.count(part) > 1 or (job.chain and job.recipe):
            key, value = ("chain", ",".join(job.chain)) if job.chain else ("recipe", job.recipe or "null")
            raise ValueError(
                f"submit.{key}={value}: give recipe=R or submit.chain=[R,...], of {', '.join(SCHEMAS)}; a recipe that "
                "comes again needs labels, R.1 and R.2"
            )
    given, known, found = _by_part(parts, arguments), dict[str, str](), list[Step]()
    for part in parts:
        schema, recipe = SCHEMAS[_recipe(part)], _recipe(part)
        words = [*given[part], *(_taken(recipe, given[part], known) if known else [])]
        found.append(Step(part, words, entry.load(schema, recipe, words, lambda run: world_size(run, job))))
        known = found[-1].leaves(known)
    _refuse_shared(found)
    return found


def _taken(recipe: str, given: Sequence[str], known: dict[str, str]) -> list[str]:
    """Arguments of a part that come from the parts before it."""
    told = entry.given(SCHEMAS[recipe], recipe, given)
    takes = TAKES.get(recipe, {})
    if any(key.startswith("inputs[") for key in told):  # an average of what the user names
        takes = {}
    return [
        f"{key}={text.format(**known)}"
        for key, text in takes.items()
        if key not in told and all(name in known for _, name, _, _ in string.Formatter().parse(text) if name)
    ]


def _refuse_shared(steps: Sequence[Step]) -> None:
    """ValueError where two parts would train in one folder: the second would go on with the first."""
    for earlier, later in itertools.combinations([step for step in steps if step.folder is not None], 2):
        if earlier.folder == later.folder:
            raise ValueError(
                f"folder={later.folder}: {earlier.part} and {later.part} would both train there; give each a name="
            )


def _by_part(parts: Sequence[str], arguments: Sequence[str]) -> dict[str, list[str]]:
    given: dict[str, list[str]] = {part: [] for part in parts}
    shared = False  # whether this is the value of `--config-dir DIR`
    for text in arguments:
        prefix, colon, rest = text.partition(":")
        names = prefix.split(",") if colon else []
        if shared or text.split("=")[0] == "--config-dir":
            reached, rest, shared = list(parts), text, text == "--config-dir"
        elif names and all(_recipe(name) in SCHEMAS for name in names):
            strangers = [name for name in names if not _reached(name, parts)]
            if strangers:
                raise ValueError(
                    f"{text}: {strangers[0]} is not a part of this chain; give submit.chain=[...,{strangers[0]}]"
                )
            reached = [part for part in parts if any(part in _reached(name, parts) for name in names)]
        else:
            reached, rest = [parts[0]], text
        for part in reached:
            given[part].append(rest)
    return given


def _reached(name: str, parts: Sequence[str]) -> list[str]:
    """The parts that a name before a colon means: the one that is called so, or else all of that recipe."""
    return [part for part in parts if part == name] or [part for part in parts if _recipe(part) == name]


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


def command(step: Step, job: config.Job, after: str | None = None, comment: str | None = None) -> list[str]:
    """The command that submits `step`; `after` is the job that has to succeed before it, `comment` is for `queued`.

    Raises ValueError for `submit.options` that sbatch would misread.
    """
    words = ["sbatch", "--parsable", f"--job-name={getattr(step.run, 'name', step.part)}"]
    words.append(f"--nodes={nodes(step.run, job)}")
    if hasattr(step.run, "parallel"):
        words.append(f"--gpus-per-node={job.gpus_per_node}")
    given = {"partition": job.partition, "account": job.account, "time": job.time, "comment": comment}
    words += [f"--{name}={value}" for name, value in given.items() if value is not None]
    if step.log_folder is not None:
        words.append(f"--output={str(step.log_folder).replace('%', '%%')}/%j.out")
    if isinstance(step.run, config.Probe):
        words.append(f"--array={probe.array(probe.remaining(step.run))}")
    own, options = sbatch.dependency(shlex.split(job.options), after)
    words += [*own, *sbatch.export(options, os.environ), *options]
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


# --- bills ---


def bill(run: config.Training, processes: int, mfu: float) -> str:
    """What the rest of a schedule costs on `processes` GPUs, from where the layout of `run` takes over."""
    tokens, flops = work(run)
    each = f"{len(probe.remaining(run))} arms, each " if isinstance(run, config.Probe) else ""
    return each + price(processes, tokens, flops, mfu, run.cluster.peak_tflops or H100_TFLOPS)


def work(run: config.Training) -> tuple[int, float]:
    """Tokens and FLOPs of the steps from `parallel.from_tokens` to the end, or to `stop_after_steps`."""
    first, end = schedule.step_at(run.schedule, run.parallel.from_tokens), schedule.total_steps(run.schedule)
    if run.stop_after_steps is not None:
        end = min(end, first + run.stop_after_steps)
    tokens, flops = 0, 0.0
    for stage in schedule.stages(run.schedule):
        begin = max(first, stage.first_step)
        steps = max(0, min(end, stage.first_step + (stage.steps or 0)) - begin)
        tokens += steps * stage.batch_tokens
        flops += steps * stage.batch_tokens * shapes.flops_per_token(run.model, stage.sequence_length)
    return tokens, flops


def price(gpus: int, tokens: int, flops: float, mfu: float, peak_tflops: float = H100_TFLOPS) -> str:
    """GPUs, tokens, hours and GPU-hours of `flops` at a share `mfu` of the peak, in words."""
    gpu_hours = flops / (peak_tflops * 1e12 * mfu) / 3600
    return (
        f"{gpus:,} GPUs, {_short(tokens)} tokens, {_digits(gpu_hours / gpus)} h, {_digits(gpu_hours)} GPU-h "
        f"at {mfu:.0%} of {peak_tflops:g} TFLOPS"
    )


def conversion_price(model: config.Model, mb_per_s: float, inputs: int = 1) -> str:
    """Bytes and hours of a conversion or an average, which read BF16 weights of `inputs` models and write one."""
    size = shapes.weight_bytes(model)
    moved = "read and written" if inputs == 1 else f"read {inputs} times and written"
    return f"0 GPUs, {size / 1e9:,.0f} GB {moved}, {_digits((inputs + 1) * size / (mb_per_s * 1e6) / 3600)} h"


def _short(number: float) -> str:
    """Three digits and a unit: 15.6T."""
    power = min(4, int(math.log10(max(number, 1)) // 3))
    return f"{number / 1000**power:.3g}{['', 'K', 'M', 'B', 'T'][power]}"


def _digits(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.2g}"
