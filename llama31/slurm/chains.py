"""A chain of jobs: from a file of conf/chain/ and the command line to checked steps, all their problems at once.

Torch-free. A stage takes what it is not given from those before it, as further arguments, so that a dry run shows them.
"""

from __future__ import annotations

import itertools
import re
import string
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama31 import config
from llama31.command import entry, inputs, usage
from llama31.config import MISSING, ConfigError, Issue
from llama31.slurm.jobs import CHAINED, Step

# What a stage takes from those before it where it is not given: the newest `weights`, a run or an average, and the
# newest `gates`, which hold the scores of before the extension.
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
WRONG = "what stands above"  # in place of what is not known for another problem, whose consequences nobody has to read
UNKNOWN = {"weights": WRONG, "gates": WRONG}  # left by a stage that cannot be composed
VARIABLE = re.compile(r"\{\{(\w+)\}\}|\{(\w+)\}")  # {{x}} is {x} as it stands
STAGE = re.compile(r"stages\.([\w-]+)\.(.+)", re.DOTALL)


@dataclass(frozen=True)
class ChainedJob:
    """One job before its config is composed: its name, recipe and arguments, and the stages that it needs."""

    name: str
    recipe: str
    arguments: tuple[str, ...]
    after: tuple[str, ...] = ()


World = Callable[[ChainedJob, Any], int]  # processes of a stage with this config


# --- from the file and the command line to stages ---


class Variables:
    """The {NAME} of a chain: values of the command line, or else of the file, in which other variables may stand."""

    def __init__(self, own: Mapping[str, str], given: Mapping[str, str]) -> None:
        self.own, self.given = own, given
        self.used: dict[str, bool] = {}  # whether there is a value

    def fill(self, text: str, within: tuple[str, ...] = ()) -> str:
        """`text` with their values."""

        def value(match: re.Match[str]) -> str:
            return f"{{{match[1]}}}" if match[1] else self.value(match[2], within) or WRONG

        return VARIABLE.sub(value, text)

    def value(self, name: str, within: tuple[str, ...] = ()) -> str:
        """The value of one, empty without; `within` are those that it stands in, and has no value in itself."""
        value = self.given.get(name, "")
        if name in self.own and name not in (*self.given, *within):
            value = self.fill(self.own[name], (*within, name))
        self.used[name] = self.used.get(name, True) and bool(value.strip())
        return value

    def problems(self) -> Iterator[Issue]:
        """Those without a value, and values of none."""
        for name in (name for name, valued in self.used.items() if not valued):
            yield Issue(name, MISSING, "is required by this chain", f"give {name}=VALUE")
        for name, value in self.given.items():
            if name not in self.used:
                remedy = f"{_one_of(name, self.used)}; a stage is reached by stages.LABEL.{name}={value}"
                yield Issue(name, value, "no variable of this chain", remedy)


def stages(chain: config.Chain, arguments: Sequence[str]) -> tuple[str, list[ChainedJob], list[Issue]]:
    """The name of a chain, its stages, and what is wrong with it; a stage of no recipe comes back all the same.

    Of `arguments`, NAME=VALUE gives a variable, `stages.LABEL.KEY=VALUE` reaches a stage (or all of a recipe, if no
    label is called so), `--config-dir` all stages.
    """
    issues: list[Issue] = []
    folder, values, reaching = _sorted(arguments, issues)
    labels = [stage.label or stage.recipe for stage in chain.stages]
    issues += _named(chain, labels)
    for label, text in reaching:
        if not _reached(label, labels, chain.stages):
            issues.append(Issue(f"stages.{label}.{text}", MISSING, "there is no such stage", _one_of(label, labels)))
    variables, stages = Variables(chain.variables, values), list[ChainedJob]()
    name = variables.value("name")
    for index, (label, stage) in enumerate(zip(labels, chain.stages, strict=True)):
        root = [] if stage.config_name is None else ["--config-name", stage.config_name]
        shared = [one.overrides for one in chain.common if not one.recipes or stage.recipe in one.recipes]
        given = [variables.fill(text) for text in itertools.chain(*shared, stage.overrides)]
        given += [text for name, text in reaching if index in _reached(name, labels, chain.stages)]
        before = labels[max(0, index - 1) : index] if stage.after is None else stage.after
        stages.append(ChainedJob(label, stage.recipe, (*folder, *root, *given), tuple(before)))
    return name, stages, [*issues, *variables.problems()]


