"""The run folder: all that is needed to know what ran, and where a run begins or goes on.

runs/<name>/
    config.yaml       the resolved config of the last attempt      attempts.jsonl   when, where, with what code
    tokenizer/        in Hugging Face format, copied on export     decisions.jsonl  what was decided while running
    metrics.jsonl     the record (metrics.py)                      checkpoints/     (checkpoint.py)
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from llama31 import checkpoint, config, schedule
from llama31.checkpoint import Meta
from llama31.data.batches import Batches
from llama31.data.mixture import Decision, Weights, from_record, plan, replanned, to_record

PACKAGES = ("torch", "megatron-core", "deepspeed", "transformer-engine", "transformers", "numpy", "hydra-core")


@dataclass(frozen=True)
class Start:
    """Where a run begins: from nothing, from the weights of another run, or where it stopped."""

    weights: Path | None = None  # checkpoint that the weights come from
    resumed: Meta | None = None  # what the checkpoint said, where the run goes on
    updates: int = 0

    @property
    def step(self) -> int:
        return self.resumed.step if self.resumed else 0

    @property
    def tokens(self) -> int:
        return self.resumed.tokens if self.resumed else 0


def find_start(run: config.Pretrain) -> Start:
    """Where this run begins, by its keys `resume` and `init_from` and what its folder holds.

    Raises ValueError where a checkpoint is not usable, has another shape, or was trained on another schedule, and
    where a fresh start would mix with the record of an older one.
    """
    start = _find_start(run)
    if start.tokens < run.parallel.from_tokens:
        raise ValueError(
            f"parallel.from_tokens={run.parallel.from_tokens}: this layout is for later in the schedule, and the run "
            f"stands at {start.tokens} tokens; train up to there with another parallel=, then resume with this one"
        )
    return start


def _find_start(run: config.Pretrain) -> Start:
    folder = Path(run.folder)
    found = None
    if run.resume == "auto":
        found = checkpoint.newest(folder / "checkpoints")
    elif run.resume != "none":
        found = checkpoint.resolve(run.resume)
    if found is not None:
        meta = checkpoint.read_meta(found)
        checkpoint.check_model(meta, run.model)
        _check_schedule(run.schedule, meta)
        _check_order(run.data, meta)
        return Start(found, meta, int(meta.extra.get("updates", meta.step)))
    if run.resume == "none" and (folder / "checkpoints").is_dir() and checkpoint.newest(folder / "checkpoints"):
        raise ValueError(
            f"resume=none: {folder} holds checkpoints of an earlier run, which a fresh start would replace; "
            "give another name=, or resume=auto to go on"
        )
    if run.init_from is None:
        return Start()
    source = checkpoint.resolve(run.init_from)
    checkpoint.check_model(checkpoint.read_meta(source), run.model)
    return Start(source)


def _check_schedule(wanted: config.Schedule, meta: Meta) -> None:
    would_be = schedule.step_tokens(wanted, meta.step)
    if would_be != meta.tokens:
        raise ValueError(
            f"schedule: after {meta.step} steps the checkpoint has seen {meta.tokens:,} tokens, with the batch sizes "
            f"given it would be {would_be:,}; leave batch_tokens and ramp as they were up to there (later steps of "
            "the ramp may change), or start a new run with init_from="
        )


def _check_order(data: config.Data, meta: Meta) -> None:
    """ValueError that names every key by which documents would come in another order than the checkpoint's."""
    edges = [bucket.min_tokens for bucket in data.length_buckets]
    given = {"data.seed": data.seed, "data.packing": data.packing, "data.length_buckets": edges}
    was = {
        "data.seed": meta.extra.get("data_seed", data.seed),
        "data.packing": meta.extra.get("packing", "stream"),
        "data.length_buckets": [edge for edge, _ in meta.extra.get("length_buckets", [])],
    }
    changed = [key for key in given if given[key] != was[key]]
    if changed:
        problems = "; ".join(f"{key}={given[key]}: the checkpoint read its data with {was[key]}" for key in changed)
        raise ValueError(
            f"{problems}; give {', '.join(f'{key}={was[key]}' for key in changed)} (weights may change), or start a "
            "new run from these weights with init_from="
        )


