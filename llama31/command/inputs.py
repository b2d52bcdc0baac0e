"""Whether the files are there that a run will read: packed text, tokenizer, checkpoints, weights to convert.

No torch, so that a missing file is refused at once. Contents are judged by those who read them. Apart from
`validate`, because a config may be checked where its files are not: a later job of a chain, a printed config.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llama31.command import curating, hardware, synthesizing
from llama31.config import (
    Average,
    Classify,
    Cluster,
    ConfigError,
    Convert,
    Curate,
    Data,
    Dialogs,
    Evaluate,
    FilterData,
    Issue,
    Judge,
    Needle,
    Preferences,
    Pretrain,
    Probe,
    Sample,
    Score,
    Synthesize,
    Task,
    Tokenizer,
    Training,
)
from llama31.dialogs import store
from llama31.evaluate import tasks
from llama31.tokens import packed, tokenizers

HOW_TO_PACK = "pack it first: python -m recipes.pack ..."


def check(run: Any) -> None:
    """Raise one ConfigError for all that `run` (the config of any recipe) will miss."""
    issues: list[Issue] = []
    if isinstance(run, Training):
        data: Data | Dialogs | Preferences = getattr(run, "data")  # noqa: B009 - each recipe has its own
        issues += _tokenizer(run.tokenizer) + (_data(data) if isinstance(data, Data) else _records(data))
        given = {"resume": run.resume if run.resume not in ("auto", "none") else None, "init_from": run.init_from}
        issues += [issue for key, folder in given.items() if folder is not None for issue in _checkpoint(key, folder)]
        issues += _gates(run) + _constants(run.cluster)
        issues += _tasks(run.tasks) if isinstance(run, Probe) else []
    elif isinstance(run, Evaluate):
        issues += _weights("checkpoint", run.checkpoint) + _data(run.data)
        issues += [] if run.against is None else _against(run)
        issues += _tokenizer(run.tokenizer) if run.tokenizer.path else []  # or else that of the checkpoint
        issues += _haystack("needle", run.needle, run.data) + _tasks(run.tasks)
    elif isinstance(run, Convert):
        issues += _conversion(run)
    elif isinstance(run, Sample):
        issues += _weights("policy", run.policy) + ([] if run.reward is None else _checkpoint("reward", run.reward))
        issues += _lines("prompts", run.prompts) + (_tokenizer(run.tokenizer) if run.tokenizer.path else [])
        issues += synthesizing.language_model("filters.language_model", run.filters.language_model)
    elif isinstance(run, Score):
        issues += _lines("input", run.input) + _checkpoint("reward", run.reward)
    elif isinstance(run, Judge):
        issues += _answers("answers", run.answers) + (
            [] if run.previous is None else _answers("previous", run.previous)
        )
    elif isinstance(run, Curate):
        issues += curating.missing(run)
        issues += _tokenizer(run.tokenizer) if run.tokens.enabled and run.tokenizer.kind != "bpe" else []
    elif isinstance(run, Classify):
        issues += curating.classifier_missing(run)
    elif isinstance(run, Synthesize | FilterData):
        issues += synthesizing.missing(run)
    elif isinstance(run, Average):
        issues += [issue for folder in run.inputs for issue in _weights("inputs", folder)]
        issues += [] if run.run is None else _checkpoint("run", run.run)
    if issues:
        raise ConfigError(issues)


def _data(data: Data) -> list[Issue]:
    issues = []
    for name, source in data.sources.items():
        folder = packed.folder_of(data, name)
        drawn = source.weight or any(change.weights.get(name) for change in data.mixture)
        if drawn and not packed.exists(data, name):
            own = (f"data.sources.{name}.packed", source.packed)
            issues.append(
                Issue(
                    *(own if source.packed else ("data.folder", data.folder)),
                    f"there is no {folder}/packed.json",
                    HOW_TO_PACK,
                )
            )
    return issues


def _records(data: Dialogs | Preferences) -> list[Issue]:
    remedy = "give files of JSON lines, JSON arrays or Parquet, a folder of them or a glob"
    return [
        Issue(f"data.sources.{name}.input", part, "there is no such file", remedy)
        for name, source in data.sources.items()
        for part in store.absent(source.input)
    ]


def _lines(key: str, given: str) -> list[Issue]:
    remedy = "give JSONL files, a folder of them or a glob"
    return [Issue(key, part, "there is no such file", remedy) for part in store.absent(given)]


def _answers(key: str, folder: str) -> list[Issue]:
    if (Path(folder) / "scores.jsonl").is_file():
        return []
    return [Issue(key, folder, "there is no scores.jsonl", "sample and rank first: python -m recipes.sample ...")]


def _tokenizer(given: Tokenizer) -> list[Issue]:
    path = tokenizers.tokenizer_file(given)
    if path.is_file():
        return []
    remedy = "train it first with recipes.pack" if given.kind == "bpe" else "give the file or its folder"
    return [Issue("tokenizer.path", given.path, f"there is no {path}", remedy)]


def _checkpoint(key: str, folder: str) -> list[Issue]:
    """A checkpoint folder, or a run folder with one."""
    path = Path(folder)
    remedy = "give a checkpoint folder (.../step-00000100) or a run folder"
    manifests = ("checkpoint.json", "step-*/checkpoint.json", "checkpoints/*step-*/checkpoint.json")
    if any(next(path.glob(pattern), None) for pattern in manifests) or next(path.parent.glob(f"{path.name}-a*"), None):
        return []
    if not path.is_dir():
        return [Issue(key, folder, "there is no such folder", remedy)]
    there = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
    return [Issue(key, folder, f"it holds no complete checkpoint, but {there}", remedy)]


def _weights(key: str, folder: str) -> list[Issue]:
    """A checkpoint, a run or a Hugging Face folder."""
    path = Path(folder)
    if (path / "config.json").is_file() and next(path.glob("*.safetensors"), None):
        return []
    return [
        issue._replace(remedy="give a checkpoint folder (.../step-00000100), a run folder or a Hugging Face folder")
        for issue in _checkpoint(key, folder)
    ]


def _gates(run: Training) -> list[Issue]:
    """What is asked of a stage of long context. A run that goes on finds the scores of before in its own folder."""
    if not isinstance(run, Pretrain) or run.gates.every_tokens is None:
        return []
    gates = run.gates
    issues = _haystack("gates.needle", gates.needle, run.data) + _tasks(gates.tasks, "gates.")
    known = gates.baseline is None or Path(gates.baseline).is_file() or (Path(run.folder) / "gates.json").is_file()
    if not known:
        remedy = "evaluate the model before (recipes.evaluate output=FILE), or give gates.json of the stage before"
        issues.append(Issue("gates.baseline", gates.baseline, "there is no such file", remedy))
    return issues


def _constants(cluster: Cluster) -> list[Issue]:
    """The planner's constants, and the entries that are named of them."""
    try:
        hardware.chosen(cluster)
    except ConfigError as error:
        return list(error.issues)
    return []