def _sorted(arguments: Sequence[str], issues: list[Issue]) -> tuple[list[str], dict[str, str], list[tuple[str, str]]]:
    """The folder of the user's own files, the values of variables, and what reaches stages."""
    folder, values, reaching, follows = list[str](), dict[str, str](), list[tuple[str, str]](), False
    for text in arguments:
        key, equals, value = text.partition("=")
        of_stage = STAGE.fullmatch(text)
        if follows or key == "--config-dir":
            folder.append(text)
        elif of_stage:
            reaching.append((of_stage[1], of_stage[2]))
        elif equals and key.isidentifier():
            values[key] = value
        else:
            whole = "KEY=VALUE" if text.startswith(("-", "stages.")) else text
            issues.append(
                Issue(text, MISSING, "reaches no stage", f"give stages.LABEL.{whole}, or stages.RECIPE.{whole}")
            )
        follows = text == "--config-dir"
    return folder, values, reaching


def _named(chain: config.Chain, labels: Sequence[str]) -> Iterator[Issue]:
    """Problems of recipes, labels and what a stage follows."""
    if not chain.stages:
        yield Issue("chain.stages", MISSING, "there are none", "give a list of {recipe: R, overrides: [KEY=VALUE]}")
    for index, (label, stage) in enumerate(zip(labels, chain.stages, strict=True)):
        key = f"chain.stages[{index}]"
        if stage.recipe not in CHAINED:
            yield Issue(f"{key}.recipe", stage.recipe, "no such recipe", _one_of(stage.recipe, CHAINED))
        if not re.fullmatch(r"[\w-]+", label):
            yield Issue(f"{key}.label", label, "no label", "give letters, digits, _ and -")
        if label in labels[:index]:
            remedy = f"give each a label of its own, such as {label}-{index + 1}"
            yield Issue(f"{key}.label", label, f"stage {labels.index(label)} is called so too", remedy)
        for name in stage.after or []:
            if name not in labels[:index]:
                yield Issue(f"{key}.after", name, "no stage before this one", _one_of(name, labels[:index]))
    there = list(dict.fromkeys(stage.recipe for stage in chain.stages))
    for index, one in enumerate(chain.common):
        for name in one.recipes:
            if name not in there and set(there) <= CHAINED.keys():
                yield Issue(f"chain.common[{index}].recipes", name, "no recipe of this chain", _one_of(name, there))


def _reached(name: str, labels: Sequence[str], stages: Sequence[config.ChainStage]) -> list[int]:
    """The stages that a name means: the one that is labelled so, or else all of that recipe."""
    labelled = [index for index, label in enumerate(labels) if label == name]
    return labelled or [index for index, stage in enumerate(stages) if stage.recipe == name]


def _one_of(name: str, known: Iterable[str]) -> str:
    known = list(known)
    return usage.one_of(name, known) if known else "leave it out"


# --- from stages to steps ---


def checked(
    program: str, stages: Sequence[ChainedJob], world: World, issues: Sequence[Issue] = (), files: bool | None = False
) -> list[Step]:
    """The `steps` of the stages of a command; warnings are printed. SystemExit after all problems were printed."""
    try:
        made, warnings = steps(stages, world, issues, files)
    except ConfigError as error:
        entry.refuse(program, error)
    for text in warnings:
        print(f"warning: {text}", file=sys.stderr)
    return made


def steps(
    stages: Sequence[ChainedJob], world: World, issues: Sequence[Issue] = (), files: bool | None = False
) -> tuple[list[Step], list[str]]:
    """Compose and check every stage for the processes that it will have; the steps, and warnings.

    `files`: whether those have to be there that no stage makes; None: they are named beside other problems.
    Raises ConfigError with `issues` and all problems of all stages, each with the names of its stages.
    """
    steps, warnings, hints = list[Step](), list[str](), list[str]()
    problems: list[tuple[str, Issue]] = []
    left: dict[str, dict[str, str]] = {}
    for stage in stages:
        known = {name: value for before in stage.after for name, value in left.get(before, UNKNOWN).items()}
        try:
            step, said = compose(stage, known, world)
        except ConfigError as error:
            problems += [(stage.name, issue) for issue in error.issues if WRONG not in str(issue)]
            hints += [f"{stage.name}: {error.hint}"] if error.hint else []
            left[stage.name] = UNKNOWN
        else:
            if step is not None:
                steps.append(step)
            warnings += [f"{stage.name}: {text}" for text in said]
            left[stage.name] = UNKNOWN if step is None else leaves(step.run, known)
    problems += _shared(steps)
    if files or (files is None and (issues or problems)):
        problems += _missing(steps)
    if issues or problems:
        raise ConfigError([*issues, *_together(problems)], "\n  ".join(hints))
    return steps, warnings


