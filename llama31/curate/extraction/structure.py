"""What resiliparse 2.0.1 loses or blurs in code, lists, tables and powers, mended in the page before it reads it.

| page | resiliparse | here |
|---|---|---|
| `ul` within three levels below body | dropped from main content | kept, unless it is a list of short links |
| `<ol start>`, `<li value>`, `<ol reversed>` | counted from 1 | the numbers of the page |
| `10<sup>6</sup>`, `x<sub>ij</sub>` | 106, xij | 10^6, x_{ij}; ordinals, footnotes and trademarks as they stand |
| line numbers beside code | before or in the code | dropped |
| lines of code as rows of a table | white space collapsed | a block with its indentation |
| `<td><p>` | a paragraph for each cell | a cell |
| display:none outside of main content | kept | dropped |
| three bytes between tags: `—`, `€`, a letter of Hindi or Thai | dropped from main content, as icons | kept |
"""

from __future__ import annotations

import re
from typing import Any

from llama31.curate.extraction import marks

# A noncharacter of Unicode, which no page may use; resiliparse drops a text node that is one such character alone.
OPEN, CLOSE, PAD = "\ufdd0A", "\ufdd0E", "\ufdd0L"
# A text between tags of three bytes of UTF-8, the last beyond ASCII, as it stands or as an entity; not what it means to
# be rid of, marks of anchors and the private letters of fonts of icons.
LONE = re.compile(
    r">(\s*+(?:[\u0800-\udfff\uf900-\uffff]|[!-;=-~][\u0080-\u07ff]|"
    r"[!-%'-;=-~]?&(?!nbsp;|amp;|lt;|gt;|quot;|para;|#[Xx][EFef][0-9A-Fa-f]{3};)#?\w{2,8};))(?=\s*<)"
)
# Not with [*`|]: where each alternative begins with a character, re looks for those, twice as fast.
AMBIGUOUS = re.compile(r"\*|`|\||__|~~|\]\(|# |&gt;")
PARAGRAPH = re.compile(r"((?:\s[^>]*)?>)\s*<p(?:\s[^>]*)?>")  # behind `<td`
CODE = ("pre", "code", "tt", "kbd", "samp")
HIDDEN = '[hidden], [style*="display:none" i], [style*="display: none" i]'
NUMBERS = (
    "td.linenos, td.gutter, td.rouge-gutter, td.blob-num, td.hljs-ln-numbers, td.lineno, td.line-numbers, pre.lineno, "
    "span.linenos, span.lineno, span.linenumber, .line-numbers-rows, .react-syntax-highlighter-line-number, "
    ".chroma .lnt, .chroma .ln, .crayon-nums, td.linenumbers, td.lines-num, a.linenr, a.diff-line-num"
)
# Tables of one cell of numbers and one of code (Sphinx, Jekyll, Hexo, Hugo, cgit); lines of code that are elements
# (GitHub, highlight.js, Gitea, Crayon, SyntaxHighlighter, Doxygen, gitweb), and what holds them.
BESIDE_NUMBERS = "table.highlighttable, table.rouge-table, figure.highlight table, table.lntable, table.blob"
LINES = "td.blob-code, td.hljs-ln-code, td.lines-code, .crayon-line, .syntaxhighlighter td.code div.line, "
LINES += "div.fragment > div.line, div.page_body > div.pre"
BLOCKS_OF_LINES = "table, div.fragment, div.page_body"
# One of these stands in every page with numbers or elements of lines.
NUMBERED = re.compile('line(?:n[our]|-num|s-(?:code|num)| number|(?<=["-]line)")')
NUMBERED_CELLS = ("gutter", "blob-", "hljs-ln")
LISTED = re.compile(r"<(/?)(?:[uo]l|li|menu|dir)\b", re.IGNORECASE)
SHALLOW = "body > ul, body > * > ul, body > * > * > ul"
ORDINAL = re.compile(
    r"(st|nd|rd|th|n?de|ers?|re|ère|èmes?|e|es|(?:m|t|ll)e|lles|r?os|r?as|o|a|ª|º|tm|sm|™|®|©|[*†‡§¶]+)\.?",
    re.IGNORECASE,
)
SIMPLE = re.compile(r"[\w+\-\u2212±*/().,=<>∞\u2032 ]{1,40}")
LINK_CHARACTERS = 30  # longer ones are titles that somebody wrote down, as in a list of references


