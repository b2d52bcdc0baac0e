"""Expressions compared by sympy, which is given trees and never text: its own parsers evaluate Python.

Numbers are worked out to 80 digits; expressions at twelve points of fixed seed, and are the same where both are real
and agree at four or more of them (so log(ab) is log a + log b, and sqrt(x^2) is not x). Two different expressions of a
bounded size that agree so are not known to us; a proof by `simplify` is asked for only where no point says anything.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import sympy

from llama31.synth.equality import rational, units
from llama31.synth.equality.grammar import Node
from llama31.synth.equality.same import Undecided
from llama31.synth.equality.tokens import NotAnAnswer

DIGITS = 80
POINTS, ENOUGH = 12, 4
AGREEMENT, ZERO = sympy.Float("1e-40", DIGITS), sympy.Float("1e-60", DIGITS)
MOST_EXPONENT = 1000

APPLIED: dict[str, Callable[..., Any]] = {
    "sin": sympy.sin, "cos": sympy.cos, "tan": sympy.tan, "cot": sympy.cot, "sec": sympy.sec, "csc": sympy.csc,
    "arcsin": sympy.asin, "arccos": sympy.acos, "arctan": sympy.atan, "arccot": sympy.acot, "sinh": sympy.sinh,
    "cosh": sympy.cosh, "tanh": sympy.tanh, "ln": sympy.log, "exp": sympy.exp, "abs": sympy.Abs, "floor": sympy.floor,
    "ceil": sympy.ceiling, "gcd": sympy.gcd, "lcm": sympy.lcm, "max": sympy.Max, "min": sympy.Min,
    "log": sympy.log, "lg": lambda given: sympy.log(given, 10),
}  # fmt: skip
CONSTANTS = {"pi": sympy.pi, "e": sympy.E, "i": sympy.I, "oo": sympy.oo}


def expression(node: Node, ignored: bool = False) -> Any:
    """A tree as sympy's. `ignored`: units count 1. Raises NotAnAnswer, rational.TooLarge."""
    value = rational.value(node, ignored)
    if value is not None:
        return sympy.Rational(value.numerator, value.denominator)
    if node.kind == "letter":
        return sympy.Symbol(node.text, real=True)
    if node.kind == "constant":
        return CONSTANTS[node.text]
    if node.kind == "unit":
        return sympy.Integer(1) if ignored else _unit(node.text)
    if node.kind not in ("add", "subtract", "negate", "multiply", "divide", "power", "factorial", "apply"):
        raise NotAnAnswer(f"{node.kind} in an expression")
    if node.text == "det":
        return sympy.Matrix([[expression(one, ignored) for one in row.parts] for row in node.parts[0].parts]).det()
    return _operation(node, [expression(part, ignored) for part in node.parts])


def _unit(name: str) -> Any:
    one = units.unit(name)
    factor = sympy.Rational(one.factor.numerator, one.factor.denominator) * (sympy.pi if one.angle else 1)
    return factor * sympy.Symbol(f"unit {one.base}", positive=True) ** one.power if one.base else factor


def _operation(node: Node, parts: Sequence[Any]) -> Any:
    first, last = parts[0], parts[-1]
    if node.kind in ("add", "subtract"):
        return first + (last if node.kind == "add" else -last)
    if node.kind == "negate":
        return -first
    if node.kind == "multiply":
        return first * last
    if node.kind == "divide":
        return first / last
    if node.kind == "power":
        return _power(first, last)
    if node.kind == "factorial":
        _bounded(first, rational.MOST_FACTORIAL)
        return sympy.factorial(first)
    if node.text == "sqrt":
        return sympy.root(first, last) if len(parts) > 1 else sympy.sqrt(first)
    if node.text == "binom":
        _bounded(first, rational.MOST_FACTORIAL)
        return sympy.binomial(first, last)
    if node.text not in APPLIED:
        raise NotAnAnswer(f"the function {node.text}")
    return APPLIED[node.text](*parts)


