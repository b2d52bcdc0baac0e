"""A real ladder on this machine: three budgets, real text, the law through their minima, and larger runs held out.

`python -m benchmarks.small_ladder FOLDER [try]`: about 20 minutes on two cores, and 15 more for what is held out; `try`
shows in a few that it works, with models that are too small to say anything. Everything is done by the commands that a
user types, two runs at a time, each on a core of its own; what is there already is not done again. The text is what
every machine has (`data=demo`), in bytes, so that the head does not outweigh models of 8,000 parameters.

At the held-out budget two models are trained: near the tokens that the law says, and a larger one on fewer. The first
ought to be the better one, and the formula to say the losses of both. A smaller one would take as many steps more.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama31 import config
from llama31.command import entry
from llama31.plan import shapes
from llama31.scaling import family, ladder, observations, scripts

AT_ONCE = 2
LIMIT_S = 1800
VOCABULARY = 512
APART = 2.5  # so many times as large is the model beside the held-out one that the law proposes


@dataclass(frozen=True)
class LadderScale:
    """FLOPs of the budgets and of the runs held out, and sizes of models."""

    budgets: tuple[float, ...]
    held_out: float
    smallest: float
    largest: float
    sizes: int
    factor: float  # expected tokens: factor x FLOPs^0.5
    validation_tokens: int


WHOLE = LadderScale((3e11, 1e12, 3e12), 9e12, 8e3, 8e3 * 1.53**9, 10, 3.0, 65_536)
TRIAL = LadderScale((3e10, 6e10, 1.2e11), 2e11, 8e3, 1.5e5, 8, 0.7, 8_192)


def planned(top: Path, scale: LadderScale) -> config.Ladder:
    """The keys of the ladder: batches and rates of small models, around tokens that a first trial has shown."""
    return config.Ladder(
        folder=str(top / "ladder"),
        budgets=list(scale.budgets),
        smallest=scale.smallest,
        largest=scale.largest,
        sizes=scale.sizes,
        span=2.6,
        expected_exponent=0.5,
        expected_factor=scale.factor,
        sequence_length=128,
        vocab_size=VOCABULARY,
        smallest_batch=1024,
        largest_batch=1024,
        smallest_model_lr=6e-3,
        largest_model_lr=2e-3,
        warmup_steps=2 if scale is TRIAL else 40,
        gpus_per_node=1,
    )


def any_site() -> ladder.Site:
    """What layouts are made for: on one process there is one, and its bill is of no interest here."""
    run = entry.read(config.Scaling, "scaling", ["task=ladder"])[0]
    return ladder.site_of(run.ladder, run.hardware, run.precision)


def command(module: str, *arguments: str) -> str:
    """What `python -m module` printed. RuntimeError with the end of it where it fails."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        check=False,
        capture_output=True,
        text=True,
        env=env,
        timeout=LIMIT_S,
    )
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(arguments)}: {(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


def text_of(top: Path) -> list[str]:
    """The arguments that choose text and tokenizer."""
    return [
        "data=demo",
        f"data.folder={top}/packed",
        "tokenizer=demo",
        f"tokenizer.path={top}/tokenizer",
        f"tokenizer.vocab_size={VOCABULARY}",
    ]


def train(top: Path, names: Sequence[str], scale: LadderScale) -> list[str]:
    """Train what is not trained yet, the longest first; the run folders, in the order of `names`."""
    given = [*text_of(top), "precision=fp32", "parallel.micro_batch=8", f"validation.tokens={scale.validation_tokens}"]
    given += ["checkpoint.every_minutes=null", "preflight.enabled=false", "log.progress=false"]

    def one(name: str) -> None:
        folder = str(top / "ladder/runs" / name)
        if not is_finished(folder):
            command("recipes.pretrain", "--config-dir", str(top / "ladder/conf"), "--config-name", name, *given)
            loss = observations.finished("runs", [folder])[0].of("validation")[-1]["loss"]
            print(f"{name}: {loss:.4f}", file=sys.stderr, flush=True)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(one, reversed(names)))
    return [str(top / "ladder/runs" / name) for name in names]


def is_finished(folder: str) -> bool:
    """Whether a run was trained to its end."""
    try:
        return bool(observations.finished("runs", [folder]))
    except ValueError:
        return False


def held_out(top: Path, scale: LadderScale, tokens: float) -> list[str]:
    """Configs of two runs: `tokens` at the held-out budget, and those of a model APART times as large."""
    given, site = planned(top, scale), any_site()
    size = scale.smallest
    for _ in range(40):  # tokens fall with the size, since the budget is fixed
        size *= reached(size, scale.held_out, given)[1] / tokens
    rungs = []
    for factor in (1.0, APART):
        model, there = reached(size * factor, scale.held_out, given)
        rungs.append(ladder.rung_of(scale.held_out, size * factor, model, there, 1, given, site))
    scripts.write(rungs, given, site.numbers)
    return [rung.name for rung in rungs]


def reached(size: float, budget: float, given: config.Ladder) -> tuple[config.Model, float]:
    """A model of about `size` parameters, and the tokens that it reaches in a budget."""
    size = min(max(size, 7_500.0), 1e8)
    model = family.model(size, given.vocab_size, given.sequence_length)
    return model, budget / shapes.flops_per_token(model, given.sequence_length)


def compared(record: dict[str, Any], runs: Sequence[observations.Trained]) -> str:
    """A row for each run held out: what it measured, and what the formula says."""
    values = {name: record["parametric"][name]["value"] for name in ("E", "A", "a", "B", "b")}
    lines = ["| held out: parameters | tokens | loss | formula | off by |", "|---|---|---|---|---|"]
    for run in runs:
        said = values["E"] + values["A"] / run.parameters ** values["a"] + values["B"] / run.tokens ** values["b"]
        lines.append(
            f"| {run.parameters:,.0f} | {run.tokens:,.0f} | {run.loss:.4f} | {said:.4f} | {said / run.loss - 1:+.1%} |"
        )
    best = min(range(len(runs)), key=lambda i: runs[i].loss)
    return "\n".join([*lines, f"{('the model that the law proposes', 'the larger model')[best]} is the better one"])


def main(top: Path, scale: LadderScale) -> None:
    """Pack, train, fit, hold out, compare."""
    began = time.perf_counter()
    top.mkdir(parents=True, exist_ok=True)
    if not (top / "packed/docs/packed.json").is_file():
        command("recipes.pack", *text_of(top))
    given, site = planned(top, scale), any_site()
    rungs = ladder.rungs(given, site)
    scripts.write(rungs, given, site.numbers)
    print(f"{len(rungs)} runs: {', '.join(rung.name for rung in rungs)}", flush=True)
    folders = train(top, [rung.name for rung in rungs], scale)
    keys = [f"fit.runs=[{','.join(json.dumps(folder) for folder in folders)}]", f"fit.target_flops={scale.held_out}"]
    try:
        print(command("recipes.scaling", "task=fit", *keys, f"output={top}/fit.json", f"picture={top}/fit.png"))
    except RuntimeError as error:  # a minimum at an end, as `try` has it: what was trained is kept
        sys.exit(str(error))
    record = json.loads((top / "fit.json").read_text(encoding="utf-8"))
    names = held_out(top, scale, record["tokens"]["value"])
    runs = observations.trained(config.Fit(runs=train(top, names, scale)))
    print(compared(record, runs))
    print(f"{math.ceil((time.perf_counter() - began) / 60)} minutes on {os.cpu_count()} cores")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or sys.argv[2:] not in ([], ["try"]):
        sys.exit("python -m benchmarks.small_ladder FOLDER [try]")
    main(Path(sys.argv[1]).resolve(), TRIAL if sys.argv[2:] else WHOLE)
