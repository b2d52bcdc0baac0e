"""What is a source of data worth? Anneal a half-trained model with it and without, and compare (report, 3.1.3).

A probe is a table of arms: the default data alone, and with each candidate, once for each seed. An arm is a run of its
own in the probe's folder, so arms are jobs of a Slurm array, go on where they stopped, and are never done twice. A seed
orders the data of all arms alike: differences are taken between arms of one seed, and their spread over the seeds says
how sure they are. No torch: a probe is planned and put together where nothing is trained.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama31 import config
from llama31.config import Issue
from llama31.plan import schedule
from llama31.runs import files, metrics

RESULT = "arm.json"  # of an arm's folder: it is finished, and what it scored
SHOWN = 6  # figures in the picture: the default data, then tasks, then sources
DEFAULT = "default data"  # the figure of all default sources together


@dataclass(frozen=True)
class Arm:
    """One annealing: with a candidate, or (None) the default data alone."""

    number: int
    candidate: str | None
    seed: int
    folder: Path


def arms(run: config.Probe) -> list[Arm]:
    """Every annealing of a probe, by number: the default data with each seed, then each candidate with each."""
    made = []
    for number, (name, seed) in enumerate(itertools.product([None, *run.candidates], run.seeds)):
        data = "default" if name is None else f"with-{name}"
        made.append(Arm(number, name, seed, Path(run.folder) / "arms" / f"{data}-seed-{seed}"))
    return made


def folder_of(run: config.Probe) -> Path:
    """The folder that a job of this config works in: the arm's, or the probe's."""
    return Path(run.folder) if run.arm is None else arms(run)[run.arm].folder


def remaining(run: config.Probe) -> list[Arm]:
    """Arms that are to be trained: those asked for that have no result yet."""
    chosen = arms(run) if run.arm is None else [arms(run)[run.arm]]
    return [arm for arm in chosen if not (arm.folder / RESULT).exists()]


def array(chosen: Iterable[Arm]) -> str:
    """Their numbers as sbatch's --array reads them: 0-4,7. ValueError where there are none."""
    numbers = sorted(arm.number for arm in chosen)
    if not numbers:
        raise ValueError("probe: every arm is finished; python -m recipes.probe collect=true ... puts them together")
    parts = []
    for _, group in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        block = [number for _, number in group]
        parts.append(f"{block[0]}-{block[-1]}" if len(block) > 1 else str(block[0]))
    return ",".join(parts)


def weights(run: config.Probe, candidate: str | None) -> dict[str, float]:
    """Weight of each source in an arm: `share` of all is the candidate's, the rest is divided as by default."""
    mixture = {name: 0.0 if name in run.candidates else source.weight for name, source in run.data.sources.items()}
    if candidate is not None:
        mixture[candidate] = sum(mixture.values()) * run.share / (1 - run.share)
    return mixture


def pretraining(run: config.Probe, arm: Arm) -> config.Pretrain:
    """The run that an arm is."""
    mixed = weights(run, arm.candidate)
    sources = {name: dataclasses.replace(source, weight=mixed[name]) for name, source in run.data.sources.items()}
    given = {field.name: getattr(run, field.name) for field in dataclasses.fields(config.Pretrain)}
    given |= {"name": f"{run.name}-{arm.folder.name}", "folder": str(arm.folder), "resume": "auto"}
    return config.Pretrain(**given | {"data": dataclasses.replace(run.data, seed=arm.seed, sources=sources)})


def problems(run: config.Probe) -> list[Issue]:
    """What makes a probe impossible, beside what is wrong with its annealings."""
    issues, sources = [], list(run.data.sources)
    if run.init_from is None:
        issues.append(
            Issue("init_from", None, "a probe goes on from a half-trained checkpoint", "give init_from=FOLDER")
        )
    if not run.candidates:
        issues.append(Issue("candidates", "[]", "there is nothing to judge", "give candidates='[SOURCE,...]'"))
    remedy = f"give some of {', '.join(sources) or 'data.sources'}"
    issues += [
        Issue("candidates", name, "no source of the data", remedy) for name in run.candidates if name not in sources
    ]
    lists: dict[str, Sequence[Any]] = {"candidates": run.candidates, "seeds": run.seeds}
    issues += [
        Issue(key, given, "one of them stands there twice", "give each once")
        for key, given in lists.items()
        if len(set(given)) < len(given)
    ]
    if not any(weights(run, None).values()):
        reason = "no other source has a weight: there is no default data to compare with"
        issues.append(Issue("candidates", ", ".join(run.candidates), reason, "leave one out, or add data.sources"))
    if run.share >= 1:
        issues.append(Issue("share", run.share, "nothing of the default data is left", "give less than 1"))
    if not run.seeds:
        issues.append(Issue("seeds", "[]", "nothing would be annealed", "give seeds='[1,2,3]'"))
    if run.arm is not None and run.arm >= (count := len(arms(run))):
        issues.append(Issue("arm", run.arm, f"there are {count} arms, from 0", f"give at most {count - 1}"))
    if run.data.mixture:
        reason = "weights that change on the way are no share"
        issues.append(Issue("data.mixture", len(run.data.mixture), reason, "give the weights of data.sources alone"))
    if run.gates.every_tokens is not None:
        issues.append(
            Issue("gates.every_tokens", run.gates.every_tokens, "an annealing ends with its tokens", "give null")
        )
    return issues


# --- what has been measured ---


def settings(run: config.Probe, checkpoint: str) -> dict[str, Any]:
    """What all arms of a probe have in common, for results of other settings are not to be compared."""
    return {
        "init_from": checkpoint,
        "init_optimizer": run.init_optimizer,
        "share": run.share,
        "default": {name: weight for name, weight in weights(run, None).items() if weight},
        "schedule": dataclasses.asdict(run.schedule),
        "model": dataclasses.asdict(run.model),
        "validation_tokens": run.validation.tokens,
        "tasks": sorted(run.tasks),
        "measure": run.measure,
    }


