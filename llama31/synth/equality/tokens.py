"""An answer's text as tokens: LaTeX, plain text and Unicode's signs become the same."""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

from llama31.synth.equality import units

MOST_CHARS, MOST_TOKENS = 2000, 250


class NotAnAnswer(ValueError):
    """A text that is no answer of the grammar; it can still be compared as text."""


class Token(NamedTuple):
    """`kind`: number, letter (a variable), function, constant, unit, word, or sign (then `text` says which)."""

    kind: str
    text: str


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


FUNCTIONS = _words(
    "sin cos tan cot sec csc arcsin arccos arctan asin acos atan sinh cosh tanh log ln lg exp sqrt abs floor ceil "
    "gcd lcm max min det"
)
CONSTANTS = {"pi": "pi", "infty": "oo", "infinity": "oo", "inf": "oo", "oo": "oo", "e": "e", "i": "i"}
GREEK = _words(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau "
    "upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell"
)
# Commands that mean a sign, by it; those that mean nothing.
SIGNS = {
    "cdot": "*", "times": "*", "ast": "*", "div": "/", "pm": "±", "mp": "±", "le": "<=", "leq": "<=", "leqslant": "<=",
    "ge": ">=", "geq": ">=", "geqslant": ">=", "ne": "!=", "neq": "!=", "lt": "<", "gt": ">", "in": "in", "cup": "cup",
    "cap": "cap", "setminus": "setminus", "lvert": "|", "rvert": "|", "vert": "|", "lfloor": "lfloor", "colon": ":",
    "rfloor": "rfloor", "lceil": "lceil", "rceil": "rceil", "langle": "(", "rangle": ")", "lbrace": "{.", "{": "{.",
    "rbrace": ".}", "}": ".}", "emptyset": "empty", "varnothing": "empty", "frac": "frac", "dfrac": "frac",
    "tfrac": "frac", "cfrac": "frac", "binom": "binom", "dbinom": "binom", "tbinom": "binom", "%": "%",
    "land": ",", "lor": ",", "mid": "|", "approx": "=", "equiv": "=", "iff": "=", "backslash": "setminus",
}  # fmt: skip
SILENT = _words(
    "left right big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr displaystyle textstyle limits quad qquad , ; ! "
    ": space thinspace mathit mathbf boldsymbol bf rm it"
) | {" "}
TEXTS = _words("text textbf textit textrm mathrm mbox operatorname textsf mathsf hbox")
PLAIN = dict(
    zip("\u2212\u2013\u2014\u00d7\u00b7\u22c5\u2219\u00f7\u2215\u2044\u2032\u2019\u27e8\u27e9", "---****///''()")
)
PLAIN |= {
    "\u2264": "<=", "\u2265": ">=", "\u2260": "!=", "\u2248": "=", "\u221e": " oo ", "\u03c0": " pi ",
    "\u00b0": " deg ", "\u00ba": " deg ", "\u222a": "\\cup ", "\u2229": "\\cap ", "\u2208": "\\in ",
    "\u2205": "\\emptyset ", "\u221a": "\\sqrt ", "\u211d": "\\mathbb{R}", "\u2216": "\\setminus ",
    "\u03b8": "\\theta ", "\u00a0": " ", "\u202f": "\\,", "\u2009": "\\,", "\u20ac": " euro ", "\u00a3": " gbp ",
}  # fmt: skip
AROUND = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("\\boxed{", "}"))
# Words that stand for several tokens.
WORDS = {
    **{name: [Token("word", name)] for name in units.POWERS},
    **{name: [Token("sign", "^"), Token("number", str(power))] for name, power in units.RAISED.items()},
    **{
        name: [Token("unit", above), Token("sign", "/"), Token("unit", below)]
        for name, (above, below) in units.QUOTIENTS.items()
    },
}
_RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n"))
_LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789"))
TWICE, SINGLE = ("<=", ">=", "!=", "**", "=="), "+-*/^_=<>()[]{},;|!%&$:±"
JOINING = frozenset(("and", "or", "und", "et", "ou", "y", "o", "oder"))
_GROUPED = re.compile(r"\d{1,3}(?:(?:,|\{,\}|\\,|\\!|,\\!|\\ | )\d{3})+(?!\d)(?:\.\d+)?")
_INDIAN = re.compile(r"\d{1,2}(?:,\d{2})+,\d{3}(?!\d)(?:\.\d+)?")
_BRACED = re.compile(r"\d{1,3}(?:(?:\{,\}|\\,|\\!|,\\!)\d{3})+(?!\d)(?:\.\d+)?")
_NUMBER = re.compile(r"(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+)?")
_REPEATING = re.compile(r"(\d*\.\d*)\s*\\overline\s*\{\s*(\d+)\s*\}")
_OPEN = re.compile(r"\s*\{")
_DEGREES = re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))")


