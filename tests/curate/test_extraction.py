"""Pages to text: what resiliparse loses, mended, on planted pages and on Debian's documentation."""

from __future__ import annotations

import html
import os
import pickle
import re
from collections import Counter
from pathlib import Path

import pytest
from datatrove.data import Document
from resiliparse.extract.html2text import extract_plain_text

from benchmarks import curate_extract
from llama31.curate.extraction import markdown
from llama31.curate.extraction.page import PageExtractor, extract
from llama31.curate.reading.files import LinesReader
from llama31.curate.reading.warc import ArchiveReader
from tests.conftest import ROOT
from tests.curate import debian


def text(body: str, **keys: bool | int) -> str:
    return extract(f"<html><body>{body}</body></html>", **keys).text  # type: ignore[arg-type]


def plain(body: str) -> str:
    return extract_plain_text(f"<html><body>{body}</body></html>", main_content=True)


@pytest.mark.parametrize(("package", "share"), [("python-sympy-doc", 0.99), ("python-statsmodels-doc", 0.99)])
def test_formulas_of_real_pages_are_kept(package: str, share: float) -> None:
    pages = [page for path in debian.files(package) if 'class="math' in (page := path.read_text(encoding="utf-8"))]
    found = curate_extract.measure(pages[:: 1 + len(pages) // 150])
    assert found["wanted"] > 50 and found["ours_kept"] >= share * found["wanted"]


def test_code_of_real_pages_keeps_lines_and_indentation() -> None:
    blocks = 0
    for path in debian.files("python3.11-doc", limit=25):
        source = path.read_text(encoding="utf-8")
        kept = extract(source).text
        for block in re.findall(r"<div class=\"highlight\"><pre>(.*?)</pre>", source, re.DOTALL):
            bare = re.sub(r"<[^>]*>", "", block)
            if "&" not in bare and "\n  " in bare.strip("\n"):
                blocks += 1
                assert bare.strip("\n").rstrip() in kept
    assert blocks > 5


def test_lists_of_real_pages_that_resiliparse_drops() -> None:
    """A help page's body laid bare, as a plain static page has it."""
    every = lost = 0
    for path in debian.files("libreoffice-help-en-us", limit=150):
        for items in re.findall(r"<ul[^>]*>(.*?)</ul>", path.read_text(encoding="utf-8"), re.DOTALL):
            words = re.sub(r"<[^>]*>", "", items).split()
            if not words or "<a " in items or "<ul" in items or "&" in words[0]:
                continue
            body = f"<p>Some words before.</p><ul>{items}</ul><p>Some words behind.</p>"
            every += 1
            lost += words[0] not in plain(body).split()
            assert words[0] in text(body).split()
    assert every == lost > 10


LIST = "<ul><li>one thing</li><li>another thing</li></ul>"
MATHML = "<math><msup><mi>x</mi><mn>2</mn></msup><mo>+</mo><mfrac><mn>1</mn><mi>n</mi></mfrac></math>"
NOTED = (
    r'<math><semantics><mi>x</mi><annotation encoding="application/x-tex">\alpha*x*y</annotation></semantics></math>'
)
DRAWN = '<span class="katex-html" aria-hidden="true">drawn</span>'
KATEX = f'<span class="katex"><span class="katex-mathml">{NOTED}</span>{DRAWN}</span>'
MATHJAX3 = f"<mjx-container><mjx-math>drawn</mjx-math><mjx-assistive-mml>{NOTED}</mjx-assistive-mml></mjx-container>"
MATHJAX2 = '<span class="MathJax_Preview">drawn</span><span class="MathJax">drawn</span>'
MATHJAX2 += r'<script type="math/tex">\alpha*x*y</script>'
MATHJAX4 = r'<mjx-container><mjx-math data-latex="\alpha*x*y"><mjx-mi data-latex="\alpha">'
MATHJAX4 += "</mjx-mi></mjx-math></mjx-container>"
MATHJAX2_ALONE = f'<span class="MathJax" data-mathml="{html.escape(NOTED)}"><nobr>drawn</nobr>'  # of a page saved
MATHJAX2_ALONE += f'<span class="MJX_Assistive_MathML">{NOTED}</span></span>'
KRAMDOWN = '<script type="math/tex">% <![CDATA[\n\\alpha*x*y %]]></script>'
WIKIPEDIA = (
    '<span class="mwe-math-element"><span style="display: none;"><math alttext="{\\displaystyle \\alpha*x*y}">'
    '<mi>x</mi></math></span><img alt="{\\displaystyle \\alpha*x*y}"></span>'
)


RARE = {
    "<mfenced open='[' close=''><mi>a</mi><mi>b</mi></mfenced>": "[a, b",
    "<mfenced separators='|'><mi>a</mi><mi>b</mi></mfenced>": "(a|b)",
    "<mmultiscripts><mi>C</mi><mn>2</mn><none/><mprescripts/><mn>6</mn><mn>12</mn></mmultiscripts>": "{}_6^{12}C_2",
    "<mover><mi>x</mi><mo>¯</mo></mover><mover><mi>v</mi><mo>→</mo></mover>": r"\bar{x}\vec{v}",
    "<mover><mi>x</mi><mi>n</mi></mover>": "x^n",
}


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_bullets_at_every_depth(depth: int) -> None:
    body = "<div>" * depth + f"<p>Text.</p>{LIST}" + "</div>" * depth
    assert "• one thing\n  • another thing" in text(body)
    assert ("one thing" in plain(body)) == (depth == 3), "resiliparse has changed: structure.lists may be dead"


def test_lists_of_short_links_stay_out() -> None:
    body = '<ul><li><a href="/">Home</a></li><li><a href="/x">Products</a></li></ul><p>Words.</p>'
    assert text(body) == "Words."


@pytest.mark.parametrize(
    "lone", ["—", "…", "€", "→", "字", "ก", "क", "né", "x²", "1é", "&mdash;", "&#8364;", "&#x20ac;", "a&eacute;"]
)
def test_short_texts_between_tags_that_resiliparse_takes_for_icons(lone: str) -> None:
    """Of three bytes, the last beyond ASCII: cells of tables, emphasis, ruby. Icons and marks of anchors stay out."""
    shown = html.unescape(lone).strip()
    for body, wanted in (
        (f"<table><tr><td>a</td><td>{lone}</td><td>{lone}</td></tr></table>", f"a\t{shown}\t{shown}"),
        (f"<p>Some <b><i>{lone}</i></b> words</p>", f"Some {shown} words"),
        (f"<p>{lone}<br>Words</p>", f"{shown}\nWords"),
    ):
        assert text(f"<div>{body}</div>") == wanted
        assert shown not in plain(f"<div>{body}</div>"), "resiliparse has changed: structure.padded may be dead"
    assert text(f"<div><p>Some</p><p>\n{lone}\n</p></div>") == f"Some\n\n{shown}"
    for icon in ("\ue001", "&#xf0c9;", "¶"):
        assert text(f"<div><p>Some <i>{icon}</i> words</p></div>") == "Some words"


def test_numbers_of_lists() -> None:
    assert text('<div><ol start="3"><li>a<li value="9">b<li>c</ol></div>').split("\n") == ["3. a", "9. b", "10. c"]
    assert text("<div><ol reversed><li>a<li>b</ol></div>").split("\n") == ["2. a", "1. b"]
    assert text("<div><ol start=1><li>a<li>b</ol></div>") == "  1. a\n  2. b"


def test_powers_and_indices() -> None:
    body = "10<sup>6</sup> x<sup>n+1</sup> a<sub>i</sub> b<sub>ij</sub> the 1<sup>st</sup>"
    body += " note<sup><a href='#1'>[1]</a></sup>"
    assert text(f"<p>{body}</p>") == "10^6 x^{n+1} a_i b_{ij} the 1st note[1]"
    assert text("<p>M<sup>me</sup> et M<sup>lle</sup>, la 2<sup>nde</sup></p>") == "Mme et Mlle, la 2nde"
    halves = "5<sup>1</sup>&frasl;<sub>2</sub>, <sup>3</sup>/<sub>4</sub>, 1<b><sup>1</sup>/<sub>3</sub></b>"
    assert text(f"<p>{halves}</p>") == "5 1/2, 3/4, 1 1/3"


@pytest.mark.parametrize("path", [1, 1000])
@pytest.mark.parametrize("formula", [NOTED, KATEX, MATHJAX3, MATHJAX2, MATHJAX2_ALONE, MATHJAX4, KRAMDOWN, WIKIPEDIA])
def test_a_formula_comes_once_as_its_author_wrote_it(formula: str, path: int) -> None:
    assert text(f"<p>Let {formula} be.</p>", technical_marks=path) == r"Let \alpha*x*y be."


def test_mathml_without_tex_and_formulas_that_stand_alone() -> None:
    assert text(f"<p>So {MATHML} it is.</p>") == r"So x^2+\frac{1}{n} it is."
    assert (
        text(f"<p>So {MATHML.replace('<', '<m:').replace('<m:/', '</m:')} it is.</p>") == r"So x^2+\frac{1}{n} it is."
    )
    for rare, tex in RARE.items():
        assert text(f"<p>So <math>{rare}</math> it is.</p>") == f"So {tex} it is."
    assert text('<p>So <script type="math/asciimath">sum_(i=1)^n</script> is.</p>') == "So sum_(i=1)^n is."
    drawn = '<span class="katex"><span class="katex-html" aria-hidden="true">a=b</span></span>'
    assert text(f"<p>So {drawn} is.</p>") == "So a=b is."
    displayed = text('<p>So</p><script type="math/tex; mode=display">a &lt; b</script><p>is.</p>')
    assert displayed.split() == ["So", "a", "&lt;", "b", "is."]  # a script's text knows no entities
    deep = "<math>" + "<mrow>" * 5000 + "<mi>x</mi>" + "</mrow>" * 5000 + "</math>"
    assert text(f"<p>a {deep} b</p>") == "a x b"
    assert text('<p>a <img alt="x^2"> b</p>') == "a x^2 b"


def test_formulas_that_are_drawn_alone_are_counted() -> None:
    drawn = '<mjx-container jax="SVG"><svg><use data-c="1D465"></use></svg></mjx-container>'
    block = PageExtractor()
    (found,) = block.run([Document(f"<p>Let {drawn} and {NOTED} be, {drawn}.</p>", "1")])
    counts = {name: stat.total for name, stat in block.stats.stats.items() if name.startswith("formulas")}
    assert found.text == r"Let and \alpha*x*y be, ." and counts == {"formulas": 1, "formulas without text": 2}


def test_code_without_its_line_numbers() -> None:
    code = "def f():\n\n\tif x:  # **not** bold\t\t_\n        return 1"
    gutter = '<table class="highlighttable"><tr><td class="linenos"><pre>1\n2\n3\n4</pre></td>'
    for block in (
        f"<pre>\n{code}</pre>",
        f"<PRE>\n{code}</PRE>",
        f'{gutter}<td class="code"><div class="highlight"><pre>{code}</pre></div></td></tr></table>',
    ):
        for path in (1, 1000):
            assert (
                text(f"<p>See:</p><div>{block}</div><p>So.</p>", technical_marks=path)
                .strip()
                .split("\n\n", 1)[1]
                .startswith(code)
            )
    rows = "".join(
        f'<tr><td class="blob-num">{i}</td><td class="blob-code">{line}</td></tr>'
        for i, line in enumerate(["if x:", "    y()"])
    )
    assert "if x:\n    y()" in text(f"<p>See:</p><table>{rows}</table>")
    assert text("<p>Use <code>**kwargs</code>, <code>*a*</code> and **this**.</p>") == "Use **kwargs, *a* and this."


NUMBERED = {  # lines of code that stand beside their numbers, or are elements
    "prettify": '<pre class="linenums"><ol class="linenums"><li><b>{0}</b></li><li>{1}</li></ol></pre>',
    "Hugo": '<div class="chroma"><table class="lntable"><tr><td><pre><span class="lnt">1\n</span><span class="lnt">2\n'
    '</span></pre></td><td><pre><span class="line">{0}\n</span>{1}\n</pre></td></tr></table></div>',
    "Hugo in lines": '<pre class="chroma"><span class="ln">1</span>{0}\n<span class="ln">2</span>{1}</pre>',
    "cgit": '<table class="blob"><tr><td class="linenumbers"><pre><a>1</a>\n<a>2</a>\n</pre></td><td class="lines">'
    "<pre>{0}\n{1}\n</pre></td></tr></table>",
    "GitLab": '<div class="line-numbers"><a class="diff-line-num">1</a><a class="diff-line-num">2</a></div>'
    "<pre>{0}\n{1}</pre>",
    "Gitea": '<table><tr><td class="lines-num">1</td><td class="lines-code"><code>{0}\n</code></td></tr><tr><td '
    'class="lines-num">2</td><td class="lines-code"><code>{1}\n</code></td></tr></table>',
    "gitweb": '<div class="page_body"><div class="pre"><a class="linenr">1</a>{0}</div><div class="pre">'
    '<a class="linenr">2</a>{1}</div></div>',
    "Crayon": '<table><tr><td class="crayon-nums"><div>1</div><div>2</div></td><td><div class="crayon-line">{0}</div>'
    '<div class="crayon-line">{1}</div></td></tr></table>',
    "SyntaxHighlighter": '<div class="syntaxhighlighter"><table><tr><td class="gutter"><div class="line">1</div><div '
    'class="line">2</div></td><td class="code"><div class="line"><code>{0}</code></div><div class="line"><code>{1}'
    "</code></div></td></tr></table></div>",
    "Doxygen": '<div class="fragment"><div class="line"><span class="lineno">1</span>{0}</div>\n'
    '<div class="line"><span class="lineno">2</span>{1}</div></div>',
}


@pytest.mark.parametrize("form", NUMBERED)
@pytest.mark.parametrize("indent", ["    ", "&nbsp;&nbsp; &nbsp;"])
def test_numbers_and_elements_of_lines_by_who_wrote_them(form: str, indent: str) -> None:
    block = NUMBERED[form].format("def f(x):", f"{indent}return **x")
    for path in (1, 1000):
        found = text(f"<div><p>See:</p>{block}<p>So.</p></div>", technical_marks=path)
        assert re.fullmatch(r"See:\s+def f\(x\):\n    return \*\*x\s+So\.", found), found


@pytest.mark.parametrize("item", ["<p>See:</p>", ""])
@pytest.mark.parametrize("tag", ["ul", "ol"])
def test_code_in_lists_is_indented_as_it_was(tag: str, item: str) -> None:
    code = "for x in y:\n    if x:\n        z()"
    inner = f"<{tag}><li>{item}<pre><code>{code}</code></pre></li></{tag}>"
    for body in (inner, f"<ul><li>one{inner}</li></ul>"):
        for path in (1, 1000):
            assert f"\n{code}\n" in text(f"<div>{body}</div><p>So.</p>", technical_marks=path)


def test_programs_of_a_page_do_not_make_it_technical() -> None:
    r"""Where `\(` and `$$` are what expressions and selectors are made of."""
    script = r"<SCRIPT>a=/\(/; b=/\(x\)/; c=/\(\)/; $$('a'); $$('b'); $$('c')</SCRIPT>"
    assert not extract(f"<html><body>{script}<p>Words.</p></body></html>").technical
    formulas = r"<p>So \(a\), \(b\) and $$c$$.</p>"
    assert extract(f"<html><body>{script}{formulas}</body></html>").technical


def test_tables_have_a_tab_between_cells() -> None:
    assert (
        text("<table><tr><th>a<th>b<th>c</tr><tr><td><p>1</p></td><td></td><td>3</td></tr></table>")
        == "a\tb\tc\n1\t\t3"
    )


def test_what_is_hidden_stays_out_on_both_paths() -> None:
    body = '<div style="DISPLAY: none">secret</div><p hidden>secret</p><p>seen</p>'
    assert text(body, technical_marks=1000) == text(body + "<pre></pre>", technical_marks=1).strip() == "seen"


def test_pages_of_code_keep_what_main_content_drops() -> None:
    body = "<nav>Menu</nav><main><ul><li>$$x$$</li></ul><pre>a</pre><pre>b</pre></main><footer>Imprint</footer>"
    found = extract(f"<html><body>{body}</body></html>")
    assert found.technical and found.text.split() == ["•", "$$x$$", "a", "b"]


def test_markdown_is_removed_by_its_key_and_text_is_not() -> None:
    marked = "# Title #\n\nA **bold** and *soft* [link](http://a.b/c) and `x*y*z`.\n\n> said\n\n"
    marked += "| a | b |\n|---|---|\n| 1 | 2 |\n\n* item\n\n```py\n# code\n```"
    assert (
        markdown.remove(marked)
        == "Title\n\nA bold and soft link and x*y*z.\n\nsaid\n\na\tb\n1\t2\n\n• item\n\n# code\n"
    )
    for kept in (
        "2 * 3 * 4",
        "x**2 + y**2",
        "__init__ and snake_case_",
        "- Bonjour",
        "a[i](x y)",
        r"\(a*b*c\)",
        "C# and #1",
        "5 > 3",
        "PyObject *PyWrapper_New(PyObject*, PyObject*)",
        "PyObject *(*)(PyObject *path, void *data)",
        "# of channels\tThe number of channels",
        ">\tRight-align",
        r"0 < b^{*} \wedge 0 < c^{*}",
        "[M]*[q, u]^T = [A]*[q_ind]",
        "f(*args, **kwargs) and g(*args, **kwargs)",
    ):
        assert markdown.remove(kept) == kept
    assert text("<p>**x**</p>") == "x" and text("<p>**x**</p>", remove_markdown=False) == "**x**"


def test_comments_of_real_code_stay_and_headings_of_real_markdown_go() -> None:
    """Of code without fences, as records and WET files have it; both begin a line with #."""
    begins, kept, lines = re.compile(r" {0,3}# \S"), 0, 0
    for path in sorted(Path(os.__file__).parent.glob("*.py"))[:40]:
        source = path.read_text(encoding="utf-8", errors="replace")
        comments = Counter(line for line in source.split("\n") if begins.match(line))
        kept += (comments & Counter(markdown.remove(source).split("\n"))).total()
        lines += comments.total()
    assert lines > 300 and kept > 0.9 * lines
    headings, left = 0, 0
    for path in [*ROOT.glob("docs/*.md"), *ROOT.glob("*.md")]:
        source = markdown.FENCED.sub("", path.read_text(encoding="utf-8"))
        found = Counter(line for line in source.split("\n") if re.match(r"#{1,6} \S", line))
        left += (found & Counter(markdown.remove(source).split("\n"))).total()
        headings += found.total()
    assert headings > 100 and left == 0


@pytest.mark.parametrize(
    "mark", [r"\(a", r"\[a ", "**a ", "__a ", "*a ", "![a", "[a](b ", "~~a ", "`a ", "$$a", "# ", "> ", "|a", "```\n"]
)
def test_marks_that_nothing_closes_take_time_by_their_number(mark: str) -> None:
    """A megabyte of beginnings, each of which could look for its end: minutes, if it looked at all others."""
    text = mark * (1_000_000 // len(mark))
    assert 0 <= len(markdown.remove(text)) <= len(text)


def test_a_class_that_a_source_has_decides_the_path() -> None:
    code = "#include <a>\n\n# Heading or comment\n\n{x}"
    for kind, technical, wanted in (
        ("code", "technical", code),
        ("mathematics", "technical", code.replace("# H", "H")),
        ("general", "general", code.replace("# H", "H")),
    ):
        document = Document(code, "1", metadata={"format": "text", "class": kind})
        (found,) = PageExtractor().run([document])
        assert found.text == wanted and found.metadata["extraction"] == technical
    again = Document(code, "1", metadata={"format": "text", "extraction": "technical"})  # of an earlier run
    assert next(PageExtractor().run([again])).text == code
    page = Document("<p>x</p>", "1", metadata={"class": "mathematics", "format": "html"})
    assert next(PageExtractor().run([page])).metadata["extraction"] == "technical"


def test_blocks_can_be_pickled_for_executors(tmp_path: Path) -> None:
    for block in (PageExtractor(technical_marks=5), ArchiveReader(str(tmp_path), "a"), LinesReader(str(tmp_path), "a")):
        assert vars(pickle.loads(pickle.dumps(block))).keys() == vars(block).keys()


def test_documents_that_are_text_already_are_not_parsed() -> None:
    document = Document(text="if a <b> and c > d: **x**", id="1", metadata={"format": "text"})
    assert next(PageExtractor().run([document])).text == "if a <b> and c > d: x"


def test_nothing_crashes_and_everything_is_counted() -> None:
    block = PageExtractor()
    pages = [
        "",
        "<html>",
        "\0",
        "\ud800",
        "<div>" * 20_000 + "x",
        "<p>\ufdd0A\ufdd00\ufdd0</p>",
        "<b><i>" * 2000 + "y",
        "<ul><li>a" * 20_000,
        '<table class="lntable"><tr><td><pre>a' * 1000,
        "<pre class=linenums><ol><li>a" * 10_000,
        "<script type='math/tex'>" + "<![CDATA[ " * 50_000 + "</script>",
        "<p>z</p>" * 200_000,
    ]
    documents = list(block.run(Document(text=page, id=str(i)) for i, page in enumerate(pages)))
    stats = {name: stat.total for name, stat in block.stats.stats.items()}
    assert (
        stats["total"] == len(pages) == stats["forwarded"] + stats["dropped"] and len(documents) == stats["forwarded"]
    )
    assert stats["dropped"] == stats["empty"] + stats.get("unreadable", 0)
    assert len(documents[-1].text) >= 400_000, "nothing is cut"
    assert all(len(document.text) < 1_000_000 for document in documents), "nothing grows by the square of its depth"
    assert documents[-1].metadata == {"extraction": "general", "format": "text"}
