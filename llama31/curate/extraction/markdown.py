"""Plain text without Markdown's markers, which hurt a model that is mostly trained on the web (report, section 3.1.1).

Headings, emphasis, strike-through, links, images, code marks and fences, quotation marks at the start of lines, tables
and rules. What may as well be text stays: `2 * 3`, `x**2`, `__init__`, `snake_case`, `- ` before a line (a dialogue),
numbers of lists, and lines that begin with one # as comments of code do. A star before a list's item becomes the bullet
that extraction writes. Code and formulas stay.
"""

from __future__ import annotations

import re

from llama31.curate.extraction import marks

FENCED = re.compile(r"^ {0,3}(```+|~~~+)[^\n`]*\n(.*?)(?:^ {0,3}\1[`~]*[ \t]*(?:\n|\Z)|\Z)", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(?<!``)(`{0,2})(?!`)([^`\n]+?)`\1(?!`)")
# From a mark to the next: what would try every end from every beginning takes minutes for megabytes of beginnings.
FORMULA = re.compile(
    r"\\\((?:[^\n\\]++|\\(?![()\n]))++\\\)|\\\[(?:[^\\]++|\\(?![\[\]]))++\\\]|\$\$.{1,9999}?\$\$", re.DOTALL
)
KEPT = re.compile("\ufdd1(\\d+)\ufdd1")
# What a text must hold for a rule to apply, the rule, what comes instead. A pattern that begins with a character is
# searched for faster than one that begins by looking behind or with ^, so a text is given a line's end before it.
RULES = (
    ("![", re.compile(r"!\[([^\[\]\n]{0,500})\]\([^)\s]{1,2000}(?: \"[^\"\n]*\")?\)"), r"\1"),
    ("](", re.compile(r"\[([^\]\n]{1,500})\]\([^)\s]{1,2000}(?: \"[^\"\n]*\")?\)"), r"\1"),
    (">", re.compile(r"\n(?: {0,3}>(?!\t) ?)+"), "\n"),
    ("===", re.compile(r"\n(?<=\S\n) {0,3}={3,}[ \t]*(?=\n|\Z)"), ""),
    ("---", re.compile(r"\n(?<=\S\n) {0,3}-{3,}[ \t]*(?=\n|\Z)"), ""),
    ("*", re.compile(r"\n {0,3}(?:\*[ \t]*){3,}(?=\n|\Z)"), ""),
    ("* ", re.compile(r"\n( *)\*[ \t]+(?=\S)"), r"\n\1• "),
    (
        "**",
        re.compile(
            r"\*\*(?<![\w*\])}]\*\*)(\*?)(?=[\w\"'\u201c\u2018(\[])((?:[^\n*]|\*(?!\*)){0,999}?[^\s*])\*\*\1(?![\w*])"
        ),
        r"\2",
    ),
    ("__", re.compile(r"__(?<!\w__)(?=[^\s_])(?!\w+__(?!\w))((?:[^\n_]|_(?!_)){0,999}?[^\s_])__(?!\w)"), r"\1"),
    (
        "*",
        re.compile(
            r"\*(?<![\w*\])}]\*)(?=[\w\"'\u201c\u2018])([^*\n()\[\]]{0,999}?[\w.,:;!?%\"'\u201d\u2019])\*(?![\w*(\[{])"
        ),
        r"\1",
    ),
    ("~~", re.compile(r"~~(?=\S)([^~\n]{1,999}?)(?<=\S)~~"), r"\1"),
)
# A heading, runs of lines that are such or comments of code, headings of other levels, a line of code below a comment.
HEADING = re.compile(r"\n {0,3}#{1,6} +(?!of )(\S[^\n\t]*)(?=\n|\Z)")
HEADINGS = re.compile(r"\n {0,3}# +(?!of )\S[^\n\t]*(?:\n {0,3}# +\S[^\n\t]*)*(?=\n|\Z)")
DEEPER = re.compile(r"\n {0,3}#{2,6} +(?!of )(\S[^\n\t]*)(?=\n|\Z)")
CODE = re.compile(
    r"\w\(|[\w\])\"'] *[-+*/|&]?= *\S|[;{}\\] *$|^ *(?:from|import|def|class|export|return|elif) \S|^(?:    |\t)"
)
SEPARATOR = re.compile(r"^ *\|?(?: *:?-{2,}:? *\|)+(?: *:?-{2,}:? *)?$", re.MULTILINE)


def remove(text: str) -> str:
    """The text without the markers; text without any comes back as it is."""
    kept: list[str] = []

    def keep(code: str) -> str:
        kept.append(code)
        return f"\ufdd1{len(kept) - 1}\ufdd1"

    text = text.replace("\ufdd1", "\ufffd")
    if marks.holds(text, r"\(") or marks.holds(text, r"\[") or marks.holds(text, "$$"):
        text = FORMULA.sub(lambda match: keep(match[0]), text)
    if marks.holds(text, "```") or marks.holds(text, "~~~"):
        text = FENCED.sub(lambda match: keep(match[2]), text)
    if "`" in text:
        text = INLINE.sub(lambda match: keep(match[2]), text)
    if "|" in text and "--" in text and SEPARATOR.search(text):
        text = _tables(text)
    text = "\n" + text
    if marks.holds(text, "# "):
        text = _headings(text)
    for needed, pattern, instead in RULES:
        if marks.holds(text, needed):
            text = pattern.sub(instead, text)
    text = text[1:]
    while kept and KEPT.search(text):  # a fence may hold a mark
        text = KEPT.sub(lambda match: kept[int(match[1])], text)
    return text


def _headings(text: str) -> str:
    """Headings without their marks. Comments stay; where most lines that begin with one # are comments, all do."""
    text = DEEPER.sub(_bare, text)
    found = [*HEADINGS.finditer(text)]
    if 2 * sum(map(_comments, found)) > len(found):
        return text
    return HEADINGS.sub(lambda match: match[0] if _comments(match) else HEADING.sub(_bare, match[0]), text)


def _bare(heading: re.Match[str]) -> str:
    return "\n" + heading[1].rstrip(" ").rstrip("#").rstrip(" ")


def _comments(match: re.Match[str]) -> bool:
    """Whether lines that begin with one # stand as comments of code: behind or above it, or several of them together.

    A heading has an empty line above it.
    """
    text, begin, end = match.string, match.start(), match.end()
    above, below = text[text.rfind("\n", 0, begin) + 1 : begin].strip(), text[end + 1 : end + 201].partition("\n")[0]
    return bool(above.rpartition("\ufdd1")[2]) or "\n" in match[0][1:] or CODE.search(below) is not None


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
