r"""Formulas of a page as text, before its text is taken: resiliparse leaves scripts out and runs MathML together.

A formula becomes the TeX that its author wrote where the page has it (an annotation, `alttext`, a script of MathJax, an
attribute), and TeX made from the elements of MathML where not: `\frac{a}{b}`, `x^{2}`, symbols as they stand. Images
keep their alternative text, which resiliparse sees to. A formula that stands in a page twice, drawn and for screen
readers, as KaTeX, MathJax and MediaWiki write it, comes once.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

from llama31.curate.extraction import marks, structure

# By what a page with one must hold.
TAGS = ("<math", "<mjx-", "<mjx-container")
MATH = re.compile("math(?:/tex|/mml|/ascii|ml=)")
PREFIXED = ("<m:", "<mml:", "<math")  # the last for <mathml:
PREFIX = re.compile(r"<(/?)(?:m|mml|mathml):(?=[a-z])", re.IGNORECASE)
DEEPEST = 100  # levels of MathML that are read as elements; below, their bare text
DRAWN = (
    ".MathJax, .MathJax_Preview, .MathJax_Display, .MathJax_SVG, .MathJax_SVG_Display, .MathJax_CHTML, .MJXc-display"
)
# Containers whose formula is read from inside, outermost first, so that what is inside is gone when its turn comes.
CONTAINERS = ".mwe-math-element, .katex, mjx-container, [data-mathml], math"
SCRIPTS = 'script[type^="math/tex"], script[type^="math/mml"], script[type^="math/asciimath"]'


def unprefixed(html: str) -> str:
    """The source with `<mml:math>` and its like, as XML has it, by the names that parsers of HTML know."""
    return PREFIX.sub(r"<\1", html)


def rewrite(tree: Any, source: marks.PageMarks) -> tuple[int, int]:
    """Put the formulas of a parsed page in as text.

    Returns how many, and how many there are of which the page holds no text, only what is drawn.
    """
    tagged = any(tag in source.tags for tag in TAGS)
    if not tagged and "katex" not in source.lower and not ("math" in source.lower and MATH.search(source.lower)):
        return 0, 0
    body, count, drawn_alone = tree.body, 0, 0
    scripts = body.query_selector_all(SCRIPTS).values()
    for script in scripts:
        of_mathml = "mml" in (script.getattr("type") or "")
        formula = _parsed(tree, script.text) if of_mathml else _unwrapped(script.text.strip())
        count += _replace(tree, script, formula, "mode=display" in (script.getattr("type") or ""))
    if scripts:
        for drawn in body.query_selector_all(DRAWN).values():
            drawn.remove()
    for element in body.query_selector_all(CONTAINERS).values():
        parent = element.parent
        if parent is None or (hasattr(parent, "closest") and parent.closest(CONTAINERS) is not None):
            continue  # it stands in one that has been read, or will be
        math = element if element.tag == "math" else element.query_selector("math")
        formula = (_tex(math) if math is not None else "") or _attribute(tree, element)
        if formula:
            count += _replace(tree, element, formula, _is_block(element) or (math is not None and _is_block(math)))
        elif element.tag != "math":
            drawn_alone += 1
    return count, drawn_alone


def _is_block(element: Any) -> bool:
    """Whether a formula stands on a line of its own."""
    told = (element.getattr("display"), element.getattr("mode"))
    return bool({"block", "true", "display"} & {*told}) or element.closest(".katex-display") is not None


def _replace(tree: Any, element: Any, formula: str, block: bool) -> int:
    if not formula:
        element.remove()
        return 0
    text = tree.create_text_node(f"{structure.OPEN}{formula}{structure.CLOSE}")
    if block:
        line = tree.create_element("div")
        line.append(text)
        element.replace_with(line)
    else:
        element.replace_with(text)
    return 1


def _attribute(tree: Any, element: Any) -> str:
    """TeX, or words, that a container has outside of MathML; of KaTeX without it what is drawn."""
    inside = element.query_selector("[data-latex]")  # of MathJax 4, the first for the whole formula
    for one, name in ((element, "data-latex"), (element, "data-tex"), (inside, "data-latex"), (element, "aria-label")):
        if one is not None and (text := one.getattr(name)):
            return str(text).strip()
    if source := element.getattr("data-mathml"):
        return _parsed(tree, source)
    image = element.query_selector("img[alt]")
    if image is not None:
        return _clean(image.getattr("alt"))
    drawn = element.query_selector(".katex-html")
    return _bare(drawn.text) if drawn is not None else ""


def _parsed(tree: Any, source: str) -> str:
    """The formula of MathML that stands in a script or an attribute."""
    math = tree.parse(source).body.query_selector("math")
    return _tex(math) if math is not None else ""


def _clean(tex: str) -> str:
    """Without the wrapper that MediaWiki puts around every formula."""
    wrapped = re.fullmatch(r"\s*\{\\(?:display|text)style\s+(.*)\}\s*", tex, re.DOTALL)
    return (wrapped[1] if wrapped else tex).strip()


def _tex(math: Any) -> str:
    for note in math.query_selector_all("annotation").values():
        if "tex" in (note.getattr("encoding") or "").lower() and note.text.strip():
            return _clean(note.text)
    if told := math.getattr("alttext"):
        return _clean(told)
    return re.sub(r"\s+", " ", _element(math, 0)).strip()


def _unwrapped(text: str) -> str:
    """TeX without `% <![CDATA[` and `%]]>` around it, which kramdown writes."""
    before, begins, rest = text.partition("<![CDATA[")
    if not begins or before.strip() not in ("", "%") or not rest.endswith("]]>"):
        return text
    return rest.removesuffix("]]>").rstrip().removesuffix("%").strip()


def _group(text: str) -> str:
    return text if len(text) == 1 else f"{{{text}}}"


def _row(parts: list[str]) -> str:
    """Side by side; a blank where two words would become one."""
    result = ""
    for part in parts:
        apart = result[-1:].isalpha() and part[:1].isalpha() and (len(part) > 1 or re.search(r"\w\w$", result))
        result += (" " if apart else "") + part
    return result


def _fenced(element: Any, parts: list[str]) -> str:
    begin, end, marks = (element.getattr(name) for name in ("open", "close", "separators"))
    apart = ", " if marks is None or marks.strip()[:1] == "," else marks.strip()[:1]
    return ("(" if begin is None else begin) + apart.join(parts) + (")" if end is None else end)


def _multiscripts(element: Any, parts: list[str]) -> str:
    """A base with indices and powers behind it, and before it."""
    tags = [child.tag for child in element.children.values()]
    middle = tags.index("mprescripts") if "mprescripts" in tags else len(tags)
    sides = []
    for side in (parts[middle + 1 :], parts[1:middle]):
        pairs = itertools.zip_longest(side[::2], side[1::2], fillvalue="")
        sides.append("".join((sub and f"_{_group(sub)}") + (sup and f"^{_group(sup)}") for sub, sup in pairs))
    return (sides[0] and "{}" + sides[0]) + parts[0] + sides[1]


ACCENTS = dict.fromkeys("¯\u203e\u0304_", "bar") | dict.fromkeys("^\u02c6\u0302", "hat")
ACCENTS |= dict.fromkeys("~\u02dc\u0303", "tilde") | dict.fromkeys("→\u20d7", "vec") | {"˙": "dot", "¨": "ddot"}
SHAPES: dict[str, tuple[int, Callable[[list[str]], str]]] = {  # how many children, and what they make
    "mfrac": (2, lambda p: rf"\frac{{{p[0]}}}{{{p[1]}}}"),
    "msup": (2, lambda p: f"{p[0]}^{_group(p[1])}"),
    "msub": (2, lambda p: f"{p[0]}_{_group(p[1])}"),
    "msubsup": (3, lambda p: f"{p[0]}_{_group(p[1])}^{_group(p[2])}"),
    "munder": (2, lambda p: f"{p[0]}_{_group(p[1])}"),
    "mover": (2, lambda p: rf"\{ACCENTS[p[1]]}{{{p[0]}}}" if p[1] in ACCENTS else f"{p[0]}^{_group(p[1])}"),
    "munderover": (3, lambda p: f"{p[0]}_{_group(p[1])}^{_group(p[2])}"),
    "mroot": (2, lambda p: rf"\sqrt[{p[1]}]{{{p[0]}}}"),
}
ROWS: dict[str, Callable[[list[str]], str]] = {  # of any number of children
    "msqrt": lambda p: rf"\sqrt{{{_row(p)}}}",
    "mtr": " & ".join,
    "mlabeledtr": " & ".join,
    "mtable": r" \\ ".join,
}


OF_ELEMENT: dict[str, Callable[[Any, list[str]], str]] = {"mfenced": _fenced, "mmultiscripts": _multiscripts}


def _bare(text: str) -> str:
    return re.sub(r"[\s\u200b\u2061-\u2064]+", " ", text.replace(structure.PAD, "")).strip()


def _element(element: Any, depth: int) -> str:
    tag = element.tag
    if tag in ("annotation", "annotation-xml", "mphantom"):
        return ""
    children = [] if depth > DEEPEST else element.children.values()
    if not children:
        return _bare(element.text)
    parts = [_element(child, depth + 1) for child in children]
    if tag in OF_ELEMENT:
        return OF_ELEMENT[tag](element, parts)
    if tag in SHAPES and len(parts) == SHAPES[tag][0]:
        return SHAPES[tag][1](parts)
    return ROWS[tag](parts) if tag in ROWS else _row(parts)
