"""What the keys of a config must satisfy, alone (`values`) and together (`validate`). No torch: answers at once.

Everything is collected before anything is raised, so that a config is mended in one go.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llama31.command import curating, layouts, synthesizing
from llama31.command.incomplete import Incomplete, known
from llama31.config import (
    MISSING,
    STRENGTHS,
    Average,
    Classify,
    ConfigError,
    Curate,
    Data,
    Dialogs,
    Evaluate,
    FilterData,
    Issue,
    Model,
    Needle,
    Pack,
    Preferences,
    Pretrain,
    Probe,
    Ramp,
    Reward,
    Sample,
    Schedule,
    Synthesize,
    Tokenizer,
    Training,
)
from llama31.evaluate import probe

SOURCE_NAME = "letters, digits, _ and -"  # a name is part of keys and of paths
MOST_READINGS = 100  # of one document before another is read again: what a plan of rows holds in memory grows with it
SPECIAL_TOKENS = 256  # of Llama 3.1; a BPE trained here holds them beside the 256 bytes


def validate(run: Any, world_size: int | None = None) -> list[str]:
    """Check a whole config and return warnings about what works but wastes.

    `run` is the config of any recipe; `world_size` is the number of processes, by default that of torchrun
    (WORLD_SIZE), or 1. Raises ConfigError with all problems, and with the nearest layout that works where the layout
    is one of them. Where keys are missing, everything is judged that does not depend on them; such a config
    (`incomplete`) has to have passed `values`.
    """
    complete = not isinstance(run, Incomplete)
    issues = values(type(run), dataclasses.asdict(run)) if complete else []
    if issues:
        raise ConfigError(issues)  # bounds first: the arithmetic below divides by these numbers
    world_size = int(os.environ.get("WORLD_SIZE", "1")) if world_size is None else world_size
    issues = _sections(run)
    model, parallel = getattr(run, "model", None), getattr(run, "parallel", None)
    if isinstance(run, Sample) and run.part == "draw" and run.server.urls:
        parallel = None  # one process asks the servers; the layout is that of those who rank
    model = model if model is not None and known(dataclasses.asdict, model) else None
    stages = known(layouts.stages, run) if not issues else []
    wrong, hint = ([], "") if parallel is None else layouts.judge(run, model, parallel, stages, world_size)
    issues += known(_unsupported, run)
    if issues or wrong:
        raise ConfigError([*issues, *wrong], hint)
    if not complete:
        return []
    wasted = [] if parallel is None else layouts.warnings(run, parallel, stages, world_size)
    return wasted + synthesizing.warnings(run)


def values(schema: type, plain: Mapping[str, Any], path: str = "") -> list[Issue]:
    """Problems of single values: choices and bounds. Missing and interpolated values are passed over."""
    hints, issues = typing.get_type_hints(schema), []
    for field in dataclasses.fields(schema):
        if field.name in plain:
            issues += _value(hints[field.name], field, plain[field.name], f"{path}{field.name}")
    return issues


def _value(hint: Any, field: dataclasses.Field[Any], value: Any, key: str) -> list[Issue]:
    inner = typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return values(typing.cast(type, hint), value, f"{key}.")
    if isinstance(value, dict):
        return [issue for name, item in value.items() for issue in _entry(inner[1], field, item, f"{key}.{name}")]
    if isinstance(value, list):
        issues = [issue for item in value if isinstance(item, str) for issue in _bounds(field.metadata, item, key)]
        items = [item for item in enumerate(value) if isinstance(item[1], dict)]
        return issues + [issue for index, item in items for issue in values(inner[0], item, f"{key}[{index}].")]
    return _bounds(field.metadata, value, key)


def _entry(hint: Any, field: dataclasses.Field[Any], value: Any, key: str) -> list[Issue]:
    """Problems of an entry of a dictionary: a section, or a number that keeps the bounds of the whole."""
    if dataclasses.is_dataclass(hint):
        return values(typing.cast(type, hint), value, f"{key}.")
    return _bounds(field.metadata, value, key)


def _bounds(metadata: Mapping[str, Any], value: Any, key: str) -> list[Issue]:
    choices, low, above, high = (metadata.get(name) for name in ("choices", "low", "above", "high"))
    if isinstance(value, str):
        if not choices or value in choices or value == MISSING or "${" in value:
            return []
        remedy = (metadata.get("former") or {}).get(value, f"give one of {', '.join(choices)}")
        return [Issue(key, value, "no such choice", remedy)]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return []
    if not isinstance(value, int) and not math.isfinite(value):
        return [Issue(key, value, "not finite", "give a finite number")]
    for wrong, limit in (
        (low is not None and not value >= low, f"at least {low}"),
        (above is not None and not value > above, f"a number above {above}"),
        (high is not None and not value <= high, f"at most {high}"),
    ):
        if wrong:
            return [Issue(key, value, "out of range", f"give {limit}")]
    return []


def _sections(run: Any) -> list[Issue]:
    issues = []
    for field in dataclasses.fields(run):
        section = getattr(run, field.name, None)
        if isinstance(section, Model):
            issues += known(_model, section)
        elif isinstance(section, Schedule):
            issues += known(_schedule, section, getattr(run, "model", None))
        elif isinstance(section, Data):
            issues += known(_data, section, run)
        elif isinstance(section, Dialogs | Preferences):
            issues += known(_records, section)
        elif isinstance(section, Tokenizer):
            issues += known(_tokenizer, section, getattr(run, "model", None))
    own: dict[type, Any] = {
        Probe: probe.problems,
        Curate: curating.problems,
        Classify: curating.classifier_problems,
        Synthesize: synthesizing.problems,
        FilterData: synthesizing.filter_problems,
    }
    further = [check for schema, check in own.items() if isinstance(run, schema)]
    for check in (_empty, _output, _start, _post_training, *further):
        issues += known(check, run)
    return issues + (known(_average, run) if isinstance(run, Average) else [])


def _model(model: Model) -> list[Issue]:
    issues = []
    if model.hidden_size % model.heads or model.head_dim % 2:
        remedy = f"give a multiple of {2 * model.heads}, for example {_up(model.hidden_size, 2 * model.heads)}"
        reason = f"{model.heads} heads need an even width each"
        issues.append(Issue("model.hidden_size", model.hidden_size, reason, remedy))
    if model.heads % model.kv_heads:
        reason = f"{model.heads} query heads do not split into groups of equal size"
        issues.append(Issue("model.kv_heads", model.kv_heads, reason, f"give a divisor of {model.heads}"))
    return issues


def _schedule(given: Schedule, model: Model | None) -> Iterator[Issue]:
    starts = [0, *(ramp.from_tokens for ramp in given.ramp)]
    if any(later <= earlier for earlier, later in itertools.pairwise(starts)):
        yield Issue("schedule.ramp", starts[1:], "its from_tokens do not grow from above 0", "put it in order")
    parts: list[tuple[str, Schedule | Ramp]] = [("schedule", given)]
    parts += [(f"schedule.ramp[{index}]", ramp) for index, ramp in enumerate(given.ramp)]
    for name, stage in parts:
        yield from known(_stage, name, stage, model)
    if given.decay != "constant" and given.warmup_tokens >= (end := given.decay_tokens or given.total_tokens):
        reason = f"warm-up would last beyond the end of the decay at {end} tokens"
        yield Issue("schedule.warmup_tokens", given.warmup_tokens, reason, f"give less than {end}")
    if given.final_lr > given.peak_lr:
        reason = f"above schedule.peak_lr={given.peak_lr}"
        yield Issue("schedule.final_lr", given.final_lr, reason, "give at most peak_lr")


def _stage(name: str, stage: Schedule | Ramp, model: Model | None) -> Iterator[Issue]:
    length = stage.sequence_length
    if model is not None and length > model.max_positions:
        reason = f"longer than model.max_positions={model.max_positions}"
        yield Issue(f"{name}.sequence_length", length, reason, "give a shorter one, or more max_positions")
    if stage.batch_tokens % length:
        remedy = f"give a multiple, for example {_up(stage.batch_tokens, length)}"
        reason = f"not a whole number of sequences of {length} tokens"
        yield Issue(f"{name}.batch_tokens", stage.batch_tokens, reason, remedy)


def _data(data: Data, run: Any) -> list[Issue]:
    if not data.sources:
        if isinstance(run, Evaluate) and (run.prompts or run.tasks or run.needle.kind != "none"):
            return []
        remedy = "choose data=demo, or name one: data.sources.NAME.input=PATH"
        return [Issue("data.sources", "{}", "there is no source of text", remedy)]
    issues = _names(data.sources)
    if isinstance(run, Pack):
        empty = [name for name, source in data.sources.items() if not source.input]
        issues += [
            Issue(f"data.sources.{name}.input", "", "nothing to pack", "give a file or folder") for name in empty
        ]
    if not any(source.weight for source in data.sources.values()):
        issues.append(
            Issue("data.sources", ", ".join(data.sources), "all weights are 0", "give at least one a weight above 0")
        )
    return issues + _mixture(data, getattr(run, "schedule", None)) + _buckets(data)


def _mixture(data: Data, schedule: Schedule | None) -> list[Issue]:
    issues, starts = [], [0, *(mix.from_tokens for mix in data.mixture)]
    if any(later <= earlier for earlier, later in itertools.pairwise(starts)):
        issues.append(Issue("data.mixture", starts[1:], "its from_tokens do not grow from above 0", "put it in order"))
    for index, mix in enumerate(data.mixture):
        key = f"data.mixture[{index}]"
        if schedule is not None and mix.from_tokens >= schedule.total_tokens:
            reason = f"training ends before, at schedule.total_tokens={schedule.total_tokens}"
            issues.append(Issue(f"{key}.from_tokens", mix.from_tokens, reason, "give less, or leave this entry out"))
        unknown = [name for name in mix.weights if name not in data.sources]
        remedy = f"give some of {', '.join(data.sources)}"
        issues += [Issue(f"{key}.weights.{name}", mix.weights[name], "no such source", remedy) for name in unknown]
        if not any(mix.weights.values()):
            issues.append(Issue(f"{key}.weights", mix.weights, "nothing would be drawn", "give a weight above 0"))
        if mix.length_weights:
            issues += _length_weights(f"{key}.length_weights", mix.length_weights, len(data.length_buckets))
    return issues


def _buckets(data: Data) -> list[Issue]:
    key, buckets = "data.length_buckets", data.length_buckets
    if not buckets:
        return []
    issues, starts = [], [bucket.min_tokens for bucket in buckets]
    if data.packing != "whole":
        reason = f"rows of data.packing={data.packing} are cut from the text as it stands"
        issues.append(Issue(key, starts, reason, "give data.packing=whole, or no buckets"))
    if starts[0] != 0 or any(later <= earlier for earlier, later in itertools.pairwise(starts)):
        issues.append(Issue(key, starts, "its min_tokens do not grow from 0", "begin with 0, and put it in order"))
    return issues + _length_weights(key, [bucket.weight for bucket in buckets], len(buckets))


def _length_weights(key: str, weights: Sequence[float], buckets: int) -> list[Issue]:
    used = [weight for weight in weights if weight > 0]
    if len(weights) != buckets:
        return [Issue(key, weights, f"there are {buckets} data.length_buckets", "give one weight for each")]
    if not used or not all(math.isfinite(weight) and weight >= 0 for weight in weights):
        return [Issue(key, weights, "no weights", "give numbers of at least 0, one of them above 0")]
    if max(used) > MOST_READINGS * min(used):
        reason = f"some documents would be read more than {MOST_READINGS} times as often as others"
        return [Issue(key, weights, reason, "bring the weights closer together, or give 0")]
    return []


def _average(run: Average) -> list[Issue]:
    issues = []
    if bool(run.inputs) == (run.run is not None):
        reason = "neither inputs nor a run" if run.run is None else "inputs beside a run"
        issues.append(Issue("inputs", run.inputs, reason, "give inputs='[A,B]', or run=FOLDER last=N"))
    if run.last is not None and run.run is None:
        issues.append(Issue("last", run.last, "there is no run to take them from", "give run=FOLDER, or leave it out"))
    if run.weights and run.decay is not None:
        issues.append(Issue("decay", run.decay, "weights are given too", "give one of them"))
    if run.weights and run.inputs and len(run.weights) != len(run.inputs):
        issues.append(Issue("weights", run.weights, f"there are {len(run.inputs)} inputs", "give one weight for each"))
    usable = all(math.isfinite(weight) and weight >= 0 for weight in run.weights) and any(run.weights)
    if run.weights and not usable:
        issues.append(Issue("weights", run.weights, "no weights", "give numbers of at least 0, one of them above 0"))
    if not run.target.strip():
        issues.append(Issue("target", run.target, "is empty", "give target=FOLDER"))
    return issues


def _names(sources: Iterable[str]) -> list[Issue]:
    reason, remedy = "no name for a source", f"give {SOURCE_NAME} alone"
    return [Issue("data.sources", name, reason, remedy) for name in sources if not re.fullmatch("[A-Za-z0-9_-]+", name)]


def _records(data: Dialogs | Preferences) -> list[Issue]:
    if not data.sources:
        remedy = "name one: data.sources.NAME.input=FILE.jsonl"
        return [Issue("data.sources", "{}", "there is no source of records", remedy)]
    issues = _names(data.sources)
    for name, source in data.sources.items():
        if not source.input:
            issues.append(Issue(f"data.sources.{name}.input", "", "nothing to read", "give a JSONL file"))
    if not any(source.epochs for source in data.sources.values()):
        issues.append(Issue("data.sources", ", ".join(data.sources), "all epochs are 0", "give at least one some"))
    if isinstance(data, Preferences):
        unknown = [strength for strength in data.strengths if strength not in STRENGTHS]
        if unknown or not data.strengths:
            remedy = f"give some of {', '.join(STRENGTHS)}"
            issues.append(Issue("data.strengths", data.strengths, "no strengths of preference", remedy))
    return issues


def _post_training(run: Any) -> Iterator[Issue]:
    """A reward head where rewards are learned and nowhere else; weights to begin with; rows of one length."""
    if not isinstance(run, Training):
        return
    wanted = "reward" if isinstance(run, Reward) else "tokens"
    if run.model.head != wanted:
        remedy = f"give model.head={wanted}"
        yield Issue("model.head", run.model.head, "not what this recipe trains", remedy)
    if isinstance(run, Pretrain):
        return
    yield from _steps(run) if isinstance(run, Reward) else ()
    if run.init_from is None:
        remedy = "give a checkpoint or run folder of the model to begin with"
        yield Issue("init_from", None, "post-training begins with a model", remedy)
    others = [ramp for ramp in run.schedule.ramp if ramp.sequence_length != run.schedule.sequence_length]
    if others:
        remedy = f"give schedule.sequence_length={run.schedule.sequence_length} throughout"
        yield Issue("schedule.ramp", len(others), "dialogs are packed into rows of one length", remedy)


def _steps(run: Reward) -> Iterator[Issue]:
    """Keys of labelled steps, and those that speak of preferences alone."""
    if run.objective != "steps":
        if run.hard_above is not None:
            yield Issue("hard_above", run.hard_above, "preferences have no labels", "give objective=steps, or null")
        return
    if run.layout == "plain":
        reason = "an end of an earlier step would stand before the next step"
        yield Issue("layout", run.layout, reason, "give layout=tree or layout=separate")
    for name, source in run.data.sources.items():
        if source.strength is not None:
            reason = "steps have labels and no strength"
            yield Issue(f"data.sources.{name}.strength", source.strength, reason, "leave it out")


def _tokenizer(tokenizer: Tokenizer, model: Model | None) -> list[Issue]:
    size, key = tokenizer.vocab_size, "tokenizer.vocab_size"
    if tokenizer.kind != "bpe":
        return []
    smallest = 2 * SPECIAL_TOKENS
    if size is None or size < smallest:
        reason = f"a BPE needs {SPECIAL_TOKENS} bytes and {SPECIAL_TOKENS} special tokens"
        return [Issue(key, size, reason, f"give at least {smallest}, for example 8192")]
    if model is not None and size > model.vocab_size:
        reason = f"more ids than model.vocab_size={model.vocab_size}"
        return [Issue(key, size, reason, f"give at most {model.vocab_size}, or model.vocab_size={size}")]
    return []


def _start(run: Any) -> list[Issue]:
    """What a run may take over from another."""
    if not isinstance(run, Training):
        return []
    allowed = ("rope_factor", "rope_theta", "norm_eps")
    remedy = f"give some of {', '.join(allowed)}"
    issues = [
        Issue("init_changes", name, "no key of the model that may change", remedy)
        for name in run.init_changes
        if name not in allowed
    ]
    if run.init_optimizer and run.init_from is None:
        issues.append(Issue("init_optimizer", True, "there is no checkpoint to take it from", "give init_from="))
    if isinstance(run, Pretrain) and run.gates.every_tokens and run.init_changes and run.gates.baseline is None:
        reason = "the model would be measured with its positions changed already"
        remedy = "give the gates.json, or the output of recipes.evaluate, of the model before"
        issues.append(Issue("gates.baseline", None, reason, remedy))
    return issues


def _empty(run: Any) -> list[Issue]:
    if not isinstance(run, Training):
        return []
    given = {"name": run.name, "folder": run.folder}
    return [Issue(key, text, "is empty", f"give {key}=...") for key, text in given.items() if not text.strip()]


def _output(run: Any) -> list[Issue]:
    """The file that a recipe writes after all its work has to have a place."""
    output = getattr(run, "output", None)
    if output is None or (isinstance(run, Classify) and run.task in ("label", "encoder")):  # of which it is a folder
        return []
    path = Path(output)
    if path.is_dir() or not output.strip():
        return [Issue("output", output, "is no file", "give a file to write, or null")]
    if not path.parent.is_dir():
        return [Issue("output", output, f"there is no folder {path.parent}", "create it, or give another file")]
    written = path if path.exists() and not path.is_file() else path.parent  # a device is written to, a file replaced
    if not os.access(written, os.W_OK):
        return [Issue("output", output, f"{written} cannot be written", "give a file in another folder")]
    return []


def _unsupported(run: Any) -> list[Issue]:
    """What an evaluation cannot do, or not together, and the gates of a training run."""
    if isinstance(run, Pretrain):
        return _needle("gates.needle", run.gates.needle, run.data) if run.gates.every_tokens is not None else []
    if not isinstance(run, Evaluate):
        return []
    issues = _needle("needle", run.needle, run.data)
    reason, remedy = "no name for a task", f"give {SOURCE_NAME} alone"
    issues += [Issue("tasks", name, reason, remedy) for name in run.tasks if not re.fullmatch("[A-Za-z0-9_-]+", name)]
    needle = run.needle.kind != "none" and run.needle.decode
    if not (run.prompts or needle):
        return issues
    reason = "a checkpoint of any layout is loaded onto one without context parallelism and interleaving to decode"
    other = "" if run.prompts else ", or needle.decode=false"
    given = {"cp": run.parallel.cp, "vpp": run.parallel.vpp}
    issues += [
        Issue(f"parallel.{key}", n, reason, f"give parallel.{key}=1{other}") for key, n in given.items() if n > 1
    ]
    return issues


def _needle(key: str, needle: Needle, data: Data) -> list[Issue]:
    issues: list[Issue] = []
    if needle.kind == "none":
        return []
    if needle.asked > needle.inserted:
        reason = f"more than {key}.inserted={needle.inserted}"
        issues.append(Issue(f"{key}.asked", needle.asked, reason, "insert more, or ask for fewer"))
    if not needle.depths or any(not 0 <= depth <= 1 for depth in needle.depths):
        issues.append(Issue(f"{key}.depths", needle.depths, "not numbers from 0 to 1", "give shares of the haystack"))
    if any(length < 1 for length in needle.lengths):
        issues.append(Issue(f"{key}.lengths", needle.lengths, "not numbers of tokens", "give numbers above 0"))
    if needle.kind == "text" and not needle.haystack and not data.sources:
        reason = "there is no text to hide needles in"
        issues.append(Issue(f"{key}.haystack", "", reason, "give a text file, or choose data= and name a source"))
    return issues


def _up(number: int, factor: int) -> int:
    return -(-number // factor) * factor
