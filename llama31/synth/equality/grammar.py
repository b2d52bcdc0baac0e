"""An answer's tokens as a tree, by a grammar of its own; nothing is evaluated.

answer   := relation ("," relation)*                            several: kind list
relation := value (("=" | "<" | "<=" | ">" | ">=" | "!=" | "in") value)*
value    := sum (("cup" | "cap" | "setminus") sum)*
sum      := ["+" | "-" | "±"] product (("+" | "-" | "±") product)*
product  := power (("*" | "/")? power)*                         side by side is a product
power    := atom ["_" atom] ("!" | "%")* ["^" power]
atom     := number | letter | constant | unit | function argument | "(" answer ")" | "{." answer ".}" | matrix ...
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from llama31.synth.equality import tokens, units
from llama31.synth.equality.tokens import NotAnAnswer, Token

DEEPEST = 40
RELATIONS = ("=", "<", "<=", ">", ">=", "!=", "in")
OPERATIONS = ("cup", "cap", "setminus")
CLOSING = {"(": (")", "]"), "[": ("]", ")"), "{.": (".}",), "{": ("}",)}
MATRICES = ("matrix", "pmatrix", "bmatrix", "Bmatrix", "vmatrix", "smallmatrix", "array")
END = Token("end", "")


@dataclass(frozen=True)
class Node:
    """A part of an answer. `text`: the number, name, function, brackets or signs; `parts`: its operands in order.

    Kinds: number, based (a number with a base), letter, constant, unit, apply, add, subtract, negate, either (±),
    multiply, divide, power, factorial, list, set, brackets ("()", "[)" ...), matrix (rows of kind row), relation (text:
    its signs, apart by spaces), cup, cap, setminus.
    """

    kind: str
    text: str = ""
    parts: tuple[Node, ...] = ()

    def has(self, kind: str) -> bool:
        """Whether it or a part is of that kind."""
        return self.kind == kind or any(part.has(kind) for part in self.parts)


def read(text: str) -> Node:
    """The tree of an answer. Raises NotAnAnswer."""
    given = tokens.read(text)
    if not given:
        raise NotAnAnswer("an empty answer")
    parser = Parser(given)
    try:
        found = parser.answer()
    except RecursionError as error:
        raise NotAnAnswer("nested too deeply") from error
    if parser.peek() != END:
        parser.fail()
    return found


class Parser:
    """Recursive descent over one answer's tokens."""

    def __init__(self, given: list[Token]) -> None:
        self.given, self.at, self.depth, self.bars = given, 0, 0, 0

    def peek(self) -> Token:
        """The next token."""
        return self.given[self.at] if self.at < len(self.given) else END

    def fail(self) -> NoReturn:
        """What stands here has no place in an answer."""
        raise NotAnAnswer(f"{self.peek().text!r} at token {self.at}")

    def next(self) -> Token:
        """The next token, taken."""
        token = self.peek()
        self.at += 1
        return token

    def sign(self, *wanted: str) -> str | None:
        """Take a sign if it is one of these."""
        token = self.peek()
        if token.kind == "sign" and token.text in wanted:
            self.at += 1
            return token.text
        return None

    def need(self, *wanted: str) -> str:
        """Take one of these signs. Raises NotAnAnswer where there is none."""
        return self.sign(*wanted) or self.fail()

    def answer(self) -> Node:
        """One relation, or a list of them; a comma may stand before `and`."""
        parts = [self.relation()]
        while self.sign(","):
            while self.sign(","):
                pass
            if self.peek() == END:
                break
            parts.append(self.relation())
        return parts[0] if len(parts) == 1 else Node("list", "", tuple(parts))

    def relation(self) -> Node:
        """A value, or values that stand in relations."""
        parts, signs = [self.value()], list[str]()
        while sign := self.sign(*RELATIONS):
            signs.append(sign)
            parts.append(self.value())
        return Node("relation", " ".join(signs), tuple(parts)) if signs else parts[0]

    def value(self) -> Node:
        """Sets that are joined, or a sum."""
        found = self.sum()
        while operation := self.sign(*OPERATIONS):
            found = Node(operation, "", (found, self.sum()))
        return found

    def sum(self) -> Node:
        """Products, added."""
        self.depth += 1
        if self.depth > DEEPEST:
            raise NotAnAnswer(f"deeper than {DEEPEST}")
        first = self.sign("+", "-", "±")
        found = self.product()
        found = {"-": Node("negate", "", (found,)), "±": Node("either", "", (Node("number", "0"), found))}.get(
            first or "", found
        )
        while operation := self.sign("+", "-", "±"):
            kind = {"+": "add", "-": "subtract", "±": "either"}[operation]
            found = Node(kind, "", (found, self.product()))
        self.depth -= 1
        return found

    def product(self, in_function: bool = False) -> Node:
        """Powers, multiplied or divided; a whole number before a proper fraction of numbers is a mixed one.

        `in_function`: an argument without brackets, as in sin 2x cos x, which ends before the next function or sign.
        """
        found = self.power()
        while True:
            if not in_function and (operation := self.sign("*", "/", ":")):
                negative = self.sign("-", "+") == "-"
                right = self.power()
                right = Node("negate", "", (right,)) if negative else right
                found = Node("multiply" if operation == "*" else "divide", "", (found, right))
            elif self.begins(in_function):
                right = self.plain_fraction(found) or self.power()
                mixed = found.kind == "number" and found.text.isdecimal() and _proper(right)
                found = Node("add" if mixed else "multiply", "", (found, right))
            else:
                return found

    def plain_fraction(self, before: Node) -> Node | None:
        """`1/2` behind a whole number, as in 3 1/2."""
        four = self.given[self.at : self.at + 3]
        if before.kind != "number" or [token.kind for token in four] != ["number", "sign", "number"]:
            return None
        found = Node("divide", "", (Node("number", four[0].text), Node("number", four[2].text)))
        if four[1].text != "/" or not _proper(found) or not before.text.isdecimal():
            return None
        self.at += 3
        return found

    def begins(self, in_function: bool) -> bool:
        """Whether a factor begins here."""
        token = self.peek()
        if token.kind in ("number", "letter", "constant", "unit", "word"):
            return True
        if token.kind == "function":
            return not in_function
        openings = ("(", "[", "{", "{.", "frac", "binom", "lfloor", "lceil")
        return token.kind == "sign" and (token.text in openings or (token.text == "|" and not self.bars))

    def power(self) -> Node:
        """An atom with what stands behind or above it."""
        found = self.atom()
        if self.sign("_"):
            found = self.lowered(found, self.group())
        while True:
            if self.sign("!"):
                found = Node("factorial", "", (found,))
            elif self.sign("%"):
                found = Node("multiply", "", (found, Node("unit", units.PERCENT)))
            elif self.sign("^"):
                return Node("power", "", (found, self.exponent()))
            else:
                return found

    def exponent(self) -> Node:
        """What is raised: a group, or a power with its sign."""
        if self.sign("-"):
            return Node("negate", "", (self.exponent(),))
        self.sign("+")
        self.depth += 1
        if self.depth > DEEPEST:
            raise NotAnAnswer(f"deeper than {DEEPEST}")
        found = self.power()
        self.depth -= 1
        return found

    def lowered(self, found: Node, index: Node) -> Node:
        """A variable with an index, or a number with its base."""
        if found.kind == "number" and index.kind == "number":
            return Node("based", index.text, (found,))
        if found.kind == "letter" and index.kind in ("number", "letter", "constant"):
            return Node("letter", f"{found.text}_{index.text}")
        return self.fail()

    def group(self) -> Node:
        """An argument of LaTeX: what stands in braces, or one sign, of a number one digit."""
        token = self.peek()
        if token.kind == "number" and len(token.text) > 1:
            self.given[self.at] = Token("number", token.text[1:].removeprefix("."))
            return Node("number", token.text[0])
        return self.atom()

    def atom(self) -> Node:
        """The smallest part."""
        token = self.next()
        if token.kind in ("number", "letter", "constant", "unit"):
            return Node(token.kind, token.text)
        if token.kind == "word":
            return self.noun(token.text)
        if token.kind == "function":
            return self.function(token.text)
        if token.kind == "sign":
            return self.signed(token.text)
        self.at -= 1
        return self.fail()

    def noun(self, word: str) -> Node:
        """A noun behind a number is a unit of its own; `square` raises the next."""
        if self.at < 2 or self.given[self.at - 2].text in ("(", ",", "=", "{."):
            self.at -= 1
            self.fail()
        if word not in units.POWERS:
            return Node("unit", word)
        return Node("power", "", (self.atom(), Node("number", str(units.POWERS[word]))))

    def function(self, name: str) -> Node:
        """A function with its argument; one with a power is that power of its value, -1 apart, the inverse."""
        base: tuple[Node, ...] = ()
        raised: Node | None = None
        if name == "sqrt" and self.sign("["):
            base = (self.sum(),)
            self.need("]")
        if name == "log" and self.sign("_"):
            base = (self.group(),)
        if self.sign("^"):
            raised = self.exponent()
        if name == "sqrt" or self.peek().text in ("(", "{", "[", "|", "{."):
            given = self.atom()
        else:
            given = self.product(in_function=True)
        several = name in ("gcd", "lcm", "max", "min") and given.kind in ("list", "brackets", "set")
        arguments = given.parts if several else (given,)
        if raised == Node("negate", "", (Node("number", "1"),)):
            return Node("apply", f"arc{name}", (*arguments, *base))
        found = Node("apply", name, (*arguments, *base))
        return Node("power", "", (found, raised)) if raised else found

    def signed(self, sign: str) -> Node:
        """What begins with a sign."""
        if sign in CLOSING:
            return self.bracketed(sign)
        if sign == "|":
            self.bars += 1
            inner = self.sum()
            self.need("|")
            self.bars -= 1
            return Node("apply", "abs", (inner,))
        if sign in ("lfloor", "lceil"):
            inner = self.sum()
            self.need(sign.replace("l", "r", 1))
            return Node("apply", "floor" if sign == "lfloor" else "ceil", (inner,))
        if sign in ("frac", "binom"):
            pair = (self.group(), self.group())
            return Node("divide", "", pair) if sign == "frac" else Node("apply", "binom", pair)
        if sign == "empty":
            return Node("set")
        if sign.startswith("begin "):
            return self.matrix(sign.removeprefix("begin "))
        self.at -= 1
        return self.fail()

    def bracketed(self, sign: str) -> Node:
        """What stands in brackets: one value alone is itself, but in {. .} a set; several in LaTeX's {} are a set."""
        outer, self.bars = self.bars, 0
        if (sign == "{." and self.sign(".}")) or (sign == "{" and self.sign("}")):
            self.bars = outer
            return Node("set")
        if sign == "{." and (described := self.described()) is not None:
            self.bars = outer
            return described
        inner = self.answer()
        closing = self.need(*CLOSING[sign])
        self.bars = outer
        parts = inner.parts if inner.kind == "list" else (inner,)
        if sign == "{.":
            return Node("set", "", parts)
        if sign == "{":
            return Node("set", "", parts) if len(parts) > 1 else inner
        if len(parts) == 1 and (sign, closing) in (("(", ")"), ("[", "]")) and inner.kind != "brackets":
            return inner
        return Node("brackets", sign + closing, parts)

    def described(self) -> Node | None:
        """The relation of a set such as {x | x > 3} or {x in R : x > 3}; None where it is no such set."""
        begin = self.at
        if self.next().kind == "letter":
            if self.sign("in") and self.peek().kind == "letter":
                self.next()
            if self.sign("|", ":"):
                found = self.relation()
                self.need(".}")
                return found
        self.at = begin
        return None

    def matrix(self, name: str) -> Node:
        """Rows of entries, up to the end of the environment."""
        if name not in MATRICES:
            self.fail()
        rows, row = list[Node](), list[Node]()
        while True:
            row.append(self.relation())
            if self.sign("&"):
                continue
            rows.append(Node("row", "", tuple(row)))
            row = []
            if not self.sign("\\\\") or self.peek().text == f"end {name}":
                break
        self.need(f"end {name}")
        found = Node("matrix", "", tuple(rows))
        return Node("apply", "det", (found,)) if name == "vmatrix" else found


def _proper(node: Node) -> bool:
    """Whether a node is a fraction of whole numbers below 1."""
    return (
        node.kind == "divide"
        and all(part.kind == "number" and part.text.isdecimal() and len(part.text) < 20 for part in node.parts)
        and 0 < int(node.parts[0].text) < int(node.parts[1].text)
    )
