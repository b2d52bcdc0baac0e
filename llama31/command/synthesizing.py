"""What keys of `recipes.synthesize` and `recipes.filter_data` must satisfy together, and whether files are there."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llama31.config import FilterData, Issue, PaidService, Synthesize, ToolsSynthesis

NONE_GIVEN = "there is none"
NO_FILE = "there is no such file"
RECORDS = "give files of JSON lines or Parquet, a folder of them or a glob"

BRAVE_HITS = 20  # of a page of its API
UNASKED = ("templates",)  # tasks that ask no model


def problems(run: Synthesize) -> list[Issue]:
    """All that is wrong with the keys."""
    issues = _shard(run)
    if not run.server.urls and run.task not in UNASKED and run.part != "gather" and not run.dry_run:
        remedy = "give the address of one: 'server.urls=[http://node1:8000/v1]'"
        issues.append(Issue("server.urls", "[]", "answers come from a chat model behind a server", remedy))
    tools = getattr(run, run.task, None)
    if isinstance(tools, ToolsSynthesis) and tools.search != "local" and tools.index is not None:
        remedy = f"give {run.task}.search=local, or leave the index out"
        issues.append(Issue(f"{run.task}.index", tools.index, f"search={tools.search} asks the service", remedy))
    if isinstance(tools, ToolsSynthesis) and tools.search == "brave" and tools.hits > BRAVE_HITS:
        issues.append(Issue(f"{run.task}.hits", tools.hits, "the service gives fewer", f"give at most {BRAVE_HITS}"))
    issues += _addresses(run)
    if run.task == "function_dialogs":
        keys = run.function_dialogs
        for most, least in (("functions", "least_functions"), ("most_turns", "least_turns")):
            if getattr(keys, most) < getattr(keys, least):
                problem, remedy = (
                    "it is below the least",
                    f"give at least function_dialogs.{least}={getattr(keys, least)}",
                )
                issues.append(Issue(f"function_dialogs.{most}", getattr(keys, most), problem, remedy))
    issues += _rewarded(run) if run.task == "mathematics" and run.part != "gather" and not run.dry_run else []
    return issues


def _rewarded(run: Synthesize) -> list[Issue]:
    """Whether there is a reward model for whoever asks one, and one of steps for whoever has solutions without."""
    wanted, issues = run.mathematics, list[Issue]()
    asking = {"mathematics.search.scorer": "policy"} if wanted.search.scorer == "reward" else {}
    asking |= {"mathematics.least_step": "null"} if wanted.least_step is not None else {}
    if asking and not run.reward.urls:
        others = " ".join(f"{name}={value}" for name, value in asking.items())
        remedy = f"give 'reward.urls=[http://node2:8000]', or {others}"
        issues.append(Issue("reward.urls", "[]", f"{NONE_GIVEN} to ask for {', '.join(asking)}", remedy))
    if wanted.least_step is not None and wanted.python.enabled:
        reason = "solutions with Python have no steps that a reward model learned from"
        issues.append(Issue("mathematics.least_step", wanted.least_step, reason, "give null, or no Python"))
    return issues


def unread(run: Any, overrides: Sequence[str] = ()) -> list[Issue]:
    """Values of a command line, KEY=VALUE, that the task does not read, for it was meant to do something else then.

    A value that is the default is nobody's wish. A config file may hold what several tasks read: see `warnings`.
    """
    typed = {text.partition("=")[0] for text in overrides}
    return [issue for issue in _unread(run) if issue.key in typed]


def warnings(run: Any) -> list[str]:
    """One line about all that is given and the task does not read."""
    issues = list(_unread(run))
    given = ", ".join(f"{issue.key}={issue.value}" for issue in issues)
    return [f"task={run.task} does not read what the config files give as {given}"] if issues else []


def _unread(run: Any) -> Iterator[Issue]:
    if not isinstance(run, Synthesize) or not hasattr(run, run.task):
        return
    defaults = Synthesize()
    for section, how in _sections_unread(run).items():
        usual = dict(_leaves(section, asdict(_at(defaults, section))))
        for key, value in _leaves(section, asdict(_at(run, section))):
            if key not in usual or value != usual[key]:
                remedy = "leave it out" + (f", or give {how}" if how else "")
                yield Issue(key, value, f"task={run.task} does not read it", remedy)


def _sections_unread(run: Synthesize) -> dict[str, str]:
    """Sections that the task does not read, each with the key by which it is read, "" where there is none."""
    from llama31.synth import tasks  # httpx2, which --help does not wait for

    own: Any = getattr(run, run.task)
    read = (run.task, *tasks.BESIDE.get(run.task, ()))
    sections = {name: f"task={name}" for name in tasks.BUILD if name not in read}
    if run.task == "code" and not run.code.with_judge:
        sections |= {"review_code": "code.with_judge=true", "judge": "code.with_judge=true"}
    elif run.task in tasks.UNJUDGED:
        sections["judge"] = ""
    if run.task in UNASKED:
        sections["server"] = ""
    if run.task != "mathematics":
        sections["reward"] = "task=mathematics"
    if run.task not in tasks.RUNNING:
        sections["programs"] = ""
    elif run.task == "mathematics" and not own.python.enabled:
        sections["programs"] = "mathematics.python.enabled=true"
    elif run.task in ("tool_single", "tool_multi") and not own.interpreter:
        sections["programs"] = f"{run.task}.interpreter=true"
    asked, turned = dict(_services(run)), run.task in ("tool_single", "tool_multi")
    for name, key in (("brave", "search=brave"), ("wolfram", "wolfram=wolfram")):
        if name not in asked:
            sections[f"services.{name}"] = f"{run.task}.{key}" if turned else ""
    return sections


def _at(run: Synthesize, section: str) -> Any:
    return functools.reduce(getattr, section.split("."), run)


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The values below `key` with their keys; a list is one."""
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _leaves(f"{key}.{name}", item)
    else:
        yield key, value