def all_of(element: Any, selector: str) -> list[Any]:
    """The elements below one; iterating over what resiliparse returns asks for all of them again at each step."""
    return list(element.query_selector_all(selector).values())


def marked(html: str, source: marks.PageMarks) -> str:
    """The page with code between OPEN and CLOSE, so that what follows leaves it alone.

    All blocks, and what stands in a line where it could be taken for Markdown.
    """
    for tag in CODE:
        if f"<{tag}" in source.tags:
            for name in (tag, tag.upper()) if source.upper else (tag,):
                html = _marked(html, f"<{name}", f"</{name}>", tag == "pre")
    return html


def _marked(html: str, start: str, end: str, block: bool) -> str:
    parts = html.split(start)
    for i in range(1, len(parts)):
        part = parts[i]
        if part[:1] not in "> \n\t" or not (at := part.find(">") + 1) or (to := part.find(end, at)) < 0:
            continue
        if block:  # the parser drops a line's end after <pre>, which no longer stands there
            at_text = at + 1 if part[at : at + 1] == "\n" else at
            parts[i] = f"{part[:at]}{OPEN}{part[at_text:to]}{CLOSE}{part[to:]}"
        elif AMBIGUOUS.search(part, at, to):
            parts[i] = f"{part[:at]}{OPEN}{part[at:to]}{CLOSE}{part[to:]}"
    return start.join(parts)


def padded(html: str) -> str:
    """The source with PAD behind each text that the choice of main content would take for an icon."""
    return LONE.sub(rf">\1{PAD}", html) if "&" in html or not html.isascii() else html


def flat(html: str) -> str:
    """The source without lists, each level of which indents all below: unclosed ones would make a text its square."""
    return LISTED.sub(r"<\1div", html)


def code(tree: Any, source: marks.PageMarks) -> None:
    """Code without line numbers."""
    lower, tables = source.lower, "<table" in source.tags
    cells_alone = tables and any(mark in lower for mark in NUMBERED_CELLS)
    if NUMBERED.search(lower) is None and '"ln' not in lower and not cells_alone:
        return
    for element in all_of(tree.body, NUMBERS):
        element.remove()
    for element in all_of(tree.body, BESIDE_NUMBERS) if tables else ():
        if element.query_selector("table") is not None:  # nobody's; a page of unclosed ones would take its cube
            continue
        blocks = [block for block in all_of(element, "pre") if block.text.strip(f"{OPEN}{CLOSE} \n\t")]
        if len(blocks) == 1:
            element.replace_with(blocks[0])
    _lines_as_elements(tree, lower)


def _lines_as_elements(tree: Any, lower: str) -> None:
    for block in all_of(tree.body, "pre ol") if "linenums" in lower else ():
        if block.parent is None or block.parent.closest("ol") is not None:
            continue
        lines = [item.text.strip("\n") for item in block.children.values() if item.tag == "li"]
        block.replace_with(tree.create_text_node("\n".join(lines)))
    tables: dict[Any, list[str]] = {}
    for cell in all_of(tree.body, LINES):
        if (table := cell.closest(BLOCKS_OF_LINES)) is not None:
            tables.setdefault(table, []).append(cell.text.strip("\n"))
    for table, lines in tables.items():
        text = tree.create_text_node(f"{OPEN}{chr(10).join(lines)}{CLOSE}")
        if table.closest("pre") is None:
            block = tree.create_element("pre")
            block.append(text)
            table.replace_with(block)
        else:
            table.replace_with(text)


def lists(tree: Any, source: marks.PageMarks, main_content: bool) -> None:
    """Lists that the choice of main content would drop, and the numbers of lists."""
    lower, tags = source.lower, source.tags
    if main_content and "<ul" in tags:
        for element in all_of(tree.body, SHALLOW):
            if not _navigates(element):
                _lower(tree, element)
    if "<ol" in tags and ("start=" in lower or "value=" in lower or "reversed" in lower):
        for element in all_of(tree.body, "ol"):
            _numbered(tree, element)


