"""Measure training against transformers' Trainer and a plain loop, and what a user waits for: tables in Markdown."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import checkpoints, curate_pipeline, extension, long_rows, post_training, sandbox, small_rounds, timing
from benchmarks.gpu import conductor, plan, tables
from benchmarks.machine import calibration
from benchmarks.peers import Case, Work
from llama31 import config
from llama31.runs import files
from recipes import start

MACHINE = ("calibrate", "predict")
DEFAULT = ("train", "pack", "convert", "start", "checkpoint", "length", "align")
PARTS = (*DEFAULT, "extend", "rounds", "curate", "sandbox", "gpu", *MACHINE)


def expanded(argv: Sequence[str]) -> list[str]:
    """`gpu part=first` is `--config-name gpu part=first`: the part with the shapes that go with it.

    `calibrate` and `predict` are parts alone: `parts=[calibrate]`.
    """
    if argv[:1] and argv[0] in MACHINE:
        return [f"parts=[{argv[0]}]", *argv[1:]]
    return ["--config-name", "gpu", *argv[1:]] if argv[:1] == ["gpu"] else list(argv)


def check(run: config.Benchmark) -> list[str]:
    """What is wrong with the keys that only this recipe knows, each with its remedy."""
    problems = [f"parts={part}: unknown; choose out of {', '.join(PARTS)}" for part in run.parts if part not in PARTS]
    if run.rows % run.micro_batch:
        problems.append(f"rows={run.rows}: not a multiple of micro_batch={run.micro_batch}; give {run.micro_batch}")
    if "predict" in run.parts and run.processes is not None:
        problems.append(f"processes={run.processes}: predict measures with two and with one; leave it out")
    if "curate" in run.parts and not run.pages:
        problems.append("pages=[]: curate has nothing to read; give folders of HTML, such as a package of Debian's")
    if run.write is not None:
        problems += _file_problems(run)
    for name in run.cases:
        try:
            Case.parse(name)
        except ValueError as error:
            problems.append(str(error))
    problems += [
        f"only={name}: no case; choose out of {', '.join(plan.NAMES)}" for name in run.only if name not in plan.NAMES
    ]
    return problems


def _file_problems(run: config.Benchmark) -> list[str]:
    """A file is of a name that a command line can carry, in a folder that is a group of a config."""
    path = Path(run.write or "")
    problems = []
    if not set(MACHINE) & set(run.parts):
        problems.append(f"write={path}: no part measures it; give parts=[calibrate]")
    if path.suffix != ".yaml" or path.parent.name != "hardware" or not re.fullmatch(r"[A-Za-z]\w*", path.stem):
        problems.append(f"write={path}: recipes.plan finds no such file; give conf/hardware/NAME.yaml")
    elif path.stem == "published":
        problems.append(f"write={path}: it holds the constants of published runs; give another name")
    elif not path.parent.is_dir():
        problems.append(f"write={path}: its folder is not there; make it, or give conf/hardware/NAME.yaml")
    return problems


def computes_in(run: config.Benchmark) -> str:
    """The precision of parts that may compute in BF16, by the key `bf16` or by what this CPU is good at."""
    if run.bf16 is not None:
        return "bf16" if run.bf16 else "fp32"
    from llama31.model import precision

    return "bf16" if precision.bf16_ratio() <= precision.SLOWER else "fp32"


def cases_of(run: config.Benchmark, params: str) -> list[Case]:
    """The cases to measure; says which are left out. Raises ValueError where none remains."""
    cases = [Case.parse(name) for name in run.cases]
    kept = [case for case in cases if params == "bf16" or case.precision == "fp32"]
    left_out = ", ".join(str(case) for case in cases if case not in kept)
    why = f"bf16={'null: BF16 is slower than FP32 on this CPU' if run.bf16 is None else 'false'}"
    if cases and not kept:
        raise ValueError(f"cases: nothing is left without {left_out} ({why}); give cases in fp32, or bf16=true")
    if left_out:
        print(f"left out: {left_out} ({why}); bf16=true measures them", file=sys.stderr, flush=True)
    return kept


def train(run: config.Benchmark, cases: list[Case]) -> str:
    """All cases in turn, as often as asked: what slows the machine for a while slows every case."""
    work = Work(run.model, run.sequence_length, run.rows, run.micro_batch, run.steps, run.warmup_steps)
    runs: dict[str, list[timing.TimedRun]] = {str(case): [] for case in cases}
    for repeat in range(run.repeats):
        for case in cases:
            done = timing.run_case(work, case, run.timeout_s)
            runs[str(case)].append(done)
            speed = f"{done.tokens_per_cpu_s:,.0f} tokens per CPU-second, {done.peak_bytes / 1e6:,.0f} MB"
            print(f"{repeat + 1}/{run.repeats} {case}: {speed}", file=sys.stderr, flush=True)
    return timing.training_table(runs)


def gpu(run: config.Benchmark) -> str:
    """One step of ours and of its peers; tables, and the record where `record` says."""
    cases = [case for part in plan.PARTS.values() for case in part] if run.only else plan.PARTS[run.part]
    if run.only:  # in the order asked for, each as often
        by_name = {case.name: case for case in cases}
        cases = [by_name[name] for name in run.only]
    work = plan.GpuWork(
        run.model, run.sequence_length, run.rows, run.micro_batch, run.steps, run.warmup_steps, run.bf16
    )
    with conductor.Lock():
        found = conductor.conduct(cases, work, run.budget_s or plan.BUDGET_S[run.part], run.timeout_s)
    found = dataclasses.replace(found, commit=run.commit or found.commit)
    if run.record:
        files.write_whole(Path(run.record), json.dumps(tables.as_json(found, work, run.part), indent=1))
    return tables.markdown(found, work, run.part)


def main(run: config.Benchmark) -> None:
    """Print the tables, and write them where `output` says."""
    problems = check(run)
    if problems:
        raise ValueError("\n".join(problems))
    params = "fp32" if run.parts == ["gpu"] else computes_in(run)  # whose processes decide for themselves
    printed = [train(run, cases_of(run, params))] if "train" in run.parts else []
    figures: dict[str, str] = {}
    if "pack" in run.parts:
        figures |= timing.pack_speed(run.llama3_tokenizer, run.timeout_s)
    if "convert" in run.parts:
        figures |= timing.convert_speed(run.timeout_s)
    if "start" in run.parts:
        figures |= timing.start_time(run.timeout_s)
    if "checkpoint" in run.parts:
        figures |= checkpoints.checkpoint_speed(params, run.timeout_s)
    if "rounds" in run.parts:
        figures |= small_rounds.measure(run.timeout_s)
    if "sandbox" in run.parts:
        figures |= sandbox.measure()
    printed += [timing.figures_table(figures)] if figures else []
    printed += long_rows.tables(run, params) if "length" in run.parts else []
    printed += post_training.tables(run) if "align" in run.parts else []
    printed += extension.tables(run) if "extend" in run.parts else []
    if "curate" in run.parts:
        printed.append(curate_pipeline.table(run.pages, run.llama3_tokenizer, run.timeout_s))
    machine = "predict" if "predict" in run.parts else "calibrate" if "calibrate" in run.parts else None
    printed += [getattr(calibration, machine)(run, params)] if machine else []
    printed += [gpu(run)] if "gpu" in run.parts else []
    text = "\n\n".join(printed) + "\n"
    print(text, end="")
    if run.output:
        files.write_whole(Path(run.output), text)


if __name__ == "__main__":
    start(main, config.Benchmark, "benchmark", expanded(sys.argv[1:]))
