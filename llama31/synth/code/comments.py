"""Code without its comments and docstrings, and what these say: whether documenting code has left it as it was.

A scanner of comments and strings for each family of languages, no parser: text of any kind goes through it, and what
it takes for code is compared with what it takes for code elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from llama31.synth.code.running.languages import Language

_STRING = r""""(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'"""
_C = rf"(?P<comment>//[^\n]*|/\*.*?(?:\*/|\Z))|(?P<string>{_STRING}|`(?:\\.|[^`\\])*`)"
_FAMILIES = {
    # A string that is a statement of its own is a docstring, or nothing that is done.
    "python": r'(?P<comment>\#[^\n]*|(?:(?<=\n)|\A)[ \t]*[rRuU]?(?:"""(?:\\.|[^\\])*?"""|'
    r"'''(?:\\.|[^\\])*?'''|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*')[ \t]*(?=\n|\Z))"
    rf"|(?P<string>\"\"\"(?:\\.|[^\\])*?\"\"\"|'''(?:\\.|[^\\])*?'''|{_STRING})",
    # A lifetime ('a) begins as a character does.
    "rust": r"(?P<comment>//[^\n]*|/\*.*?(?:\*/|\Z))|(?P<string>\"(?:\\.|[^\"\\])*\"|'(?:\\[^\n]{1,8}|[^'\\\n])')",
    "php": rf"(?P<comment>\#(?!\[)[^\n]*|//[^\n]*|/\*.*?(?:\*/|\Z))|(?P<string>{_STRING})",
    "sql": r"(?P<comment>--[^\n]*|/\*.*?(?:\*/|\Z))|(?P<string>'(?:''|[^'])*'|\"(?:\"\"|[^\"])*\")",
    "bash": r"(?P<comment>(?:(?<=[\s;])|\A)\#[^\n]*)|(?P<string>\"(?:\\.|[^\"\\])*\"|'[^']*')",
}
_PATTERNS = {name: re.compile(pattern, re.DOTALL) for name, pattern in _FAMILIES.items()}
_OTHERS = re.compile(_C, re.DOTALL)
_MARKS = re.compile(
    r'^[ \t]*(?:/\*+|\*+/|\*(?!/)|//[/!]?|\#+|--|[rRuU]?"""|[rRuU]?\'\'\')[ \t]?|[ \t]*(?:\*+/|"""|\'\'\')[ \t]*$'
)
_OPENS = re.compile(r"[{:(]\s*$|\)\s*$")
DEEPEST = 4  # columns: a method stands within a class


@dataclass(frozen=True)
class CodeParts:
    """Code without comments, one line after the other, and the comments with the line of code that each stands at."""

    code: str
    documentation: str


def same_code(one: str, other: str, language: Language) -> bool:
    """Whether two texts are the same but for comments, docstrings, and white space at the ends of lines."""
    return split(one, language).code == split(other, language).code


def split(text: str, language: Language) -> CodeParts:
    """Code and comments of a text. Of the code that comments speak of, only lines that open something are shown."""
    code = _without(text, language)
    bare = "\n".join(line.rstrip() for line in code.split("\n") if line.strip())
    return CodeParts(bare, "\n".join(_documentation(text, code)))


def _pieces(text: str, language: Language) -> Iterator[re.Match[str]]:
    yield from _PATTERNS.get(language.name, _OTHERS).finditer(text)


def _without(text: str, language: Language) -> str:
    """The text with comments blanked: their lines stay, so that places are the same."""
    parts, at = [], 0
    for piece in _pieces(text, language):
        if piece.lastgroup == "comment":
            parts += [text[at : piece.start()].rstrip(" \t"), "\n" * piece[0].count("\n")]
            at = piece.end()
    return "".join([*parts, text[at:]])


def _documentation(text: str, code: str) -> Iterator[str]:
    """Lines of comments without their marks, and beside them lines of code that open a definition, as their end and
    indentation say.
    """
    whole, bare = text.split("\n"), code.split("\n")
    commented = [one != other for one, other in zip(whole, bare)]
    for number, (line, left) in enumerate(zip(whole, bare)):
        beside = any(commented[max(0, number - 1) : number + 2])
        if beside and _OPENS.search(left) and len(left) - len(left.lstrip()) <= DEEPEST:
            yield left.rstrip()
        if commented[number]:
            said = line[len(left.rstrip()) :]
            while said != (said := _MARKS.sub("", said)):
                pass
            if said.strip():
                yield said.strip()
