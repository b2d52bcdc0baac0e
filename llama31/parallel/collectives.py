"""What all ranks do together beside the step: one verdict for all, and who is first. Works without processes too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch.distributed as dist


def rank_of(group: dist.ProcessGroup | None) -> int:
    """Rank within the group; 0 without an initialised process group."""
    return dist.get_rank(group) if dist.is_initialized() else 0


def on_all_ranks[Result](group: dist.ProcessGroup | None, action: Callable[[], Result]) -> list[Result]:
    """Run `action` on every rank of `group` and return all results; where one rank fails, every rank raises.

    Without an initialised process group this is a plain call. Raises the rank's own error, or else the first other
    rank's, so that nobody waits in a later collective.
    """
    if not dist.is_initialized():
        return [action()]
    value, failure = None, None
    try:
        value = action()
    except Exception as error:  # noqa: BLE001 - raised again below, after the others know
        failure = error
    outcomes: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(outcomes, (value, failure), group=group)
    for reason in (failure, *(other for _, other in outcomes)):
        if reason is not None:
            raise reason
    return [value for value, _ in outcomes]


def on_first_rank[Result](action: Callable[[], Result]) -> Result:
    """Run `action` on the first rank alone; its result on all ranks, and what it raises, too."""
    return cast(Result, on_all_ranks(None, lambda: action() if rank_of(None) == 0 else None)[0])
