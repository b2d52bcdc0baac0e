"""Which capabilities there are, by the name that `task` gives, and how each is made of its section of the config."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llama31 import config
from llama31.dialogs import columns
from llama31.sandbox import cgroups
from llama31.sandbox.isolation import Sandbox
from llama31.sandbox.limits import MIB, SandboxLimits
from llama31.synth.mathematics import reward_servers
from llama31.synth.pipeline import folder, gather, items, journal, page, shard
from llama31.synth.pipeline.chat_models import ServedModel
from llama31.synth.pipeline.draw import JUDGE, POLICY, REWARD
from llama31.synth.pipeline.folder import BegunSynthesis
from llama31.synth.pipeline.items import SynthesisItem
from llama31.synth.pipeline.shard import Capability, ItemShard

# Each imports its package itself: a task needs nothing of the others.


def _factuality(run: config.Synthesize) -> Capability:
    from llama31.synth.behaviour.factuality import Factuality

    return Factuality(run.factuality)


def _steerability(run: config.Synthesize) -> Capability:
    from llama31.synth.behaviour.steerability import Steerability

    return Steerability(run.steerability)


def _safety(run: config.Synthesize) -> Capability:
    from llama31.synth.behaviour.safety import Safety

    return Safety(run.safety)


def _guard(run: config.Synthesize) -> Capability:
    from llama31.synth.behaviour.guard import HazardGuard

    return HazardGuard(run.guard)


def _code(run: config.Synthesize) -> Capability:
    from llama31.synth.code.execution import CodeExecution
    from llama31.synth.code.running.bench import Bench

    bench = Bench(_opener(run), run.code.languages, "code.languages", _tools(run), run.code.lint)
    return CodeExecution(run.code, run.review_code, bench)


def _translate_code(run: config.Synthesize) -> Capability:
    from llama31.synth.code.running.bench import Bench
    from llama31.synth.code.translation import CodeTranslation

    bench = Bench(_opener(run), config.PROGRAM_LANGUAGES, "task=translate_code of", _tools(run))
    return CodeTranslation(run.translate_code, bench)


def _backtranslate(run: config.Synthesize) -> Capability:
    from llama31.synth.code.backtranslation import CodeBacktranslation

    return CodeBacktranslation(run.backtranslate)


def _review_code(run: config.Synthesize) -> Capability:
    from llama31.synth.code.review import CodeReview

    return CodeReview(run.review_code)


def _opener(run: config.Synthesize) -> Callable[[], Sandbox]:
    """What opens the run's sandbox and says in a line what holds it.

    Raises ValueError at once where memory is too small for all programs together, but for what runs none here.
    """

    def opened() -> Sandbox:
        sandbox = sandboxed(run.programs)
        if makes:
            print(cgroups.told(), flush=True)
        return sandbox

    makes = run.part != "gather" and not (run.submit or run.dry_run)
    if makes and (problem := crowded(run.checks, _limits(run.programs), *cgroups.memory_bound())):
        raise ValueError(problem)
    return opened


def _sandbox(run: config.Synthesize) -> Sandbox:
    return _opener(run)()


def crowded(checks: int | None, limits: SandboxLimits, bound: int, where: str) -> str:
    """Why so many programs at once do not fit into `bound` bytes of memory, with remedies; "" where they do.

    checks: as the key; where: what says `bound`.
    """
    at_once = checks or len(os.sched_getaffinity(0))
    if at_once * limits.most_bytes <= bound:
        return ""
    fewer, less = bound // limits.most_bytes, (bound // at_once - limits.most_bytes + limits.memory_bytes) // MIB
    remedies = [f"checks={fewer}"] if fewer else []
    remedies += [f"programs.memory_mib={less}"] if less > 0 else []
    if "SLURM_JOB_ID" in os.environ and where != cgroups.MACHINE:
        remedies.append(f"sbatch --mem={-(-at_once * limits.most_bytes // MIB) + 1024}M (job.options)")
    return (
        f"checks={at_once if checks else f'null ({at_once} cores)'}: so many programs of programs.memory_mib="
        f"{limits.memory_bytes // MIB} at once, with files of twice programs.disk_mib={limits.disk_bytes // MIB} each, "
        f"may take {at_once * limits.most_bytes // MIB:,} MiB, and there are {bound // MIB:,} ({where}); give "
        + ", or ".join(remedies or ["a machine with more memory"])
    )


def sandboxed(keys: config.SynthesisPrograms) -> Sandbox:
    """Where programs run that models wrote. Raises SandboxUnavailable where there is no such place, with the remedy."""
    return Sandbox(_limits(keys), tuple(Path(folder).absolute() for folder in keys.readable), keys.bubblewrap)


def _limits(keys: config.SynthesisPrograms) -> SandboxLimits:
    return SandboxLimits(
        keys.memory_mib * MIB, keys.processes, keys.cpu_s, keys.wall_s, keys.output_bytes, keys.disk_mib * MIB
    )


def _tools(run: config.Synthesize) -> list[str]:
    """Where tools lie beside the sandbox's PATH."""
    return [f"{Path(folder).absolute()}/bin" for folder in run.programs.readable]


