"""Where a run begins or goes on, what must not change on the way, and what its checkpoints say of themselves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from llama31 import config
from llama31.checkpoint import listing, manifest, publish
from llama31.checkpoint.publish import Meta
from llama31.parallel.collectives import on_first_rank
from llama31.plan import schedule


@dataclass(frozen=True)
class Start:
    """Where a run begins: from nothing, from the weights of another run, or where it stopped."""

    weights: Path | None = None  # checkpoint that the weights come from
    resumed: Meta | None = None  # what the checkpoint said, where the run goes on
    updates: int = 0
    optimizer: bool = False  # whether masters and moments come from there too
    head: str = "tokens"  # of those weights

    @property
    def step(self) -> int:
        return self.resumed.step if self.resumed else 0

    @property
    def tokens(self) -> int:
        return self.resumed.tokens if self.resumed else 0


def find_start(run: config.Training) -> Start:
    """Where this run begins, by its keys `resume` and `init_from` and what its folder holds. Collective.

    The first rank looks, all share the reading of checksums. Raises ValueError where a checkpoint is not usable, has
    another shape, or was trained on another schedule, and where a fresh start would mix with the record of an older
    one.
    """
    start = _find_start(run)
    if start.tokens < run.parallel.from_tokens:
        raise ValueError(
            f"parallel.from_tokens={run.parallel.from_tokens}: this layout is for later in the schedule, and the run "
            f"stands at {start.tokens} tokens; train up to there with another parallel=, then resume with this one"
        )
    return start


def _find_start(run: config.Training) -> Start:
    checkpoint = None
    if run.resume == "auto":
        checkpoint = newest_checkpoint(run.folder, run.checkpoint.verify)
    elif run.resume != "none":
        checkpoint = _given(run.resume, run.checkpoint.verify)
    if checkpoint is not None:
        meta = on_first_rank(lambda: publish.read_meta(checkpoint))
        publish.check_model(meta, run.model)
        if meta.shape().head != run.model.head:
            raise ValueError(
                f"resume={checkpoint}: its head is one for {meta.shape().head}; begin with it by init_from="
            )
        _check_schedule(run.schedule, meta)
        return Start(checkpoint, meta, updates_of(meta), optimizer=True, head=run.model.head)
    if run.resume == "none" and on_first_rank(lambda: _holds_checkpoints(run.folder)):
        raise ValueError(
            f"resume=none: {run.folder} holds checkpoints of an earlier run, which a fresh start would replace; "
            "give another name=, or resume=auto to go on"
        )
    if run.init_from is None:
        return Start()
    source = _given(run.init_from, run.checkpoint.verify)
    meta = on_first_rank(lambda: publish.read_meta(source))
    allowed = {name: getattr(run.model, name) for name in run.init_changes}
    publish.check_model(replace(meta, model=meta.model | allowed), run.model)
    head = meta.shape().head
    if head == "reward" and run.model.head != head:
        raise ValueError(f"init_from={run.init_from}: a reward model has no output layer; give a language model")
    return Start(source, updates=updates_of(meta) if run.init_optimizer else 0, optimizer=run.init_optimizer, head=head)


def newest_checkpoint(run_folder: str | Path, verify: bool, before: int | None = None) -> Path | None:
    """The run's newest checkpoint, of at most `before` steps: with the right checksums where `verify` says so, else
    with the right sizes. Collective."""
    folder = Path(run_folder) / "checkpoints"
    return listing.newest_intact(folder, before=before, checksums=verify)


def _given(path: str, verify: bool) -> Path:
    """The checkpoint that a key names. ValueError where it is not as it was written."""
    checkpoint = on_first_rank(lambda: listing.resolve(path, manifest.lacking))
    publish.refuse_damaged(checkpoint, checksums=verify)
    return checkpoint


def _holds_checkpoints(folder: str | Path) -> bool:
    return listing.newest(Path(folder) / "checkpoints", check=manifest.glance) is not None


def updates_of(meta: Meta) -> int:
    """Optimizer updates behind a checkpoint: its steps, apart from those that a converted one never made."""
    return int(meta.extra.get("updates", meta.step))


def _check_schedule(wanted: config.Schedule, meta: Meta) -> None:
    would_be = schedule.step_tokens(wanted, meta.step)
    if would_be != meta.tokens:
        raise ValueError(
            f"schedule: after {meta.step} steps the checkpoint has seen {meta.tokens:,} tokens, with the batch sizes "
            f"given it would be {would_be:,}; leave batch_tokens and ramp as they were up to there (later steps of "
            "the ramp may change), or start a new run with init_from="
        )


def check_order(data: config.Data, meta: Meta) -> None:
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


def check_rows(given: config.Schedule, packing: str, meta: Meta) -> None:
    """ValueError where rows of whole documents were of another length before the checkpoint than the schedule says.

    How many documents a step read depends on it, so some would be read twice and others never.
    """
    if packing != "whole" or not meta.schedule:
        return
    was = schedule.of_record(meta.schedule)

    def lengths(of: config.Schedule) -> list[tuple[int, int]]:
        return [(s.first_step, s.sequence_length) for s in schedule.unbounded(of) if s.first_step < meta.step]

    if lengths(given) != lengths(was):
        now, before = schedule.batch_at(given, meta.tokens), lengths(was)[-1][1]
        raise ValueError(
            f"schedule.sequence_length={now.sequence_length}: with data.packing=whole the checkpoint read its "
            f"documents in rows of {before}; give schedule.sequence_length={was.sequence_length} and another length "
            f"from here on by schedule.ramp=[{{from_tokens: {meta.tokens}, batch_tokens: {now.batch_tokens}, "
            f"sequence_length: {now.sequence_length}}}], or start a new run from these weights with init_from="
        )


def check_data(start: Start, fingerprints: dict[str, str]) -> None:
    """ValueError where a resumed run would read other data than it has read so far.

    Sources of text may be added (`mixture.as_begun`); of dialogs and preferences it is `dialogs/feed.py` that refuses.
    """
    known = start.resumed.extra.get("sources", {}) if start.resumed else {}
    changed = [name for name, was in known.items() if fingerprints.get(name, was) != was]
    if changed:
        raise ValueError(
            f"data.sources.{', '.join(changed)}: the packed data are not those that the checkpoint was trained on "
            f"(fingerprint {fingerprints[changed[0]][:12]}, was {known[changed[0]][:12]}); restore them, or start a "
            "new run from these weights with init_from="
        )