def decisions_of(run: config.Pretrain, start: Start) -> tuple[dict[str, float], list[Decision]]:
    """The mixture at step 0 and the decisions since, with more where a resumed run was given another plan.

    What `data.mixture` plans is written down as decisions when the run begins, so that a resume knows what was to
    come; the plan of a resumed run holds from where it goes on, and what was drawn stays drawn.
    """
    given = plan(run.data)
    if start.resumed is None:
        return dict(given[0].weights), list(given[1:])
    extra = start.resumed.extra
    first = {name: float(weight) for name, weight in extra.get("weights", given[0].weights).items()}
    first |= {name: 0.0 for name in given[0].weights if name not in first}
    decisions = [from_record(record) for record in start.resumed.decisions]
    begun = Weights(0, first, [weight for _, weight in extra.get("length_buckets", [])] or None)
    return first, [*decisions, *replanned([begun, *decisions], given, start.tokens)]


def data_of(run: config.Pretrain, start: Start, weights: dict[str, float]) -> config.Data:
    """The data as at step 0: what was drawn depends on it. Sources that came later begin with weight 0.

    Without the plan, which stands among the decisions.
    """
    sources = {
        name: replace(run.data.sources.get(name, config.Source()), weight=weight) for name, weight in weights.items()
    }
    extra = start.resumed.extra if start.resumed else {}
    buckets = [config.Bucket(*pair) for pair in extra.get("length_buckets", [])] or run.data.length_buckets
    slots = extra.get("slot_tokens") or run.data.slot_tokens
    return replace(run.data, sources=sources, mixture=[], length_buckets=buckets, slot_tokens=slots)


def check_data(start: Start, fingerprints: dict[str, str]) -> None:
    """ValueError where a resumed run would read other data than it has read so far. Sources may be added."""
    known = start.resumed.extra.get("sources", {}) if start.resumed else {}
    changed = [name for name, was in known.items() if fingerprints.get(name, was) != was]
    if changed:
        raise ValueError(
            f"data.sources.{', '.join(changed)}: the packed data are not those that the checkpoint was trained on "
            f"(fingerprint {fingerprints[changed[0]][:12]}, was {known[changed[0]][:12]}); restore them, or start a "
            "new run from these weights with init_from="
        )


def record_attempt(run: config.Pretrain, start: Start, decisions: Sequence[Decision], world: int) -> None:
    """Write what this attempt runs with to the run folder; on one rank. RunError where it cannot be written."""
    folder = Path(run.folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise config.RunError(f"folder={folder}: cannot be written ({error}); give another folder= or name=") from error
    (folder / "config.yaml").write_text(config.to_yaml(run))
    _append(folder / "attempts.jsonl", [_environment(start, world)])
    _record_decisions(folder / "decisions.jsonl", decisions)


def _record_decisions(path: Path, decisions: Sequence[Decision]) -> None:
    """The decisions that hold, no others: an attempt that was never saved may have taken some that do not."""
    text = "".join(json.dumps(to_record(decision)) + "\n" for decision in decisions)
    if text != (path.read_text() if path.exists() else ""):
        draft = path.with_suffix(".tmp")
        draft.write_text(text)
        draft.replace(path)


def _append(path: Path, records: Sequence[dict[str, Any]]) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def _environment(start: Start, world: int) -> dict[str, Any]:
    installed = {name: metadata.version(name) for name in PACKAGES if _installed(name)}
    return {
        "time_s": round(time.time(), 3),
        "command": sys.argv,
        "host": platform.node(),
        "python": platform.python_version(),
        "packages": installed,
        "commit": _commit(),
        "world_size": world,
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "from_step": start.step,
        "weights_from": str(start.weights) if start.weights else None,
    }


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _commit() -> str | None:
    """Commit of the code, marked where files differ from it; None outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def meta_of(
    run: config.Pretrain,
    step: int,
    tokens: int,
    updates: int,
    tokenizer: dict[str, Any],
    batches: Batches,
    weights: dict[str, float],
    decisions: Sequence[Decision],
) -> Meta:
    """What a checkpoint of this run says about itself."""
    sources = {name: told.fingerprint for name, told in batches.packed.items()}
    extra = {
        "updates": updates,
        "weights": weights,
        "slot_tokens": batches.slot_tokens,
        "data_seed": run.data.seed,
        "packing": run.data.packing,
        "length_buckets": batches.length_buckets,
        "sources": sources,
    }
    return Meta(
        model=asdict(run.model),
        step=step,
        tokens=tokens,
        run=run.name,
        precision=run.precision.params,
        data_fingerprint=batches.fingerprint,
        tokenizer=tokenizer,
        schedule=asdict(run.schedule),
        decisions=[to_record(decision) for decision in decisions],
        extra=extra,
    )
