"""Weights and epochs of sources, from what there is, the shares that are wanted and the tokens of the training.

Within general text, mathematics and code each source has the share of its tokens, so that all are read equally often.
Languages share the multilingual part by their tokens to the power 1 / temperature, so that small ones get more than
they have: 1 / 0.3, as XLM-R (Conneau et al. 2020) and mT5 (Xue et al. 2021) chose it; the report says only that the
amount was set by experiments. Or by shares that are given.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llama31.curate.mixing.sources import MULTILINGUAL, SHARES, CountedSource

TEMPERATURE = 1 / 0.3
# Muennighoff et al. 2023, "Scaling data-constrained language models": up to 4 epochs of repeated data are nearly as
# good as new ones; beyond, their worth falls, to nothing at about 16.
MOST_EPOCHS = 4.0


@dataclass(frozen=True)
class MixedSource:
    """A source with its weight, a share of all tokens that are trained on, and how often it is read."""

    source: CountedSource
    weight: float
    epochs: float


@dataclass(frozen=True)
class SourceMixture:
    """Sources with weights that add up to 1, for a training of so many tokens, with no source wanted oftener."""

    sources: Sequence[MixedSource]
    train_tokens: float
    most_epochs: float
    shares: Mapping[str, float]

    @property
    def repeated(self) -> list[MixedSource]:
        """The sources that are read more often than is good."""
        return [one for one in self.sources if one.epochs > self.most_epochs * (1 + 1e-9)]


def mix(
    sources: Sequence[CountedSource],
    train_tokens: float,
    shares: Mapping[str, float] = SHARES,
    temperature: float = TEMPERATURE,
    language_shares: Mapping[str, float] | None = None,
    most_epochs: float = MOST_EPOCHS,
) -> SourceMixture:
    """Weights and epochs of sources.

    Args:
        sources: what there is; those of parts without a share get weight 0.
        train_tokens: of the training.
        shares: of the parts, in any unit; the report's by default.
        temperature: of the languages of the multilingual part; 1: by their tokens, large: all alike.
        language_shares: of the languages instead, in any unit; those not named get nothing.
        most_epochs: above which a source is one of `repeated`.

    Raises ValueError for a part that has a share and no tokens, and for numbers that cannot be.
    """
    _check(sources, train_tokens, shares, temperature, most_epochs)
    whole = sum(shares.values())
    by_part: defaultdict[str, list[CountedSource]] = defaultdict(list)
    for source in sources:
        by_part[source.part].append(source)
    weights = {source.name: 0.0 for source in sources}
    for part, share in shares.items():
        if share == 0:
            continue
        inner = _spread(part, by_part[part], temperature, language_shares)
        weights |= {name: share / whole * one for name, one in inner.items()}
    mixed = [
        MixedSource(one, weights[one.name], weights[one.name] * train_tokens / one.tokens if one.tokens else 0.0)
        for one in sources
    ]
    return SourceMixture(mixed, train_tokens, most_epochs, {name: share / whole for name, share in shares.items()})


def by_temperature(tokens: Mapping[str, float], temperature: float) -> dict[str, float]:
    """Shares of languages with so many tokens each, proportional to tokens ** (1 / temperature); 0 for 0 tokens."""
    logs = {name: math.log(count) / temperature for name, count in tokens.items() if count > 0}
    highest = max(logs.values(), default=0.0)
    powers = {name: math.exp(value - highest) for name, value in logs.items()}
    return {name: powers.get(name, 0.0) / sum(powers.values()) for name in tokens}


def _spread(
    part: str, sources: Sequence[CountedSource], temperature: float, language_shares: Mapping[str, float] | None
) -> dict[str, float]:
    """Shares of a part's sources: by tokens, and in the multilingual part by language first."""
    tokens: defaultdict[str, int] = defaultdict(int)
    for source in sources:
        tokens[source.language] += source.tokens
    if not sum(tokens.values()):
        raise ValueError(f"shares.{part}: there are no tokens of it; give it 0, or sources that have some")
    if part != MULTILINGUAL:
        return {one.name: one.tokens / sum(tokens.values()) for one in sources}
    if language_shares is None:
        languages = by_temperature(tokens, temperature)
    else:
        if not (whole := sum(language_shares.values())):
            raise ValueError(f"language_shares={dict(language_shares)}: give one of them a number above 0")
        languages = {name: language_shares.get(name, 0.0) / whole for name in tokens}
        if empty := sorted(name for name, share in language_shares.items() if share > 0 and not tokens.get(name)):
            raise ValueError(f"language_shares.{empty[0]}: there are no tokens of it in this part; leave it out")
    return {one.name: languages[one.language] * one.tokens / (tokens[one.language] or 1) for one in sources}


def _check(
    sources: Sequence[CountedSource],
    train_tokens: float,
    shares: Mapping[str, float],
    temperature: float,
    most_epochs: float,
) -> None:
    names = [source.name for source in sources]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"sources: {twice[0]} stands there twice; give each a name of its own")
    for key, value in (("train_tokens", train_tokens), ("temperature", temperature), ("most_epochs", most_epochs)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{key}={value}: give a number above 0")
    if not all(math.isfinite(share) and share >= 0 for share in shares.values()) or not any(shares.values()):
        raise ValueError(f"shares={dict(shares)}: give numbers of at least 0, one of them above")