def missing(run: Synthesize | FilterData) -> list[Issue]:
    """What it reads and is not there."""
    issues = _prompts(run)
    if isinstance(run, FilterData):
        return issues + _filter_missing(run)
    remedy = "give JSON lines, Parquet, a folder of files or a glob"
    issues += [Issue("input", part, NO_FILE, remedy) for part in _absent(run.input) if not Path(part).is_dir()]
    folder = run.templates.folder
    if run.task == "templates" and folder is not None and not Path(folder).is_dir():
        issues.append(Issue("templates.folder", folder, "there is no such folder", "give one with templates, *.txt"))
    if run.part != "gather" and not run.dry_run:
        issues += _keys(run)
    models = {"templates": run.templates.language_model, "translate_reasoning": run.translate_reasoning.language_model}
    issues += language_model(f"{run.task}.language_model", models.get(run.task))
    return issues


def _services(run: Synthesize) -> Iterator[tuple[str, str]]:
    """Services that the task asks, each with the key by which nobody is asked."""
    tools = getattr(run, run.task, None)
    if isinstance(tools, ToolsSynthesis) and run.task != "tool_files":
        yield from [("brave", "search=local")] if tools.search == "brave" else []
        yield from [("wolfram", "wolfram=sympy")] if tools.algebra and tools.wolfram == "wolfram" else []


def _addresses(run: Synthesize) -> list[Issue]:
    """Addresses of services that no request can be sent to."""
    issues = []
    for name, otherwise in _services(run):
        from llama31.sampling import servers  # httpx2, which --help does not wait for

        url = getattr(run.services, name).url
        if any(sign.isspace() for sign in url) or not servers.is_address(url):
            usual = getattr(Synthesize().services, name).url
            remedy = f"give one such as {usual}, or {run.task}.{otherwise}"
            issues.append(Issue(f"services.{name}.url", url, "no address of HTTP", remedy))
    return issues