def _tasks(asked: Mapping[str, Task], section: str = "") -> list[Issue]:
    """Every task file is read: a wrong line is found now, not after the weights are loaded."""
    issues = []
    for name, task in asked.items():
        try:
            tasks.read(name, task)
        except ConfigError as error:
            issues += [issue._replace(key=section + issue.key) for issue in error.issues]
    return issues


def _haystack(key: str, needle: Needle, data: Data) -> list[Issue]:
    name = needle.haystack
    if needle.kind != "text" or not name or name in data.sources or Path(name).is_file():
        return []
    known = ", ".join(data.sources) or "there are none"
    reason = f"neither a text file nor a source of data ({known})"
    return [Issue(f"{key}.haystack", name, reason, "give a file of text, or the name of a source")]


def _against(run: Evaluate) -> list[Issue]:
    if run.data.sources:
        return _weights("against", run.against or "")
    return [Issue("against", run.against, "there is no text on which to compare", "choose data=")]


def _conversion(run: Convert) -> list[Issue]:
    given = (("direction", run.direction, "to_hf"), ("dtype", run.dtype, "bf16"))
    if run.fp8 and (wrong := [one for one in given if one[1] != one[2]]):
        reason = "FP8 is for a Hugging Face folder whose other weights are BF16"
        return [Issue(key, value, reason, f"give {key}={right}, or fp8=false") for key, value, right in wrong]
    if run.direction in ("to_hf", "to_meta"):
        return _checkpoint("checkpoint", run.checkpoint)
    folder, meta = Path(run.hf), run.direction == "from_meta"
    wanted = ("params.json", "consolidated.*.pth") if meta else ("config.json", "*.safetensors")
    missing = [pattern for pattern in wanted if next(folder.glob(pattern), None) is None]
    if not missing:
        return []
    problem = f"it has no {' and no '.join(missing)}" if folder.is_dir() else "there is no such folder"
    remedy = "give the folder of Meta's original weights" if meta else "give a Hugging Face folder with safetensors"
    return [Issue("hf", run.hf, problem, remedy)]
