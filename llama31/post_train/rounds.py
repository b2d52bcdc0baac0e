"""Rounds of post-training (report, section 4.1): commands in their order, and which of them are done.

    <folder>/round-01/reward  sample  synthesize-NAME  filter  sft  dpo  answers  judge  best
                                                          best leads to the model that the judge prefers

Reward models and, in the report, SFT begin with the pre-trained model in every round; what a round hands to the next is
the model that answers (`best`). A stage with variants trains each in STAGE-VARIANT and averages them to STAGE. A stage
is done when what it leaves says so, never because it was started; so the same command goes on wherever it stopped.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama31 import config
from llama31.judging import judge
from llama31.runs import files
from llama31.sampling import drawing
from llama31.slurm import chains, jobs, submission

OF_MANY: tuple[str, ...] = (
    "sampling.answers=",
    "sampling.temperature=",
    "sampling.temperature_to=",
)  # no judge's business
OF_MANY += ("filters.", "pairs.", "limit=", "part=")
KEPT = "kept.jsonl"  # of recipes.filter_data
GREEDY = ("sampling.answers=1", "sampling.temperature=0")  # answers that are judged


@dataclass(frozen=True)
class RoundStage(chains.ChainedJob):
    """One command of the rounds, and when it is done; `processes` of torchrun where it runs on this machine."""

    done: Callable[[], bool] = lambda: False
    processes: int = 1

    def words(self) -> list[str]:
        """As a user would type it."""
        if self.processes == 1:
            return ["python", "-m", f"recipes.{self.recipe}", *self.arguments]
        launcher = ["torchrun", "--standalone", "--nproc-per-node", str(self.processes)]
        return [*launcher, "-m", f"recipes.{self.recipe}", *self.arguments]

    def command(self) -> list[str]:
        """The same with the Python that runs now."""
        words = self.words()
        program = [sys.executable] if self.processes == 1 else [sys.executable, "-m", "torch.distributed.run"]
        return [*program, *words[1:]]


def stages(run: config.PostTrain) -> list[RoundStage]:
    """Every command of every round, in order. Raises ValueError for `only` that names none of them."""
    stages = [stage for number in range(1, run.rounds + 1) for stage in _Round(run, number).stages()]
    unknown = [name for name in run.only if name not in {stage.name for stage in stages}]
    if unknown:
        raise ValueError(f"only={unknown}: no such stage; dry_run=true lists them, the first is {stages[0].name}")
    return [stage for stage in stages if not run.only or stage.name in run.only]


class _Round:
    """The stages of one round."""

    def __init__(self, run: config.PostTrain, number: int) -> None:
        self.run, self.number, self.tag = run, number, f"{number:02d}"
        self.folder = Path(run.folder) / f"round-{self.tag}"
        before = Path(run.folder) / f"round-{number - 1:02d}"
        self.first = run.policy or run.pretrained
        self.policy = self.first if number == 1 else str(before / "best")
        self.previous = str(before / ("answers" if number == 1 else "best-answers"))
        self.waits = () if number == 1 else (f"round-{number - 1:02d}/judge",)

    def stages(self) -> Iterator[RoundStage]:
        run, here, reward = self.run, self.folder, str(self.folder / "reward")
        known = range(1, self.number + 1)
        learned = {f"preferences_{k:02d}": self._file(run.preferences, k) for k in known}
        yield from self._trained("reward", run.reward, run.pretrained, learned, self.waits)
        prompts = f"prompts={self._file(run.prompts)}"
        drawn = (f"folder={here / 'sample'}", prompts, f"policy={self.policy}", f"reward={reward}")
        yield self._sampled("sample", run.sample, drawn, (self._of("reward"),), here / "sample")

        dialogs = {"sampled": str(here / "sample" / drawing.BEST)}
        dialogs |= {"dialogs": self._file(run.dialogs)} if run.dialogs else {}
        made = list(self._synthesized())
        yield from made
        dialogs |= self._made("dialogs")
        after = [self._of("sample"), *(one.name for one in made)]
        if run.filter.enabled:
            yield self._filtered_data(dialogs, after)
            dialogs, after = {"kept": str(here / "filter" / KEPT)}, [self._of("filter")]
        begin = self.policy if run.sft_from == "best" else run.pretrained
        yield from self._trained("sft", run.sft, begin, dialogs, after)

        newest = {f"preferences_{self.tag}": self._file(run.preferences)}
        newest |= {"sampled": str(here / "sample" / drawing.PAIRS)} if run.pairs else {}
        newest |= self._made("preferences")
        yield from self._trained("dpo", run.dpo, str(here / "sft"), newest, (self._of("sft"),))
        yield from self._judged(reward)

    def _judged(self, reward: str) -> Iterator[RoundStage]:
        run, here = self.run, self.folder
        common = (f"prompts={run.judge_prompts}", f"reward={reward}", *GREEDY)
        part = () if self.number == 1 else ("part=rank",)
        before = (f"folder={self.previous}", f"policy={self.policy}", *common, *part)
        yield self._sampled("previous", run.sample, before, (self._of("reward"),), Path(self.previous), run.judge.set)
        mine = (f"folder={here / 'answers'}", f"policy={here / 'dpo'}", *common)
        yield self._sampled("answers", run.sample, mine, (self._of("dpo"),), here / "answers", run.judge.set)

        trained = [here / stage for stage in ("reward", "sft", "dpo")]
        runs = [str(folder) for stage in trained for folder in self._variants(stage)]
        earlier = [str(here.parent / f"round-{k:02d}" / "judge" / judge.NAME) for k in range(1, self.number)]
        arguments = (
            f"folder={here / 'judge'}", f"title={run.name}, round {self.number}", f"answers={here / 'answers'}",
            f"previous={self.previous}", f"reward={reward}", f"candidate={here / 'dpo'}", f"incumbent={self.policy}",
            f"runs={_listed(runs)}", f"earlier={_listed(earlier)}",
        )  # fmt: skip
        after = (self._of("answers"), self._of("previous"))
        yield RoundStage(self._of("judge"), "judge", arguments, after, (here / "judge" / judge.NAME).is_file)

    def _synthesized(self) -> Iterator[RoundStage]:
        for name, wanted in self.run.synthesize.items():
            folder = self.folder / f"synthesize-{name}"
            given = (f"task={wanted.task}", f"name={self.run.name}-{self.tag}-{name}", f"folder={folder}")
            arguments = (*self._root(wanted), *given, *self._filled(wanted.set))
            done = (folder / drawing.SUMMARY).is_file  # a few items may be refused for good, as when sampling
            yield RoundStage(self._of(folder.name), "synthesize", arguments, self.waits, done)

    def _filtered_data(self, dialogs: dict[str, str], after: Sequence[str]) -> RoundStage:
        folder, wanted = self.folder / "filter", self.run.filter
        given = (f"name={self.run.name}-{self.tag}-filter", f"folder={folder}", f"input={','.join(dialogs.values())}")
        arguments = (*self._root(wanted), *given, *self._filled(wanted.set))
        return RoundStage(
            self._of("filter"), "filter_data", arguments, tuple(after), (folder / drawing.SUMMARY).is_file
        )

    def _made(self, kind: str) -> dict[str, str]:
        """Files of the round's synthesis that hold records of a kind, by their sources' names."""
        wanted = [name for name, one in self.run.synthesize.items() if getattr(one, kind)]
        return {name: str(self.folder / f"synthesize-{name}" / f"{kind}.jsonl") for name in wanted}

    def _variants(self, target: Path) -> list[Path]:
        wanted: config.RoundRecipe = getattr(self.run, target.name)
        return [target.with_name(f"{target.name}-{name}") for name in wanted.variants] or [target]

    def _trained(
        self, name: str, wanted: config.RoundRecipe, begin: str, sources: dict[str, str], after: Sequence[str]
    ) -> Iterator[RoundStage]:
        """The variants of a stage and their average, or the stage alone."""
        target = self.folder / name
        variants = [variant.set for variant in wanted.variants.values()] or [[]]
        folders = self._variants(target)
        data = [f"data.folder={Path(self.run.folder) / 'data'}"]
        data += [f"data.sources.{source}.input={path}" for source, path in sources.items()]
        for folder, own in zip(folders, variants, strict=True):
            label = f"{self.run.name}-{self.tag}-{folder.name}"
            given = (*self._root(wanted), f"name={label}", f"folder={folder}", f"init_from={begin}", *data)
            arguments = (*given, *self._filled(wanted.set), *self._filled(own))
            done = _finished(folder)
            yield RoundStage(self._of(folder.name), name, arguments, tuple(after), done, wanted.processes)
        if folders != [target]:
            names = tuple(self._of(folder.name) for folder in folders)
            arguments = (f"inputs={_listed(map(str, folders))}", f"target={target}")
            yield RoundStage(self._of(name), "average", arguments, names, lambda: _holds_checkpoint(target))

    def _sampled(
        self, name: str, wanted: config.RoundRecipe, given: Sequence[str], after: Sequence[str], folder: Path,
        further: Sequence[str] = (),
    ) -> RoundStage:  # fmt: skip
        arguments = (*self._root(wanted), *given)
        if name == "sample":
            arguments += tuple(self._filled(wanted.set))
        else:  # the same servers and layout
            kept = [text for text in wanted.set if not text.startswith(OF_MANY)]
            arguments += (*self._filled(kept), *self._filled(further))
        done = _ranked(folder, self.folder / "reward")
        return RoundStage(self._of(name), "sample", arguments, (*after, *self.waits), done, wanted.processes)

    def _root(self, wanted: config.RoundRecipe | config.RoundSynthesis | config.RoundFilter) -> tuple[str, ...]:
        folder = () if self.run.config_dir is None else ("--config-dir", self.run.config_dir)
        return folder + (() if wanted.config_name is None else ("--config-name", wanted.config_name))

    def _of(self, name: str) -> str:
        return f"round-{self.tag}/{name}"

    def _file(self, text: str, number: int | None = None) -> str:
        return text.replace("{round}", self.tag if number is None else f"{number:02d}")

    def _filled(self, given: Sequence[str]) -> list[str]:
        return [self._file(text) for text in given]


def _listed(words: Any) -> str:
    """A list of texts for Hydra's grammar."""
    return "[" + ",".join(json.dumps(word, ensure_ascii=False) for word in words) + "]"


