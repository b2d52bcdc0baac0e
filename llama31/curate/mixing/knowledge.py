"""Down-sampling of classes of knowledge that are over-represented (the report, section 3.1.2, names arts and
entertainment on the web): which part of each class is kept, and the block that keeps it."""

from __future__ import annotations

from collections.abc import Mapping

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.disk_base import DiskWriter

from llama31.curate.scoring.ranking import chance

LARGEST_SHARE = 0.2


def kept_parts(
    tokens: Mapping[str, float],
    largest_share: float = LARGEST_SHARE,
    largest_shares: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """The part of each class that is kept, so that none has more than its largest share of what is left.

    As much is kept as can be: classes below their share are kept whole, and the others have just that share.

    Args:
        tokens: of each class, in tokens, documents or any other unit.
        largest_share: of every class; a fifth, ours, for the report states none. 1: nothing is dropped.
        largest_shares: of single classes instead.

    Raises ValueError where the shares of all classes that have tokens add up to less than 1: nothing would be left.
    """
    limits = {name: (largest_shares or {}).get(name, largest_share) for name in tokens}
    for name, limit in limits.items():
        if not 0 <= limit <= 1 or tokens[name] < 0:
            raise ValueError(
                f"{name}: share={limit}, tokens={tokens[name]}; give a share from 0 to 1 of 0 tokens or more"
            )
    there = [name for name, count in tokens.items() if count > 0]
    if not there:
        return dict.fromkeys(tokens, 1.0)
    if sum(limits[name] for name in there) < 1 - 1e-9:
        raise ValueError(
            f"largest_share={largest_share}: {len(there)} classes with at most so much each are less than the whole; "
            f"give at least {1 / len(there):.3g}, or larger shares to single ones"
        )
    # The classes with the most tokens for their share reach it first; each that does makes the whole smaller.
    ratio = {name: tokens[name] / limits[name] if limits[name] else float("inf") for name in there}
    capped: list[str] = []
    whole = sum(tokens[name] for name in there)
    for name in sorted(there, key=lambda one: (-ratio[one], one)):
        if ratio[name] <= whole * (1 + 1e-12):
            break
        capped.append(name)
        whole = sum(tokens[one] for one in there if one not in capped) / (1 - sum(limits[one] for one in capped))
    return {
        name: min(1.0, limits[name] * whole / count) if name in capped and count else 1.0
        for name, count in tokens.items()
    }


class Downsampler(BaseFilter):
    """Keeps a part of the documents of each class, by the hash of their id: the same ones on any number of tasks.

    Counts what it drops as `more CLASS than its share`.

    Args:
        kept: the part of each class, 0 to 1, as `kept_parts` finds it; classes beside them are kept whole.
        key: metadata's name of the class.
        exclusion_writer: takes what is dropped.
    """

    name = "Fewer of a class"

    def __init__(
        self, kept: Mapping[str, float], key: str = "knowledge", exclusion_writer: DiskWriter | None = None
    ) -> None:
        super().__init__(exclusion_writer)
        for name, part in kept.items():
            if not 0 <= part <= 1:
                raise ValueError(f"kept.{name}={part}: give a part from 0 to 1")
        self.kept, self.key = dict(kept), key

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether a document is kept, or why not."""
        name = doc.metadata.get(self.key, "")
        if chance(doc.id, "knowledge") < self.kept.get(name, 1.0):
            return True
        return False, f"more {name} than its share"