def plain(text: str) -> str:
    """A text whose Unicode signs are those of LaTeX and ASCII."""
    text = re.sub(f"[{''.join(_RAISED)}]+", lambda run: "^{" + "".join(_RAISED[c] for c in run[0]) + "}", text)
    text = re.sub(f"[{''.join(_LOWERED)}]+", lambda run: "_{" + "".join(_LOWERED[c] for c in run[0]) + "}", text)
    text = unicodedata.normalize("NFKC", "".join(PLAIN.get(char, char) for char in text))
    text = "".join(PLAIN.get(char, _decimal(char)) for char in text)
    return _DEGREES.sub(" deg ", text)


def _decimal(char: str) -> str:
    """Digits of other scripts as ASCII's."""
    return str(unicodedata.decimal(char)) if not char.isascii() and char.isdecimal() else char


def _lettered(char: str) -> bool:
    return char.isalpha() or (not char.isascii() and unicodedata.category(char)[0] == "M")


def stripped(text: str) -> str:
    """An answer without what surrounds it: white space, dollars, display mode, \\boxed, bold, a last full stop.

    A text that is too long to be an answer stays as it is, white space apart.
    """
    text = text.strip()
    before = None
    while before != text and len(text) <= MOST_CHARS:
        before = text
        text = text.strip().rstrip(".。").strip().strip("`").removeprefix("**").removesuffix("**")
        for begin, end in AROUND:
            text = _inside(text, begin, end)
    return text


def _inside(text: str, begin: str, end: str) -> str:
    """What stands between these two, where they are a pair; otherwise all of it."""
    inner = text[len(begin) : -len(end)]
    if len(text) <= len(begin) + len(end) or not (text.startswith(begin) and text.endswith(end)):
        return text
    paired = closes(text, len(begin) - 1) == len(text) if end == "}" else "$" not in begin or "$" not in inner
    return inner if paired else text


def closes(text: str, opening: int) -> int:
    """The place behind the brace that closes the one at `opening`; -1 where none does."""
    depth, at = 0, opening
    while at < len(text):
        if text[at] == "\\":
            at += 1
        elif text[at] == "{":
            depth += 1
        elif text[at] == "}":
            depth -= 1
            if depth == 0:
                return at + 1
        at += 1
    return -1


def normal(text: str) -> str:
    """A text that is compared as such, without what makes no difference: case, articles, white space beside signs."""
    bare = re.sub(rf"\\(?:{'|'.join(sorted(TEXTS))})\s*\{{([^{{}}]*)\}}", r"\1", plain(stripped(text)))
    bare = re.sub(r"\\(?:left|right)\b|\\[,;! ]|\$|\\\(|\\\)|\*\*", " ", bare).casefold().strip()
    bare = re.sub(r"^(?:the|an?)\s+", "", bare)
    bare = re.sub(r"\s*([^\w\s])\s*", r"\1", bare).strip("().,:;\"'")
    return re.sub(r"\s+", " ", bare)