def compose(stage: ChainedJob, known: Mapping[str, str], world: World) -> tuple[Step | None, list[str]]:
    """A stage with its config and what it takes of `known`, and warnings; None for a recipe that is none.

    Raises ConfigError.
    """
    if stage.recipe not in CHAINED:
        return None, []
    taken: dict[str, str] = {}

    def further(given: set[str]) -> dict[str, str]:
        if not any(key.startswith("inputs[") for key in given):  # an average of what the user names
            taken.update(_taken(stage.recipe, given, known))
        return taken

    schema, words = CHAINED[stage.recipe], stage.arguments
    run: Any
    run, warnings = entry.read(schema, stage.recipe, words, lambda run: world(stage, run), further)
    arguments = (*words, *(f"{key}={value}" for key, value in taken.items()))
    return Step(stage.name, stage.recipe, arguments, run, stage.after), warnings


def _taken(recipe: str, given: set[str], known: Mapping[str, str]) -> dict[str, str]:
    """What a stage takes of what those before it leave."""
    return {
        key: text.format(**known)
        for key, text in TAKES.get(recipe, {}).items()
        if key not in given and all(name in known for _, name, _, _ in string.Formatter().parse(text) if name)
    }


def leaves(run: Any, known: Mapping[str, str]) -> dict[str, str]:
    """What later stages can take, where those before leave `known`: see `TAKES`."""
    if isinstance(run, config.Average):
        return {**known, "weights": run.target}
    if isinstance(run, config.Evaluate) and run.output is not None:
        return {"gates": run.output, **known}  # scores of before the first stage, none of after it
    if not isinstance(run, config.Training) or isinstance(run, config.Reward | config.Probe):
        return dict(known)  # neither a reward model nor a probe is anything to go on with
    gated = isinstance(run, config.Pretrain) and run.gates.every_tokens is not None
    return {**known, "weights": run.folder, **({"gates": f"{run.folder}/gates.json"} if gated else {})}


def _shared(steps: Sequence[Step]) -> Iterator[tuple[str, Issue]]:
    """Where two stages would train in one folder: the second would go on with the first."""
    trained = [step for step in steps if isinstance(step.run, config.Training) and step.folder is not None]
    for earlier, later in itertools.combinations(trained, 2):
        if earlier.folder == later.folder:
            reason = f"{earlier.name} would train there too"
            yield later.name, Issue("folder", later.folder, reason, "give each a name=")


def missing(steps: Sequence[Step]) -> list[Issue]:
    """Files that are not there and that no stage makes before another reads them, with the names of those."""
    return _together(_missing(steps))


def _missing(steps: Sequence[Step]) -> list[tuple[str, Issue]]:
    made: list[Path] = []
    absent = []
    for step in steps:
        try:
            inputs.check(step.run)
        except ConfigError as error:
            unmade = [issue for issue in error.issues if not _within(str(issue.value), made)]
            absent += [(step.name, issue) for issue in unmade if WRONG not in str(issue)]
        made += [Path(path) for path in makes(step.run)]
    return absent


def makes(run: Any) -> list[str]:
    """Files and folders that a recipe leaves."""
    if isinstance(run, config.Convert):
        return [run.hf if run.direction.startswith("to_") else run.checkpoint]
    keys = ("folder", "target", "output")
    return [value for key in keys if (value := getattr(run, key, None)) is not None]


def _within(value: str, made: Sequence[Path]) -> bool:
    return any(Path(value).is_relative_to(path) for path in made)


def _together(problems: Iterable[tuple[str, Issue]]) -> list[Issue]:
    """Each problem once, with the names of all stages that have it."""
    names: dict[str, tuple[Issue, list[str]]] = {}
    for name, issue in problems:
        names.setdefault(str(issue), (issue, []))[1].append(name)
    return [issue._replace(key=f"{', '.join(said)}: {issue.key}") for issue, said in names.values()]