def _long(run: config.Synthesize) -> Capability:
    from llama31.synth.long_context.lengths import DocumentLengths
    from llama31.synth.long_context.questions import LongQuestions
    from llama31.synth.long_context.repositories import LongCode
    from llama31.synth.long_context.summaries import LongSummaries

    settings: Any = getattr(run, run.task)
    lengths = DocumentLengths(settings.tokenizer, settings.buckets)
    if run.task == "long_questions":
        return LongQuestions(settings, lengths)
    return LongSummaries(settings, lengths) if run.task == "long_summaries" else LongCode(settings, lengths)


def _questions(run: config.Synthesize) -> Capability:
    from llama31.synth.mathematics.questions import MathematicsQuestions

    return MathematicsQuestions(run.questions)


def _mathematics(run: config.Synthesize) -> Capability:
    from llama31.synth.equality.bounded import Comparer
    from llama31.synth.mathematics.solving import Mathematics

    runner = _sandbox(run) if run.mathematics.python.enabled else None
    return Mathematics(run.mathematics, run.questions, Comparer(run.checks), runner)


def _templates(run: config.Synthesize) -> Capability:
    from llama31.synth.multilingual import templates
    from llama31.synth.multilingual.languages import LanguageMatch

    found, match = templates.read(run.templates.folder), LanguageMatch(run.templates.language_model)
    return templates.TemplateDialogs(run.templates, found, match)


def _translate_reasoning(run: config.Synthesize) -> Capability:
    from llama31.synth.equality.bounded import Comparer
    from llama31.synth.multilingual.languages import LanguageMatch
    from llama31.synth.multilingual.reasoning import TranslatedReasoning

    wanted = run.translate_reasoning
    return TranslatedReasoning(wanted, Comparer(run.checks), LanguageMatch(wanted.language_model))


def _calling(run: config.Synthesize) -> Capability:
    from llama31.synth.tools import building

    if run.task == "function_calls":
        return building.functions(run.function_calls, lambda: _sandbox(run))
    settings: config.ToolsSynthesis = getattr(run, run.task)
    services = building.ServiceAccess(run.services, Path(run.folder), run.shard, run.shards)
    return building.build(run.task, settings, lambda: _sandbox(run), services)


def _function_dialogs(run: config.Synthesize) -> Capability:
    from llama31.synth.tools.roles.dialogs import FunctionDialogs

    return FunctionDialogs(run.function_dialogs)


BUILD: Mapping[str, Callable[[config.Synthesize], Capability]] = {
    "factuality": _factuality,
    "steerability": _steerability,
    "safety": _safety,
    "guard": _guard,
    "long_questions": _long,
    "long_summaries": _long,
    "long_code": _long,
    "tool_single": _calling,
    "tool_multi": _calling,
    "tool_files": _calling,
    "function_calls": _calling,
    "function_dialogs": _function_dialogs,
    "code": _code,
    "translate_code": _translate_code,
    "backtranslate": _backtranslate,
    "review_code": _review_code,
    "questions": _questions,
    "mathematics": _mathematics,
    "templates": _templates,
    "translate_reasoning": _translate_reasoning,
}
BESIDE = {"code": ("review_code",), "mathematics": ("questions",)}  # sections that decide as well
RUNNING = ("tool_single", "tool_multi", "tool_files", "function_calls", "code", "translate_code", "mathematics")
UNJUDGED = ("translate_code", "templates", "translate_reasoning")
NOT_DECIDING = ("short", "share")  # keys of a section that speak of what is gathered
DECIDING = ("task", "text_key", "shards", "sampling")  # keys beside the task's own section that decide what is made
# Tasks that read other fields than `text_key` names, and those that may.
OTHER_FIELDS = ("review_code", "templates", "translate_reasoning", "long_code", "tool_files")
OR_FIELDS = {"guard": "messages", "mathematics": "question"}


def build(run: config.Synthesize) -> Capability:
    """The capability that `run.task` names. Raises ValueError where it cannot work here, with what is missing."""
    return BUILD[run.task](run)


