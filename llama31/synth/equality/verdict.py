"""Two answers' texts compared: as trees where both can be read, otherwise as text."""

from __future__ import annotations

from llama31.synth.equality import grammar, rational, tokens
from llama31.synth.equality.grammar import Node
from llama31.synth.equality.same import EqualityRules, Undecided
from llama31.synth.equality.tokens import NotAnAnswer

EQUAL, UNEQUAL, UNDECIDED = "equal", "unequal", "undecided"


class NeedsSympy(Exception):
    """Arithmetic does not tell."""


def of(one: str, other: str, compared: EqualityRules) -> str:
    """EQUAL, UNEQUAL, or UNDECIDED, of what is too large or says nothing. Raises what `compared` does beyond that."""
    if tokens.stripped(one) == tokens.stripped(other):
        return EQUAL
    try:
        trees = [grammar.read(text) for text in (one, other)]
    except NotAnAnswer:
        if max(len(one), len(other)) > tokens.MOST_CHARS:
            return UNEQUAL
        left, right = tokens.normal(one), tokens.normal(other)
        return EQUAL if left == right != "" else UNEQUAL
    try:
        return EQUAL if compared.same(*trees) else UNEQUAL
    except (Undecided, rational.TooLarge, RecursionError):
        return UNDECIDED
    except NotAnAnswer:
        return UNEQUAL


def _needs_sympy(one: Node, other: Node, ignored: bool = False) -> bool:
    raise NeedsSympy


def by_arithmetic(one: str, other: str) -> str | None:
    """The verdict where it takes no sympy; None where it does."""
    try:
        return of(one, other, EqualityRules(_needs_sympy, _needs_sympy))
    except NeedsSympy:
        return None
