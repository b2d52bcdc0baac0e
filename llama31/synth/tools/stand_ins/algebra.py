"""Algebra by sympy as wolfram_alpha: equations, derivatives, integrals, limits, values.

    solve x^2 - 5x + 6 = 0        differentiate x^3 sin(x)       integrate x^2 from 0 to 3
    limit sin(x)/x as x -> 0      factor, expand, simplify x^4 - 1      2^10 / 3

A query is read by the small language of `equality.grammar`, never by Python. sympy runs in a process whose time and
memory end; each query starts one, which costs half a second.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llama31.synth.equality import grammar
from llama31.synth.equality.tokens import NotAnAnswer
from llama31.synth.tools.interface import ATTACHED, ToolResult

ROOT = Path(__file__).resolve().parents[4]
SECONDS, BYTES = 20, 2**31
LONGEST_QUERY = 500
UNKNOWN = "The query was not understood."
_ASKED = re.compile(
    r"(?:what is|compute|calculate|evaluate|find)?\s*(?:the\s+)?(.*?)\s*[?.]?", re.IGNORECASE | re.DOTALL
)
_OF = r"(?:\s+of)?\s+(?P<e>.+?)"
_FOR = r"(?:\s+(?:for|with respect to|wrt|in|d)\s*(?P<x>[a-zA-Z]))?"


class AlgebraAnswers:
    """wolfram_alpha by sympy."""

    name = "wolfram_alpha"
    purpose = "computes exactly: solves equations, differentiates, integrates, takes limits, factors, simplifies."
    form = "one line, as: solve x^2 - 5x + 6 = 0; differentiate x^3 sin(x); integrate x^2 from 0 to 3; factor x^4 - 1."
    fingerprint = "algebra 1"

    def call(self, given: str, before: Sequence[str], files: ATTACHED) -> ToolResult:
        """See `ChatTool`."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        command = [sys.executable, "-m", "llama31.synth.tools.stand_ins.algebra"]
        try:
            done = subprocess.run(
                command, input=json.dumps(given), capture_output=True, text=True, timeout=10 * SECONDS, check=False,
                env=environment, preexec_fn=_bounded,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return ToolResult("The computation took too long.", failed=True)
        if done.returncode:
            return ToolResult("The computation took too long or too much memory.", failed=True)
        return ToolResult(**json.loads(done.stdout))


def _bounded() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))


def answered(query: str) -> ToolResult:
    """What sympy makes of a query; as long as it takes. Never raises for what a model wrote, but MemoryError."""
    import sympy

    if len(query) > LONGEST_QUERY:
        return ToolResult(UNKNOWN, failed=True)
    match = _ASKED.fullmatch(query.strip())
    asked = match[1] if match else query
    for pattern, work in OPERATIONS:
        if found := re.fullmatch(pattern, asked, re.IGNORECASE | re.DOTALL):
            try:
                return ToolResult(f"{query.strip()}\n= {work(sympy, found.groupdict())}")
            except (NotAnAnswer, ArithmeticError, NotImplementedError, TypeError, ValueError, AttributeError):
                return ToolResult(UNKNOWN, failed=True)
    return ToolResult(UNKNOWN, failed=True)


Given = dict[str, str | None]


def _tree(text: str | None) -> grammar.Node:
    return grammar.read(re.sub(r"\*\*", "^", text or ""))


def _expression(text: str | None) -> Any:
    from llama31.synth.equality import symbolic

    return symbolic.expression(_tree(text))


def _variable(sympy: Any, given: Given, expression: Any) -> Any:
    """The variable that is named, or the only one, or x."""
    if given.get("x"):
        return sympy.Symbol(given["x"], real=True)
    free = sorted(expression.free_symbols, key=str)
    return free[0] if len(free) == 1 else sympy.Symbol("x", real=True)


def _solve(sympy: Any, given: Given) -> str:
    """Real solutions of an equation, in order."""
    from llama31.synth.equality import symbolic

    tree = _tree(given["e"])
    if tree.kind != "relation" or tree.text != "=" or len(tree.parts) != 2:
        raise NotAnAnswer("no equation")
    left, right = (symbolic.expression(part) for part in tree.parts)
    variable = _variable(sympy, given, left - right)
    found = sympy.solveset(left - right, variable, sympy.S.Reals)
    if found is sympy.S.EmptySet:
        return "no real solution"
    if not isinstance(found, sympy.FiniteSet):
        return f"{variable} in {found}"
    return ", ".join(f"{variable} = {_valued(sympy, one)}" for one in sorted(found, key=lambda one: float(one.evalf())))


def _valued(sympy: Any, value: Any) -> str:
    """An exact value, and its decimals where it is a number that has more than digits."""
    exact = str(value)
    if value.is_number and not value.is_Integer and value.is_finite:
        return f"{exact} (about {value.evalf(10)})"
    return exact


def _differentiate(sympy: Any, given: Given) -> str:
    expression = _expression(given["e"])
    return str(sympy.simplify(sympy.diff(expression, _variable(sympy, given, expression))))


def _integrate(sympy: Any, given: Given) -> str:
    expression = _expression(given["e"])
    variable = _variable(sympy, given, expression)
    if given.get("a"):
        result = sympy.integrate(expression, (variable, _expression(given["a"]), _expression(given["b"])))
        return _valued(sympy, sympy.simplify(result))
    result = sympy.integrate(expression, variable)
    if result.has(sympy.Integral):
        raise NotAnAnswer("no closed form")
    return f"{result} + C"


def _limit(sympy: Any, given: Given) -> str:
    variable = sympy.Symbol(given["x"], real=True)
    return _valued(sympy, sympy.limit(_expression(given["e"]), variable, _expression(given["a"])))


def _shaped(name: str) -> Callable[[Any, Given], str]:
    return lambda sympy, given: str(getattr(sympy, name)(_expression(given["e"])))


def _value(sympy: Any, given: Given) -> str:
    return _valued(sympy, sympy.simplify(_expression(given["e"])))


OPERATIONS: tuple[tuple[str, Callable[[Any, Given], str]], ...] = (
    (rf"(?:solutions? of|roots? of|solve)\s+(?P<e>.+?){_FOR}", _solve),
    (rf"(?:derivative|differentiate|diff){_OF}{_FOR}", _differentiate),
    (r"(?:d/d(?P<x>[a-zA-Z]))\s+(?P<e>.+)", _differentiate),
    (rf"(?:integral|integrate){_OF}{_FOR}(?:\s+from\s+(?P<a>.+?)\s+to\s+(?P<b>.+?))?", _integrate),
    (rf"limit{_OF}\s+(?:as|when)\s+(?P<x>[a-zA-Z])\s*(?:->|→|to|approaches)\s*(?P<a>.+)", _limit),
    (rf"factor(?:ise|ize)?{_OF}", _shaped("factor")),
    (rf"expand{_OF}", _shaped("expand")),
    (rf"simplify{_OF}", _shaped("simplify")),
    (r"(?:value of\s+)?(?P<e>.+)", _value),
)


if __name__ == "__main__":
    result = answered(json.load(sys.stdin))
    print(json.dumps({"text": result.text, "failed": result.failed}))