def opened(run: config.Synthesize, capability: Capability) -> BegunSynthesis:
    """The folder of the run, begun with its keys. Raises ValueError where it was begun with others."""
    plain = asdict(run)
    settings: dict[str, Any] = {
        name: plain[name] for name in (*DECIDING, run.task, *BESIDE.get(run.task, ())) if name in plain
    }
    settings[run.task] = {name: value for name, value in plain[run.task].items() if name not in NOT_DECIDING}
    settings["models"] = {"server": run.server.model, "judge": run.judge.model}
    settings["models"] |= {"reward": run.reward.model} if run.reward.model else {}
    provenance = {"sampling": plain["sampling"]}
    return folder.opened(Path(run.folder), settings, provenance, run.prompts, capability.prompts)


def read(run: config.Synthesize) -> Iterable[SynthesisItem]:
    """The items of the run's input."""
    if run.task == "long_code":
        from llama31.synth.long_context import folders

        return folders.read(run.input, run.text_key, run.limit)
    if run.task == "tool_files":
        from llama31.synth.tools import files

        return files.read(run.input, run.limit)
    if run.task == "function_dialogs":
        from llama31.synth.tools.roles import domains

        return domains.read(run.input, run.text_key, run.sampling.seed, run.limit)
    return items.read(run.input, run.text_key, run.limit)


def check_fields(run: config.Synthesize) -> None:
    """Raise ValueError (key `text_key`) where no record of the input has a field that the task reads."""
    if run.task in OTHER_FIELDS:
        return
    first, named = None, {run.text_key, OR_FIELDS.get(run.task, run.text_key)}
    for item in read(run):
        if named & (columns.dialog(item.record) if "messages" in named else item.record).keys():
            return
        first = first or item
    there = ", ".join(first.record) if first and first.record else "none"
    raise ValueError(
        f"text_key={run.text_key}: no record of {run.input} has a field {' or '.join(sorted(named))}; "
        f"the first one's fields are: {there}. Name the one with the text"
    )


def unfinished(run: config.Synthesize, begun: BegunSynthesis) -> list[int]:
    """Shards with items that have no result."""
    done = {number: journal.done(ItemShard(begun.path, number, run.shards).path) for number in range(run.shards)}
    return sorted({item.index % run.shards for item in read(run) if item.id not in done[item.index % run.shards]})


def _gathered_of(run: config.Synthesize) -> list[str]:
    """The files that the gathering reads beside the shards' results."""
    settings = getattr(run, run.task)
    return [run.input, *([settings.short] if getattr(settings, "short", None) else [])]


def is_gathered(run: config.Synthesize) -> bool:
    """Whether `finish` would write what is there already."""
    return folder.is_gathered(Path(run.folder), asdict(run), _gathered_of(run))


def make(run: config.Synthesize, begun: BegunSynthesis, capability: Capability, numbers: Iterable[int]) -> None:
    """Make what is missing of these shards, by the run's servers where it asks any, and say how far it is."""
    policy = ServedModel(run.server) if capability.prompts else None
    judge = ServedModel(run.judge, "judge") if policy and run.judge.urls else policy
    models = {POLICY: policy, JUDGE: judge} if policy and judge else {}
    models |= {REWARD: ServedModel(run.reward, "reward", reward_servers.connect)} if run.reward.urls else {}
    room, total = policy.room if policy else 1, sum(1 for _ in read(run))

    def counting(whether: bool) -> None:
        if policy:
            policy.occupancy.count(whether)

    for number in numbers:
        one, own = ItemShard(begun.path, number, run.shards), len(range(number, total, run.shards))
        at_once, title = run.items_at_once or shard.AHEAD * room, f"shard {number}"
        counting(True)
        with shard.workshop(one.path, models, begun.prompts, run.sampling, room, run.checks) as shared:
            outcome = shard.run_with_bar(
                one, capability, read(run), shared, at_once, title, own, lambda: counting(False)
            )
        refused = f", {outcome['refused']} refused: the same command asks again" if outcome["refused"] else ""
        busy = (
            f"; fewer than {room} requests under way in {policy.occupancy.short_share:.1%} of the time"
            if policy and policy.occupancy.requests
            else ""
        )
        print(
            f"{title}: {outcome['kept']} kept, {outcome['dropped']} dropped, {outcome['before']} done before"
            f"{refused}{busy}",
            flush=True,
        )


def finish(run: config.Synthesize, begun: BegunSynthesis) -> tuple[dict[str, Any], Path]:
    """Gather all shards; returns what summary.json says, and the page."""
    with folder.gathering(begun.path, asdict(run), _gathered_of(run)):
        places = {item.id: item.index for item in read(run)}
        samples = page.PageSamples(run.samples)
        summary = gather.gather(begun.path, begun.provenance, places, samples.add)
        if run.task.startswith("long_"):
            from llama31.synth.long_context import mixing

            settings: config.LongSynthesis = getattr(run, run.task)
            print(mixing.write(begun.path, settings.short, settings.share), flush=True)
        return summary, page.write(begun.path, f"{run.name}: {run.task}", summary, samples)
