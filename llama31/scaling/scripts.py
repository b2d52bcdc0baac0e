"""A ladder as files: a root config for each run, one Slurm array for each budget, and the bill of all of it."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from llama31 import config
from llama31.command import entry, written
from llama31.runs import files
from llama31.scaling import family
from llama31.scaling.ladder import Rung, Site
from llama31.slurm import bills, sbatch

SCRIPT = """#!/bin/bash
# sbatch {path}
# {count} runs of {budget:g} FLOPs, a task of the array each: {sizes}.
# bill: {gpus:,} GPUs each, {bill} in all
#
#SBATCH --job-name=ladder-{budget_name}
#SBATCH --array=0-{last}
#SBATCH --nodes={nodes} --gpus-per-node={gpus_per_node} --exclusive --mem=0
#SBATCH --time={time}
#SBATCH --signal=B:USR1@300
#SBATCH --requeue --open-mode=append --output={logs}/%x-%A_%a.out
: "${{LLAMA31_HOME:={home}}}"
source "$LLAMA31_HOME/slurm/env.sh" ||
    {{ echo "$LLAMA31_HOME/slurm/env.sh: set LLAMA31_HOME=CHECKOUT before sbatch" >&2 && exit 2; }}
names=({names})
exec "$LLAMA31_HOME/slurm/launch.sh" pretrain --config-dir {configs} \\
    --config-name "${{names[$SLURM_ARRAY_TASK_ID]}}" {arguments}"$@"
"""


def by_budget(rungs: Sequence[Rung]) -> list[tuple[float, list[Rung]]]:
    """Runs of each budget, as they come."""
    return [(budget, list(group)) for budget, group in itertools.groupby(rungs, lambda rung: rung.budget)]


def bill(rung: Rung) -> bills.Bill:
    """What one run costs by the planner."""
    gpu_hours = rung.hours * rung.gpus
    words = f"{rung.schedule.total_tokens:,} tokens, {bills.digits(rung.hours)} h, {bills.digits(gpu_hours)} GPU-h"
    return bills.Bill(rung.gpus, rung.hours, words)


def table(rungs: Sequence[Rung], ladder: config.Ladder, site: Site) -> str:
    """A row for each budget with what its runs cost together, and the total."""
    lines = [
        "| FLOPs | runs | models | tokens | batch | peak rate | GPUs each | MFU | hours each | GPU-hours |",
        "|" + "---|" * 10,
    ]
    total = 0.0
    for budget, group in by_budget(rungs):
        first, last, cost = group[0], group[-1], [bill(rung) for rung in group]
        gpu_hours = sum(one.gpu_hours for one in cost)
        total += gpu_hours
        fewest, most = (family.named(rung.schedule.total_tokens).upper() for rung in (last, first))
        cells = (
            f"{budget:g}",
            len(group),
            f"{_size(first)} to {_size(last)}",
            f"{fewest} to {most}",
            f"{first.schedule.batch_tokens:,}",
            f"{first.schedule.peak_lr:.3g} to {last.schedule.peak_lr:.3g}",
            f"{first.gpus:,}",
            f"{_mfu(first, site)} to {_mfu(last, site)}",
            bills.digits(max(one.hours for one in cost)),
            bills.digits(gpu_hours),
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    price = ladder.dollars_per_gpu_hour
    price = site.device.dollars_per_hour if price is None else price
    money = f", {price * total:,.0f} dollars at {price:g} each" if price else ""
    lines += [
        "",
        f"{len(rungs)} runs: {bills.digits(total)} GPU-hours of {ladder.device} at {ladder.stack}'s speed, "
        f"as the planner expects it{money}",
    ]
    return "\n".join(lines)


def write(rungs: Sequence[Rung], ladder: config.Ladder, numbers: config.Precision) -> list[Path]:
    """Write configs and scripts to `ladder.folder`, and return the scripts."""
    folder = Path(ladder.folder).resolve()
    for name in ("conf", "logs", "runs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for rung in rungs:
        text = f"# python -m recipes.pretrain --config-dir {folder / 'conf'} --config-name {rung.name} ...\n"
        text += yaml.safe_dump(root(rung, folder, ladder, numbers), sort_keys=False)
        files.write_whole(folder / "conf" / f"{rung.name}.yaml", text)
    paths = []
    for _, group in by_budget(rungs):
        path = folder / f"{group[0].name.split('_')[0]}.sh"
        files.write_whole(path, script(group, path, ladder))
        path.chmod(0o755)
        paths.append(path)
    return paths


def lacking(rung: Rung, ladder: config.Ladder) -> list[str]:
    """Keys that a written run has to be given still. ConfigError where `ladder.arguments` are refused."""
    folder = Path(ladder.folder).resolve() / "conf"
    try:
        entry.compose(config.Pretrain, rung.name, shlex.split(ladder.arguments), folder)
    except config.ConfigError as error:
        wrong = [issue for issue in error.issues if issue.value is not config.MISSING]
        if wrong:
            said = "; ".join(map(str, wrong))
            reason, remedy = f"recipes.pretrain refuses them ({said})", "give what its --help lists"
            raise config.ConfigError([config.Issue("ladder.arguments", ladder.arguments, reason, remedy)]) from error
        return [issue.key for issue in error.issues]
    return []


def root(rung: Rung, folder: Path, ladder: config.Ladder, numbers: config.Precision) -> dict[str, Any]:
    """The root config of a run, over `conf/base.yaml`: what it does not state is the schema's."""
    run = str(folder / "runs" / rung.name)
    return {
        "defaults": ["base", "_self_"],
        "name": rung.name,
        "folder": written.escaped(run),
        "cluster": {"processes_per_node": ladder.gpus_per_node},
        "model": _stated(rung.model, config.Model),
        "precision": _stated(numbers, config.Precision),
        "parallel": _stated(rung.parallel, config.Parallel),
        "schedule": _stated(rung.schedule, config.Schedule),
    }


def _stated(section: Any, schema: type) -> dict[str, Any]:
    """The keys of a section that differ from the schema's defaults."""
    return {
        name: value for name, value in vars(section).items() if value != getattr(schema, name, None) and value != []
    }


def script(group: Sequence[Rung], path: Path, ladder: config.Ladder) -> str:
    """The Slurm array of a budget, a task for each run."""
    cost, first = [bill(rung) for rung in group], group[0]
    minutes = max(60, round(90 * max(one.hours for one in cost)))  # half as long again as the bill
    words = shlex.join(shlex.split(ladder.arguments))
    return SCRIPT.format(
        path=path,
        count=len(group),
        budget=first.budget,
        budget_name=first.name.split("_")[0],
        sizes=", ".join(_size(rung) for rung in group),
        gpus=first.gpus,
        bill=f"{bills.digits(sum(one.gpu_hours for one in cost))} GPU-h",
        last=len(group) - 1,
        nodes=first.nodes,
        gpus_per_node=ladder.gpus_per_node,
        time=f"{minutes // 1440}-{minutes % 1440 // 60:02d}:{minutes % 60:02d}:00",
        logs=str(path.parent / "logs").replace("%", "%%"),
        home=sbatch.SCRIPTS.parent,
        names=" ".join(rung.name for rung in group),
        configs=shlex.quote(str(path.parent / "conf")),
        arguments=f"{words} " if words else "",
    )


def _size(rung: Rung) -> str:
    return rung.name.split("_")[1]


def _mfu(rung: Rung, site: Site) -> str:
    """Of the BF16 peak, as `plan/shapes.py` counts FLOPs."""
    return f"{rung.flops / (rung.hours * 3600 * rung.gpus * site.device.bf16_tflops * 1e12):.0%}"