def _bounded(given: Any, most: int) -> None:
    if given.is_number and not abs(given) <= most:
        raise rational.TooLarge(f"a factorial beyond {most}")


def _power(base: Any, exponent: Any) -> Any:
    """A power, whose exponent is worked out to be small where it is a number."""
    if exponent.is_number and exponent.is_finite and not abs(exponent.evalf(20)) <= MOST_EXPONENT:
        raise rational.TooLarge("a large exponent")
    if base.is_Rational and exponent.is_Rational:
        rational.raised(Fraction(int(base.p), int(base.q)), Fraction(int(abs(exponent.p)) + 1))
    return base**exponent


def equal(one: Node, other: Node, ignored: bool) -> bool:
    """Whether two expressions have the same values. Raises NotAnAnswer, TooLarge, Undecided."""
    left, right = expression(one, ignored), expression(other, ignored)
    if left == right:
        return True
    if left.has(sympy.oo, -sympy.oo, sympy.zoo, sympy.nan) or right.has(sympy.oo, -sympy.oo, sympy.zoo, sympy.nan):
        return False
    near = rational.inexact(one) or rational.inexact(other)
    agreement = sympy.Float("1e-9") if near else AGREEMENT
    judged = [_agree(pair[0], pair[1], agreement) for pair in _values((left, right))]
    return _verdict(judged, lambda: sympy.simplify(left - right) == 0)


def equal_equations(one: Node, other: Node) -> bool:
    """Whether two equations say the same: their sides' differences are multiples of each other.

    Raises NotAnAnswer, TooLarge, Undecided.
    """
    differences = [expression(node.parts[0]) - expression(node.parts[1]) for node in (one, other)]
    if any(difference == 0 for difference in differences):
        return differences[0] == differences[1]
    ratios = [pair[0] / pair[1] for pair in _values(differences) if abs(pair[1]) > ZERO]
    return _verdict([_agree(ratio, ratios[0], AGREEMENT) and abs(ratio) > ZERO for ratio in ratios], lambda: False)


def _verdict(judged: Sequence[bool], proof: Callable[[], bool]) -> bool:
    if not judged and not proof():
        raise Undecided("no point says anything")
    return all(judged)


def _agree(one: Any, other: Any, agreement: Any) -> bool:
    difference = abs(one - other)
    return bool(difference <= ZERO) or bool(difference <= agreement * max(abs(one), abs(other)))


def _values(expressions: Sequence[Any]) -> list[list[Any]]:
    """Their values where all are real; where that is at fewer than four points, where they are numbers at all."""
    symbols = sorted({one for each in expressions for one in each.free_symbols}, key=lambda one: one.name)
    found = [_at(expressions, point) for point in _points(symbols)]
    real = [values for values in found if values and all(value.is_real for value in values)]
    complex_ = [values for values in found if values]
    if not symbols:
        return complex_
    return real if len(real) >= ENOUGH else complex_ if len(complex_) >= ENOUGH else []


def _points(symbols: Sequence[Any]) -> list[dict[Any, Any]]:
    """Twelve points, half of them with negative numbers too; none where there is nothing to vary."""
    if not symbols:
        return [{}]
    drawn = random.Random(7)
    return [
        {
            one: sympy.Rational(drawn.randint(1, 400), drawn.randint(80, 120))
            * (-1 if number % 2 and not one.is_positive and drawn.random() < 0.7 else 1)
            for one in symbols
        }
        for number in range(POINTS)
    ]


def _at(expressions: Sequence[Any], point: dict[Any, Any]) -> list[Any]:
    values = [each.evalf(DIGITS, subs=point) for each in expressions]
    values = [
        value.as_real_imag()[0] if value.is_number and abs(value.as_real_imag()[1]) <= ZERO else value
        for value in values
    ]
    return (
        values
        if all(value.is_number and value.is_finite and value.is_comparable is not None for value in values)
        else []
    )
