"""Which checkpoints of a run stay: the newest, one every so many tokens, and the best."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from pathlib import Path

from llama31 import config
from llama31.checkpoint import listing, manifest, publish
from llama31.checkpoint.publish import Fence, Meta

log = logging.getLogger(__name__)


def prune(
    folder: Path | str,
    settings: config.Checkpoint,
    attempt: int = 0,
    loaded: Path | None = None,
    fence: Fence | None = None,
) -> list[Path]:
    """Delete complete checkpoints that `settings` do not keep; on one rank, after a save. Returns the deleted.

    Torn ones neither count nor go, where a glance shows it: no rank's file is asked its size, of which each checkpoint
    has thousands (at the start `remove_torn` counts them). Nothing of a newer attempt is deleted, and `loaded` (where
    this attempt went on from, known to be intact) not before this attempt has published one. Raises Superseded where a
    newer one has begun.
    """
    if settings.keep_last is None:
        return []
    if settings.keep_last < 1:
        raise ValueError(f"checkpoint.keep_last={settings.keep_last}: keep at least 1, or null for all")
    checkpoints: list[tuple[Path, Meta]] = []
    for path in listing.candidates(folder):
        try:
            checkpoints.append((path, publish.read_meta(path)))
        except ValueError:  # `newest` says what is wrong with it when it matters
            continue
    kept = _kept(checkpoints, settings)
    if loaded is not None and all(meta.attempt < attempt for _, meta in checkpoints):
        kept.add(loaded)
    gone = [path for path, meta in checkpoints if path not in kept and meta.attempt <= attempt]
    for path in gone:
        publish.refuse_if_superseded(fence, str(path))
        publish.remove(path)
    return gone


def note_validation(path: Path, loss: float, settings: config.Checkpoint, fence: Fence | None = None) -> None:
    """Write a held-out loss, measured after the save, into a published checkpoint, and prune by it; on one rank."""
    publish.refuse_if_superseded(fence, str(path))
    manifest.change(path, {"validation_loss": loss})
    if settings.keep_best:
        prune(path.parent, settings, int(manifest.read_meta(path)["attempt"]), None, fence)


def remove_torn(folder: Path, attempt: int, fence: Fence | None = None) -> list[Path]:
    """Delete what killed saves of older attempts left below `folder` (the run's `checkpoints`); on one rank.

    For the start of `attempt`, before it saves: nobody of its own writes yet. A folder of a step that is not complete
    (`manifest.lacking`: folders are listed, of their files none is asked its size) goes only where a complete one
    stays. Whole ones are not touched. Returns the deleted.
    """
    publish.refuse_if_superseded(fence, str(folder))

    def ours(name: str) -> bool:
        numbers = publish.numbers_of(name)
        return numbers is not None and numbers[1] <= attempt

    steps = [path for path in sorted(folder.glob("step-*")) if ours(path.name)]
    lacking = [path for path in steps if manifest.lacking(path) is not None]
    torn = {path: problem for path in lacking if (problem := manifest.problem(path)) is not None}  # each file is asked
    if len(torn) == len(steps):
        torn = {}  # of nothing else is anything left
    for path, problem in torn.items():
        log.warning("removing %s, which is no whole checkpoint: %s", path, problem)
        publish.remove(path)
    return [*torn, *publish.remove_unpublished(folder, ours)]


def _kept(checkpoints: list[tuple[Path, Meta]], settings: config.Checkpoint) -> set[Path]:
    """Of complete checkpoints, newest first."""
    kept = {path for path, _ in checkpoints[: settings.keep_last]}
    if settings.keep_every_tokens is not None:
        kept |= set(_first_of_each(reversed(checkpoints), settings.keep_every_tokens))
    losses = [(meta.validation_loss, path) for path, meta in checkpoints]
    measured = [(loss, path) for loss, path in losses if loss is not None and math.isfinite(loss)]
    return kept | {path for _, path in sorted(measured)[: settings.keep_best]}


def _first_of_each(oldest_first: Iterable[tuple[Path, Meta]], every_tokens: int) -> Iterable[Path]:
    """The first checkpoint after every multiple of `every_tokens`, not counting 0."""
    reached = 0
    for path, meta in oldest_first:
        if meta.tokens // every_tokens > reached:
            reached = meta.tokens // every_tokens
            yield path
