r"""Formulas of a page as text, before its text is taken: resiliparse leaves scripts out and runs MathML together.

A formula becomes the TeX that its author wrote where the page has it (an annotation, `alttext`, a script of MathJax, an
attribute), and TeX made from the elements of MathML where not: `\frac{a}{b}`, `x^{2}`, symbols as they stand. Images
keep their alternative text, which resiliparse sees to. A formula that stands in a page twice, drawn and for screen
readers, as KaTeX, MathJax and MediaWiki write it, comes once.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from llama31.curate.extraction import structure

MARKS = {"math": ("<math", "math/tex"), "katex": ("katex",), "<mjx": ("<mjx-",)}  # by what a page with one must hold
DEEPEST = 100  # levels of MathML that are read as elements; below, their bare text
DRAWN = (
    ".MathJax, .MathJax_Preview, .MathJax_Display, .MathJax_SVG, .MathJax_SVG_Display, .MathJax_CHTML, .MJXc-display"
)
# Containers whose formula is read from inside, outermost first, so that what is inside is gone when its turn comes.
CONTAINERS = ".mwe-math-element, .katex, mjx-container, math"


def rewrite(tree: Any, lower: str) -> int:
    """Put the formulas of a parsed page, `lower` its source in lower case, in as text; how many there were."""
    if not any(mark in lower for common, marks in MARKS.items() if common in lower for mark in marks):
        return 0
    body, count = tree.body, 0
    scripts = body.query_selector_all('script[type^="math/tex"], script[type^="math/mml"]').values()
    for script in scripts:
        of_mathml = "mml" in (script.getattr("type") or "")
        math = tree.parse(script.text).body.query_selector("math") if of_mathml else None
        formula = (_tex(math) if math is not None else "") if of_mathml else script.text.strip()
        count += _replace(tree, script, formula, "mode=display" in (script.getattr("type") or ""))
    if scripts:
        for drawn in body.query_selector_all(DRAWN).values():
            drawn.remove()
    for element in body.query_selector_all(CONTAINERS).values():
        parent = element.parent
        if parent is None or (hasattr(parent, "closest") and parent.closest(CONTAINERS) is not None):
            continue  # it stands in one that has been read, or will be
        math = element if element.tag == "math" else element.query_selector("math")
        formula = (_tex(math) if math is not None else "") or _attribute(element)
        if formula:
            count += _replace(tree, element, formula, _is_block(element) or (math is not None and _is_block(math)))
    return count


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


def _attribute(element: Any) -> str:
    """TeX, or words, that a container has outside of MathML."""
    for name in ("data-latex", "data-tex", "aria-label"):
        if text := element.getattr(name):
            return str(text).strip()
    image = element.query_selector("img[alt]")
    return _clean(image.getattr("alt")) if image is not None else ""


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


def _group(text: str) -> str:
    return text if len(text) == 1 else f"{{{text}}}"


def _row(parts: list[str]) -> str:
    """Side by side; a blank where two words would become one."""
    result = ""
    for part in parts:
        apart = result[-1:].isalpha() and part[:1].isalpha() and (len(part) > 1 or re.search(r"\w\w$", result))
        result += (" " if apart else "") + part
    return result


def _fenced(parts: list[str]) -> str:
    return "(" + ", ".join(parts) + ")"


SHAPES: dict[str, tuple[int, Callable[[list[str]], str]]] = {  # how many children, and what they make
    "mfrac": (2, lambda p: rf"\frac{{{p[0]}}}{{{p[1]}}}"),
    "msup": (2, lambda p: f"{p[0]}^{_group(p[1])}"),
    "msub": (2, lambda p: f"{p[0]}_{_group(p[1])}"),
    "msubsup": (3, lambda p: f"{p[0]}_{_group(p[1])}^{_group(p[2])}"),
    "munder": (2, lambda p: f"{p[0]}_{_group(p[1])}"),
    "mover": (2, lambda p: f"{p[0]}^{_group(p[1])}"),
    "munderover": (3, lambda p: f"{p[0]}_{_group(p[1])}^{_group(p[2])}"),
    "mroot": (2, lambda p: rf"\sqrt[{p[1]}]{{{p[0]}}}"),
}
ROWS: dict[str, Callable[[list[str]], str]] = {  # of any number of children
    "msqrt": lambda p: rf"\sqrt{{{_row(p)}}}",
    "mfenced": _fenced,
    "mtr": " & ".join,
    "mlabeledtr": " & ".join,
    "mtable": r" \\ ".join,
}


def _element(element: Any, depth: int) -> str:
    tag = element.tag
    if tag in ("annotation", "annotation-xml", "mphantom"):
        return ""
    children = [] if depth > DEEPEST else element.children.values()
    if not children:
        return re.sub(r"[\s\u2061-\u2064]+", " ", element.text).strip()
    parts = [_element(child, depth + 1) for child in children]
    if tag in SHAPES and len(parts) == SHAPES[tag][0]:
        return SHAPES[tag][1](parts)
    return ROWS[tag](parts) if tag in ROWS else _row(parts)
