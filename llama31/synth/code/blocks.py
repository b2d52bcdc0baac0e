"""Code of an answer: fenced blocks, as models write them, and which of them is which file."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from llama31.synth.code.running import results
from llama31.synth.code.running.languages import Language

_OPENS = re.compile(r"^([ \t]*)(`{3,}|~{3,})[ \t]*([^`\n]*)$")
_TAG = re.compile(r"[^\s:{}.,=][^\s:{},=]*")
_INSIDE = re.compile(r"^[ \t]*(`{3,}|~{3,})", re.MULTILINE)


@dataclass(frozen=True)
class FencedBlock:
    """A fenced block: the tag and all else behind its fence, the line above it that says something, its text, and the
    whole with its fences.
    """

    tag: str
    info: str
    above: str
    text: str
    whole: str

    def named(self, name: str) -> bool:
        """Whether the fence, the first line of code or the line above it says this file name."""
        first = next((line for line in self.text.splitlines() if line.strip() not in ("", "<?php")), "")
        heading = self.above if len(self.above) <= 80 else ""
        pattern = rf"(?<![\w./-]){re.escape(name)}(?!\w)"
        said = [self.info, heading, first if not first[:1].isalnum() else ""]
        return any(re.search(pattern, one) for one in said)


def blocks(answer: str) -> Iterator[FencedBlock]:
    """Fenced blocks, also indented ones, as in a list, and one that is never closed."""
    lines = answer.split("\n")
    at, above = 0, ""
    while at < len(lines):
        opened = _OPENS.match(lines[at].rstrip("\r"))
        if opened is None:
            above = lines[at].strip() or above
            at += 1
            continue
        indent, fence, info = opened.groups()
        closes = re.compile(rf"^[ \t]*{re.escape(fence[0])}{{{len(fence)},}}[ \t]*$")
        end = next((n for n in range(at + 1, len(lines)) if closes.match(lines[n].rstrip("\r"))), len(lines))
        inside = [line.removesuffix("\r").removeprefix(indent) for line in lines[at + 1 : end]]
        tag = _TAG.search(info)
        text = "\n".join(inside).strip("\n")
        if text.strip():
            whole = "\n".join(lines[at : end + 1])
            yield FencedBlock(tag[0].lower() if tag else "", info.strip(), above, text + "\n", whole)
        at, above = end + 1, ""


def prose(answer: str) -> str:
    """The answer with its fenced blocks left out: nobody can copy what they say."""
    for block in blocks(answer):
        answer = answer.replace(block.whole, "[code left out]")
    return answer


def code(answer: str, language: Language) -> str:
    """The longest block in this language. Raises ValueError where there is none."""
    return max(candidates(answer, language), key=lambda block: len(block.text)).text


def candidates(answer: str, language: Language) -> list[FencedBlock]:
    """Blocks that may be code of this language: those with its tag; else those without one, which may be results.

    A block of another tag is none: output, a shell's session, another language. Raises ValueError where none is left.
    """
    every = list(blocks(answer))
    tags = language.tags | {language.solution.lower(), language.tests.lower()}
    found = [block for block in every if block.tag in tags] or [block for block in every if not block.tag]
    if not found:
        raise ValueError(f"no fenced block of {language.title}")
    return found


def files(answer: str, language: Language) -> dict[str, str]:
    """Solution and tests, by file name, whichever the answer holds: by their names, else by what they begin with.

    Of several blocks of one file the longest counts: pieces of it may be quoted before. Raises ValueError for none.
    """
    found: dict[str, str] = {}
    certain: set[str] = set()
    for block in candidates(answer, language):
        names = [name for name in (language.solution, language.tests) if block.named(name)]
        sure = len(names) == 1
        name = names[0] if sure else language.tests if language.is_tests(block.text) else language.solution
        better = len(block.text) >= len(found.get(name, "")) if sure == (name in certain) else sure
        if better:
            found[name] = block.text
        certain |= {name} if sure else set()
    return found


def solution(language: Language) -> Callable[[str], tuple[str, dict[str, str]]]:
    """A parser: the answer, and its solution. Raises ValueError where there is none."""
    return _with(lambda answer: only(files(answer, language), language.solution))


def tests(language: Language) -> Callable[[str], tuple[str, dict[str, str]]]:
    """A parser: the answer, and its tests: the longest block where none is known by its name or by what it includes.

    Raises ValueError where there is no code, and for tests without the lines that count.
    """

    def parse(answer: str) -> dict[str, str]:
        found = files(answer, language).get(language.tests) or code(answer, language)
        if problem := results.malformed(found):
            raise ValueError(problem)
        return {language.tests: found}

    return _with(parse)


def either(language: Language) -> Callable[[str], tuple[str, dict[str, str]]]:
    """A parser: the answer, and what it mends of solution and tests. Raises ValueError where it is neither."""
    return _with(lambda answer: files(answer, language))


def _with[T](parse: Callable[[str], T]) -> Callable[[str], tuple[str, T]]:
    return lambda answer: (answer, parse(answer))


def only(found: Mapping[str, str], name: str) -> dict[str, str]:
    """That file alone. Raises ValueError where it is missing."""
    if name not in found:
        raise ValueError(f"no {name} in the answer")
    return {name: found[name]}


def tagged(word: str) -> Callable[[str], str]:
    """A parser: what stands between <WORD> and </WORD>, the last time. Raises ValueError where nothing does."""

    def parse(answer: str) -> str:
        said = re.findall(rf"<{word}>(.*?)</{word}>", answer, re.DOTALL | re.IGNORECASE)
        if not said or not said[-1].strip():
            raise ValueError(f"nothing between <{word}> and </{word}>")
        return said[-1].strip()

    return parse


def fenced(text: str, tag: str = "") -> str:
    """The text in a fence that nothing inside closes."""
    longest = max((len(found) for found in _INSIDE.findall(text)), default=2)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{tag}\n{text.strip(chr(10))}\n{fence}"
