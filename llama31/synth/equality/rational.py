"""Answers that are rational numbers, exactly and without sympy: most are."""

from __future__ import annotations

import re
from fractions import Fraction

from llama31.synth.equality import units
from llama31.synth.equality.grammar import Node

MOST_BITS = 20_000  # of a number; what is larger is compared as text
MOST_FACTORIAL = 1000
FLOAT_DIGITS, FLOAT_AGREEMENT = 12, Fraction(1, 10**9)  # a decimal of so many digits is a program's, and inexact


class TooLarge(ValueError):
    """A number that is not worked out: 9^9^9."""


def number(text: str) -> Fraction:
    """The value of a number's text: 12, .5, 1.5e3, 0.1(6) of repeating digits. Raises TooLarge."""
    plain, _, rest = text.partition("(")
    mantissa, _, exponent = plain.lower().partition("e")
    if len(mantissa) > MOST_BITS // 4 or abs(int(exponent or 0)) > MOST_BITS // 4:
        raise TooLarge(text[:20])
    found = Fraction((mantissa if mantissa.strip(".") else "0").removesuffix(".")) * Fraction(10) ** int(exponent or 0)
    if rest:
        period, places = rest.removesuffix(")"), len(mantissa.partition(".")[2])
        found += Fraction(int(period), (10 ** len(period) - 1) * 10**places)
    return found


def based(node: Node) -> int | None:
    """The value of a number with a base of 2 to 36; None where a digit is not of that base."""
    base, digits = int(node.text) if len(node.text) < 3 and node.text.isdecimal() else 0, node.parts[0].text
    if not 2 <= base <= 36 or not digits.isdecimal() or max(map(int, digits)) >= base:
        return None
    return int(digits, base)


def raised(base: Fraction, exponent: Fraction) -> Fraction | None:
    """A power that is a rational number; None where it may be none. Raises TooLarge."""
    if exponent.denominator != 1 or (base == 0 and exponent <= 0):
        return None
    size = max(base.numerator.bit_length(), base.denominator.bit_length()) - (abs(base) in (0, 1))
    if size * abs(exponent.numerator) > MOST_BITS:
        raise TooLarge("a large power")
    return base**exponent.numerator


def value(node: Node, ignored: bool = False) -> Fraction | None:
    """The number that a node is; None where that takes more than arithmetic. Raises TooLarge.

    `ignored`: units count 1; otherwise those without dimension count as what they are, and of others there is no value.
    """
    if node.kind == "number":
        return number(node.text)
    if node.kind == "based":
        return None if (found := based(node)) is None else Fraction(found)
    if node.kind == "unit":
        one = units.unit(node.text)
        return Fraction(1) if ignored else None if one.base or one.angle else one.factor
    if node.kind not in ("add", "subtract", "multiply", "divide", "negate", "power"):
        return None
    parts = [value(part, ignored) for part in node.parts]
    if any(part is None for part in parts):
        return None
    return _combined(node.kind, [part for part in parts if part is not None])


def _combined(kind: str, parts: list[Fraction]) -> Fraction | None:
    first, last = parts[0], parts[-1]
    if kind == "divide":
        return first / last if last else None
    if kind == "power":
        return raised(first, last)
    found = {"negate": -first, "add": first + last, "subtract": first - last, "multiply": first * last}[kind]
    if found.numerator.bit_length() + found.denominator.bit_length() > 8 * MOST_BITS:
        raise TooLarge("a number of many digits")
    return found


def inexact(node: Node) -> bool:
    """Whether it holds a decimal of so many digits that a program must have rounded it."""
    if node.kind == "number":
        return (
            "." in node.text and "(" not in node.text and len(re.sub(r"\D", "", node.text).lstrip("0")) >= FLOAT_DIGITS
        )
    return any(inexact(part) for part in node.parts)


def equal(one: Fraction, other: Fraction, approximate: bool) -> bool:
    """Whether two numbers are the same, `approximate`: but for what a program's arithmetic loses."""
    return one == other or (approximate and abs(one - other) <= FLOAT_AGREEMENT * max(abs(one), abs(other)))
