"""What is possible where a mixture asks for more of a source than is good: fewer tokens, or other shares."""

from __future__ import annotations

from dataclasses import dataclass

from llama31.curate.mixing.mixture import MixedSource, SourceMixture
from llama31.curate.mixing.water_filling import fill


@dataclass(frozen=True)
class Possible:
    """Two ways out. `train_tokens`: the longest training with these shares that reads nothing too often.

    `weights`: shares of all sources by name, as near to the wanted ones as `most_epochs` of each allow for the training
    that is wanted; they add up to `reached`, below 1 where all sources together, so often read, are less than it.
    """

    train_tokens: float
    weights: dict[str, float]
    reached: float

    def parts(self, mixture: SourceMixture) -> dict[str, float]:
        """The weights added up by part of the mixture."""
        result = dict.fromkeys(mixture.shares, 0.0)
        for one in mixture.sources:
            if one.weight:
                result[one.source.part] += self.weights[one.source.name]
        return result


def possible(mixture: SourceMixture) -> Possible:
    """What keeps every source within `most_epochs`.

    What a source cannot give, the others of its part do, in their proportions; what a part cannot, the other parts.
    """
    used = [one for one in mixture.sources if one.weight > 0]
    longest = min(mixture.most_epochs * one.source.tokens / one.weight for one in used)
    caps = {one.source.name: mixture.most_epochs * one.source.tokens / mixture.train_tokens for one in used}
    by_part = {part: [one for one in used if one.source.part == part] for part in mixture.shares}
    part_caps = {part: sum(caps[one.source.name] for one in several) for part, several in by_part.items()}
    weights = dict.fromkeys((one.source.name for one in mixture.sources), 0.0)
    for part, share in fill(mixture.shares, part_caps).items():
        weights |= fill({one.source.name: one.weight for one in by_part[part]}, caps, share)
    return Possible(longest, weights, sum(weights.values()))


def warnings(mixture: SourceMixture) -> list[str]:
    """A sentence for each source that is read too often, and one on what is possible instead; none if all is well."""
    if not mixture.repeated:
        return []
    found = possible(mixture)
    parts = ", ".join(f"{name} {share:.1%}" for name, share in found.parts(mixture).items())
    instead = f"{_tokens(found.train_tokens)} tokens with these shares, or, of {_tokens(mixture.train_tokens)}, {parts}"
    if found.reached < 1 - 1e-6:
        instead += f": all there is, read {mixture.most_epochs:g} times, is {found.reached:.1%} of it"
    return [*(_too_often(one, mixture.most_epochs) for one in mixture.repeated), f"possible instead: {instead}"]


def _too_often(one: MixedSource, most: float) -> str:
    return (
        f"{one.source.name}: {_tokens(one.source.tokens)} tokens are read {one.epochs:.1f} times for "
        f"{one.weight:.1%} of the mixture; beyond {most:g} epochs repeated tokens are worth less and less "
        "(Muennighoff et al. 2023)"
    )


def _tokens(count: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"
