"""Whether two trees are the same answer: structure here, expressions by arithmetic or by whoever is given.

`same` is symmetric and reflexive. Units and percent that one of both leaves out are not missed (5 cm, 5), so that it is
transitive only among answers that all have or all lack them. A base left out (101_2, 101) is not missed either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llama31.synth.equality import rational
from llama31.synth.equality.grammar import Node

INFINITY = Node("constant", "oo")
FLIPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "=": "=", "!=": "!="}
ORDERED, UNORDERED = ("brackets", "matrix", "row", "setminus"), ("set", "list", "cup", "cap")
SIGNED = ("either", "add", "subtract", "multiply", "divide", "negate", "relation")
SEVERAL = 12  # parts of an unordered list, each of which may have to be compared with each


class Undecided(Exception):
    """Nobody could tell."""


@dataclass(frozen=True)
class EqualityRules:
    """How expressions are compared. `expressions(one, other, ignored)` is given what arithmetic cannot decide.

    `equations(one, other)` is given two equations as pairs of sides.
    """

    expressions: Callable[[Node, Node, bool], bool]
    equations: Callable[[Node, Node], bool]

    def same(self, one: Node, other: Node) -> bool:
        """Whether they are the same answer. Raises Undecided and rational.TooLarge."""
        one, other = _headless(one, other), _headless(other, one)
        one, other = _plain(one), _plain(other)
        if one == other:
            return True
        if "relation" in (one.kind, other.kind):
            return self._relations(one, other)
        if (one.kind == "set") != (other.kind == "set"):  # {5} and 5
            single, value = (one, other) if one.kind == "set" else (other, one)
            if len(single.parts) == 1 and value.kind not in UNORDERED:
                return self.same(single.parts[0], value)
        if one.kind in UNORDERED or other.kind in UNORDERED:
            return self._unordered(one, other)
        if one.kind in ORDERED or other.kind in ORDERED:
            alike = one.kind == other.kind and one.text == other.text and len(one.parts) == len(other.parts)
            return alike and all(self.same(*pair) for pair in zip(one.parts, other.parts))
        return self._valued(one, other)

    def _valued(self, one: Node, other: Node) -> bool:
        """Two expressions, with units as they are, or ignored where one has none."""
        measured = [node.has("unit") for node in (one, other)]
        if all(measured) or not any(measured):
            return self._by_value(one, other, False) or self._digits(one, other)
        return self._by_value(one, other, True) or self._by_value(one, other, False)

    def _digits(self, one: Node, other: Node) -> bool:
        """A number with a base and one without are the same where their digits are."""
        if (one.kind == "based") == (other.kind == "based"):
            return False
        bare = [node.parts[0].text if node.kind == "based" else node.text for node in (one, other)]
        return bare[0] == bare[1] != ""

    def _by_value(self, one: Node, other: Node, ignored: bool) -> bool:
        values = [rational.value(node, ignored) for node in (one, other)]
        if values[0] is not None and values[1] is not None:
            return rational.equal(values[0], values[1], rational.inexact(one) or rational.inexact(other))
        return self.expressions(one, other, ignored)

    def _unordered(self, one: Node, other: Node) -> bool:
        kinds = {one.kind, other.kind}
        if not (kinds <= {"set", "list"} or len(kinds) == 1):
            return False
        left, right = self._distinct(one), self._distinct(other)
        if len(left) != len(right):
            return False
        rest = list(right)
        for part in left:
            place = next((i for i, candidate in enumerate(rest) if self.same(part, candidate)), None)
            if place is None:
                return False
            del rest[place]
        return True

    def _distinct(self, node: Node) -> list[Node]:
        """The parts of a set or list, each once: of a set that says one twice, and of x = 1, x = 1."""
        parts = [inner for part in node.parts for inner in (_flat(part, node.kind))]
        if len(parts) > SEVERAL:
            parts = sorted(set(parts), key=repr)
            if len(parts) > SEVERAL:
                return parts
        kept = list[Node]()
        for part in parts:
            if not any(self.same(part, before) for before in kept):
                kept.append(part)
        return kept

    def _relations(self, one: Node, other: Node) -> bool:
        if one.kind == other.kind == "relation":
            pair = [_interval(node) for node in (one, other)]
            if pair[0] is not None and pair[1] is not None:
                return pair[0][0] == pair[1][0] and self.same(pair[0][1], pair[1][1])
            if one.text == other.text == "=":
                return self.equations(one, other)
            return any(
                one.text == turned.text and all(self.same(*sides) for sides in zip(one.parts, turned.parts))
                for turned in (other, _turned(other))
            )
        relation, value = (one, other) if one.kind == "relation" else (other, one)
        described = _interval(relation)
        return described is not None and self.same(described[1], value)


def _flat(node: Node, kind: str) -> Sequence[Node]:
    """Operands of the same joining operation."""
    return (
        [inner for part in node.parts for inner in _flat(part, kind)]
        if node.kind == kind and kind in ("cup", "cap")
        else [node]
    )


def _headless(node: Node, other: Node) -> Node:
    """What stands behind `x =` or `x in`, where the other has no such head, or the same."""
    mine, its = _head(node), _head(other)
    if mine is None or (its is None and other.kind == "relation"):
        return node
    return mine[1] if its is None or its[0] == mine[0] else node


def _head(node: Node) -> tuple[Node, Node] | None:
    """The variable of x = 5, 5 = x, f(x) = 5 or x in [1, 3], and what it is; None of others."""
    if node.kind != "relation" or node.text not in ("=", "in"):
        return None
    head, rest = node.parts
    if _named(head):
        return head, rest
    return (rest, head) if node.text == "=" and rest.kind == "letter" else None


def _named(node: Node) -> bool:
    """Whether a side of an equation is a variable, or a function of one: x, f(x)."""
    call = node.kind == "multiply" and all(part.kind == "letter" for part in node.parts)
    return node.kind == "letter" or (call and node.parts[0].text in ("f", "g", "h", "P", "p"))


def _plain(node: Node) -> Node:
    """± as a set of both, and brackets of brackets of one length as a matrix."""
    rows = node.text == "[]" and all(part.kind == "brackets" and part.text == "[]" for part in node.parts)
    if node.kind == "brackets" and rows and len({len(part.parts) for part in node.parts}) == 1:
        return Node("matrix", "", tuple(Node("row", "", part.parts) for part in node.parts))
    if node.kind not in SIGNED or not node.has("either"):
        return node
    return Node("set", "", (_signed(node, "add"), _signed(node, "subtract")))


def _signed(node: Node, kind: str) -> Node:
    parts = tuple(_signed(part, kind) for part in node.parts)
    return Node(kind if node.kind == "either" else node.kind, node.text, parts)


def _turned(relation: Node) -> Node:
    """The same relation, read from its end."""
    signs = [FLIPPED.get(sign, "?") for sign in reversed(relation.text.split())]
    return Node("relation", " ".join(signs), tuple(reversed(relation.parts)))


def _interval(relation: Node) -> tuple[str, Node] | None:
    """The variable of x > 3 or 1 < x <= 3, and the interval in which it lies; None for other relations."""
    for turned in (relation, _turned(relation)):
        signs, parts = turned.text.split(), turned.parts
        if not set(signs) <= {"<", "<="}:
            continue
        if len(parts) == 2 and parts[0].kind == "letter":
            return parts[0].text, _brackets("(", Node("negate", "", (INFINITY,)), parts[1], signs[0])
        if len(parts) == 2 and parts[1].kind == "letter":
            return parts[1].text, _brackets("[" if signs[0] == "<=" else "(", parts[0], INFINITY, "<")
        if len(parts) == 3 and parts[1].kind == "letter":
            return parts[1].text, _brackets("[" if signs[0] == "<=" else "(", parts[0], parts[2], signs[1])
    return None


def _brackets(opening: str, low: Node, high: Node, sign: str) -> Node:
    return Node("brackets", opening + ("]" if sign == "<=" else ")"), (low, high))