def _keys(run: Synthesize) -> list[Issue]:
    """Keys of services that the environment has not."""
    issues = []
    for name, otherwise in _services(run):
        settings: PaidService = getattr(run.services, name)
        if not os.environ.get(settings.key_variable, "").strip():
            remedy = f"export {settings.key_variable}=KEY before the command, or give {run.task}.{otherwise}"
            problem = "the service wants a key, and there is no such environment variable"
            issues.append(Issue(f"services.{name}.key_variable", settings.key_variable, problem, remedy))
    return issues


def _shard(run: Synthesize | FilterData) -> list[Issue]:
    if run.shard is None or run.shard < run.shards:
        return []
    return [Issue("shard", run.shard, f"there are {run.shards} shards", f"give at most {run.shards - 1}")]


def _prompts(run: Synthesize | FilterData) -> list[Issue]:
    if run.prompts is None or Path(run.prompts).is_dir():
        return []
    remedy = "give a folder with files TASK/NAME.txt, or leave it out"
    return [Issue("prompts", run.prompts, "there is no such folder", remedy)]


def filter_problems(run: FilterData) -> list[Issue]:
    """Values that do not go together."""
    issues = _shard(run)
    if unknown := [name for name in run.topic.only if run.topic.model is None and name not in run.topic.classes]:
        known = ", ".join(run.topic.classes)
        issues.append(Issue("topic.only", unknown[0], "no class of topic.classes", f"give some of {known}"))
    if run.topic.only and not run.topic.enabled:
        issues.append(
            Issue("topic.only", run.topic.only, "no topic is asked for", "give topic.enabled=true, or no topic")
        )
    return issues


def _filter_missing(run: FilterData) -> list[Issue]:
    """Files, folders and servers of the filters that are on."""
    issues = [Issue("input", part, NO_FILE, RECORDS) for part in _absent(run.input)]
    if run.decontamination.enabled and not run.decontamination.sets:
        remedy = "give decontamination.sets.NAME.path=FILE, or decontamination.enabled=false"
        issues.append(Issue("decontamination.sets", "{}", NONE_GIVEN, remedy))
    for name, one in run.decontamination.sets.items() if run.decontamination.enabled else ():
        issues += [Issue(f"decontamination.sets.{name}.path", part, NO_FILE, RECORDS) for part in _absent(one.path)]
    if run.topic.enabled and run.topic.model is not None and not Path(run.topic.model).exists():
        issues.append(Issue("topic.model", run.topic.model, "there is no such file or folder", "give another, or null"))
    issues += _asked(run) if run.part != "gather" and not run.dry_run else []
    return issues + (_encoder(run) if run.part != "make" else [])


def _absent(given: str) -> list[str]:
    from llama31.dialogs import store  # numpy, which --help does not wait for

    return store.absent(given)


def _asked(run: FilterData) -> list[Issue]:
    sections = {
        "topic": run.topic.enabled and run.topic.model is None,
        "intentions": run.intentions.enabled,
        "difficulty": run.difficulty.enabled,
        "quality.judge": run.quality.judge.enabled,
    }
    asked = [name for name, enabled in sections.items() if enabled]
    if run.judge.urls or not asked:
        return []
    remedy = f"give judge.urls=[...], or {' '.join(f'{name}.enabled=false' for name in asked)}"
    return [Issue("judge.urls", "[]", f"{NONE_GIVEN} to ask for {', '.join(asked)}", remedy)]


def _encoder(run: FilterData) -> list[Issue]:
    folder = run.deduplication.encoder
    if not run.deduplication.enabled or (folder is not None and (Path(folder) / "config.json").is_file()):
        return []
    problem = NONE_GIVEN if folder is None else "there is no config.json in it"
    remedy = "give a folder of Hugging Face's with an encoder, or deduplication.enabled=false"
    return [Issue("deduplication.encoder", folder, problem, remedy)]


def language_model(key: str, path: str | None) -> list[Issue]:
    """Whether a fastText model is there, where one is given."""
    if path is None or Path(path).is_file():
        return []
    remedy = "give a fastText model such as lid.176.bin, or leave it out"
    return [Issue(key, path, "there is no such file", remedy)]
