"""What dialogs are about: domains of a list, drawn without near repeats, and subdomains that a model names.

Two names are near where half of their words or more are the same (Jaccard), short words apart and without endings. That
sees words, not meanings. A domain near to one before it is an item that is dropped, with this reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from llama31.sampling.drawing import seed_of
from llama31.synth.pipeline import items
from llama31.synth.pipeline.items import SynthesisItem

NEAR = 0.5
LONGEST = 100  # characters of a name
_LISTED = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s*(.+?)\s*$")
_SHORT = frozenset(["a", "an", "the", "of", "for", "and", "or", "in", "on", "to", "with", "by", "at", "from", "as"])
_ENDING = re.compile(r"(?<=\w{3})ings?$|(?:(?<=[xsz])|(?<=ch)|(?<=sh))es$|(?<=\w{3})s$")


def words(name: str) -> frozenset[str]:
    """The words of a name by which it is compared."""
    found = (_ENDING.sub("", word) for word in re.findall(r"\w+", name.casefold()) if word not in _SHORT)
    return frozenset(found)


def near(one: str, other: str) -> bool:
    """Whether two names say nearly the same."""
    first, second = words(one), words(other)
    return len(first & second) >= NEAR * max(1, len(first | second))


def read(given: str, text_key: str, seed: int, limit: int | None = None) -> Iterator[SynthesisItem]:
    """Domains in an order drawn by `seed`, the first `limit` of them, as items that know all `others` beside them.

    One near to one before it knows which (`near`). Those of a longer list stand among the others, whose order stays.
    Raises ValueError as `items.read`.
    """
    found = sorted(items.read(given, text_key), key=lambda item: seed_of(seed, "domains", item.id))
    names, by_word = [item.text.strip() for item in found], dict[str, list[str]]()
    for index, (item, name) in enumerate(zip(found[:limit], names, strict=False)):
        beside: dict[str, Any] = {"others": names}
        before = dict.fromkeys(other for word in sorted(words(name)) for other in by_word.get(word, ()))
        if repeated := next((other for other in before if near(name, other)), None):
            beside["near"] = repeated
        for word in words(name):
            by_word.setdefault(word, []).append(name)
        yield replace(item, index=index, beside=beside)


def listed(answer: str) -> list[str]:
    """The names that an answer lists, a line each. Raises ValueError for an answer without a list."""
    found = [match[1].strip("*_` .:") for line in answer.splitlines() if (match := _LISTED.match(line))]
    result = [name for name in found if words(name) and len(name) <= LONGEST]
    if not result:
        raise ValueError("no list of names")
    return result


def distinct(names: Iterable[str], others: Iterable[str]) -> list[str]:
    """The names that are near to none before them and to none of `others`."""
    kept, known = list[str](), list(others)
    for name in names:
        if not any(near(name, other) for other in [*known, *kept]):
            kept.append(name)
    return kept
