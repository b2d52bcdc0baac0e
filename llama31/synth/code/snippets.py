"""What of a file or record a task reads: some lines of code, and the language that they are in."""

from __future__ import annotations

import random

from llama31.synth.code.running import languages
from llama31.synth.code.running.languages import LANGUAGES, Language
from llama31.synth.pipeline.draw import ItemDraw
from llama31.synth.pipeline.items import SynthesisItem

NAMED_BY = ("language", "lang", "path", "file_name", "filename")  # fields of a record that say its language
LONGEST_LINE = 400  # characters: what is longer is data or was minified


def readable(text: str) -> str:
    """The text as any server takes it: without NUL and without halves of surrogate pairs."""
    return text.replace("\0", "").encode("utf-8", "replace").decode("utf-8")


def cut(item: SynthesisItem, draw: ItemDraw, lines: int, least: int = 1) -> str:
    """At most so many lines of the item, from where something begins at the margin below an empty line, if it does.

    Drops the item where fewer than `least` lines say anything, or one is longer than any that was written by hand.
    """
    text = _some(item.text.replace("\r\n", "\n").split("\n"), draw.random, lines)
    said = [line for line in text if line.strip()]
    if len(said) < least:
        draw.drop("snippet: too few lines")
    if max(map(len, said)) > LONGEST_LINE:
        draw.drop("snippet: a line too long for code")
    return readable("\n".join(text).strip("\n"))


def _some(lines: list[str], drawn: random.Random, most: int) -> list[str]:
    if len(lines) <= most:
        return lines
    last = len(lines) - most
    begins = [
        number
        for number in range(last + 1)
        if lines[number][:1].strip() and lines[number][0] not in ")}]" and not (number and lines[number - 1].strip())
    ]
    begin = drawn.choice(begins) if begins else drawn.randrange(last + 1)
    return lines[begin : begin + most]


def language_of(item: SynthesisItem, draw: ItemDraw) -> Language:
    """The language of an item by its fields; drops the item where they say none that is known."""
    for field in NAMED_BY:
        value = item.record.get(field)
        if isinstance(value, str) and (name := languages.named(value)) is not None:
            return LANGUAGES[name]
    draw.drop("language unknown: give records a field `language`, or files their endings")
