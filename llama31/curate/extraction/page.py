"""From a page's HTML to its text, and the block that does so for documents.

Pages of code and mathematics take a path of their own (the report has one, section 3.1.2, without details). There
resiliparse's choice of main content, made for articles, loses formulas (1 % of SymPy's) and takes three times as long
as the rest: all that its `main` element or the whole body holds is kept, without navigation, sidebars and footers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.extractors.base import BaseExtractor
from datatrove.utils.logging import logger
from datatrove.utils.typeshelper import StatHints
from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.html import HTMLParserException, HTMLTree

from llama31.curate.extraction import markdown, marks, mathematics, structure

# What begins blocks of code and formulas: tags, what stands in them, and what stands in the text.
TECHNICAL_TAGS = ("<pre", "<math", "<mjx-container")
TECHNICAL = ('class="highlight', 'class="math', 'class="katex', "math/tex")
DELIMITERS = (r"\(", "$$")  # which stand in many a page's programs as well, and there are no formula's
BOILERPLATE = (
    'nav, footer, aside, form, [role="navigation"], [role="search"], [role="banner"], [role="contentinfo"], .related, '
    ".sphinxsidebar, .sidebar, .navbar, .breadcrumb, .breadcrumbs, .footer, .cookie-banner, .site-header, .site-footer"
)
PERMALINKS = "a.headerlink, a.anchor-link, a.anchorjs-link"
MAIN = 'main, [role="main"], article'
# A `main` or `article` of fewer characters, and of a smaller share of the body's text, is a teaser.
MAIN_LENGTH, MAIN_SHARE = 5000, 0.25
# Choosing main content takes time by the square of the depth (seconds at 10,000 levels); browsers stop at 512.
DEEPEST = 512
LISTS = 200  # which a page of code and formulas has that is looked at for its depth
TOO_DEEP = " > ".join(["*"] * (DEEPEST - 1) + [":first-child"])  # which a level has if it has any
MARKS = re.compile(f"({structure.OPEN}|{structure.CLOSE})")
KEPT = re.compile("\ufdd0(\\d+)\ufdd0")
ITEM = re.compile(r" *(?:•|\d+\.)")


@dataclass(frozen=True)
class Extracted:
    """The text of a page, whether it took the path of code and mathematics, and how many formulas it has and lost."""

    text: str
    technical: bool
    formulas: int
    lost_formulas: int = 0


def is_technical(source: marks.PageMarks, least: int) -> bool:
    """Whether a page holds as many blocks of code and formulas; with 0 every page does."""
    count = sum(source.tags[tag] for tag in TECHNICAL_TAGS)
    for begin in TECHNICAL:
        if count >= least:
            return True
        count += source.lower.count(begin)
    for begin in DELIMITERS:
        if marks.holds(source.lower, begin):
            count += _without_scripts(source.lower).count(begin)
    return count >= least


def _without_scripts(lower: str) -> str:
    first, *others = lower.split("<script")
    return first + "".join(part.partition("</script")[2] for part in others)


def extract(html: str, *, remove_markdown: bool = True, technical_marks: int = 3) -> Extracted:
    """A page's text: all of it, however long.

    Paragraphs are apart by an empty line, items of lists begin with • or a number, cells of tables stand apart by a
    tab, code has its line breaks and indentation, formulas are TeX. Raises HTMLParserException and ValueError.

    Args:
        html: the page.
        remove_markdown: take the markers of Markdown out of everything but code.
        technical_marks: from how many blocks of code and formulas on a page takes the path of its own; ours. 0: all do.
    """
    html = html.replace("\ufdd0", "\ufffd") if "\ufdd0" in html else html
    source = marks.of(html)
    if any(tag in source.tags for tag in mathematics.PREFIXED) and ":math" in source.lower:
        html = mathematics.unprefixed(html)
        source = marks.of(html)
    technical = is_technical(source, technical_marks)
    mended = structure.cells(structure.marked(html, source), source)
    try:
        tree = HTMLTree.parse(mended if technical else structure.padded(mended))
    except UnicodeEncodeError:  # half of a surrogate pair is no text
        html = html.encode("utf-8", "replace").decode()
        return extract(html, remove_markdown=remove_markdown, technical_marks=technical_marks)
    if tree.body is None:
        return Extracted("", False, 0)
    deep = _too_deep(tree, source, technical)
    if deep and (tree := HTMLTree.parse(structure.flat(mended))).body is None:
        return Extracted("", technical, 0)
    main_content = not technical and not deep
    formulas, lost = mathematics.rewrite(tree, source)
    skipped = [PERMALINKS] if "headerlink" in source.lower or "anchor" in source.lower else []
    if not main_content:
        skipped += [structure.HIDDEN, BOILERPLATE]
        _narrow(tree, source)
    if not deep:
        structure.code(tree, source)
    structure.lists(tree, source, main_content)
    structure.raised(tree, source)
    text = extract_plain_text(tree, main_content=main_content, alt_texts=True, skip_elements=skipped or None)
    return Extracted(_finished(text, remove_markdown), technical, formulas, lost)


def _too_deep(tree: Any, source: marks.PageMarks, technical: bool) -> bool:
    if technical and source.tags["<ul"] + source.tags["<ol"] <= LISTS:
        return False
    return source.lower.count("<") > DEEPEST and tree.body.query_selector(TOO_DEEP) is not None


def _narrow(tree: Any, source: marks.PageMarks) -> None:
    """The body without what stands around its `main`, where there is one and it has the content."""
    if "<article" not in source.tags and "main" not in source.lower:
        return
    outer = [element for element in structure.all_of(tree.body, MAIN) if element.parent.closest(MAIN) is None]
    if len(outer) != 1:
        return
    length = len(outer[0].text)
    if length >= MAIN_LENGTH or length >= MAIN_SHARE * len(tree.body.text):
        tree.body.replace_children(outer[0])


def _finished(text: str, remove_markdown: bool) -> str:
    """Text outside of code with one tab between cells and without markers; code as it stands."""
    kept: list[str] = []
    prose: list[str] = []
    depth = 0
    text = text.replace(structure.PAD, "") if structure.OPEN[0] in text else text
    for part in MARKS.split(text) if structure.OPEN[0] in text else (text,):
        if part == structure.OPEN:
            depth += 1
        elif part == structure.CLOSE:
            depth = max(0, depth - 1)
        elif not depth:
            prose.append(part)
        elif part:
            if "\n" in part and prose:
                prose[-1] = _before_lines(prose[-1])
            prose.append(f"\ufdd0{len(kept)}\ufdd0")
            kept.append(part.replace("\u00a0", " "))
    text = "".join(prose).replace("\t\t", "\t")
    text = markdown.remove(text) if remove_markdown else text
    return KEPT.sub(lambda match: kept[int(match[1])], text) if kept else text


def _before_lines(prose: str) -> str:
    """What stands before lines of code, so that the first is indented as it was: without the indentation of a list."""
    bare = prose.rstrip(" ")
    if bare.endswith("\n"):
        return bare
    return bare + "\n" if ITEM.fullmatch(bare, bare.rfind("\n") + 1) else prose


class PageExtractor(BaseExtractor):
    """Documents whose text is HTML become documents of plain text; see `extract`.

    datatrove's own extractors hand each page to a second process, which can be ended; this one works in the pipeline's,
    for what takes long, the choice of main content of a deep page, is left out. Documents whose metadata say `format`
    "text" are text already (WET files, most JSON lines); Markdown's markers alone go. Those whose metadata say `class`
    "code" or "mathematics", because all of their source is that, take the technical path. Text of code, and what an
    earlier run has called technical, stays as it is: a heading in Markdown is a comment there. Sets metadata:
    extraction, "technical" or "general", and format, "text". Counts: `technical`, `formulas`, `formulas without text`
    (drawn alone, and lost), and, of what is dropped, `empty` (no text) and `unreadable` (the parser refused it; one is
    logged).
    """

    name = "Pages"

    def __init__(self, remove_markdown: bool = True, technical_marks: int = 3) -> None:
        super().__init__()
        self.remove_markdown, self.technical_marks = remove_markdown, technical_marks
        self._warned = False

    def extract(self, text: str) -> str:
        return extract(text, remove_markdown=self.remove_markdown, technical_marks=self.technical_marks).text

    def _page(self, document: Document) -> Extracted:
        kind = document.metadata.get("class")
        technical = kind in ("code", "mathematics")
        if document.metadata.get("format") != "text":
            marks = 0 if technical else self.technical_marks
            return extract(document.text, remove_markdown=self.remove_markdown, technical_marks=marks)
        before = document.metadata.get("extraction") == "technical"
        marked = self.remove_markdown and not before and kind != "code"
        return Extracted(markdown.remove(document.text) if marked else document.text, technical or before, 0)

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """The documents whose pages have text."""
        for document in data:
            self.stat_update(StatHints.total)
            with self.track_time():
                try:
                    page = self._page(document)
                except BaseException as error:
                    refused = isinstance(error, HTMLParserException | ValueError)
                    if not refused and type(error).__name__ != "PanicException":  # of Rust, and no Exception
                        raise
                    self.stat_update("unreadable", StatHints.dropped)
                    if not self._warned:
                        logger.warning(f"{document.id} is unreadable, as others may be: {error}")
                        self._warned = True
                    continue
            self.stat_update("formulas", value=page.formulas)
            if page.lost_formulas:
                self.stat_update("formulas without text", value=page.lost_formulas)
            if not page.text.strip():
                self.stat_update("empty", StatHints.dropped)
                continue
            document.text = page.text
            document.metadata |= {"extraction": "technical" if page.technical else "general", "format": "text"}
            if page.technical:
                self.stat_update("technical")
            self.stat_update(StatHints.forwarded)
            self.update_doc_stats(document)
            yield document