class Lexer:
    """Reads one text; a comma inside brackets separates, one outside of them may group digits."""

    def __init__(self, text: str, in_text: bool = False) -> None:
        self.text, self.at, self.depth, self.in_text = text, 0, 0, in_text
        self.found: list[Token] = []

    def run(self) -> list[Token]:
        """All tokens. Raises NotAnAnswer."""
        while self.at < len(self.text):
            char = self.text[self.at]
            if char.isspace() or char == "~":
                self.at += 1
            elif char == "\\":
                self._command()
            elif char.isdecimal() or (char == "." and re.match(r"\.\d|\.\s*\\overline", self.text[self.at :])):
                self._number()
            elif _lettered(char):
                self._letters()
            else:
                self._sign()
            if len(self.found) > MOST_TOKENS:
                raise NotAnAnswer(f"more than {MOST_TOKENS} tokens")
        return self.found

    def _add(self, kind: str, text: str) -> None:
        if kind == "sign":
            self.depth += (text in ("(", "[", "{.")) - (text in (")", "]", ".}"))
        self.found.append(Token(kind, text))

    def _number(self) -> None:
        if repeating := _REPEATING.match(self.text, self.at):
            self.at = repeating.end()
            return self._add("number", f"{repeating[1]}({repeating[2]})")
        patterns = (_GROUPED, _INDIAN, _NUMBER) if self.depth <= 0 else (_BRACED, _NUMBER)
        match = next(found for pattern in patterns if (found := pattern.match(self.text, self.at)))
        self.at = match.end()
        return self._add("number", re.sub(r"\{,\}|\\[,! ]|[, !]", "", match[0]))

    def _sign(self) -> None:
        two = self.text[self.at : self.at + 2]
        sign = two if two in TWICE else self.text[self.at]
        if sign not in TWICE and sign not in SINGLE:
            raise NotAnAnswer(f"the sign {sign!r}")
        self.at += len(sign)
        if sign == "$":
            self._add("unit", units.DOLLAR)
        else:
            self._add("sign", {"**": "^", "==": "=", ";": ","}.get(sign, sign))

    def _letters(self) -> None:
        end = self.at
        while end < len(self.text) and _lettered(self.text[end]):
            end += 1
        begin, word, self.at = self.at, self.text[self.at : end], end
        # "5 m" is five metres, and "5m" five times m
        measure = word in units.SHORT and end == len(self.text) and self.text[begin - 1 : begin].isspace()
        if measure and self.found and self.found[-1].kind == "number":
            self._add("unit", word)
        else:
            self._word(word, self.in_text)

    def _word(self, word: str, in_text: bool) -> None:
        lower, alone = word.lower(), len(word) == 1
        if lower in JOINING and not alone:
            self._add("sign", ",")
        elif word == "in" and not (self.found and self.found[-1].kind == "number"):
            self._add("sign", "in")
        elif word == "per":
            self._add("sign", "/")
        elif word in FUNCTIONS:
            self._add("function", {"asin": "arcsin", "acos": "arccos", "atan": "arctan"}.get(word, word))
        elif word in CONSTANTS and not (in_text and alone):
            self._add("constant", CONSTANTS[word])
        elif word in GREEK or (alone and (word.isascii() or "GREEK" in unicodedata.name(word, ""))):
            self._add("unit" if in_text and word in units.SHORT else "letter", word)
        elif lower in WORDS:
            self.found += WORDS[lower]
        elif units.known(word) and units.named(word) not in units.SHORT:
            self._add("unit", units.named(word))
        elif len(word) <= 3 and word.isascii() and not in_text and lower not in ("yes", "no"):
            for char in word:
                self._word(char, False)
        else:
            self._add("word", units.named(word))

    def _command(self) -> None:
        match = re.compile(r"\\([A-Za-z]+|.)", re.DOTALL).match(self.text, self.at)
        if match is None:
            raise NotAnAnswer("a backslash at the end")
        name, self.at = match[1], match.end()
        if name == "\\":
            self._add("sign", "\\\\")
        elif name == "$":
            self._add("unit", units.DOLLAR)
        elif name in TEXTS:
            inner = self._group(name)
            self.found += Lexer(inner, in_text=True).run()
        elif name in ("mathbb", "mathcal"):
            self._add("letter", f"mathbb_{self._group(name)}")
        elif name in ("begin", "end"):
            self._add("sign", f"{name} {self._group(name)}")
            if self._group_follows() and self.found[-1].text == "begin array":
                self._group(name)
        elif name in SIGNS:
            self._add("sign", SIGNS[name])
        elif name in FUNCTIONS or name in CONSTANTS or name in GREEK:
            self._word(name, False)
        elif name not in SILENT:
            raise NotAnAnswer(f"the command \\{name}")

    def _group_follows(self) -> bool:
        return _OPEN.match(self.text, self.at) is not None

    def _group(self, name: str) -> str:
        opening = _OPEN.match(self.text, self.at)
        end = closes(self.text, opening.end() - 1) if opening else -1
        if opening is None or end < 0:
            raise NotAnAnswer(f"\\{name} without its group")
        self.at = end
        return self.text[opening.end() : end - 1]


def read(text: str) -> list[Token]:
    """The tokens of an answer. Raises NotAnAnswer for what is none, as one of more than `MOST_CHARS` characters."""
    if len(text) > MOST_CHARS:
        raise NotAnAnswer(f"more than {MOST_CHARS} characters")
    return Lexer(plain(stripped(text))).run()
