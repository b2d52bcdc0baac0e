"""Plain text without Markdown's markers, which hurt a model that is mostly trained on the web (report, section 3.1.1).

Headings, emphasis, strike-through, links, images, code marks and fences, quotation marks at the start of lines, tables
and rules. What may as well be text stays: `2 * 3`, `x**2`, `__init__`, `snake_case`, `- ` before a line (a dialogue),
numbers of lists. A star before a list's item becomes the bullet that extraction writes. Code and formulas stay.
"""

from __future__ import annotations

import re

FENCED = re.compile(r"^ {0,3}(```+|~~~+)[^\n`]*\n(.*?)(?:^ {0,3}\1[`~]*[ \t]*(?:\n|\Z)|\Z)", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(?<!``)(`{0,2})(?!`)([^`\n]+?)`\1(?!`)")
FORMULA = re.compile(r"\\\([^\n]{1,4000}?\\\)|\\\[.{1,9999}?\\\]|\$\$.{1,9999}?\$\$", re.DOTALL)
KEPT = re.compile("\ufdd1(\\d+)\ufdd1")
# What a text must hold for a rule to apply, the rule, what comes instead. A pattern that begins with a character is
# searched for faster than one that begins by looking behind or with ^, so a text is given a line's end before it.
RULES = (
    ("![", re.compile(r"!\[([^\]\n]{0,500})\]\([^)\s]{1,2000}(?: \"[^\"\n]*\")?\)"), r"\1"),
    ("](", re.compile(r"\[([^\]\n]{1,500})\]\([^)\s]{1,2000}(?: \"[^\"\n]*\")?\)"), r"\1"),
    ("# ", re.compile(r"\n {0,3}#{1,6} +(?!of )(\S[^\n\t]*?) *#* *(?=\n|\Z)"), r"\n\1"),
    (">", re.compile(r"\n(?: {0,3}>(?!\t) ?)+"), "\n"),
    ("===", re.compile(r"\n(?<=\S\n) {0,3}={3,}[ \t]*(?=\n|\Z)"), ""),
    ("---", re.compile(r"\n(?<=\S\n) {0,3}-{3,}[ \t]*(?=\n|\Z)"), ""),
    ("*", re.compile(r"\n {0,3}(?:\*[ \t]*){3,}(?=\n|\Z)"), ""),
    ("* ", re.compile(r"\n( *)\*[ \t]+(?=\S)"), r"\n\1• "),
    (
        "**",
        re.compile(r"\*\*(?<![\w*\])}]\*\*)(\*?)(?=[\w\"'\u201c\u2018(\[])([^\n]{0,999}?[^\s*])\*\*\1(?![\w*])"),
        r"\2",
    ),
    ("__", re.compile(r"__(?<!\w__)(?=[^\s_])(?!\w+__(?!\w))([^\n]{0,999}?[^\s_])__(?!\w)"), r"\1"),
    (
        "*",
        re.compile(
            r"\*(?<![\w*\])}]\*)(?=[\w\"'\u201c\u2018])([^*\n()\[\]]{0,999}?[\w.,:;!?%\"'\u201d\u2019])\*(?![\w*(\[{])"
        ),
        r"\1",
    ),
    ("~~", re.compile(r"~~(?=\S)([^~\n]{1,999}?)(?<=\S)~~"), r"\1"),
)
SEPARATOR = re.compile(r"^ *\|?(?: *:?-{2,}:? *\|)+(?: *:?-{2,}:? *)?$", re.MULTILINE)


def remove(text: str) -> str:
    """The text without the markers; text without any comes back as it is."""
    kept: list[str] = []

    def keep(code: str) -> str:
        kept.append(code)
        return f"\ufdd1{len(kept) - 1}\ufdd1"

    text = text.replace("\ufdd1", "\ufffd")
    if r"\(" in text or r"\[" in text or "$$" in text:
        text = FORMULA.sub(lambda match: keep(match[0]), text)
    if "```" in text or "~~~" in text:
        text = FENCED.sub(lambda match: keep(match[2]), text)
    if "`" in text:
        text = INLINE.sub(lambda match: keep(match[2]), text)
    if "|" in text and "--" in text and SEPARATOR.search(text):
        text = _tables(text)
    text = "\n" + text
    for needed, pattern, instead in RULES:
        if needed in text:
            text = pattern.sub(instead, text)
    text = text[1:]
    while kept and KEPT.search(text):  # a fence may hold a mark
        text = KEPT.sub(lambda match: kept[int(match[1])], text)
    return text


def _tables(text: str) -> str:
    """Rows of tables with a tab between cells: from the line before a separator to the first without a bar."""
    lines, result, inside = text.split("\n"), [], False
    for i, line in enumerate(lines):
        if i + 1 < len(lines) and "|" in line and SEPARATOR.match(lines[i + 1]):
            inside = True
        inside = inside and "|" in line
        if inside and SEPARATOR.match(line):
            continue
        result.append("\t".join(cell.strip() for cell in line.strip().strip("|").split("|")) if inside else line)
    return "\n".join(result)