def _navigates(element: Any) -> bool:
    """Whether a list is made of short links."""
    links = [text for link in all_of(element, "a") if (text := link.text.strip())]
    length, linked = _length(element.text), sum(map(_length, links))
    return bool(links) and linked >= 0.8 * length and linked <= LINK_CHARACTERS * len(links)


def _length(text: str) -> int:
    return len("".join(text.split()))


def _lower(tree: Any, element: Any) -> None:
    top = tree.create_element("div")
    element.replace_with(top)
    for _ in range(2):
        below = tree.create_element("div")
        top.append(below)
        top = below
    top.append(element)


def _numbered(tree: Any, element: Any) -> None:
    """A list whose numbers are not 1, 2, 3, as lines that begin with theirs."""
    items = [child for child in element.children.values() if child.tag == "li"]
    back = element.has_attribute("reversed")
    number = _integer(element.getattr("start"), len(items) if back else 1)
    numbers = []
    for item in items:
        number = _integer(item.getattr("value"), number)
        numbers.append(number)
        number += -1 if back else 1
    if numbers == list(range(1, len(items) + 1)):
        return
    block = tree.create_element("div")
    for number, item in zip(numbers, items):
        line = tree.create_element("div")
        line.append(tree.create_text_node(f"{number}. "))
        for child in item.child_nodes.values():
            line.append(child)
        block.append(line)
    element.replace_with(block)


def _integer(text: str | None, otherwise: int) -> int:
    return int(text) if text and re.fullmatch(r"\s*-?\d{1,9}\s*", text, re.ASCII) else otherwise


def raised(tree: Any, source: marks.PageMarks) -> None:
    """Powers and indices."""
    if "<sup" not in source.tags and "<sub" not in source.tags:
        return
    for element in all_of(tree.body, "sup, sub"):
        text = element.text.replace(PAD, "").strip()
        if element.tag == "sup" and text.isdigit() and _fraction(tree, element):
            continue
        if not SIMPLE.fullmatch(text) or element.query_selector("a") is not None or element.closest("a") is not None:
            continue
        if element.tag == "sup" and ORDINAL.fullmatch(text):
            continue
        sign = "^" if element.tag == "sup" else "_"
        element.prepend(tree.create_text_node(sign if len(text) == 1 else sign + "{"))
        if len(text) > 1:
            element.append(tree.create_text_node("}"))


def _fraction(tree: Any, element: Any) -> bool:
    """Write `5<sup>1</sup>/<sub>2</sub>` as 5 1/2; False where it is none."""
    slash = element.next
    below = slash.next if slash is not None and not hasattr(slash, "query_selector") else None
    if below is None or below.tag != "sub" or slash.text.replace(PAD, "").strip() not in ("/", "\u2044"):
        return False
    if not below.text.replace(PAD, "").strip().isdigit():
        return False
    before = element.prev or element.parent.prev
    whole = before is not None and (before.text or "")[-1:].isdigit()
    text = f"{' ' if whole else ''}{element.text.strip()}/{below.text.strip()}"
    below.remove()
    slash.remove()
    element.replace_with(tree.create_text_node(text))
    return True


def cells(html: str, source: marks.PageMarks) -> str:
    """The page with cells of tables whose only content is a paragraph without its tags."""
    for start, end in (("<td", "</td"), ("<th", "</th")):
        if start not in source.tags:
            continue
        parts = html.split(start)
        for i in range(1, len(parts)):
            part = parts[i]
            if (opened := PARAGRAPH.match(part)) and (to := part.find("</p>", opened.end())) >= 0:
                inner = part.find("<p", opened.end(), to)
                if (inner < 0 or part[inner + 2 : inner + 3] not in "> ") and part[to + 4 :].lstrip().startswith(end):
                    parts[i] = f"{opened[1]}{part[opened.end() : to]}{part[to + 4 :]}"
        html = start.join(parts)
    return html