# --- what is done ---


def _finished(folder: Path) -> Callable[[], bool]:
    def done() -> bool:
        return (files.read_object(folder / "outcome.json") or {}).get("outcome") == "finished"

    return done


def _ranked(folder: Path, reward: Path) -> Callable[[], bool]:
    def done() -> bool:
        names = (files.read_object(folder / drawing.SUMMARY) or {}).get("ranked_by", [])
        return any(Path(name).resolve().is_relative_to(reward.resolve()) for name in names)

    return done


def _holds_checkpoint(folder: Path) -> bool:
    return next(folder.glob("checkpoints/*/checkpoint.json"), None) is not None


def state(run: config.PostTrain, stage: RoundStage) -> bool:
    """Whether a stage is done. Raises ValueError where it was done by another command than it would be now."""
    if not stage.done():
        return False
    submission.refuse_another(f"folder={run.folder}", Path(run.folder), stage)
    return True


def chain(run: config.PostTrain, stages: Sequence[RoundStage]) -> submission.Submission:
    """The stages as jobs, every config composed and checked; SystemExit after all problems of all were printed.

    Raises ValueError for addresses of servers, since each stage samples from another model.
    """
    by_name = {stage.name: stage for stage in stages}

    def world(stage: chains.ChainedJob, given: Any) -> int:
        return jobs.world_size(given, run.job) if run.submit else by_name[stage.name].processes

    steps = chains.checked("python -m recipes.post_train", stages, world)
    for step in steps:
        if isinstance(step.run, config.Sample) and step.run.server.urls:
            raise ValueError(
                f"server.urls={','.join(step.run.server.urls)}: {step.name} and the others sample from a model each, "
                "and these servers have one; leave it out: our own decoder answers, or slurm/sample.sh starts servers "
                "of the stage's model (submit=true, VLLM_PYTHON)"
            )
    folder = Path(run.folder)
    # logs not in the folder that a stage works in: a link cannot take the place of a folder later
    whole = [
        dataclasses.replace(step, logs=folder / step.name / "logs", done=by_name[step.name].done) for step in steps
    ]
    job = dataclasses.replace(run.job, dry_run=run.dry_run)
    return submission.Submission(f"folder={run.folder}", folder, whole, job, section="job")


def launch(stage: RoundStage) -> int:
    """Run a stage in processes of its own, on this machine; its exit status."""
    return subprocess.run(stage.command(), check=False).returncode


def execute(
    run: config.PostTrain,
    stages: Sequence[RoundStage],
    say: Callable[[str], None],
    start: Callable[[RoundStage], int] = launch,
) -> None:
    """Run what is not done, one after the other, by `start`. Raises RunError where a command fails."""
    for stage in stages:
        if state(run, stage):
            say(f"# {stage.name}: done")
            continue
        say(f"# {stage.name}\n{shlex.join(stage.words())}")
        submission.note(Path(run.folder), stage, stage.words())
        begin = time.monotonic()
        code = start(stage)
        if code or not stage.done():
            why = f"ended with {code}" if code else "ended before it was done"
            raise config.RunError(
                f"{stage.name} {why}; its reason stands above, and the same command goes on from there"
            )
        say(f"# {stage.name}: done in {time.monotonic() - begin:.1f} s")
