"""Shares in given proportions under caps: who has reached its cap leaves the rest to the others."""

from __future__ import annotations

from collections.abc import Mapping


def fill(weights: Mapping[str, float], caps: Mapping[str, float], total: float = 1.0) -> dict[str, float]:
    """Parts of `total`, in the proportions of `weights`, none above its cap; where all caps are less, all of these.

    The parts are min(level * weight, cap) for the one level at which they add up. A weight of 0 gets nothing.
    """
    parts = dict.fromkeys(weights, 0.0)
    open_ = {name: weight for name, weight in weights.items() if weight > 0}
    left = total
    while open_:
        level = left / sum(open_.values())
        full = [name for name, weight in open_.items() if caps[name] <= level * weight]
        if not full:
            return parts | {name: level * weight for name, weight in open_.items()}
        for name in full:
            parts[name] = caps[name]
            left -= caps[name]
            del open_[name]
    return parts