def conclude(run: config.Probe, arm: Arm, checkpoint: str, tasks: Mapping[str, float]) -> None:
    """Write down what a trained arm scores. `checkpoint` is where it started; losses are the last of its record."""
    lines = [line for line in metrics.read(arm.folder) if line["kind"] == "validation"]
    if not lines or lines[-1]["step"] != schedule.total_steps(run.schedule):
        raise ValueError(f"{arm.folder}: its record has no held-out loss of the last step; delete the folder")
    result = {
        "candidate": arm.candidate,
        "seed": arm.seed,
        "settings": settings(run, checkpoint),
        "losses": lines[-1]["losses"],
        "tasks": dict(tasks),
    }
    files.write_whole(arm.folder / RESULT, json.dumps(result, indent=1))


def refuse_others(run: config.Probe, checkpoint: str) -> None:
    """ValueError where a finished arm started elsewhere, or was trained or measured otherwise, than `run` says."""
    wanted = settings(run, checkpoint)
    for arm in arms(run):
        result = _result(arm)
        changed = [key for key in wanted if result is not None and result["settings"].get(key) != wanted[key]]
        if result is not None and changed:
            was, now = result["settings"].get(changed[0]), wanted[changed[0]]
            raise ValueError(
                f"{arm.folder} was annealed with another {', '.join(changed)} ({changed[0]} was {was}, now {now}); "
                "give another name=, or delete its folder"
            )


def _result(arm: Arm) -> dict[str, Any] | None:
    try:
        return json.loads((arm.folder / RESULT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{arm.folder / RESULT} cannot be read ({error}); delete it to measure the arm again"
        ) from error


def collect(run: config.Probe) -> dict[str, Any]:
    """What the finished arms say, ready for JSON.

    -> {"share", "seeds", "missing": [arms without a result], "candidates": {name: {figure: found}}}, where `found`
    holds the means `default` and `with`, `difference` with `ci95` (null for one seed), `differences` by seed, and
    `seeds`, those of which both arms are there. A figure is a held-out loss in nats per token (of `default data`: that
    of each source by its weight) or the score of a task.
    """
    figures: dict[str | None, dict[int, dict[str, float]]] = {}
    missing = []
    for arm in arms(run):
        result = _result(arm)
        if result is None:
            missing.append(arm.folder.name)
        else:
            figures.setdefault(arm.candidate, {})[arm.seed] = _figures(run, result)
    candidates = {name: _compared(figures.get(None, {}), figures.get(name, {}), run.seeds) for name in run.candidates}
    return {"share": run.share, "seeds": list(run.seeds), "missing": missing, "candidates": candidates}


def _figures(run: config.Probe, result: Mapping[str, Any]) -> dict[str, float]:
    losses = {name: float(loss) for name, loss in result["losses"].items()}
    shares = {name: weight for name, weight in weights(run, None).items() if weight and name in losses}
    means = {}
    if total := sum(shares.values()):
        means[DEFAULT] = sum(losses[name] * weight for name, weight in shares.items()) / total
    return means | {f"{name} (score)": score for name, score in result["tasks"].items()} | losses


def _compared(
    default: Mapping[int, Mapping[str, float]], mixed: Mapping[int, Mapping[str, float]], seeds: Sequence[int]
) -> dict[str, Any]:
    from llama31.evaluate.confidence import paired  # and with it numpy, for which a config would wait

    both = [seed for seed in seeds if seed in default and seed in mixed]
    compared: dict[str, Any] = {}
    for figure in default[both[0]] if both else ():
        before, after = ([arms[seed][figure] for seed in both] for arms in (default, mixed))
        differences = [y - x for x, y in zip(before, after, strict=True)]
        mean, half = paired(differences)
        compared[figure] = {
            "default": math.fsum(before) / len(both),
            "with": math.fsum(after) / len(both),
            "difference": mean,
            "ci95": half,
            "differences": differences,
            "seeds": both,
        }
    return compared


def intervals(comparison: Mapping[str, Any]) -> dict[str, dict[str, tuple[float, float | None]]]:
    """Difference and half width by figure and candidate, of the first figures, as `plots.draw_intervals` takes them."""
    panels: dict[str, dict[str, tuple[float, float | None]]] = {}
    for name, figures in comparison["candidates"].items():
        for figure, one in list(figures.items())[:SHOWN]:
            panels.setdefault(figure, {})[name] = (one["difference"], one["ci95"])
    return panels


def shows(figure: str, interval: Mapping[str, Any]) -> str:
    """What an interval says: a lower loss and a higher score are better."""
    if interval["ci95"] is None:
        return "one seed: no interval"
    if abs(interval["difference"]) <= interval["ci95"]:
        return "no difference"
    return "better" if (interval["difference"] > 0) == figure.endswith(" (score)") else "worse"


def table(comparison: Mapping[str, Any]) -> str:
    """The result as a table in Markdown, with what is missing."""
    lines = [
        f"| candidate, {comparison['share']:.0%} | held out | default alone | with it | difference | 95 % | seeds "
        "| shows |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, figures in comparison["candidates"].items():
        for figure, one in figures.items():
            half = "" if one["ci95"] is None else f"± {one['ci95']:.4f}"
            cells = (
                f"{one['default']:.4f} | {one['with']:.4f} | {one['difference']:+.4f} | {half} | {len(one['seeds'])}"
            )
            lines.append(f"| {name} | {figure} | {cells} | {shows(figure, one)} |")
    if comparison["missing"]:
        lines += ["", f"Not finished: {', '.join(comparison['missing'])}."]
    return "\n".join(lines)
